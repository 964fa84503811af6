"""Names are made printable wherever they are printed."""

import unicodedata

import pytest

from oodbench.errors import printable


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain name_1.png", "plain name_1.png"),
        ("Ärger Жук 雪豹 ελιά naïve e\u0301 ≥ 🐕", "Ärger Жук 雪豹 ελιά naïve e\u0301 ≥ 🐕"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\r\nc\td", r"a\nb\r\nc\td"),
        ("gpj.\u202exe", r"gpj.\u202exe"),
        ("a\u2028b\u2029c\x85d\x00e\x9bf", r"a\u2028b\u2029c\x85d\x00e\x9bf"),
        ("\u2066x\u2069\u200f\u200b\ufeff\U000e0041", r"\u2066x\u2069\u200f\u200b\ufeff\U000e0041"),
        ("caf\udce9", r"caf\udce9"),
        ("a\u3000b\xa0c", "a\u3000b\xa0c"),
        (r"C:\new", r"C:\new"),
        ("", ""),
    ],
)
def test_invisible_characters_are_escaped_and_letters_kept(text: str, seen: str) -> None:
    assert printable(text) == seen
    assert printable(seen) == seen


def test_no_control_or_line_break_of_unicode_is_printed() -> None:
    whole = printable("".join(map(chr, (*range(0x32000), *range(0xE0000, 0xE0200), 0x10FFFF))))
    assert not {unicodedata.category(c) for c in set(whole)} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert len(whole.splitlines()) == 1
    whole.encode("utf-8")  # lone surrogates could not be encoded
