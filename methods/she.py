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
    in float64. For a class of which none is, it is the mean of all its images, which is said (OpenOOD has NaN there,
    and pytorch-ood an error); a class without images is an error.

    metric     "inner_product" is the paper's; OpenOOD knows "cosine" and "euclidean" (the negative distance), too
    normalise  whether embeddings have unit length; otherwise as the encoder gives them
    templates  prompts of the class names
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
