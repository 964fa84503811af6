"""Linear probe: logistic regression on CLIP's image features (Radford et al., ICML 2021, arXiv:2103.00020)."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task, UserError

from ._id_features import calibration, check_classes, vectors
from ._softmax import largest_probability

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LinearProbe(Method[Tensor]):
    """MSP or MCM of a logistic regression on the embeddings of labelled ID images; it reads no text.

    The probe is scikit-learn's LogisticRegression with an intercept, in float64: its solver is L-BFGS, from 0, until
    the largest component of the gradient is below 1e-4 (tol) or for `max_iter` iterations. That gradient is of the
    objective below, divided by C times the number of images. With two classes scikit-learn fits the difference of the
    logits, one row, whose penalty is twice that of the formula. It runs on one thread, so that digits do not depend on
    the number of cores. `--shots K --shot-seed S` draws the images; a class without images is an error.
    Nothing is tuned. The fit takes about 24 bytes of memory for each image and class.

    Released code: the paper chooses C on validation images; its released example has C = 0.316 on embeddings that are
    not normalised.

    C          inverse of the strength of the L2 penalty, 1 as scikit-learn's default
    normalise  whether embeddings have unit length; otherwise they are as the encoder gives them, as in the released
               example
    max_iter   of the solver, as released; a warning says if it stopped there
    rule       "msp" is the largest softmax probability of the probe's logits; "mcm" that of the logits divided by the
               encoder's own scale (100), as MCM does with CLIP's; both as the logarithm
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \max_c \sigma_c(W z + b), \qquad
    (W, b) = \operatorname*{arg\,min}_{W, b} \; \tfrac{1}{2} \lVert W \rVert^2 - C \sum_i \log \sigma_{y_i}(W z_i + b)

    z       embedding of image x, of unit length
    z_i     embedding of labelled image i, with label $y_i$
    \sigma  softmax over the classes
    C       `C`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION | Needs.LABELS
    family: ClassVar[str] = "few-shot"
    C: float = 1.0
    normalise: bool = True
    max_iter: int = 1000
    rule: Literal["msp", "mcm"] = "msp"

    def __post_init__(self) -> None:
        if self.C <= 0 or self.max_iter < 1:
            raise ValueError(f"C={self.C} must be above 0, and max_iter={self.max_iter} at least 1")

    def fit(self, task: Task) -> Float64[Tensor, "k d+1"]:
        """Return weights and intercepts."""
        return task.cached(lambda: self._fitted(task), C=self.C, normalise=self.normalise, max_iter=self.max_iter)

    def score(self, batch: Batch, task: Task, state: Float64[Tensor, "k d+1"]) -> Float64[Tensor, " b"]:
        return largest_probability(self._logits(batch, state), self.rule, task.scale)

    def predict(self, batch: Batch, task: Task, state: Float64[Tensor, "k d+1"]) -> Int64[Tensor, " b"]:
        return self._logits(batch, state).argmax(-1)

    def _logits(self, batch: Batch, state: Float64[Tensor, "k d+1"]) -> Float64[Tensor, "b k"]:
        return torch.addmm(state[:, -1], vectors(batch, self.normalise), state[:, :-1].T)

    def _fitted(self, task: Task) -> Float64[Tensor, "k d+1"]:
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        parts = [(vectors(batch, self.normalise), batch.labels) for batch in calibration(task)]
        z, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        check_classes(task, labels.bincount(minlength=len(task.classes)))
        if len(task.classes) < 2:
            raise UserError("a linear probe tells classes apart, and there is only one")
        probe = LogisticRegression(C=self.C, max_iter=self.max_iter)
        with threadpool_limits(1), warnings.catch_warnings(action="ignore"):  # what it warns of is said below
            probe.fit(z.cpu().numpy(), labels.cpu().numpy())
        if probe.n_iter_.max() >= self.max_iter:
            log.warning("the linear probe stopped after max_iter=%d iterations, before it converged", self.max_iter)
        rows = torch.from_numpy(probe.coef_), torch.from_numpy(probe.intercept_)[:, None]
        learnt = torch.cat(rows, 1).to(z)
        # Of two classes scikit-learn gives the second one's logit; the first one's is 0.
        return torch.cat([torch.zeros_like(learnt), learnt]) if len(task.classes) == 2 else learnt
