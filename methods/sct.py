"""SCT: self-calibrated tuning for OOD detection (Yu et al., NeurIPS 2024, arXiv:2411.03359)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import log_softmax

from oodbench.method import Optimiser

from .locoop import LoCoOp


@dataclass(frozen=True)
class SCT(LoCoOp):
    """LoCoOp whose two terms are weighted by how sure the model is of each image's class.

        L = mean_i (1 - p_i) CE_i + lam * mean over (i, p) of J of p_i * -H(p_i,p),    p_i = softmax_i at the label y_i

    An uncertain image teaches classes, a certain one gives the patches from which OOD is learnt. As in the code the
    gradient passes through both weights (trainers/sct.py, lines 28 to 41 and 318 to 325); it adds 1e-7 to each of them,
    which float32 does not see beside a loss. Released training: as LoCoOp's, with 25 epochs
    (configs/trainers/LoCoOp/vit_b16_ep25.yaml). Its script scores by GL-MCM and MCM as LoCoOp's does.

    context         number of vectors
    context_init    words that the vectors begin as; "" draws them from N(0, 0.02)
    class_specific  whether every class has vectors of its own
    temperature     of the score; it divides the cosine itself
    lam             lambda: 0.25 in the README; scripts/sct/train.sh tries 0.2 to 0.4
    rank            K of LoCoOp; None is a fifth of the classes, rounded up
    eps             is added to p in the logarithm of the entropy: 1e-5 in the code (line 41), 0 in the paper
    rule            "gl-mcm", or "mcm" without patches' probability
    """

    optimiser: ClassVar[Optimiser] = replace(LoCoOp.optimiser, epochs=25)

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the calibrated cross-entropy and the calibrated OOD regularisation."""
        log_p = log_softmax(embedded["logits"], -1).gather(-1, embedded["label"][:, None]).squeeze(-1)
        p, selected = log_p.exp(), embedded["outside"].sum().clamp(min=1)
        return {
            "ce": -((1 - p) * log_p).mean(),
            "ood": self.lam * (p * embedded["certainty"]).sum() / selected,
        }
