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

    The prompt of class c is [V]_1 ... [V]_n NAME_c and a full stop; the vectors V are learnt by the cross-entropy of
    the images' softmax at the encoder's own scale (100), through the frozen text tower. CoOp itself detects nothing:
    the score is that of LoCoOp's evaluation, the largest softmax probability of the cosines, as its logarithm. With
    patches and GL-MCM it is `locoop` with lam=0.

    Released training (trainers/coop.py, configs/trainers/CoOp/vit_b16.yaml, Dassl's defaults): SGD 2e-3, momentum 0.9,
    weight decay 5e-4, batches of 32; one epoch at 1e-5, then a cosine that falls once an epoch. 200 epochs for 8 and 16
    shots, 100 for 2 and 4, 50 for 1, and 50 for ImageNet with any number of shots (COOP.md): there, give --epochs 50;
    the default is 200 for all. It computes in half precision. Its prompt "X X ... NAME." is tokenized whole; here room
    for the vectors is made after the start token, which gives the same tokens. The name stands at the end, as in all
    released tables; the variants "middle" and "front" (trainers/coop.py, lines 136 to 177) are not here.

    context         number of vectors
    context_init    words that the vectors begin as, such as "a photo of a", whose tokens are then counted instead of
                    `context`; "" draws them from N(0, 0.02)
    class_specific  whether every class has vectors of its own (CSC); the paper's unified context is False
    temperature     of the score; it divides the cosine itself
    """

    optimiser: ClassVar[Optimiser] = replace(LearntPrompt.optimiser, epochs=200)

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        return {"ce": cross_entropy(embedded["logits"], embedded["label"])}
