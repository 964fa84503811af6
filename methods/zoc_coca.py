"""ZOC (CoCa): ZOC with the captions of the encoder's own decoder (Esmaeilpour et al., AAAI 2022, arXiv:2109.02748)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task, logsumexp

from ._candidates import Names, candidate_names, greedy_top_k, start_and_end

IMAGES = 32  # captioned at once: 9 tokens' logits over 49,408 of them are 57 MB


@dataclass(frozen=True)
class ZOCCoCa(Method[Names]):
    """Softmax probability of the ID class names against candidate names that CoCa's decoder generates for the image.

    This is ZOC without training, because CoCa writes captions itself. All else is as in `zoc`: `steps` tokens are
    decoded greedily, and the k most probable tokens of each step, decoded alone to strings, are the candidates of the
    image, without repetitions and seen (ID) class names; the end token does not stop the decoding. The score is the
    log-odds of the probability of the seen classes. The prompts of the entire vocabulary, 49,408 tokens, are encoded
    once per encoder, which takes long without a GPU.

    Released code: the paper has no such result. CoCa was trained on other captions than the paper's decoder and CLIP.

    templates    prompts of class names and candidates
    scale        factor on the cosines; None takes the encoder's own
    k            number of candidate tokens of each step
    steps        number of generated tokens, after the start token
    specials     whether the start and end tokens and empty strings are candidates
    remove_seen  whether seen (ID) class names are removed from the candidates
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \frac{\sum_{y \in \mathcal{Y}_s} \exp(s \, v^\top t_y)}
    {\sum_{y \in \mathcal{Y}_u(x)} \exp(s \, v^\top t_y)}

    v                 embedding of image x, of unit length
    t_y               text embedding of name y, of unit length
    \mathcal{Y}_s     seen (ID) class names
    \mathcal{Y}_u(x)  candidate names that CoCa's decoder generates for the image
    s                 `scale`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.PIXELS | Needs.ENCODER | Needs.CAPTIONS
    templates: str = "This is a photo of a {}"
    scale: float | None = 100.0
    k: int = 35
    steps: int = 9
    specials: bool = False
    remove_seen: bool = True

    def fit(self, task: Task) -> Names:
        """Return the text embeddings of all names that the decoder may generate."""
        if min(self.k, self.steps) < 1:
            raise ValueError(f"k={self.k} and steps={self.steps} must be at least 1")
        encoder = task.encoder
        strings = [encoder.detokenize(token).strip() for token in range(encoder.captioner().vocabulary)]
        excluded = set(task.classes) if self.remove_seen else set()
        if not self.specials:
            excluded |= {"", *(encoder.detokenize(token).strip() for token in start_and_end(encoder))}
        names = candidate_names(strings, excluded, self.templates, task)
        if names is None:
            raise ValueError("the encoder's vocabulary has no name other than the class names")
        return names

    def score(self, batch: Batch, task: Task, state: Names) -> Float[Tensor, " b"]:
        seen = logsumexp(task.logits(batch.features, self.templates, self.scale))
        scale = task.scale if self.scale is None else self.scale
        unseen = [
            state.candidate_logsumexp(features, self.candidates(pixels, task, state), scale)
            for features, pixels in zip(
                torch.split(batch.features, IMAGES), torch.split(batch.pixels, IMAGES), strict=True
            )
        ]
        return seen - torch.cat(unseen)

    def candidates(self, pixels: Float[Tensor, "b 3 height width"], task: Task, state: Names) -> Bool[Tensor, "b m"]:
        """Return which names are an image's candidates."""
        captioner = task.encoder.captioner()
        encoded = captioner.encode(pixels)
        start = torch.full((len(pixels), 1), start_and_end(task.encoder)[0], device=encoded.device)
        ids = torch.arange(captioner.vocabulary, device=encoded.device)
        tokens = greedy_top_k(
            lambda tokens: captioner.next_token_logits(encoded, tokens), ids, start, self.steps, self.k
        )
        return state.mask(tokens)
