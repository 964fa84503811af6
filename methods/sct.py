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

    Uncertain images weigh more in the cross-entropy, and confident images in the OOD regularisation.

    Released training: as LoCoOp's, with 25 epochs (configs/trainers/LoCoOp/vit_b16_ep25.yaml).

    Released code: as here, the gradient passes through both weights (trainers/sct.py, lines 28 to 41 and 318 to 325);
    it adds 1e-7 to each of them, which float32 does not resolve next to a loss. Its script scores by GL-MCM and MCM as
    LoCoOp's does.

    lam   lambda: 0.25 in the README; scripts/sct/train.sh tries 0.2 to 0.4
    rank  K of LoCoOp; None is a fifth of the classes, rounded up
    eps   is added to p in the logarithm of the entropy: 1e-5 in the code (line 41), 0 in the paper
    rule  "gl-mcm", or "mcm" without the probability of patches
    """

    formula: ClassVar[str] = r"""
    S(x) = \max_c \frac{e^{\cos(v, g(t_c)) / \tau}}{\sum_j e^{\cos(v, g(t_j)) / \tau}}
    + \max_{r, c} \frac{e^{\cos(v_r, g(t_c)) / \tau}}{\sum_j e^{\cos(v_r, g(t_j)) / \tau}}

    \mathcal{L} = \frac{1}{N} \sum_{i=1}^{N} (1 - p_i) \, \ell_{\text{ce}}(x_i, y_i)
    + \lambda \, \frac{1}{|J|} \sum_{(i, r) \in J} -p_i \, H(p_{i, r})

    v                 embedding of image x
    v_r               embedding of patch r of the image
    g(t_c)            text embedding of the learnt prompt of class c
    x_i               training image i of N, with label $y_i$
    p_i               softmax probability, at the encoder's own scale, of the label $y_i$ of training image $x_i$ of N
    \ell_{\text{ce}}  cross-entropy, $-\log p_i$
    J, \; H, \; p_{i, r}  as in `locoop`
    \lambda           `lam`
    \tau              `temperature`
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
