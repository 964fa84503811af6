"""Temperature scaling: calibration of the softmax (Guo et al., ICML 2017, arXiv:1706.04599)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int64
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task

from ._id_features import calibration

log = logging.getLogger(__name__)

START, RATE, STEPS = 1.5, 0.01, 50  # of the released optimisation
FLAT, SMALL = 1e-7, 1e-9  # it stops at a smaller gradient, or a smaller step or change of the loss
RANGE = (1e-4, 1e4)  # in which the minimum is searched for


@dataclass(frozen=True)
class Logits:
    """Some calibration images' logits [b k] and labels [b]."""

    logits: Float[Tensor, "b k"]
    labels: Int64[Tensor, " b"]


@dataclass(frozen=True)
class TemperatureScaling(Method[float]):
    """MSP or Energy of logits / T; T is fitted to the labels' negative log-likelihood on the calibration images.

    T divides the scaled cosines and is thus a second scale: MSP with scale s / T is the same score. ID accuracy does
    not change. The logits of the calibration images are kept while T is fitted: images x classes x 4 bytes.

    Released code: the authors' code, OpenOOD and pytorch-ood take 50 steps of L-BFGS with rate 0.01 from T = 1.5
    (pytorch-ood from 1), which go less than half of the way to the minimum: the default, which is not the arg min of
    the formula. They calibrate on validation images; here it is the calibration images.

    preset     "release" takes these 50 steps, "paper" finds the minimum itself
    base       the score: "msp" as in OpenOOD, as its logarithm, or "energy", T * logsumexp(logits / T)
    templates  prompts of the class names
    scale      factor on the cosines; None takes the encoder's own logit scale (100 for most CLIPs)
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \max_c \sigma_c\bigl(f(x) / T\bigr), \qquad
    T = \operatorname*{arg\,min}_{T > 0} \; -\sum_i \log \sigma_{y_i}\bigl(f(x_i) / T\bigr)

    f(x)    logits of image x: `scale` times the cosines with the classes
    \sigma  softmax
    x_i     calibration image i, with label $y_i$
    T       temperature; with preset=release the result of 50 steps towards this minimum
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION | Needs.LABELS
    preset: Literal["release", "paper"] = "release"
    base: Literal["msp", "energy"] = "msp"
    templates: str = "simple"
    scale: float | None = None

    def fit(self, task: Task) -> float:
        """Return T."""
        known = [
            Logits(task.logits(batch.features, self.templates, self.scale), batch.labels) for batch in calibration(task)
        ]
        return _released(known) if self.preset == "release" else _minimum(known)

    def score(self, batch: Batch, task: Task, state: float) -> Float[Tensor, " b"]:
        scale = (task.scale if self.scale is None else self.scale) / state
        energy = task.logsumexp(batch.features, self.templates, scale)
        return state * energy if self.base == "energy" else task.largest(batch.features, self.templates, scale) - energy


def _loss_and_slope(known: Sequence[Logits], temperature: float) -> tuple[float, float]:
    """Return the mean negative log-likelihood of the labels at T, and its derivative by 1 / T."""
    loss = slope = 0.0
    for part in known:
        logits, labels = part.logits.double(), part.labels[:, None]
        log_p = (logits / temperature).log_softmax(-1)
        loss -= float(log_p.gather(1, labels).sum())
        slope += float((log_p.exp_().mul_(logits).sum(-1) - logits.gather(1, labels)[:, 0]).sum())
    images = sum(len(part.labels) for part in known)
    return loss / images, slope / images


def _released(known: Sequence[Logits]) -> float:
    """Return T after the released steps of L-BFGS.

    With one parameter it is the secant method: the inverse Hessian is the last step over the last change of the
    gradient.
    The stopping rules are those of torch.optim.LBFGS, whose import takes seconds.
    """
    temperature, step, before = START, 0.0, (math.inf, 0.0)
    inverse = 1.0
    for number in range(STEPS):
        loss, slope = _loss_and_slope(known, temperature)
        gradient = -slope / temperature**2
        if abs(gradient) <= FLAT or (number and (abs(step) <= SMALL or abs(loss - before[0]) < SMALL)):
            break
        change = gradient - before[1]
        if number and change * step > 1e-10:
            inverse = step / change
        rate = RATE if number else RATE * min(1.0, 1 / abs(gradient))
        if -gradient * inverse * gradient > -SMALL:
            break
        step, before = -rate * inverse * gradient, (loss, gradient)
        temperature += step
    return temperature


def _minimum(known: Sequence[Logits]) -> float:
    """Return the T at which the slope is 0, the minimum, as the loss is convex in 1 / T."""
    from scipy.optimize import brentq

    least, most = RANGE
    if _loss_and_slope(known, least)[1] <= 0 or _loss_and_slope(known, most)[1] >= 0:
        end = least if _loss_and_slope(known, most)[1] < 0 else most
        log.warning(
            "no temperature from %g to %g is best for the calibration images' labels; %g is used", least, most, end
        )
        return end
    ends = math.log(least), math.log(most)
    return math.exp(brentq(lambda exponent: _loss_and_slope(known, math.exp(exponent))[1], *ends, xtol=1e-9))
