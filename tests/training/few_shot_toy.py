"""A small FewShotMethod for tests: one vector per class, trained on labelled images, and a map of their patches."""

SOURCE = '''
"""Heads: one learnt vector per class (Nobody, Nowhere 2000)."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from oodbench.method import Batch, Encoder, FewShotMethod, Needs, Optimiser, Pairs, Task


class Vectors(nn.Module):
    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start.clone())

    def forward(self, features: Tensor) -> Tensor:
        return 10 * features @ self.vectors.T


@dataclass(frozen=True)
class Heads(FewShotMethod[Tensor]):
    """Far from the learnt vector of every class."""

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.WEIGHTS | Needs.SHOTS | Needs.PATCHES
    optimiser: ClassVar[Optimiser] = Optimiser(lr=1e-2, epochs=4, batch=16)
    trained: ClassVar[tuple[str, ...]] = ("local",)
    local: float = 0.5
    sharpness: float = 10.0
    templates: str = "simple"

    def fit(self, task: Task) -> Tensor:
        return task.weights.load(self.module(task.encoder, task.classes)).vectors

    def score(self, batch: Batch, task: Task, state: Tensor) -> Tensor:
        return (self.sharpness * batch.features @ state.T).logsumexp(-1)

    def module(self, encoder: Encoder, classes: Sequence[str]) -> nn.Module:
        text = encoder.text([f"a photo of a {name}" for name in classes])
        return Vectors(torch.nn.functional.normalize(text, dim=-1))

    def inputs(self, pairs: Pairs, encoder: Encoder) -> dict[str, Tensor]:
        return {"image": pairs.features, "patch": pairs.patches.mean(1), "label": pairs.labels}

    def embed(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "logits": module(inputs["image"]), "local": module(inputs["patch"]), "label": inputs["label"]
        }

    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "global": cross_entropy(embedded["logits"], embedded["label"]),
            "local": self.local * cross_entropy(embedded["local"], embedded["label"]),
        }
'''
