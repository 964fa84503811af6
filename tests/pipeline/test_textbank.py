"""Text embeddings: they belong to the planned prompts and are finite."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from oodbench.data import prompts
from oodbench.data.prompts import TextList
from oodbench.errors import UserError
from oodbench.pipeline.text_embeddings import PART, PromptEmbeddings, WordAverage, class_embeddings
from oodbench.storage.store import Store


class Encoder:
    """An encoder whose features are the length of the prompt, or a given value."""

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
    with pytest.raises(UserError, match="class names are cut off, as in 'a dogs'"):
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


class Counting(Encoder):
    """Gives features of other lengths for other prompts, and counts them; fails after a number of them."""

    def __init__(self, until: int = 10**9) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.until = until

    def text(self, texts: list[str]) -> torch.Tensor:
        if len(self.seen) + len(texts) > self.until:
            raise KeyboardInterrupt
        self.seen += texts
        return torch.tensor([[1.0, len(text), len(text) % 7 * len(text)] for text in texts])


def expected(words: list[str], templates: list[str], average: str) -> Any:
    """Both averages, written out."""
    rows = []
    for word in words:
        filled = [template.format(word) for template in templates]
        features = [np.array([1.0, len(text), len(text) % 7 * len(text)]) for text in filled]
        units = [feature / np.linalg.norm(feature) for feature in features]
        total = np.mean(units if average == "normalised" else features, axis=0)
        rows.append(total / np.linalg.norm(total))
    return np.array(rows)


def test_class_vectors_have_both_averages_and_encode_each_prompt_once(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a {}\na long photo of the {}\n")
    made, encoder = plan(tmp_path / "store", file, "templates"), Counting()
    for average in ("raw", "normalised"):
        vectors = class_embeddings(made, str(file), lambda: encoder, average=average)  # type: ignore[arg-type,return-value]
        reference = expected(["cat", "dogs"], ["a {}", "a long photo of the {}"], average)
        np.testing.assert_allclose(vectors, reference, atol=1e-6)
    assert len(encoder.seen) == 4
    raw, normalised = (expected(["cat"], ["a {}", "a long photo of the {}"], one) for one in ("raw", "normalised"))
    assert np.abs(raw - normalised).max() > 0.01, "the averages differ"


@pytest.mark.parametrize("average", ["raw", "normalised"])
def test_words_are_averaged_in_parts_and_a_killed_run_resumes(average: str, tmp_path: Path) -> None:
    templates = [f"{'very ' * n}{{}}" for n in range(8)]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(templates))
    words = [f"w{'o' * (i % 23)}rd {i}" for i in range(2 * PART // 8 + 100)]
    bank = PromptEmbeddings("x", "fp32", Store(tmp_path / "store"), WordAverage(str(file), average))
    assert bank.missing(words) == len(words) * 8
    killed: Any = Counting(until=PART + 1000)
    with pytest.raises(KeyboardInterrupt):
        list(bank.entries(words, lambda: killed))
    assert bank.missing(words) == len(words) * 8 - PART
    rest: Any = Counting()
    reported: list[int] = []
    entries = list(bank.entries(words, lambda: rest, lambda count: reported.append))
    assert len(rest.seen) == sum(reported) == len(words) * 8 - PART
    assert {len(entry.array("words")) for entry in entries} == {PART // 8, 100}
    vectors = np.concatenate([entry.array("words") for entry in entries])
    np.testing.assert_allclose(vectors, expected(words, templates, average), atol=1e-6)
    assert not bank.missing(words)
    other = WordAverage(str(file), "raw" if average == "normalised" else "normalised")
    assert PromptEmbeddings("x", "fp32", bank.store, other).missing(words), "another average has another key"


def test_keys_of_prompts_and_class_vectors_have_not_changed(tmp_path: Path) -> None:
    """Entries of version 0.1 are found: the keys of prompts without templates, and of the normalised average."""
    from oodbench.pipeline.text_embeddings import _class_inputs
    from oodbench.storage.store import digest

    file = tmp_path / "prompts.txt"
    file.write_text("a {}\n")
    made = plan(tmp_path / "store", file, "templates")
    key = {"engine": 1, "encoder": "x", "precision": "fp32"}
    lines = prompts.templates(str(file))
    assert _class_inputs(made, lines) == {**key, "templates": lines.digest, "classes": made.classes.digest}
    assert PromptEmbeddings("x", "fp32", made.store)._inputs(["a"]) == {**key, "prompts": digest(["a"])}
