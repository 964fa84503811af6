"""KNN: distance to the k-th nearest ID image (Sun et al., ICML 2022, arXiv:2204.06507)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task

from ._id_features import norm
from ._neighbours import count_images, nearest


@dataclass(frozen=True)
class Bank:
    """The calibration images' embeddings v, [n d], and -|v|^2 / 2, [n]."""

    vectors: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class KNN(Method[Bank]):
    """Negative Euclidean distance to the k-th nearest calibration image, between embeddings of unit length.

    The bank is all calibration images, without labels; the result states their number. The search is exact: all
    products, in chunks of the bank, and the distance itself is computed from the difference in float64. Images whose
    products differ by rounding (1e-7) may change places.

    Memory: the bank takes n x d x 4 bytes (1.28 million x 512 is 2.6 GB, half of it with fp16), and each thread that
    scores takes 128 MB.

    Released code: OpenOOD's faiss index gives squared distances, which give the same ranking, and adds 1e-10 to each
    coordinate after normalising.

    k          50 is the default of OpenOOD, which sweeps 50 to 1000; the paper has 1000 for all of ImageNet, 10 for 1 %
    normalise  whether embeddings have unit length, as in the paper; otherwise they are as the encoder gives them
    precision  of the bank; with fp16 its values are rounded (to 1 in 2,000), products and distances are still float32
    """

    formula: ClassVar[str] = r"""
    S(x) = -\lVert z - z_{(k)} \rVert_2

    z        embedding of image x, of unit length
    z_{(k)}  embedding of the k-th nearest calibration image
    k        `k`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION
    k: int = 50
    normalise: bool = True
    precision: Literal["fp32", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")

    def fit(self, task: Task) -> Bank:
        images, start = count_images(task, self.k, "knn"), 0
        vectors, offsets = torch.empty(0), torch.empty(0)
        for batch in task.calibration():
            z = self._vectors(batch)
            if not start:  # filled in place: parts that are joined in the end need twice the memory
                dtype = torch.float16 if self.precision == "fp16" else z.dtype
                vectors, offsets = z.new_empty(images, z.shape[1], dtype=dtype), z.new_empty(images)
            rows = slice(start, start + batch.size)
            vectors[rows] = z
            offsets[rows] = -vectors[rows].to(z.dtype).square().sum(-1) / 2
            start += batch.size
        return Bank(vectors, offsets)

    def score(self, batch: Batch, task: Task, state: Bank) -> Float[Tensor, " b"]:
        z = self._vectors(batch)
        # |z - v|^2 = |z|^2 - 2 (z v - |v|^2 / 2)
        kth = state.vectors[nearest(z, state.vectors, self.k, state.offsets).rows[:, -1]]
        return -norm(z.double() - kth.double())

    def _vectors(self, batch: Batch) -> Tensor:
        return batch.features if self.normalise else batch.embeddings
