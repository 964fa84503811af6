"""NNGuide: nearest neighbour guidance of the energy (Park et al., ICCV 2023, arXiv:2309.14888)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task

from ._neighbours import count_images, nearest


@dataclass(frozen=True)
class NNGuide(Method[Tensor]):
    """Energy times the guidance: the mean of the k largest s_i cos(z, z_i) with the images i of a bank.

    Here s_i is the energy of image i, the logsumexp of its logits. The bank is a part of the calibration images,
    without labels: `share` of them, but at least k, drawn without replacement with the run's seed.

    Released code: OpenOOD takes the first images of its shuffled loader, and adds 1e-10 to each coordinate.

    k          100 is the default of OpenOOD; the authors' code and pytorch-ood have 10
    share      fraction of the calibration images that is the bank; 0.01 is that of the paper and of OpenOOD for
               ImageNet
    templates  prompts of the class names
    scale      factor on the cosines; None takes the encoder's own logit scale (100 for most CLIPs)
    """

    formula: ClassVar[str] = r"""
    S(x) = S_E(x) \cdot G(x), \qquad
    G(x) = \frac{1}{k} \sum_{i \in \mathcal{N}_k(x)} s_i \cos(z, z_i), \qquad
    S_E(x) = \log \sum_{c=1}^{K} e^{f_c(x)}

    z                 embedding of image x
    z_i               embedding of image i of the bank, whose energy $S_E$ is $s_i$
    \mathcal{N}_k(x)  the images of the bank with the k largest $s_i \cos(z, z_i)$
    f_c(x)            logit of class c of K: `scale` times the cosine
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION
    k: int = 100
    share: float = 0.01
    templates: str = "simple"
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 < self.share <= 1:
            raise ValueError(f"k={self.k} must be at least 1, and share={self.share} above 0 and at most 1")

    def fit(self, task: Task) -> Tensor:
        """Return the bank, s_i z_i of every image, [m d]."""
        images = count_images(task, self.k, "nnguide")
        order = torch.randperm(images, generator=torch.Generator().manual_seed(task.seed))
        drawn = torch.zeros(images, dtype=torch.bool)
        drawn[order[: max(self.k, int(self.share * images))]] = True
        bank, start = [], 0
        for batch in task.calibration():
            rows = drawn[start : start + batch.size].to(batch.features.device)
            start += batch.size
            bank.append(self._energy(batch, task)[rows, None].to(batch.features.dtype) * batch.features[rows])
        return torch.cat(bank)

    def score(self, batch: Batch, task: Task, state: Tensor) -> Float[Tensor, " b"]:
        guidance = nearest(batch.features, state, self.k).products.double().mean(-1)
        return self._energy(batch, task) * guidance

    def _energy(self, batch: Batch, task: Task) -> Tensor:
        return task.logsumexp(batch.features, self.templates, self.scale)
