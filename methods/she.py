"""SHE: simplified Hopfield energy (Zhang et al., ICLR 2023, https://openreview.net/forum?id=KkazG4lgKL)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task

from ._id_features import check_classes, class_sums, norm, vectors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SHE(Method[Tensor]):
    """Inner product of an embedding with the pattern of its predicted class.

    The pattern of a class is the mean embedding of the calibration images with that label that are predicted correctly,
    in float64. If no image of a class is, the pattern is the mean of all its images and a warning says so. A class
    without images is an error.

    Released code: where no image of a class is predicted correctly, OpenOOD has NaN and pytorch-ood an error.

    metric     "inner_product" is the paper's; OpenOOD also has "cosine" and "euclidean" (the negative distance)
    normalise  whether embeddings have unit length; otherwise they are as the encoder gives them
    templates  prompts of the class names
    """

    formula: ClassVar[str] = r"""
    S(x) = z^\top S_{\hat y}, \qquad
    S_c = \frac{1}{|\mathcal{I}_c|} \sum_{i \in \mathcal{I}_c} z_i

    z              embedding of image x, of unit length
    z_i            embedding of calibration image i
    \hat y         predicted class of the image: its nearest class name
    S_c            stored pattern of class c
    \mathcal{I}_c  calibration images with label c that are predicted as c
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION | Needs.LABELS
    metric: Literal["inner_product", "euclidean", "cosine"] = "inner_product"
    normalise: bool = True
    templates: str = "simple"

    def fit(self, task: Task) -> Tensor:
        """Return the patterns, [k d]."""
        totals, counts = class_sums(task, lambda batch: (vectors(batch, self.normalise), batch.labels))
        check_classes(task, counts)
        correct, hits = class_sums(task, lambda batch: self._correct(batch, task))
        missed = hits == 0
        if missed.any():
            log.warning(
                "no calibration image of %d of %d classes is predicted correctly, '%s' first: their patterns are the "
                "means of all their images",
                int(missed.sum()),
                len(task.classes),
                task.classes[int(missed.int().argmax())],
            )
        return torch.where(missed[:, None], totals / counts[:, None], correct / hits.clamp(min=1)[:, None])

    def score(self, batch: Batch, task: Task, state: Tensor) -> Float[Tensor, " b"]:
        z = vectors(batch, self.normalise)
        pattern = state[task.best(batch.features, self.templates)]
        if self.metric == "euclidean":
            return -norm(z - pattern)
        if self.metric == "cosine":
            return torch.cosine_similarity(z, pattern)
        return (z * pattern).sum(-1)

    def _correct(self, batch: Batch, task: Task) -> tuple[Tensor, Tensor]:
        hit = task.best(batch.features, self.templates) == batch.labels
        return vectors(batch, self.normalise)[hit], batch.labels[hit]
