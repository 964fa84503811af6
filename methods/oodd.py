"""OODD: test-time OOD detection with a dynamic dictionary (Yang et al., CVPR 2025, arXiv:2503.10468)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from oodbench.method import Batch, Needs, StreamMethod, Task

# What the papers call the score of a method, from the logarithm, log-odds or distance that it stores.
PAPERS = {
    "mcm": "exp",
    "msp": "exp",
    "cover": "exp",
    "cma": "exp",
    "coop": "exp",
    "tip_adapter": "exp",
    "linear_probe": "exp",
    "neglabel": "sigmoid",
    "csp": "sigmoid",
    "clipn": "sigmoid",
    "knn": "cosine",
}


@dataclass(frozen=True)
class Dictionary:
    """The q lowest scores so far, [q], lowest first, and the embeddings of these images, [q d]."""

    scores: Float64[Tensor, " q"]
    vectors: Float[Tensor, "q d"]


@dataclass(frozen=True)
class OODD(StreamMethod[Dictionary | None]):
    """Another method's score minus the k-th largest cosine of the image with a dictionary of likely OOD images.

    The dictionary is a priority queue of the images with the lowest scores of `base` so far. A batch enters it before
    it is scored, so that an image in it is its own nearest neighbour. While fewer than k images are queued, the
    smallest cosine counts. Of equal scores the earlier image stays; in the released code a heap decides.

    The queue must be short compared with the stream: the paper has 2,048 of some 60,000 images. A stream that is not
    longer than `queue` is kept completely, including its ID images, and these have the lowest scores, because they have
    more neighbours: for the few thousand images of glyphs write oodd[queue=64].

    The scale of the base score decides how much it counts against the cosines. The released code subtracts cosines from
    the largest probability of MCM, which spreads over 0.001, and from NegLabel's S, which spreads over 1; `transform`
    makes these of the logarithm and the log-odds that oodbench stores.

    Released code: queue 2,048, k 5, batches of 64, order of numpy seed 110, one queue for each OOD set: --stream-batch
    64 --stream-seeds 110 (zxk1212/OODD, edbb1a3; MCM/eval_ood_detection.py:168-207 and
    NegLabel/tools/ood_test.py:260-298). Its variant on a supervised KNN (configs/postprocessors/knn.yml, bash.sh) has
    base=knn[k=5..100], queue=2048 for ImageNet, 512 for CIFAR-100 and 128 for CIFAR-10, batches of 512, order of seed
    100; its bank is half of the training images, class by class those of largest softmax probability, each as its most
    confident augmented view, which is not done here; its code for generated outliers is switched off.

    base       the method whose scores are refined, such as neglabel[groups=10]
    transform  what is made of a base score s: "exp" or "sigmoid" of it, "cosine" (1 - s^2 / 2, of a distance s between
               unit vectors) or "none"; "paper" is exp for methods that store the logarithm of a probability (mcm, msp,
               cover, cma, coop, tip_adapter, linear_probe), sigmoid for log-odds (neglabel, csp, clipn), cosine for
               knn, and none for others; locoop and sct with rule=mcm also store logarithms: write transform=exp
    queue      size of the dictionary
    k          which nearest neighbour of the dictionary counts
    """

    formula: ClassVar[str] = r"""
    S(x) = S_{\text{base}}(x) - v^\top v_{(k)}, \qquad S_{\text{base}}(x) = \max_c
    \frac{e^{\cos(v, t_c)}}{\sum_{j=1}^{K} e^{\cos(v, t_j)}}

    v                embedding of image x, of unit length
    v_{(k)}          embedding in the dictionary with the k-th largest cosine with v
    S_{\text{base}}  score of `base` as its paper has it, here of MCM, the default
    t_c              text embedding of class c of K
    k                `k`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.STREAM
    sees_itself: ClassVar[bool] = True
    base: str = "mcm"
    transform: Literal["paper", "exp", "sigmoid", "cosine", "none"] = "paper"
    queue: int = 2048
    k: int = 5

    def __post_init__(self) -> None:
        if min(self.queue, self.k) < 1:
            raise ValueError(f"queue={self.queue} and k={self.k} must be at least 1")
        if self.k > self.queue:
            raise ValueError(f"k={self.k} is more than queue={self.queue}: there is no such neighbour")

    def begin(self, task: Task) -> Dictionary | None:
        return None

    def step(
        self, batch: Batch, task: Task, state: Dictionary | None
    ) -> tuple[Float64[Tensor, " b"], Dictionary | None]:
        """Add the batch to the dictionary, then score it."""
        scores = self._transformed(batch.base)
        held = state or Dictionary(scores[:0], batch.features[:0])
        every = torch.cat([held.scores, scores])
        lowest = every.argsort(stable=True)[: self.queue]
        dictionary = Dictionary(every[lowest], torch.cat([held.vectors, batch.features])[lowest])
        nearest = (batch.features @ dictionary.vectors.T).topk(min(self.k, len(lowest))).values
        return scores - nearest[:, -1], dictionary

    def _transformed(self, scores: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Return the base score as its paper has it."""
        name = self.base.partition("[")[0].strip()
        kind = PAPERS.get(name, "none") if self.transform == "paper" else self.transform
        if kind == "exp":
            return scores.exp()
        if kind == "sigmoid":
            return scores.sigmoid()
        return 1 - scores.square() / 2 if kind == "cosine" else scores
