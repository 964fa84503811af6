"""Text banks: of the prompts that were planned, and of finite numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from oodbench.data import prompts
from oodbench.data.prompts import TextList
from oodbench.errors import UserError
from oodbench.pipeline.text_embeddings import PromptEmbeddings, class_embeddings
from oodbench.storage.store import Store


class Encoder:
    """Gives the length of every prompt, or what it is told."""

    def __init__(self, value: float | None = None) -> None:
        self.value = value

    def text(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, self.value or len(text)] for text in texts])

    def truncated(self, texts: list[str]) -> list[str]:
        return []

    def not_finite(self, what: str) -> UserError:
        return UserError(f"not finite: {what}")


def plan(store: Path, file: Path, name: str) -> Any:
    lines = prompts.templates(str(file))
    job = SimpleNamespace(
        parameters={name: str(file)},
        templates=lines if name == "templates" else None,
        files={} if name == "templates" else {name: lines.digest},
    )
    return SimpleNamespace(
        jobs=(job,),
        store=Store(store),
        card=SimpleNamespace(identity="x", name="x"),
        request=SimpleNamespace(precision="fp32"),
        classes=TextList("two", ("cat", "dogs")),
    )


@pytest.mark.parametrize("name", ["templates", "id_templates"])
def test_templates_that_change_after_the_plan_are_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a {}\n")
    made = plan(tmp_path / "store", file, name)
    encoder: Any = Encoder()
    assert class_embeddings(made, str(file), lambda: encoder).shape == (2, 2)
    file.write_text("a photo of a {}\n")
    with pytest.raises(UserError, match=r"prompts\.txt' changed after the run was planned; run again"):
        class_embeddings(made, str(file), lambda: encoder)


def test_cut_prompts_are_compared_by_their_tokens(tmp_path: Path) -> None:
    """Equal prompts need not have equal bits at two places of a batch, nor need other prompts have other ones."""
    file = tmp_path / "prompts.txt"
    file.write_text("a {}\n")

    class Cutting(Encoder):
        def __init__(self, *tokens: int) -> None:
            super().__init__()
            self.tokens = tokens

        def truncated(self, texts: list[str]) -> list[str]:
            return [text for text in texts if text == "a dogs"]

        def tokenize(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[token] for token in self.tokens])

    alike: Any = Cutting(1, 1)
    with pytest.raises(UserError, match="class names get lost, as in 'a dogs'"):
        class_embeddings(plan(tmp_path / "store", file, "templates"), str(file), lambda: alike)
    apart: Any = Cutting(1, 2)
    assert class_embeddings(plan(tmp_path / "store", file, "templates"), str(file), lambda: apart).shape == (2, 2)


def test_vectors_that_are_not_finite_are_never_stored(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a {}\n")
    broken: Any = Encoder(torch.nan)
    with pytest.raises(UserError, match="not finite: 2 class names, 'cat' first"):
        class_embeddings(plan(tmp_path / "store", file, "templates"), str(file), lambda: broken)
    with pytest.raises(UserError, match="not finite: 1 prompts, 'a' first"):
        list(PromptEmbeddings("x", "fp32", Store(tmp_path / "store")).entries(["a"], lambda: broken))
    assert not list(Store(tmp_path / "store").entries())
