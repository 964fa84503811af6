"""LoCoOp: few-shot OOD detection via prompt learning (Miyai et al., NeurIPS 2023, arXiv:2306.01293)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from oodbench.method import Batch, Encoder, Needs, Task, UserError

from ._prompt_learning import LearntPrompt, Prompt, gl_mcm, logits, negative_entropy, outside_top


@dataclass(frozen=True)
class LoCoOp(LearntPrompt):
    """GL-MCM with CoOp's learnt prompt, trained to be undecided on patches that do not show the class.

    The loss is the cross-entropy of CoOp plus the negative entropy of the patches that do not have the label of their
    image among their K most probable classes; without such patches the second term is 0.

    Released training: as CoOp's, with 50 epochs, on random crops drawn at every step (`--augment`; `--crops 8` is
    cheaper); crops without the class add to the set of patches (trainers/locoop.py,
    configs/trainers/LoCoOp/vit_b16_ep50.yaml).

    Released code: it agrees with the paper except for a constant in the logarithm (eps). The paper's K = 200 on
    ImageNet is a fifth of the classes; with 200 classes or fewer a fixed 200 would select nothing. The weight of
    GL-MCM's local term is 1 (trainers/locoop.py, line 427; GL-MCM's own paper has 0.5 for ImageNet).

    context         number of vectors
    context_init    words that the vectors begin as; "" draws them from N(0, 0.02)
    class_specific  whether each class has vectors of its own
    temperature     of the score; it divides the cosine itself
    lam             lambda; 0 is CoOp, scored by GL-MCM
    rank            K of the paper; None is a fifth of the classes, rounded up
    eps             is added to p in the logarithm of the entropy: 1e-5 in the code (line 36), 0 in the paper
    rule            "gl-mcm", or "mcm" without the probability of patches: the two rows of the paper
    """

    formula: ClassVar[str] = r"""
    S(x) = \max_c \frac{e^{\cos(v, g(t_c)) / \tau}}{\sum_j e^{\cos(v, g(t_j)) / \tau}}
    + \max_{r, c} \frac{e^{\cos(v_r, g(t_c)) / \tau}}{\sum_j e^{\cos(v_r, g(t_j)) / \tau}}

    \mathcal{L} = \mathcal{L}_{\text{CE}} + \lambda \, \frac{1}{|J|} \sum_{(i, r) \in J} -H(p_{i, r}),
    \qquad J = \{(i, r) : \operatorname{rank}(p_{i, r}(y_i)) > K\}

    v                 embedding of image x
    v_r               embedding of patch r of the image
    g(t_c)            text embedding of the learnt prompt of class c
    \mathcal{L}_{\text{CE}}  cross-entropy of the images, as in `coop`
    p_{i, r}          softmax over the classes of patch r of training image i, at the encoder's own scale
    H                 entropy, with `eps` added to the probability in its logarithm
    y_i               label of training image i
    \lambda           `lam`
    K                 `rank`
    \tau              `temperature`
    """
    needs: ClassVar[Needs] = LearntPrompt.needs | Needs.PATCHES
    trained: ClassVar[tuple[str, ...]] = ("context", "context_init", "class_specific", "lam", "rank", "eps")
    lam: float = 0.25
    rank: int | None = None
    eps: float = 1e-5
    rule: Literal["gl-mcm", "mcm"] = "gl-mcm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam < 0 or self.eps < 0:
            raise ValueError(f"lam={self.lam} and eps={self.eps} must be at least 0")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1, or None for a fifth of the classes")

    def module(self, encoder: Encoder, classes: Sequence[str]) -> Prompt:  # type: ignore[override]
        if self.lam and 1 < len(classes) <= self.top(len(classes)):
            raise UserError(
                f"rank={self.top(len(classes))} selects no patch with {len(classes)} classes; take a smaller one, or "
                "leave it out: a fifth of the classes"
            )
        return super().module(encoder, classes)

    def top(self, classes: int) -> int:
        """Return the rank for a number of classes."""
        return -(-classes // 5) if self.rank is None else self.rank

    def embed(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits; the number of patches in J of each image, and the sum of their -H."""
        classes, labels = module(), inputs["label"]
        local = logits(inputs["patches"], classes, inputs["scale"])
        outside = outside_top(local, labels, self.top(len(classes)))
        return {
            "logits": logits(inputs["image"], classes, inputs["scale"]),
            "label": labels,
            "outside": outside.sum(-1),
            "certainty": (negative_entropy(local, self.eps) * outside).sum(-1),
        }

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy and the OOD regularisation."""
        selected = embedded["outside"].sum().clamp(min=1)
        return {
            "ce": cross_entropy(embedded["logits"], embedded["label"]),
            "ood": self.lam * embedded["certainty"].sum() / selected,
        }

    def score(self, batch: Batch, task: Task, state: Tensor) -> Float[Tensor, " b"]:
        if self.rule == "mcm":
            return super().score(batch, task, state)
        return gl_mcm(batch.features, batch.patches, state, state, self.temperature)
