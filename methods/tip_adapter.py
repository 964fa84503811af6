"""Tip-Adapter: similarities to labelled images, added to the logits (Zhang et al., ECCV 2022, arXiv:2207.09519)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.functional import one_hot

from oodbench.method import Batch, Method, Needs, Task

from ._id_features import calibration
from ._softmax import largest_probability

PRESETS = {"paper": (1.0, 5.5), "release": (1.17, 1.0)}  # alpha and beta
CHUNK = 512  # images of the cache at once: 6 MB of similarities for each thread that scores


@dataclass(frozen=True)
class Cache:
    """The labelled images' unit vectors f, [n d], and labels, [n], ordered by label."""

    keys: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TipAdapter(Method[Cache]):
    """MSP or MCM of CLIP's logits plus similarities to labelled images.

    The sum goes over all images of a class, as in the released code: with more shots it weighs more. `--shots K
    --shot-seed S` draws the images. Nothing is trained, and nothing is chosen on test images; a class without images
    has the first term alone.

    Released code: it keeps, for each image, the mean of 10 random crops, of unit length (utils.py, augment_epoch); here
    it is the image as it is encoded for all methods. It starts on ImageNet from alpha 1.17 and beta 1
    (configs/imagenet.yaml) and then takes the values that are best on the test labels (search_hp).

    preset     "paper" has alpha 1 and beta 5.5; "release" alpha 1.17 and beta 1, from which the released code starts on
               ImageNet
    alpha      weight of the similarities; None takes the preset's
    beta       sharpness of the similarities; None takes the preset's
    rule       "msp" is the largest softmax probability of the logits, "mcm" that of logits / s, as its logarithm
    templates  prompts of the class names; the released code has CLIP's seven for ImageNet, and one for any other set
    scale      s; None takes the encoder's own logit scale (100 for most CLIPs, and in the released code)
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \max_c \frac{e^{f_c(x)}}{\sum_{j=1}^{K} e^{f_j(x)}}, \qquad
    f_c(x) = s \, v^\top t_c + \alpha \sum_{i: y_i = c} e^{-\beta (1 - v^\top v_i)}

    v       embedding of image x, of unit length
    t_c     text embedding of class c of K, of unit length
    v_i     embedding of labelled image i, of unit length, with label $y_i$
    s       `scale`
    \alpha  `alpha`, or that of `preset`: 1
    \beta   `beta`, or that of `preset`: 5.5
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION | Needs.LABELS
    family: ClassVar[str] = "few-shot"
    preset: Literal["paper", "release"] = "paper"
    alpha: float | None = None
    beta: float | None = None
    rule: Literal["msp", "mcm"] = "msp"
    templates: str = "openai7"
    scale: float | None = None

    def __post_init__(self) -> None:
        if (self.alpha or 0) < 0 or (self.beta or 0) < 0:
            raise ValueError(f"alpha={self.alpha} and beta={self.beta} must be at least 0")
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"scale={self.scale} must be above 0")

    def fit(self, task: Task) -> Cache:
        parts = [(batch.features, batch.labels) for batch in calibration(task)]
        keys, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        order = labels.argsort(stable=True)
        return Cache(keys[order], labels[order])

    def score(self, batch: Batch, task: Task, state: Cache) -> Float64[Tensor, " b"]:
        return largest_probability(self._logits(batch, task, state), self.rule, self._scale(task))

    def predict(self, batch: Batch, task: Task, state: Cache) -> Int64[Tensor, " b"]:
        return self._logits(batch, task, state).argmax(-1)

    def _scale(self, task: Task) -> float:
        return task.scale if self.scale is None else self.scale

    def _logits(self, batch: Batch, task: Task, state: Cache) -> Float64[Tensor, "b k"]:
        alpha, beta = PRESETS[self.preset]
        alpha, beta = (alpha if self.alpha is None else self.alpha), (beta if self.beta is None else self.beta)
        logits = task.logits(batch.features, self.templates, self._scale(task)).to(torch.float64, copy=True)
        for keys, labels in zip(torch.split(state.keys, CHUNK), torch.split(state.labels, CHUNK), strict=True):
            similarities = (batch.features @ keys.T).sub_(1).mul_(beta).exp_().double()
            # Labels ascend, so that a part has few classes. A product with a matrix of 0 and 1 sums in a fixed order on
            # any device, as index_add does not.
            first, last = int(labels[0]), int(labels[-1])
            classes = one_hot(labels - first, last - first + 1).to(similarities)
            logits[:, first : last + 1] += alpha * (similarities @ classes)
        return logits
