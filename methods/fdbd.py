"""fDBD: fast decision boundary distance (Liu & Qin, ICML 2024, arXiv:2312.11536)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task

from ._id_features import mean, norm, vectors

SAME = 1e-5  # class vectors nearer than this are of the same name: rounding tells them apart, not the encoder
ZERO = 1e-12  # the least distance from the mean that is divided by


@dataclass(frozen=True)
class Boundaries:
    """Statistics from which distances to decision boundaries are computed.

    mean     [d] mean embedding of the calibration images
    inverse  [k k] 1 / |w_p - w_c|, 0 where c is p or has the same name
    """

    mean: Tensor
    inverse: Tensor


@dataclass(frozen=True)
class FDBD(Method[Boundaries]):
    """Distances of an embedding to the boundaries of its predicted class p, over its distance from the ID mean.

    The distances to the boundaries between p and all other classes c are summed and divided by |z - mean|, the distance
    from the mean of the calibration images, without labels. The scale cancels. Classes with the same name have no
    boundary between them (0 / 0) and are left out. The distances between classes take k x k x 4 bytes.

    boundaries   the released code and OpenOOD take their sum, the paper their mean
    regulariser  "distance" is |z - mean| as in the paper; OpenOOD may choose "norm", |z|, on OOD validation images
    normalise    whether z has unit length; otherwise it is as the encoder gives it
    templates    prompts of the class names
    """

    formula: ClassVar[str] = r"""
    S(x) = \frac{1}{\lVert z - \mu \rVert_2} \sum_{c \ne \hat y}
    \frac{\lvert (w_{\hat y} - w_c)^\top z \rvert}{\lVert w_{\hat y} - w_c \rVert_2}

    z       embedding of image x, of unit length
    w_c     text embedding of class c
    \hat y  predicted class of the image
    \mu     mean embedding of the calibration images
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION
    boundaries: Literal["sum", "mean"] = "sum"
    regulariser: Literal["distance", "norm"] = "distance"
    normalise: bool = True
    templates: str = "simple"

    def fit(self, task: Task) -> Boundaries:
        w = task.text(self.templates).double()
        between = torch.cdist(w, w)
        names = {name: index for index, name in enumerate(task.classes)}
        name = torch.tensor([names[name] for name in task.classes], device=w.device)
        same = (between < SAME) | (name[:, None] == name)
        inverse = torch.where(same, 0, 1 / between)
        if self.boundaries == "mean":
            inverse /= (~same).sum(-1, keepdim=True).clamp(min=1)
        return Boundaries(mean(task, self.normalise), inverse.float())

    def score(self, batch: Batch, task: Task, state: Boundaries) -> Float[Tensor, " b"]:
        logits = task.logits(batch.features, self.templates, 1.0)
        predicted = task.best(batch.features, self.templates)
        behind = logits.gather(1, predicted[:, None]) - logits
        distances = (behind * state.inverse[predicted]).sum(-1, dtype=torch.float64)
        z = vectors(batch, self.normalise)
        from_mean = norm(z - state.mean if self.regulariser == "distance" else z)
        return distances * norm(z) / from_mean.clamp(min=ZERO)
