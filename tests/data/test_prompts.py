"""Prompt sets and class-name lists: shipped ones equal open_clip's, users' files are validated."""

from __future__ import annotations

from pathlib import Path

import pytest

from oodbench.data import prompts
from oodbench.errors import UserError


def test_shipped_lists_equal_those_of_open_clip() -> None:
    import open_clip

    assert prompts.class_names("imagenet1k").lines == tuple(open_clip.IMAGENET_CLASSNAMES)
    marked = {
        "openai80": [t("{}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES],
        "openai7": [t("{}") for t in open_clip.SIMPLE_IMAGENET_TEMPLATES],
    }
    for name, lines in marked.items():
        assert prompts.templates(name).lines == tuple(lines)


def test_the_simple_set_is_mcm_s_prompt() -> None:
    assert prompts.templates("simple").lines == ("a photo of a {}",)


def test_prompt_sets_have_names() -> None:
    assert {"simple", "openai80", "openai7", "mcm", "neglabel"} <= set(prompts.names("prompts"))
    assert prompts.templates("mcm").lines == prompts.templates("simple").lines
    assert prompts.templates("neglabel").lines == ("the nice {}",)
    assert [len(prompts.templates(name).lines) for name in ("openai80", "openai7")] == [80, 7]


def test_class_lists_are_as_long_as_their_sets() -> None:
    lengths = {"cifar10": 10, "cifar100": 100, "cifar100-raw": 100, "imagenet10": 10, "imagenet20": 20}
    assert {name: len(prompts.class_names(name).lines) for name in lengths} == lengths
    assert not [name for name in lengths if prompts.class_names(name).duplicates()]
    raw = prompts.class_names("cifar100-raw").lines
    assert tuple(name.replace("_", " ") for name in raw) == prompts.class_names("cifar100").lines and sorted(raw) == [
        *raw
    ]


def test_duplicates_are_kept_and_reported() -> None:
    names = prompts.class_names("imagenet1k")
    assert len(names.lines) == 1000
    assert names.duplicates() == ["missile", "sunglasses"]


@pytest.mark.parametrize("kind", ["prompts", "classes"])
def test_every_shipped_list_can_be_read(kind: str) -> None:
    assert prompts.names(kind)
    for name in prompts.names(kind):
        lines = prompts.templates(name) if kind == "prompts" else prompts.class_names(name)
        assert lines.name == name and lines.card()["count"] == len(lines.lines)


def test_a_file_is_read_by_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeff# from a paper\na photo of a {}. \n\nein Foto: {}\r\n".encode())
    lines = prompts.templates(str(file))
    assert lines.lines == ("a photo of a {}.", "ein Foto: {}") and lines.name == "mine.txt"
    assert lines.digest == prompts.TextList("other name", lines.lines).digest


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "names.txt").write_text("{a}\nb {}\n")
    assert prompts.class_names("~/names.txt").lines == ("{a}", "b {}")  # braces are part of a name
    with pytest.raises(UserError, match="the path ~nobody-here/names.txt cannot be read"):
        prompts.class_names("~nobody-here/names.txt")


def test_a_template_may_be_given_directly() -> None:
    assert prompts.templates("a {}!") == prompts.TextList("a {}!", ("a {}!",))
    with pytest.raises(UserError, match=r"template 'a \{\} and a \{\}' must contain \{\} once"):
        prompts.templates("a {} and a {}")


def test_lists_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "plain.txt").write_text("a photo of a {}\na photo\n")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff")
    for name, problem in (
        ("empty.txt", "is empty"),
        ("plain.txt", "template 'a photo' must contain {} once"),
        ("picture.txt", "cannot read prompt set"),
        ("none.txt", "neither shipped nor a file, nor a template with {} in it"),
        ("", "neither shipped nor a file"),
        ("x" * 5000, "neither shipped nor a file"),
    ):
        with pytest.raises(UserError) as error:
            prompts.templates(str(tmp_path / name))
        assert problem in str(error.value)
    with pytest.raises(UserError, match="no prompt set 'openai8', .*; did you mean 'openai80'"):
        prompts.templates("openai8")
    with pytest.raises(UserError, match="no class list 'imagenet1kk'.*; did you mean 'imagenet1k'"):
        prompts.class_names("imagenet1kk")
