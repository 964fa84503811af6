"""Parsing of the values that users write, and their conversion to types."""

from __future__ import annotations

from typing import Any

import pytest

from oodbench.errors import UserError
from oodbench.method.parameters import (
    Choice,
    Setting,
    conform,
    label,
    parse_choices,
    parse_names,
    parse_setting,
    parse_value,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.01", 0.01),
        (" -1 ", -1),
        ("1e-3", 0.001),
        ("true", True),
        ("False", False),
        ("none", None),
        ("None", None),
        ("'none'", "none"),
        ('"a b"', "a b"),
        ("(1, 2)", (1, 2)),
        ("[1, 2]", [1, 2]),
        ("a photo of a {}", "a photo of a {}"),
        ("{}", "{}"),
        ("a=b", "a=b"),
        ("", ""),
        ("1+", "1+"),
        ("b'x'", "b'x'"),
        ("1+2j", "1+2j"),
        ("(" * 500, "(" * 500),
    ],
)
def test_values_are_literals_or_text(text: str, value: object) -> None:
    read = parse_value(text)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, "float", 1.0),
        (1, "float | None", 1.0),
        (1, "int | float", 1),
        (None, "float | None", None),
        (None, "Optional[float]", None),
        (2, "typing.Optional[float]", 2.0),
        (2, "'float'", 2.0),
        (True, "bool", True),
        ("atd", "Literal['atd', 'ctw']", "atd"),
        ("a|b", "Literal['a|b'] | None", "a|b"),
        ([1, 2], "tuple[float, ...]", (1.0, 2.0)),
        ((1, "a"), "tuple[int, str]", (1, "a")),
        ((1, 2), "list[int]", [1, 2]),
        ([], "tuple[int, ...]", ()),
        ([1], "tuple", (1,)),
        ("anything", "Path", "anything"),
    ],
)
def test_a_value_is_converted_to_its_type(value: object, kind: str, expected: Any) -> None:
    fitted = conform(value, kind)
    assert fitted == expected and type(fitted) is type(expected)
    if isinstance(expected, tuple | list):
        assert list(map(type, fitted)) == list(map(type, expected))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1", "float"),
        (True, "float"),
        (True, "int"),
        (1, "bool"),
        (1.0, "int"),
        (None, "float"),
        (1, "str"),
        (1.0, "Literal[1]"),
        (True, "Literal[1]"),
        ("x", "Literal['a', 'b']"),
        ((1, "a"), "tuple[int, ...]"),
        ((1,), "tuple[int, int]"),
        (1, "tuple[int, ...]"),
        ("1", "Optional[float]"),
    ],
)
def test_a_value_of_another_type_does_not_fit(value: object, kind: str) -> None:
    with pytest.raises(ValueError, match="takes .*, not "):
        conform(value, kind)


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("mcm", [("mcm", {})]),
        (" mcm , energy ,", [("mcm", {}), ("energy", {})]),
        ("energy[scale=1],energy[scale=100]", [("energy", {"scale": 1}), ("energy", {"scale": 100})]),
        ("energy[]", [("energy", {})]),
        ("a[x=-1, y=none,z=true]", [("a", {"x": -1, "y": None, "z": True})]),
        ("a[x=(1, 2),y=[3]]", [("a", {"x": (1, 2), "y": [3]})]),
        ("a[t='a photo, of a {}'],b", [("a", {"t": "a photo, of a {}"}), ("b", {})]),
        ("a[t=a photo of a {}.]", [("a", {"t": "a photo of a {}."})]),
        ("a[t='it\\'s, a {}'],b", [("a", {"t": "it's, a {}"}), ("b", {})]),
        ("a[t=it's a {}],b", [("a", {"t": "it's a {}"}), ("b", {})]),
        ("a[t=x=y]", [("a", {"t": "x=y"})]),
        ("a[t='x]y']", [("a", {"t": "x]y"})]),
    ],
)
def test_methods_are_read_with_their_brackets(text: str, choices: list[tuple[str, dict[str, Any]]]) -> None:
    assert parse_choices(text) == [Choice(name, overrides) for name, overrides in choices]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no method was named"),
        (" , ", "no method was named"),
        ("energy[scale=1", "cannot read method 'energy[scale=1'"),
        ("energy[scale]", "cannot read 'scale' in 'energy[scale]'"),
        ("energy[=1]", "cannot read '=1'"),
        ("[scale=1]", "cannot read method"),
        ("energy[scale=1]x", "cannot read method"),
        ("energy[scale=1,scale=2]", "'scale' is set twice"),
        ("a[x,b", "cannot read method 'a[x,b'"),
    ],
)
def test_methods_that_cannot_be_read_are_refused(text: str, problem: str) -> None:
    with pytest.raises(UserError) as error:
        parse_choices(text)
    assert problem in str(error.value)


def test_every_unreadable_method_is_reported() -> None:
    with pytest.raises(UserError) as error:
        parse_choices("a[x],b,c[=1]")
    assert len(str(error.value).splitlines()) == 2


def test_settings() -> None:
    assert parse_setting("mcm.temperature=0.01") == Setting("mcm", "temperature", 0.01)
    assert parse_setting(" mcm.templates = a {} = b") == Setting("mcm", "templates", "a {} = b")
    assert parse_setting("mcm.x=-1").value == -1
    for wrong in ("mcm.temperature", "temperature=1", ".temperature=1", "mcm.=1", "=1", ""):
        with pytest.raises(UserError, match="write --set method.parameter=value"):
            parse_setting(wrong)


def test_names_keep_commas_in_double_quotes() -> None:
    assert parse_names('textures, "folder:a,b" ,folder:photos (1)') == ("textures", "folder:a,b", "folder:photos (1)")
    assert parse_names(" ") == () and parse_names("a,,b,") == ("a", "b")


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": 1.0},
        {"scale": None},
        {"scale": 0.01, "name": "none"},
        {"name": "1"},
        {"name": ""},
        {"name": "a, b"},
        {"name": 'it\'s [a] "{}", \\ yes'},
        {"name": "a photo of a {}"},
        {"name": "x=1"},
        {"several": (1, "a, b")},
        {"flag": True},
    ],
)
def test_a_label_can_be_parsed(changed: dict[str, Any]) -> None:
    defaults = {"scale": 100.0, "name": "simple", "several": (), "flag": False}
    text = label("energy", {**defaults, **changed}, defaults)
    (choice,) = parse_choices(text)
    assert choice == Choice("energy", changed)
    assert [c.name for c in parse_choices(f"{text},mcm")] == ["energy", "mcm"]


def test_labels_are_short() -> None:
    assert label("energy", {"scale": None}, {"scale": None}) == "energy"
    assert label("energy", {"scale": 1.0}, {"scale": None}) == "energy[scale=1]"
    assert label("mcm", {"templates": "openai80"}, {"templates": "simple"}) == "mcm[templates=openai80]"
