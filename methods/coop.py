"""CoOp: learning to prompt for vision-language models (Zhou et al., IJCV 2022, arXiv:2109.01134)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from oodbench.method import Optimiser

from ._prompt_learning import LearntPrompt


@dataclass(frozen=True)
class CoOp(LearntPrompt):
    """MCM with a prompt that is learnt from a few labelled images of each class.

    The prompt of a class is the context vectors, the class name and a full stop. The vectors are learnt by the
    cross-entropy of the images' softmax at the encoder's own scale (100), through the frozen text tower. CoOp itself
    detects nothing: the score is that of LoCoOp's evaluation, the largest softmax probability of the cosines, as its
    logarithm. With patches and GL-MCM it is `locoop` with lam=0.

    Released training: SGD 2e-3, momentum 0.9, weight decay 5e-4, batches of 32; one epoch at 1e-5, then a cosine that
    falls once an epoch (trainers/coop.py, configs/trainers/CoOp/vit_b16.yaml, Dassl's defaults). 200 epochs for 8 and
    16 shots, 100 for 2 and 4, 50 for 1, and 50 for ImageNet with any number of shots (COOP.md): there, give --epochs
    50; the default is 200 for all. It computes in half precision.

    Released code: its prompt "X X ... NAME." is tokenized whole; here room for the vectors is made after the start
    token, which gives the same tokens. The name is at the end, as in all released tables; the variants "middle" and
    "front" (trainers/coop.py, lines 136 to 177) are not offered.

    context         number of vectors
    context_init    words that the vectors begin as, such as "a photo of a", whose tokens are then counted instead of
                    `context`; "" draws them from N(0, 0.02)
    class_specific  whether each class has vectors of its own (CSC); the paper's unified context is False
    temperature     of the score; it divides the cosine itself
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \max_c \frac{e^{\cos(v, g(t_c)) / \tau}}{\sum_{j=1}^{K} e^{\cos(v, g(t_j)) / \tau}},
    \qquad t_c = [V]_1 [V]_2 \dots [V]_M [\text{class } c]

    \min_V \; -\frac{1}{N} \sum_{i=1}^{N} \log
    \frac{e^{s \cos(v_i, g(t_{y_i}))}}{\sum_{j=1}^{K} e^{s \cos(v_i, g(t_j))}}

    v      embedding of image x
    g      text tower, which is frozen
    [V]_m  context vector m of M (`context`), which is learnt
    v_i    embedding of training image i of N, with label $y_i$
    s      logit scale of the encoder
    \tau   `temperature`
    """
    optimiser: ClassVar[Optimiser] = replace(LearntPrompt.optimiser, epochs=200)

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        return {"ce": cross_entropy(embedded["logits"], embedded["label"])}
