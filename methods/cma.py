"""CMA: concept matching with agents (Lee et al., AAAI 2025, arXiv:2405.16766)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task, logsumexp

from ._wordnet import read_lines


@dataclass(frozen=True)
class Agents:
    """The vectors [a d] of the agents, of unit length, and the logarithms [a] of their counts."""

    vectors: Tensor
    log_counts: Tensor


@dataclass(frozen=True)
class CMA(Method[Agents]):
    """Largest softmax probability of the ID classes against neutral prompts (the agents), as its logarithm.

    The softmax is over the cosines with the K class names and M = K agents, divided by the temperature. There are five
    agents; the released code repeats them in turn until there are M. Of fewer than five, the first M are taken. The
    fourth, "a photo highlighting different textures.", names what the set Textures shows.

    Released code: its agents end with a period, and its class prompts do not. The paper was not available: no number of
    it was read.

    templates    prompts of the class names
    temperature  tau of the paper
    agents       the agents, separated by |, or a file with one a line
    ratio        k = M / K of the paper; M is rounded up (the released code sets M itself, by --num-agents)
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \max_c \frac{e^{\cos(v, t_c) / \tau}}
    {\sum_{j=1}^{K} e^{\cos(v, t_j) / \tau} + \sum_{m=1}^{M} e^{\cos(v, a_m) / \tau}}

    v     embedding of image x
    t_c   text embedding of class c of K
    a_m   text embedding of agent m of M; the agents are repeated in turn, and M is `ratio` times K, rounded up
    \tau  `temperature`
    """
    templates: str = "simple"
    temperature: float = 1.0
    agents: str = (
        "a photo of a thing.|a photo of an everyday object.|a photo of a scene we live in."
        "|a photo highlighting different textures.|a photo of a thing that we can see in nature."
    )
    ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.ratio <= 0:
            raise ValueError(f"temperature={self.temperature} and ratio={self.ratio} must be above 0")
        if not self._agents():
            raise ValueError(f"agents={self.agents!r} names no prompt; separate prompts by |, or name a file")

    def text_encodings(self, classes: int) -> int:
        return len(self._counts(classes))

    def fit(self, task: Task) -> Agents:
        counts = self._counts(len(task.classes))
        vectors = task.words(self._agents()[: len(counts)])
        return Agents(vectors, torch.tensor(counts, dtype=vectors.dtype, device=vectors.device).log())

    def score(self, batch: Batch, task: Task, state: Agents) -> Float[Tensor, " b"]:
        logits = batch.features, self.templates, 1 / self.temperature
        agents = logsumexp(batch.features @ state.vectors.T / self.temperature + state.log_counts)
        return task.largest(*logits) - torch.logaddexp(task.logsumexp(*logits), agents)

    def _agents(self) -> list[str]:
        path = Path(self.agents).expanduser()
        if "|" not in self.agents and ("/" in self.agents or path.is_file()):
            if not path.is_file():
                raise ValueError(f"agents: no file {path}; if it is one prompt with a /, write | at its end")
            return read_lines(path, "agents")
        return [prompt.strip() for prompt in self.agents.split("|") if prompt.strip()]

    def _counts(self, classes: int) -> list[int]:
        """Return how many times each agent that is used counts."""
        agents, m = len(self._agents()), max(1, math.ceil(classes * self.ratio))
        return [m // agents + (i < m % agents) for i in range(min(agents, m))]
