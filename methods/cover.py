"""CoVer: confidence average over corrupted copies of the image (Zhang et al., NeurIPS 2024, arXiv:2410.18472)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from oodbench.method import Access, Batch, Method, Needs, Task, View
from oodbench.method.corruptions import KINDS, RANDOM, SEVERITIES, SIDE, corrupted, corrupted_at_random

RECOMMENDED = ("brightness", "fog", "saturate", "motion_blur", "defocus_blur", "gaussian_blur")
PRESETS = {"recommended": (RECOMMENDED, (1, 2)), "release": (KINDS, SEVERITIES)}  # types and severities


@dataclass(frozen=True)
class CoVer(Method[None]):
    """Largest softmax probability of the cosines (as MCM's), averaged over the image and corrupted copies of it.

    The score is the logarithm of the mean, which gives the same ranking as the mean and keeps its digits. The copies
    are those of ImageNet-C, which the released code makes offline: the image is resized and cropped, corrupted and
    stored as JPEG of quality 85; the encoder's own resize and crop follow. Each type in each severity is one more pass
    of all images through the image tower: the recommended views cost 13 times what MCM does, the release's 91 times.

    Released code: its active setting is all 18 types in all severities; its comment recommends six types in two
    severities, chosen on corrupted SVHN, and does not say which of the two gives the paper's table. It resizes the
    shorter side to 224 pixels for CLIP, and to 256, as ImageNet-C itself does, for ResNet-50. It draws noise, fog and
    the direction of motion from one generator for all images, which cannot be repeated for one image; here they follow
    from the pixels of the image, the type, the severity and the seed. There a copy has the file name of its image, so
    that only images named .jpg or .JPEG go through JPEG; here all do.

    preset       "recommended" (6 types, severities 1 and 2) or "release" (18 types, severities 1 to 5)
    types        names of corruptions; --set 'cover.types=("fog","brightness")'; None takes those of the preset
    severities   some of 1 to 5; None takes those of the preset
    resize       pixels of the shorter side before the crop of 224 x 224: 224, or 256 as in ImageNet-C
    templates    prompts of the class names; "a photo of a {}", without a period
    temperature  divides the cosines
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \frac{1}{V + 1} \sum_{i=0}^{V} \max_c
    \frac{e^{\cos(v_i, t_c) / \tau}}{\sum_{j=1}^{K} e^{\cos(v_i, t_j) / \tau}}

    v_0   embedding of image x
    v_i   embedding of corrupted copy i of V: one for each of `types` in each of `severities`, 12 by default
    t_c   text embedding of class c of K
    \tau  `temperature`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.VIEWS
    access: ClassVar[Access] = Access(ood_validation=True)
    preset: Literal["recommended", "release"] = "recommended"
    types: tuple[str, ...] | None = None
    severities: tuple[int, ...] | None = None
    resize: int = 224
    templates: str = "simple"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        if self.resize < SIDE:
            raise ValueError(f"resize must be at least {SIDE}, the size of the crop, not {self.resize}")
        if () in (self.types, self.severities):
            raise ValueError("types and severities name at least one each, or None for those of the preset")
        for name in self.types or ():
            if name not in KINDS:
                raise ValueError(f"no corruption '{name}'; there are {', '.join(KINDS)}")
        if not set(self.severities or ()) <= set(SEVERITIES):
            raise ValueError(f"severities are 1 to 5, not {self.severities}")

    @property
    def views(self) -> tuple[View, ...]:
        """One view per type and severity."""
        types, severities = PRESETS[self.preset]
        return tuple(
            View(corrupted_at_random if kind in RANDOM else corrupted, kind=kind, severity=severity, resize=self.resize)
            for kind in (types if self.types is None else self.types)
            for severity in (severities if self.severities is None else self.severities)
        )

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        probabilities = self._log_probabilities(batch, task)
        return probabilities.logsumexp(-1) - math.log(probabilities.shape[1])

    def explain(self, batch: Batch, task: Task, state: None) -> dict[str, list[tuple[str, float]]]:
        probabilities = self._log_probabilities(batch, task)[0].exp().tolist()
        names = [f"{view.parameters['kind']} {view.parameters['severity']}" for view in self.views]
        return {"probability by view": list(zip(["the image itself", *names], probabilities, strict=True))}

    def _log_probabilities(self, batch: Batch, task: Task) -> Float64[Tensor, "b v"]:
        """Return the logarithm of MCM's probability of the image itself and of every view."""
        images = torch.cat([batch.features[:, None], batch.views], 1)
        logits = images.flatten(0, 1), self.templates, 1 / self.temperature
        return (task.largest(*logits) - task.logsumexp(*logits)).view(len(images), -1)
