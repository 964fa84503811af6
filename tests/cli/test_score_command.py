"""`oodbench score` and `oodbench explain`: scores equal to the benchmark's, decisions, and wrong input."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import oodbench
from oodbench.cli import main
from oodbench.cli.score import write_scores
from oodbench.data import catalog as catalogue
from oodbench.data.glyphs import render, world
from oodbench.detector import explain as explanation
from oodbench.detector.engine import Scored
from oodbench.pipeline.request import request_from
from oodbench.storage.store import Store
from tests.first_run import after_first_run
from tests.photos import lay
from tests.processes import script_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the page assumes it: photos of known classes, new images, and the names."""
    folder = lay(tmp_path_factory.mktemp("place"), known=60, new=20)
    (folder / "folder.csv").mkdir()
    return folder


def call(place: Path, *arguments: str) -> Result:
    before = Path.cwd()
    os.chdir(place)
    try:
        return CliRunner().invoke(main, arguments)
    finally:
        os.chdir(before)


def table(text: str) -> pd.DataFrame:
    found = pd.read_csv(io.StringIO(text), keep_default_na=False, dtype={"score": str})
    return found.assign(score=found["score"].map(float))  # to the last digit


def test_scores_with_a_decision(place: Path, tmp_path: Path) -> None:
    usual = ("score", "--method", "mcm", "--classes", "names.txt", "--store", str(tmp_path / "store"))
    done = call(place, *usual, "new", "--threshold-from", "photos")
    assert done.exit_code == 0, done.output
    found = table(done.stdout)
    assert list(found) == ["image", "score", "class", "decision"] and len(found) == 40
    one = oodbench.Detector("mcm", classes=list(world.CLASSES)).fit(place / "photos")
    assert (found["score"] == one.score_samples(place / "new")).all()
    assert ((found["decision"] == "id") == (one.predict(place / "new") == 1)).all()
    assert (found["class"] == one.classify(place / "new")).all()
    assert f"40 images, {(found['decision'] == 'id').sum()} of them ID at threshold" in done.stderr
    same = call(place, *usual, "new", "--threshold", str(one.threshold_), "--output", str(tmp_path / "x.parquet"))
    assert same.exit_code == 0 and same.stdout == ""
    assert pd.read_parquet(tmp_path / "x.parquet").to_dict("list") == found.to_dict("list")
    assert call(place, *usual, "new", "--output", str(tmp_path / "x.csv")).exit_code == 0
    assert (tmp_path / "x.csv").read_text().startswith("image,score,class\n")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_a_saved_detector_needs_no_other_options(place: Path, tmp_path: Path) -> None:
    usual = ("score", "--method", "energy", "--classes", "names.txt", "--set", "energy.temperature=2")
    kept = str(tmp_path / "kept")
    first = call(place, *usual, "new", "--threshold-from", "photos", "--save", kept)
    again = call(place, "score", "--detector", kept, "new", "--no-store", "--store", str(tmp_path / "s"))
    assert first.exit_code == again.exit_code == 0 and first.stdout == again.stdout
    assert not [e for e in Store(tmp_path / "s").entries() if e.kind == "embeddings"]
    one = call(place, "score", "--detector", kept, "new/letters-003.png", "photos/id-train-001.png")
    assert [len(table(one.stdout)), Path(table(one.stdout)["image"][0]).name] == [2, "letters-003.png"]
    fixed = call(place, "score", "--detector", kept, "new", "--method", "mcm", "--tpr", "0.9", "--set", "a.b=1")
    assert fixed.exit_code == 2 and "--detector fixes --method, --tpr, --set" in fixed.stderr


def test_no_name_breaks_a_row_or_starts_a_formula(place: Path, tmp_path: Path) -> None:
    """A spreadsheet, a reader of lines and a terminal each see one plain text per image."""
    hostile = ["=1+1.png", "+a.png", "-1.png", "@SUM(A1).png", "a\rb.png", "a\nb.png", "a\u2028b.png", 'a"b,c.png']
    hostile += ["\t=1.png", "\r=1.png", "\x1b[31mred.png", "\u202eb.png", "b\udcff.png"]  # bytes that are not UTF-8
    shown = ["'=1+1.png", "'+a.png", "'-1.png", "'@SUM(A1).png", r"a\rb.png", r"a\nb.png", r"a\u2028b.png", 'a"b,c.png']
    shown += [r"'\t=1.png", r"'\r=1.png", r"\x1b[31mred.png", r"\u202eb.png", r"b\udcff.png"]
    n = len(hostile)
    scored = Scored(tuple(hostile), np.arange(float(n)), np.zeros(n, np.int64))
    for name in ("x.csv", "x.parquet"):
        assert write_scores([scored], ["=a\rb"], 3.0, tmp_path / name).accepted == n - 3
    raw = (tmp_path / "x.csv").read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(raw, newline="")))
    assert [row["image"] for row in rows] == shown and len(raw.splitlines()) == n + 1
    assert {row["class"] for row in rows} == {r"'=a\rb"} and [float(row["score"]) for row in rows] == list(range(n))
    table = pd.read_parquet(tmp_path / "x.parquet")
    assert table["image"].tolist() == [*hostile[:-1], r"b\udcff.png"] and set(table["class"]) == {"=a\rb"}
    folder = tmp_path / "=1\r"
    folder.mkdir()
    shutil.copy(place / "new/letters-000.png", folder / "=1\r+1\x1b.png")
    (folder / "\x1bz.png").write_text("nothing")
    done = call(
        place, "score", "--method", "mcm", "--classes", "names.txt", str(folder), "--no-store", "--on-error", "skip"
    )
    assert r"'=1\r+1\x1b.png," in done.stdout and r"skipped: \x1bz.png" in done.stderr
    assert "\x1b" not in done.output and "\r" not in done.output
    one = explanation.Explanation(
        "a\x1b\n", "e", "i\u202e", "p", (), (explanation.Verdict("m", 1, "c\r", 1, True, {}),)
    )
    said = explanation.text(one)
    assert r"a\x1b\n" in said and r"c\r" in said and r"i\u202e" in said and "\r" not in said


@pytest.mark.slow
def test_a_method_calibrates_on_images_of_its_own(place: Path, tmp_path: Path) -> None:
    usual = ("score", "--method", "react", "--classes", "names.txt", "new")
    both = call(place, *usual, "--calibration", "photos", "--threshold-from", "new")
    one = oodbench.Detector("react", classes=list(world.CLASSES))
    one.fit(place / "photos", validation=place / "new")
    assert both.exit_code == 0, both.output
    assert (table(both.stdout)["decision"] == "id").tolist() == (one.predict(place / "new") == 1).tolist()
    given = call(place, *usual, "--calibration", "photos", "--threshold", str(one.threshold_))
    assert given.stdout == both.stdout
    bare = call(place, *usual, "--calibration", "photos")
    assert list(table(bare.stdout)) == ["image", "score", "class"]
    assert (table(bare.stdout)["score"] == table(both.stdout)["score"]).all()
    same = call(place, *usual, "--calibration", "photos", "--threshold-from", "photos")
    assert same.exit_code == 2 and "react is fitted on 60 of the 60 images for" in same.stderr
    few = call(place, *usual, "--threshold-from", "photos/id-train-001.png")
    assert few.exit_code == 2 and "there is only one (" in few.stderr


@pytest.mark.slow
def test_a_shared_store_is_read_and_written(place: Path, tmp_path: Path) -> None:
    there = (tmp_path / "there").as_uri()
    usual = ("score", "--method", "mcm", "--classes", "names.txt", "new", "--shared", there)
    first = call(place, *usual, "--store", str(tmp_path / "a"))
    assert first.exit_code == 0 and list((tmp_path / "there/embeddings").glob("*/*/entry.json"))
    again = call(place, *usual, "--store", str(tmp_path / "b"), "--no-store")
    assert again.stdout == first.stdout and not (tmp_path / "b/embeddings").exists()
    assert call(place, *usual, "--store", str(tmp_path / "b")).stdout == first.stdout
    assert list((tmp_path / "b/embeddings").glob("*/*/.shared-*")), "fetched, not made"
    image = ("explain", "--methods", "mcm", "--shared", there, "--store", str(tmp_path / "c"), "new/letters-000.png")
    assert call(place, *image).exit_code == 0 and list((tmp_path / "c/text").glob("*/*/.shared-*"))
    wrong = call(place, *usual[:-1], "nowhere")
    assert wrong.exit_code == 2 and "nowhere is not a URL" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "mcm"), "name --method and --classes"),
        (
            ("--method", "react", "--classes", "names.txt"),
            "(--threshold-from or --calibration), or set threshold explicitly",
        ),
        (("--method", "mcm,msp", "--classes", "names.txt"), "a detector is one method, not mcm,msp"),
        (("--method", "mcm", "--classes", "names.txt", "--output", "x.txt"), "must end in .csv or .parquet"),
        (("--method", "mcm", "--classes", "names.txt", "--output", "no/x.csv"), "there is no folder"),
        (("--method", "mcm", "--classes", "names.txt", "--set", "msp.scale=1"), "--set msp.scale: the method is mcm"),
        (("--method", "mcm", "--classes", "names.txt", "--threshold", "1", "--threshold-from", "new"), "not both"),
        (("--method", "mcm", "--classes", "names.txt", "--threshold-from", "nowhere"), "nowhere cannot be read"),
        (("--method", "mcm", "--classes", "names.txt", "--threshold", "nan"), "--threshold nan is not a finite number"),
        (("--method", "mcm", "--classes", "names.txt", "--tpr", "0.9"), "it needs ID images: --threshold-from DIR"),
        (
            ("--method", "mcm", "--classes", "names.txt", "--threshold-from", "new", "--tpr", "95"),
            "tpr takes a fraction",
        ),
        (("--method", "mcm", "--classes", "names.txt", "--save", "new"), "new exists and holds no detector"),
        (("--detector", "new"), "new holds no detector"),
        (
            ("--method", "mcm", "--classes", "names.txt", "--output", "folder.csv"),
            "--output folder.csv is a folder",
        ),
    ],
)
def test_refusals_state_the_reason(arguments: tuple[str, ...], said: str, place: Path) -> None:
    done = call(place, "score", "new", *arguments)
    assert (done.exit_code, done.stdout) == (2, "") and said in done.stderr and "Traceback" not in done.output


def test_missing_images_are_reported_before_fitting(place: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    usual = ("score", "--method", "react", "--classes", "names.txt", "--threshold-from", "photos", "--store", store)
    done = call(place, *usual, "nowhere.png")
    assert done.exit_code == 2 and "nowhere.png cannot be read" in done.stderr and not (tmp_path / "store").exists()


def test_notes_on_the_data_are_those_of_a_run(place: Path, tmp_path: Path, caplog: Any) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    for i in range(3):
        Image.fromarray(np.arange(40_000, 40_900, dtype=np.uint16).reshape(30, 30)).save(deep / f"{i}.png")
    (deep / "photo.heic").write_bytes(b"x")
    (tmp_path / "names.txt").write_text("Anchor\nanchor\ncloud\n")
    usual = ("score", "--method", "mcm", "--classes", str(tmp_path / "names.txt"), str(deep), "--no-store")
    done = call(place, *usual, "--threshold-from", str(deep))
    assert done.exit_code == 0, done.output
    assert "note: folder:" in done.stderr and "ignored 1 .heic" in done.stderr and "become" in done.stderr
    for said in ("'Anchor' = 'anchor'", "ignored 1 .heic", "all 3 ID images score"):
        assert said in caplog.text


@pytest.mark.slow
def test_broken_images_stop_or_are_skipped(place: Path, tmp_path: Path) -> None:
    mixed = shutil.copytree(place / "new", tmp_path / "mixed")
    (mixed / "a broken.png").write_text("nothing")
    usual = ("score", "--method", "mcm", "--classes", "names.txt", str(mixed), "--output", str(tmp_path / "x.csv"))
    stop = call(place, *usual)
    assert stop.exit_code == 2 and "a broken.png cannot be read" in stop.stderr
    assert not (tmp_path / "x.csv").exists() and not list(tmp_path.glob(".*"))
    skip = call(place, *usual, "--on-error", "skip")
    assert skip.exit_code == 0 and "skipped: a broken.png: not an image format" in skip.stderr
    assert len(pd.read_csv(tmp_path / "x.csv")) == 40


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("".join(f"the nice thing number {i}\n" for i in range(200)))
    return path


@pytest.mark.slow
def test_explain_ranks_an_image_among_stored_scores(place: Path, tmp_path: Path, words: Path) -> None:
    settings = [f"neglabel.words={words}", "neglabel.groups=5"]
    methods = "clipn,mcm,neglabel,zoc"
    oodbench.run(methods, ood="glyphs-letters", limit=100, results=str(tmp_path), settings=settings)
    flags = [part for setting in settings for part in ("--set", setting)]
    usual = ("explain", "--methods", methods, "--results", str(tmp_path), *flags, "--top", "3")
    done = call(place, *usual, "--format", "json", "new/id-test-000.png", "new/letters-000.png")
    assert done.exit_code == 0, done.output
    both = json.loads(done.stdout)
    assert [Path(one["image"]).name for one in both] == ["id-test-000.png", "letters-000.png"]
    names = ["id-test-000.png", "letters-000.png"]
    for name, one in zip(names, both, strict=True):
        verdicts = {v["method"].partition("[")[0]: v for v in one["verdicts"]}
        assert set(verdicts) == {"clipn", "mcm", "neglabel", "zoc"} and not one["notes"]
        for method, verdict in verdicts.items():
            (path,) = tmp_path.rglob(f"{method}*.parquet")
            stored = pd.read_parquet(path)
            known = stored[stored["dataset"] == "glyphs"]["score"]
            given = {"words": str(words), "groups": 5} if method == "neglabel" else None
            alone = oodbench.Detector(method, classes=list(world.CLASSES), settings=given).fit()
            assert verdict["score"] == alone.score_samples(place / "new" / name)[0]
            assert verdict["percentile"] == pytest.approx(100 * (known <= verdict["score"]).mean())
            assert verdict["prediction"] == alone.classify(place / "new" / name)[0]
        assert [n["cosine"] for n in one["nearest"]] == sorted((n["cosine"] for n in one["nearest"]), reverse=True)
        assert len(one["nearest"]) == 3 and one["nearest"][0]["name"] == verdicts["mcm"]["prediction"]
        rules = dict(map(tuple, verdicts["clipn"]["details"]["both rules"]))
        assert rules["atd, probability of ID"] == pytest.approx(1 / (1 + np.exp(-verdicts["clipn"]["score"])))
        assert verdicts["clipn"]["accepted"] == bool(rules["atd, decides ID (1) or OOD (0)"])
        mass = dict(map(tuple, verdicts["neglabel"]["details"]["softmax mass"]))
        assert mass["ID names"] + mass["negative words"] == pytest.approx(1)
        assert all(w.startswith("thing") for w, _ in verdicts["neglabel"]["details"]["nearest negative words, cosines"])
    text = call(place, *usual, "new/id-test-000.png").stdout
    for said in ("nearest class names", "p_yes of the same classes", "both rules", "softmax mass", "names proposed"):
        assert said in text
    bare = call(place, "explain", "--methods", "mcm", "--results", str(tmp_path / "none"), "new/letters-000.png")
    assert bare.exit_code == 0 and "no stored ID scores below" in bare.stdout


@pytest.mark.slow
def test_scores_after_another_calibration_are_not_ranked(place: Path, tmp_path: Path) -> None:
    """A run with --limit calibrates on fewer images, so its scores have another scale."""
    oodbench.run("react,mcm", ood="glyphs-letters", limit=20, results=str(tmp_path), bootstrap=0)
    request = request_from(methods="react,mcm", out=tmp_path)
    (one,) = explanation.explain(request, [place / "new/letters-000.png"])
    ranks = {verdict.method: verdict.percentile for verdict in one.verdicts}
    assert ranks["react"] is None and ranks["mcm"] is not None
    assert "no stored ID scores" in one.notes[0] and "for react; to rank the image: oodbench run --meth" in one.notes[0]
    other = Image.open(place / "new/letters-000.png").convert("RGB")
    for name in ("id/cat", "id/dog", "there/id/cat", "there/id/dog", "ood", "there/ood"):
        (tmp_path / name).mkdir(parents=True)
        other.resize((64, 64) if "there" in name else (32, 32)).save(tmp_path / name / "1.png")
    asked: dict[str, Any] = {
        "methods": "mcm",
        "id": "folder:id",
        "ood": "folder:ood",
        "encoder": "glyphs",
        "out": tmp_path / "rows",
    }
    with chdir(tmp_path):
        oodbench.run("mcm", id="folder:id", ood="folder:ood", encoder="glyphs", results="rows", bootstrap=0)
        (known,) = explanation.explain(request_from(**asked), [place / "new/letters-000.png"])
    with chdir(tmp_path / "there"):
        (unknown,) = explanation.explain(request_from(**asked), [place / "new/letters-000.png"])
    assert known.verdicts[0].percentile is not None and unknown.verdicts[0].percentile is None  # other images


@pytest.mark.slow
def test_a_method_that_fails_does_not_hide_the_others(place: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "unlucky.py"
    plugin.write_text(
        '"""Unlucky: fails (Doe et al., ICML 2020, arXiv:2001.00001)."""\n'
        "from dataclasses import dataclass\nfrom oodbench.method import Method\n\n"
        "@dataclass(frozen=True)\nclass Unlucky(Method):\n    '''Fails.'''\n\n"
        "    def score(self, batch, task, state):\n        raise ValueError('no luck')\n"
    )
    options: dict[str, Any] = {"plugins": [plugin], "out": tmp_path / "none"}
    request = request_from(methods="mcm,unlucky", **options)
    (one,) = explanation.explain(request, [place / "new/letters-000.png"])
    assert [bool(v.error) for v in one.verdicts] == [False, True]
    assert "ValueError: no luck" in explanation.text(one)
    assert json.loads(json.dumps(explanation.plain(one), allow_nan=False))


def test_an_explanation_that_fails_or_is_not_finite_leaves_the_score(place: Path, tmp_path: Path) -> None:
    head = (
        '"""{0}: one number (Doe et al., ICML 2020, arXiv:2001.00001)."""\n'
        "from dataclasses import dataclass\nfrom oodbench.method import Method\n\n"
        "@dataclass(frozen=True)\nclass {0}(Method):\n    '''{0}.'''\n\n"
        "    def score(self, batch, task, state):\n        return batch.features[:, 0]\n\n"
        "    def explain(self, batch, task, state):\n        {1}\n"
    )
    (tmp_path / "mute.py").write_text(head.format("Mute", "raise KeyError('words')"))
    (tmp_path / "odd.py").write_text(head.format("Odd", "return {'a\\x1b': [('b', float('nan')), ('c', 1)]}"))
    plugins = [tmp_path / "mute.py", tmp_path / "odd.py"]
    request = request_from(methods="mute,odd", out=tmp_path / "none", plugins=plugins)
    (one,) = explanation.explain(request, [place / "new/letters-000.png"], top=1)
    mute, odd = one.verdicts
    assert mute.score == odd.score and "KeyError: 'words'" in mute.error and not mute.details
    assert f"{mute.score:.5g}" in explanation.text(one) and r"odd: a\x1b" in explanation.text(one)
    found = json.loads(json.dumps(explanation.plain(one), allow_nan=False))
    assert found["verdicts"][1]["details"] == {"a\x1b": [["b", "nan"]]}
    (tmp_path / "two").mkdir()
    for name in ("letters-000.png", "letters-001.png"):
        shutil.copy(place / "new" / name, tmp_path / "two")
    whole = call(place, "explain", "--methods", "mcm", "--format", "json", str(tmp_path / "two"))
    assert [Path(one["image"]).name for one in json.loads(whole.stdout)] == ["letters-000.png", "letters-001.png"]
    done = call(place, "explain", "--methods", "mcm", "--top", "0", "new/letters-000.png")
    assert done.exit_code == 2 and "0 is not in the range" in done.output


@pytest.mark.slow
def test_the_page_on_detectors_can_be_followed(place: Path, tmp_path: Path) -> None:
    """Every command and the Python of docs/using-a-detector.md, as they stand, in a folder as the page assumes it."""
    page = (ROOT / "docs/using-a-detector.md").read_text()
    here = shutil.copytree(place, tmp_path / "here")
    env = {
        **os.environ,
        **after_first_run(here),
        "PATH": os.pathsep.join([script_folder(), str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    for command in "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).splitlines():
        done = subprocess.run(command, shell=True, cwd=here, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        pd.read_csv(here / "scores.csv")["score"].tolist() == pd.read_parquet(here / "again.parquet")["score"].tolist()
    )


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """own/ and train/ with two classes each, and new/; an empty configuration."""
    for i in range(4):
        for name in ("own/anchor", "own/cloud", "train/anchor", "train/cloud", "new"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            split = {"own": "id-test", "train": "id-train", "new": "letters"}[name.partition("/")[0]]
            Image.fromarray(render.image(split, i)).save(tmp_path / name / f"{i}.png")
    monkeypatch.setenv("OODBENCH_CONFIG", str(tmp_path / "config"))
    yield tmp_path
    monkeypatch.undo()
    for cache in (catalogue.datasets, catalogue.benchmarks):
        cache.cache_clear()


@pytest.mark.slow
def test_a_declared_id_set_is_run_explained_and_scored_by_name(own: Path) -> None:
    def done(*arguments: str) -> Result:
        result = call(own, *arguments)
        assert result.exit_code == 0, result.output
        return result

    done("datasets", "add", "things", "--loader", "classes", "--path", "own", "--train", "folder:train")
    done("benchmarks", "add", "bench", "--id", "things", "--ood", "folder:new", "--encoder", "glyphs")
    done(
        "run",
        "--methods",
        "mcm,react",
        "--id",
        "bench",
        "--results",
        "rows",
        "--bootstrap",
        "0",
        "--tracking-uri",
        "none",
    )
    for name in ("bench", "things"):  # neither needs OOD sets
        explained = done(
            "explain", "--methods", "mcm,react", "--id", name, "--encoder", "glyphs", "--results", "rows",
            "--format", "json", "new/0.png",
        )  # fmt: skip
        (one,) = json.loads(explained.stdout)
        assert all(verdict["percentile"] is not None for verdict in one["verdicts"]) and not one["notes"]
    for method in ("mcm", "react"):  # react on the training images
        (path,) = (own / "rows").rglob(f"{method}*.parquet")
        of_run = pd.read_parquet(path).query("dataset != 'things'")
        scored = table(done("score", "--method", method, "--id", "bench", "new").stdout)
        assert scored["score"].tolist() == of_run["score"].tolist()
        assert set(scored["class"]) <= {"anchor", "cloud"}
    refused = call(own, "score", "--method", "mcm", "--id", "things", "new")
    assert refused.exit_code == 2 and "needs an encoder" in refused.stderr
    refused = call(own, "score", "--method", "mcm", "--classes", "x.txt", "--clean-names", "new")
    assert refused.exit_code == 2 and "--clean-names is for the class names of an ID set" in refused.stderr


@pytest.mark.slow
def test_equal_scores_of_all_images_are_noted(place: Path, tmp_path: Path) -> None:
    """MCM of one class is the softmax over one class, whatever the image."""
    (tmp_path / "one.txt").write_text("anchor\n")
    usual = ("score", "--method", "mcm", "--classes", str(tmp_path / "one.txt"), "--store", str(tmp_path / "store"))
    done = call(place, *usual, "new", "--threshold", "0")
    said = "note: all images have the same score, 0; with one class name every softmax over the classes is 1"
    assert done.exit_code == 0 and said in done.stderr.splitlines(), done.output
    assert "note" not in call(place, *usual[:3], "--classes", "names.txt", *usual[5:], "new").stderr
