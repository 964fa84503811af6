"""ZOC (CoCa): ZOC whose names an encoder writes that can (Esmaeilpour et al., AAAI 2022, arXiv:2109.02748)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task, logsumexp

from ._candidates import Names, best, ends, names

IMAGES = 32  # captioned at once: 9 tokens' logits over 49,408 of them are 57 MB


@dataclass(frozen=True)
class ZOCCoCa(Method[Names]):
    """The softmax mass on the seen class names beside names that the encoder's own decoder generates for the image.

    ZOC without training: CoCa writes captions itself. The rest is `zoc`'s: of each of `steps` tokens, each the most
    probable one, the k best are decoded alone to strings, which are the image's candidates without repetitions and seen
    class names; the end of the sentence does not stop it. The score is the log-odds of S = sum_seen e / (sum_seen e +
    sum_candidates e), which ranks as the paper's 1 - S(candidates) does. The prompts of the whole vocabulary, 49,408
    tokens, are encoded once per encoder; without a GPU that takes long. The paper has no row of it: CoCa has learnt to
    write, and to compare, from other captions than the paper's decoder and CLIP.

    templates     the prompts of class names and candidates
    scale         factor on the cosines; None is the encoder's own
    k             tokens kept of each step
    steps         tokens written, after the start
    specials      start and end stay among the candidates, and so do empty strings
    remove_seen   seen class names are no candidates
    """

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.PIXELS | Needs.ENCODER | Needs.CAPTIONS
    templates: str = "This is a photo of a {}"
    scale: float | None = 100.0
    k: int = 35
    steps: int = 9
    specials: bool = False
    remove_seen: bool = True

    def fit(self, task: Task) -> Names:
        """The text vectors of all that may be said."""
        if min(self.k, self.steps) < 1:
            raise ValueError(f"k={self.k} and steps={self.steps} must be at least 1")
        encoder = task.encoder
        strings = [encoder.detokenize(token).strip() for token in range(encoder.captioner().vocabulary)]
        left_out = set(task.classes) if self.remove_seen else set()
        if not self.specials:
            left_out |= {"", *(encoder.detokenize(token).strip() for token in ends(encoder))}
        found = names(strings, left_out, self.templates, task)
        if found is None:
            raise ValueError("the encoder's vocabulary has no name besides the class names")
        return found

    def score(self, batch: Batch, task: Task, state: Names) -> Float[Tensor, " b"]:
        seen = logsumexp(task.logits(batch.features, self.templates, self.scale))
        scale = task.scale if self.scale is None else self.scale
        rivals = [
            state.rivalry(features, self.said(pixels, task, state), scale)
            for features, pixels in zip(
                torch.split(batch.features, IMAGES), torch.split(batch.pixels, IMAGES), strict=True
            )
        ]
        return seen - torch.cat(rivals)

    def said(self, pixels: Float[Tensor, "b 3 height width"], task: Task, state: Names) -> Bool[Tensor, "b m"]:
        """Which names are an image's candidates."""
        captioner = task.encoder.captioner()
        encoded = captioner.encode(pixels)
        start = torch.full((len(pixels), 1), ends(task.encoder)[0], device=encoded.device)
        ids = torch.arange(captioner.vocabulary, device=encoded.device)
        return state.said(
            best(lambda tokens: captioner.next_token_logits(encoded, tokens), ids, start, self.steps, self.k)
        )
