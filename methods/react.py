"""ReAct: rectified activations (Sun et al., NeurIPS 2021, arXiv:2111.12797)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task, logsumexp


@dataclass(frozen=True)
class ReAct(Method[float]):
    """Energy score after clipping the penultimate activations at the 90th percentile of ID activations.

    The penultimate activations are the input of the image tower's last linear map. After clipping they are projected to
    an embedding, which is normalised; the score is the logsumexp of its scaled cosines with the classes. The paper
    clips the activations of a ReLU network, which are not negative. On CLIP they have both signs, and only values above
    the threshold are clipped.

    percentile  percentile of all activations of the ID training images, over images and units together
    threshold   the threshold itself; None computes it from the percentile
    templates   prompts of the class names
    scale       factor on the cosines; None takes the encoder's own logit scale (100 for most CLIPs)
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \sum_{c=1}^{K} \exp(s \, \bar v^\top t_c),
    \qquad \bar v = \frac{P(\bar h)}{\lVert P(\bar h) \rVert},
    \qquad \bar h = \min(h(x), c_{90})

    h(x)    penultimate activations of image x
    c_{90}  90th percentile (`percentile`) of the activations of the ID training images, or `threshold`
    P       last linear map of the image tower
    t_c     text embedding of class c of K, of unit length
    s       `scale`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.ACTIVATIONS | Needs.ENCODER | Needs.CALIBRATION
    calibrated: ClassVar[str] = "threshold"
    percentile: float = 90.0
    threshold: float | None = None
    templates: str = "simple"
    scale: float | None = None

    def fit(self, task: Task) -> float:
        """Return the threshold."""
        if self.threshold is not None:
            return self.threshold
        activations = np.concatenate([batch.activations.cpu().numpy().ravel() for batch in task.calibration()])
        return float(np.percentile(activations, self.percentile))

    def score(self, batch: Batch, task: Task, state: float) -> Float[Tensor, " b"]:
        clipped = task.encoder.project(batch.activations.clamp(max=state))
        features = torch.nn.functional.normalize(clipped, dim=-1)
        return logsumexp(task.logits(features, self.templates, self.scale))
