"""Published results: their files, quotes in tables, and comparison with measured results."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import oodbench.report as report
from oodbench.cli import main
from oodbench.data import catalog as catalogue
from oodbench.errors import UserError
from oodbench.report.options import TableOptions
from oodbench.report.tables.published import Quote, compare_with_published, quote, quotes, read, with_quotes
from oodbench.results import IdRow, Result, SetRow

ROOT = Path(__file__).parents[2]
NOTES = ROOT.parent / "shared/reference"
SETS = ("inaturalist", "sun", "places", "textures")


def row(method: str = "mcm", values: tuple[float, ...] = (0.9,) * 4, **changes: Any) -> Result:
    """A row on the MOS sets: AUROC as given, FPR95 its complement."""
    sets = (
        SetRow(name, name.upper(), "", 100, 100, 0, name, value, 1 - value, 0.5, 0.6, 0.7, 0.0)
        for name, value in zip(SETS, values, strict=True)
    )
    plain = Result(
        method=method,
        label=method,
        title=method.upper(),
        parameters={"templates": "mcm", "temperature": 1.0},
        benchmark="mos",
        benchmark_title="MOS",
        encoder={
            "name": "ViT-B-16/openai",
            "slug": "ViT-B-16-openai",
            "architecture": "ViT-B-16",
            "tag": "openai",
            "interpolation": "bicubic",
            "weights": "ab" * 32,
        },
        id=IdRow("imagenet1k", "ImageNet-1k", 100, 100, 0, "id", 0.6),
        ood=tuple(sets),
        conventions={"at95": "first"},
        classes={"name": "c", "count": 2, "digest": "c"},
        templates={"name": "mcm", "count": 1, "digest": "m"},
        files={},
        run={"seed": 0, "precision": "fp32"},
        source="s",
        versions={},
        commit=None,
        scores={},
    )
    return dataclasses.replace(plain, **changes)


def values(one: Quote, metric: str) -> dict[str, float]:
    return {name: round(100 * cell[metric].value, 2) for name, cell in one.cells.items() if metric in cell}


def test_tables_of_clipn() -> None:
    mean = quote("clipn:readme")
    assert values(mean, "auroc") == {
        "inaturalist": 96.20,
        "sun": 94.18,
        "textures": 90.81,
        "places": 92.62,
        "mean": 93.45,
    }
    assert values(mean, "fpr95")["mean"] == 29.46
    repeats = [quote(f"clipn:readme-{i}") for i in (1, 2, 3)]
    for name in SETS:
        for metric in ("auroc", "fpr95"):
            average = sum(values(one, metric)[name] for one in repeats) / 3
            assert average == pytest.approx(values(mean, metric)[name], abs=0.011), (name, metric)
    paper = quote("clipn:paper")
    assert values(paper, "auroc") == {"mean": 93.10}
    assert values(paper, "fpr95") == {"inaturalist": 23.94, "sun": 26.17, "places": 33.45, "mean": 31.10}
    assert paper.cells["sun"]["fpr95"].source != paper.cells["mean"]["fpr95"].source
    assert "Textures" in paper.about


def test_means_equal_the_average_of_their_cells() -> None:
    """This detects a typing error in one of five numbers; errors of the sources are listed."""
    known = {"clipn:cover"}
    wrong = []
    for one in quotes().values():
        for metric in ("auroc", "fpr95", "fpr95_ood"):
            found = values(one, metric)
            if set(found) == {*SETS, "mean"}:
                average = sum(found[name] for name in SETS) / 4
                one_decimal = all(round(value, 1) == value for value in found.values())
                if abs(average - found["mean"]) > (0.101 if one_decimal else 0.0151):
                    wrong.append((one.key, metric, round(average, 3), found["mean"]))
    assert not [w for w in wrong if w[0] not in known], wrong


def test_every_cell_has_source_and_confidence_and_a_place() -> None:
    assert len(quotes()) > 100
    benchmarks = catalogue.benchmarks()
    for one in quotes().values():
        assert one.method == one.key.partition(":")[0]
        for name, cell in one.cells.items():
            assert cell, f"{one.key}: {name} is empty"
            for number in cell.values():
                assert number.source and number.confidence and "U" not in number.confidence.split(":")[0].split()
        names = set(one.cells) - {"mean", "near mean", "far mean"}
        if one.benchmark in benchmarks:
            assert names <= {name for name, _ in benchmarks[one.benchmark].sets()}, one.key
        else:
            known, _, sets = one.benchmark.partition("-vs-")
            assert catalogue.protocol(known, sets.split("+")).benchmark.name == one.benchmark
            assert names <= set(sets.split("+"))


def test_every_number_is_in_the_notes() -> None:
    if not NOTES.is_dir():
        pytest.skip("the reference notes are not next to this checkout")
    text = "\n".join(path.read_text(encoding="utf-8") for path in NOTES.glob("*.md"))
    there = {round(float(n), 4) for n in re.findall(r"(?<![\d.])\d*\.\d+|(?<![\d.])\d+(?![\d.])", text)}
    for one in quotes().values():
        for name, cell in one.cells.items():
            for metric, number in cell.items():
                own = "MarcLafon/gallop" in number.source and name != "mean"  # the notes hold its means
                assert own or round(100 * number.value, 2) in there, (one.key, name, metric, number.value)


def test_unconfirmed_numbers_are_absent() -> None:
    assert not [k for k in quotes() if k.startswith(("fort", "lapt", "interneg"))]
    assert values(quote("mcm:neglabel"), "auroc") == {"inaturalist": 94.59, "mean": 90.82}
    assert "sun" not in values(quote("msp:mcm-finetuned"), "auroc")
    assert not [one for one in quotes().values() if one.method == "zoc" and one.benchmark != "mos"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[rows]]\nkey = 'a:b'\n", "is not complete"),
        ("[[rows]]\nkey = 'a:b'\nmetod = 'x'\n", "no field 'metod'; did you mean 'method'?"),
        ("x = ", "x.toml"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read(path)


def test_published_percentages_become_the_nearest_fractions() -> None:
    numbers = [value.value for one in quotes().values() for cell in one.cells.values() for value in cell.values()]
    assert len(numbers) > 500 and all(len(repr(number)) <= len("0.12345") for number in numbers)


@pytest.mark.parametrize("cell", ["auroc = 101", "auroc = -1", "roc = 5", "auroc = 'x'"])
def test_a_wrong_number_is_refused(cell: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    head = "key = 'a:b'\nmethod = 'a'\ntitle = 'A'\nbenchmark = 'mos'\nsource = 's'\nconfidence = 'c'\n"
    path.write_text(f"[[rows]]\n{head}[rows.cells]\nsun = {{ {cell} }}\n")
    with pytest.raises(UserError, match="is not a percentage"):
        read(path)


def test_quotes_are_labelled_and_not_ranked() -> None:
    tables = report.tables([row("mcm"), row("msp", (0.8,) * 4)])
    (table,) = with_quotes(tables, [quote("neglabel:paper"), quote("ttl:paper")], TableOptions())
    assert [line.name for line in table.lines[2:]] == [
        "NegLabel (quoted: paper)",
        "TTL (quoted: paper; test-time adaptation)",
    ]
    assert [line.section for line in table.lines] == [
        *["Zero-shot"] * 2,
        "Zero-shot. Quoted, not run here",
        "Test-time adaptation. Quoted, not run here",
    ]
    assert [cell.plain for cells in table.lines[2].cells for cell in cells][:4] == ["99.49", "1.91", "95.49", "20.53"]
    assert not [c.mark for line in table.lines[2:] for cells in line.cells for c in cells if c.mark]
    assert table.lines[0].cells[0][0].mark == "best"
    said = "\n".join(table.notes)
    assert "TTL (2026), on MCM (confidence C" in said and "not comparable with methods that do not" in said
    for text in (report.latex(table), report.markdown(table)):
        assert "quoted: paper; test-time adaptation" in text and "Quoted, not run here" in text
    lines = list(csv.DictReader(io.StringIO(report.csv([table]))))
    assert [line["status"] for line in lines] == ["ok", "ok", "quoted", "quoted; test-time adaptation"]
    assert (lines[2]["ood.sun.auroc"], lines[2]["mean.fpr95"], lines[2]["quote"]) == (
        "0.9549",
        "0.254",
        "neglabel:paper",
    )


def test_published_means_equal_the_average_of_their_cells() -> None:
    """Means printed to two decimals; this detects errors in copied cells."""
    wrong = []
    for one in quotes().values():
        whole = {"inaturalist", "sun", "places", "textures"} <= set(one.cells)
        for metric, mean in (one.cells.get("mean", {}) if whole else {}).items():
            values = [cell[metric].value for name, cell in one.cells.items() if metric in cell and name != "mean"]
            allowed = 1.01e-3 if "one decimal" in one.confidence else 1.2e-4
            if len(values) == 4 and abs(sum(values) / 4 - mean.value) > allowed and "mean" not in one.remark:
                wrong.append((one.key, metric, round(sum(values) / 4, 6), mean.value))
    assert not wrong


def test_published_rows_name_their_own_source() -> None:
    known = quotes()
    assert not {"mcm:stage0", "neglabel:stage0"} & set(known)  # a document that cannot be cited
    assert known["mcm:setar-bicubic"].cells["mean"]["fpr95"].value == pytest.approx(0.4309)
    fusion = known["mcm:layer-fusion"]
    assert ("layer fusion" in fusion.source.replace("-", " "), fusion.resize) == (True, "")
    assert known["mcm:cover-metaclip"].architecture == "ViT-B-16-quickgelu"
    prompts = [one for key, one in known.items() if key.startswith("neglabel:prompt-")]
    assert len(prompts) == 7 and all(one.prompts.endswith(".") for one in prompts)
    assert all(one.settings["templates"] == one.prompts for one in prompts)
    assert "AAAI 2026" in known["coevo:paper"].source and known["lsn:paper-in100"].title == "CoCoOp + LSN"


def test_differences_between_rows_are_listed() -> None:
    words = row("neglabel", parameters={"words": "release-wn30"}, templates={"name": "nice"})
    (table,) = with_quotes(
        report.tables([row(), words]), [quote("neglabel:paper"), quote("clipn:paper")], TableOptions()
    )
    said = "\n".join(table.notes)
    assert (
        "Differing weights. openai: all results measured here, NegLabel (quoted: paper); laion2b_s34b_b88k: CLIPN"
        in said
    )
    assert "Differing prompts. mcm: MCM; nice: NEGLABEL; the nice {}: NegLabel (quoted: paper)." in said
    assert "Differing resize filter. bicubic: all results measured here; bilinear: NegLabel (quoted: paper)." in said
    assert "Differing word list. release-wn30: NEGLABEL; the released word files: NegLabel (quoted: paper)." in said
    assert "CLIPN (quoted: paper) does not state: prompts, resize filter, rule of the 95 %." in said


def test_a_quote_of_another_benchmark_is_refused() -> None:
    with pytest.raises(UserError, match="is for benchmark openood; the tables are for: mos"):
        with_quotes(report.tables([row()]), [quote("adaneg:paper-openood")], TableOptions())


def test_means_are_not_quoted_over_other_sets() -> None:
    options = TableOptions(sets=("sun", "dtd"), metrics=("auroc",))
    options = dataclasses.replace(options, sets=("sun", "places"))
    (table,) = with_quotes(report.tables([row()], options), [quote("mcm:paper")], options)
    assert [cell.plain for cells in table.lines[1].cells for cell in cells] == ["92.57", "89.77", "-"]


def test_measured_and_published_numbers_are_compared() -> None:
    measured = row("mcm", (0.9461 - 0.00001, 0.9217 - 0.00001, 0.8937, 0.8))  # the first difference is no -0.00
    options = TableOptions(metrics=("auroc",))
    table = compare_with_published(report.tables([measured], options), options)[0]
    own, theirs, difference = table.lines[:3]
    assert [line.name for line in (own, theirs, difference)] == ["MCM, measured", "MCM (quoted: paper)", "difference"]
    assert [cells[0].text for cells in theirs.cells] == ["94.61", "92.57", "89.77", "86.11", "90.77"]
    assert [cells[0].text for cells in difference.cells] == ["+0.00", "-0.40", "-0.40", "-6.11", "-1.73"]
    assert [cells[0].mark for cells in difference.cells] == ["", "exceeds", "", "exceeds", "exceeds"]
    said = "\n".join(table.notes)
    assert "Tolerance: auroc 0.4, fpr95 2.0 points" in said
    assert (
        "Differing resize filter. bicubic: MCM, measured, MCM (quoted: setar-bicubic); bilinear: MCM (quoted: paper)"
        in said
    )
    assert r"\textbf{$-$6.11}\rlap{$^{!}$}" in report.latex(table) and "**-6.11**!" in report.markdown(table)
    assert "metaclip" not in said, "rows of other weights are for those weights"


def test_a_comparison_keeps_the_warnings_of_its_result_and_says_nothing_of_others() -> None:
    known = row("mcm", warnings=("all scores are equal",))
    guessing = dataclasses.replace(known, id=dataclasses.replace(known.id, accuracy=0.5))  # of two classes
    options = TableOptions(top=1, sort="auroc")
    (whole,) = report.tables([guessing, row("energy", (0.8,) * 4)], options)
    assert any("left out" in text for text in whole.caption)
    table = compare_with_published([whole], options)[0]
    said = "\n".join((*table.caption, *table.brief))
    assert "left out" not in said and "Shown: " not in said and "Sorted by" not in said
    assert "MCM: all scores are equal." in table.notes and any("guessing among 2 classes" in x for x in table.notes)


def test_only_rows_of_the_same_settings_are_compared() -> None:
    cold = row("mcm", parameters={"temperature": 0.01})
    with pytest.raises(UserError, match="no published result matches these"):
        compare_with_published(report.tables([cold]), TableOptions())
    ctw = row("clipn", parameters={"rule": "ctw"})
    names = [line.facts.get("quote") for line in compare_with_published(report.tables([ctw]), TableOptions())[0].lines]
    assert "clipn:readme-ctw" in names and "clipn:readme" not in names and "clipn:paper" not in names


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "runs/mos/x/mcm.json"
    path.parent.mkdir(parents=True)
    path.write_text(row().to_json())

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["report", "--results", str(tmp_path), *arguments])

    text = call("--compare", "published", "--format", "markdown").stdout
    assert "| difference |" in text and "MCM, measured and published" in text
    assert "(quoted: paper)" in call("--quote", "clipn:paper").stdout
    assert "did you mean 'clipn:paper'" in call("--quote", "clipn:papr").stderr
    assert "choose one" in call("--compare", "published", "--quote", "clipn:paper").stderr
    assert "known: published" in call("--compare", "papers").stderr


def test_an_fpr95_of_the_other_kind_has_a_letter_and_is_not_compared() -> None:
    """AdaNeg prints OOD-positive FPR95s: next to ID-positive ones each has a letter, and in a separate column none."""
    (table,) = with_quotes(report.tables([row(), row("msp")]), [quote("adaneg:paper")], TableOptions())
    quoted = table.lines[-1]
    assert [cell.plain for cell in quoted.cells[4]] == ["96.66", "18.92 o"]
    assert [cells[1].plain for cells in quoted.cells[:4]] == ["0.59 o", "9.50 o", "34.34 o", "31.27 o"]
    assert all(cells[1].other and not cells[1].mark for cells in quoted.cells[:5])
    for text in (report.markdown(table), report.latex(table)):
        assert "o: published FPR95 with OOD positive" in text and "FPR95 (i): fraction of OOD images" in text
    both = TableOptions(metrics=("fpr95", "fpr95_ood"))
    (table,) = with_quotes(report.tables([row()], both), [quote("adaneg:paper")], both)
    assert [cell.plain for cell in table.lines[-1].cells[4]] == ["-", "18.92"]
    only = TableOptions(metrics=("fpr95_ood",))
    (table,) = with_quotes(report.tables([row()], only), [quote("mcm:paper")], only)
    assert table.lines[-1].cells[4][0].plain == "42.74 i" and "i: published FPR95 with ID positive" in table.caption[-1]
    measured = row("neglabel", parameters={"words": "release-wn30"})
    for compared in compare_with_published(report.tables([measured]), TableOptions()):
        at = [line.facts.get("quote") for line in compared.lines].index("neglabel:openood-vlm")
        assert [line.cells[4][1].plain for line in compared.lines[at : at + 2]] == ["24.97 o", "-"]


def test_every_published_row_has_a_card_and_the_corrections_are_in() -> None:
    cards = {key: one.card for key, one in quotes().items()}
    assert {key for key, card in cards.items() if card.stream} == {
        *("adaneg:paper", "adaneg:paper-openood", "tanl:paper", "tanl:paper-openood", "oodd:log-neglabel", "oodd:mcm"),
        *("ants:paper", "coevo:paper", "ttl:paper"),
    }
    assert all(card.group == "few-shot" for key, card in cards.items() if "gallop" in key and key != "gl_mcm:gallop")
    assert cards["eoe:paper"].lm_words and cards["mahalanobis:neglabel"].id_labels == "all"
    assert cards["dualcnst:paper"].group == cards["clipn:paper"].group == "trained" == cards["mofe:paper"].group
    for key, names in (("adaneg:paper", 5), ("tanl:paper", 5), ("adaneg:paper-openood", 2), ("tanl:paper-openood", 2)):
        assert len(values(quote(key), "fpr95_ood")) == names and not values(quote(key), "fpr95")
    assert values(quote("ants:paper"), "fpr95_ood") == {"mean": 11.20} and not values(quote("coevo:paper"), "fpr95")
    assert values(quote("oodd:log-neglabel"), "fpr95")["mean"] == 18.79
    assert values(quote("csp:paper"), "auroc")["inaturalist"] == 99.60
    assert "lambda 0.5" in quote("gl_mcm:paper").about and "lambda 1.0" in quote("gl_mcm:gallop").about
    assert "MCM's code" in quote("mahalanobis:neglabel").about


@pytest.mark.parametrize(
    ("card", "said"),
    [("", "is not complete"), ("access = {shots = 1}\n", "no field 'shots'"), ("access = {stream = 1}\n", "True or")],
)
def test_a_published_row_without_a_right_card_is_refused(card: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    head = "key = 'a:b'\nmethod = 'a'\ntitle = 'A'\nbenchmark = 'mos'\nsource = 's'\nconfidence = 'c'\n"
    path.write_text(f"[[rows]]\n{head}{card}[rows.cells]\nsun = {{ auroc = 5 }}\n")
    with pytest.raises(UserError, match=said):
        read(path)
