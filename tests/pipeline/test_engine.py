"""Scoring through the whole engine on a folder of images: needs, failures, variants, rows on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import oodbench
import oodbench.report as report
from oodbench.api import run
from oodbench.errors import UserError
from oodbench.pipeline.request import RunRequest, request_from
from oodbench.results import Result, rows

HEAD = '''"""Probe: for this test (Doe et al., ICML 2020, arXiv:2001.00001)."""
from dataclasses import dataclass
import pathlib
import torch
from oodbench.method import Method, Needs

@dataclass(frozen=True)
class Probe(Method):
    """A probe."""

'''


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """id/{a,b,c}: 20 images each; ood: 30 images; train/{a,b,c}: 5 each. 40x40, coloured noise."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for folder, n in (("id/red", 20), ("id/green_thing", 20), ("id/blue", 20), ("ood", 30)):
        (root / folder).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(root / folder / f"{i:02}.png")
    return root


def request(images: Path, out: Path, plugin: str = "", **options: object) -> RunRequest:
    if plugin:
        path = out / "probe.py"
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + plugin)
        options["plugins"] = [path]
    base = {"id": f"folder:{images}/id", "ood": [f"folder:{images}/ood"], "encoder": "glyphs", "out": out}
    return request_from(**{**base, **options})


def results(wanted: RunRequest) -> tuple[Result, ...]:
    from oodbench.pipeline.plan import make_plan

    return run(make_plan(wanted)).results


def scores_of(out: Path, dataset: str) -> np.ndarray:
    (path,) = out.rglob("*.parquet")
    table = pyarrow.parquet.read_table(path).to_pydict()
    return np.array([s for s, d in zip(table["score"], table["dataset"], strict=True) if d == dataset])


def test_classes_are_the_folder_names(images: Path, tmp_path: Path) -> None:
    (row,) = results(request(images, tmp_path, methods="mcm"))
    assert (row.classes["name"], row.classes["count"]) == ("folders", 3)
    assert row.id.n == 60
    assert row.ood[0].n == 30
    assert row.id.accuracy is not None


def test_a_method_with_constant_scores_gets_a_warning(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With one class a softmax is 1: MSP and MCM cannot rank, Energy can."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one/red").symlink_to(images / "id/red")
    sets: dict[str, Any] = {"id": f"folder:{tmp_path}/one", "ood": [f"folder:{images}/ood"]}
    oodbench.run("mcm,msp,energy", **sets, encoder="glyphs", results=tmp_path, tracking_uri="none")
    said = (
        "all images of a set have the same score, in one (n = 20), ood (n = 30); "
        "with one class name every softmax over the classes is 1"
    )
    found = {row.method: row for _, row in rows(tmp_path)}
    assert found["mcm"].ood[0].auroc == found["msp"].ood[0].auroc == 0.5 != found["energy"].ood[0].auroc
    assert {name: row.warnings for name, row in found.items()} == {"mcm": (said,), "msp": (said,), "energy": ()}
    assert [one.getMessage() for one in caplog.records if "same score" in one.getMessage()] == [
        f"mcm: {said}",
        f"msp: {said}",
    ]
    (shown,) = report.tables(found.values())
    assert shown.notes == (f"MCM: {said}.", f"MSP: {said}.")


def test_one_score_for_a_whole_set_gives_a_warning(images: Path, tmp_path: Path) -> None:
    plugin = """    needs = Needs.FEATURES | Needs.PIXELS
    def score(self, batch, task, state):
        white = batch.pixels.amin((1, 2, 3)) == 1
        return torch.where(white, 1.0, batch.features[:, 0])
"""
    (tmp_path / "white").mkdir()
    for i in range(3):
        Image.new("RGB", (40 + i, 40), "white").save(tmp_path / f"white/{i}.png")
    (row,) = results(request(images, tmp_path, plugin, methods="probe", ood=[f"folder:{tmp_path}/white"]))
    assert row.warnings == ("all images of a set have the same score, in white (n = 3)",)


def test_activations_project_to_the_embeddings(images: Path, tmp_path: Path) -> None:
    plugin = """    needs = Needs.ACTIVATIONS | Needs.FEATURES | Needs.ENCODER
    def score(self, batch, task, state):
        again = task.encoder.project(batch.activations)
        return -(again - batch.embeddings).norm(dim=-1) / batch.embeddings.norm(dim=-1)
"""
    results(request(images, tmp_path, plugin, methods="probe"))
    assert np.abs(scores_of(tmp_path, f"folder:{images}/ood")).max() < 1e-5


def test_pixels_are_those_that_were_embedded(images: Path, tmp_path: Path) -> None:
    plugin = """    needs = Needs.PIXELS | Needs.FEATURES | Needs.ENCODER
    def score(self, batch, task, state):
        assert batch.pixels.min() >= 0 and batch.pixels.max() <= 1
        with torch.enable_grad():
            pixels = batch.pixels.clone().requires_grad_(True)
            again = task.encoder.pixels(pixels)
            again.sum().backward()
        assert pixels.grad.abs().sum() > 0
        return -(again.detach() - batch.embeddings).norm(dim=-1) / batch.embeddings.norm(dim=-1)
"""
    (row,) = results(request(images, tmp_path, plugin, methods="probe", batch_size=7))
    assert row.status == "ok", row.error
    assert np.abs(scores_of(tmp_path, f"folder:{images}/id")).max() < 1e-4


def test_calibration_reads_the_training_split(tmp_path: Path) -> None:
    plugin = """    needs = Needs.FEATURES | Needs.CALIBRATION
    def fit(self, task):
        return torch.cat([batch.features for batch in task.calibration()])
    def score(self, batch, task, state):
        assert len(state) == 30
        return (batch.features @ state.T).amax(-1)
"""
    wanted = request(Path(), tmp_path, plugin, methods="probe", id="glyphs", ood=[], limit=30)
    (row,) = results(wanted)
    assert row.status == "ok", row.error
    assert row.run["calibration"]


def test_calibration_without_a_training_split_is_refused(images: Path, tmp_path: Path) -> None:
    plugin = """    needs = Needs.FEATURES | Needs.CALIBRATION
    def score(self, batch, task, state):
        return batch.features.sum(-1)
"""
    with pytest.raises(UserError, match=r"probe calibrates on ID training images: .* has no training split"):
        results(request(images, tmp_path, plugin, methods="probe"))
    from oodbench.pipeline.plan import make_plan

    plan = make_plan(request(images, tmp_path, plugin))
    assert "probe" in [name for name, _ in plan.skipped_methods]
    assert {job.label for job in plan.jobs} >= {"energy", "maxlogit", "mcm", "msp"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return batch.features.sum()", "one score per image"),
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("return batch.features.sum(-1) * float('nan')", "scores on folder:.*id are NaN, that of 'blue/00.png' first"),
        ("return batch.pixels.sum((1, 2, 3))", "add Needs.PIXELS"),
    ],
)
def test_a_failed_method_keeps_its_message_and_others_continue(
    body: str, message: str, images: Path, tmp_path: Path
) -> None:
    import re

    plugin = f"    def score(self, batch, task, state):\n        {body}\n"
    mcm, probe = results(request(images, tmp_path, plugin, methods="mcm,probe"))
    assert mcm.status == "ok"
    assert probe.status == "failed"
    assert re.search(message, probe.error or "")
    assert {r.label: r.status for _, r in rows(tmp_path)} == {"mcm": "ok", "probe": "failed"}


def test_undeclared_calibration_is_refused_next_to_a_declared_one(tmp_path: Path) -> None:
    """Otherwise the scores would depend on images that are not in their key."""
    declares = tmp_path / "declares.py"
    body = "    def fit(self, task):\n        return next(iter(task.calibration())).features\n"
    body += "    def score(self, batch, task, state):\n        return (batch.features @ state.T).amax(-1)\n"
    declares.write_text(HEAD + "    needs = Needs.FEATURES | Needs.CALIBRATION\n" + body)
    peeks = tmp_path / "peeks.py"
    peeks.write_text(HEAD + body)
    wanted = request(Path(), tmp_path / "r", methods="declares,peeks", id="glyphs", ood=[], limit=20)
    from dataclasses import replace

    first, second = results(replace(wanted, plugins=(declares, peeks)))
    assert first.status == "ok"
    assert "add Needs.CALIBRATION" in (second.error or "")


@pytest.mark.slow
def test_digits_do_not_depend_on_other_methods(images: Path, tmp_path: Path) -> None:
    """A method that reads pixels is scored in other batches; it must not change those of the others."""
    pixels = """    needs = Needs.PIXELS
    def score(self, batch, task, state):
        return batch.pixels.mean((1, 2, 3))
"""
    together = request(images, tmp_path / "both", pixels, methods="mcm,probe", store=tmp_path / "s1", batch_size=7)
    alone = request(images, tmp_path / "one", methods="mcm", store=tmp_path / "s2", batch_size=7)
    both = {r.label: r for r in results(together)}
    assert both["probe"].status == "ok"
    (one,) = results(alone)
    assert one.scores == both["mcm"].scores
    a, b = (
        pyarrow.parquet.read_table(next((tmp_path / name).rglob("mcm*.parquet"))).to_pydict()["score"]
        for name in ("both", "one")
    )
    assert a == b


def test_a_file_that_a_hyper_parameter_names_is_part_of_the_key(images: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    plugin = """    words: str = ""
    def score(self, batch, task, state):
        return batch.features[:, 0] * len(pathlib.Path(self.words).read_text())
"""
    wanted = request(images, tmp_path / "r", plugin, methods="probe", settings=[f"probe.words={words}"])
    keys = set()
    for text in ("one", "three", "one"):
        words.write_text(text)
        (row,) = results(wanted)
        assert row.status == "ok"
        keys.add((row.files["words"], *sorted(row.scores.values())))
    assert len(keys) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        "task.logits(batch.features, 'simple', 1.0).zero_(); return batch.features[:, 0]",
        "batch.features.mul_(0); return batch.features[:, 0]",
        "task.text('simple').fill_(1); return batch.features[:, 0]",
    ],
)
def test_a_method_that_changes_its_inputs_does_not_affect_others(body: str, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "own"
    plugin = f"    def score(self, batch, task, state):\n        {body}\n"
    probe, mcm = results(request(images, tmp_path / "r", plugin, methods="probe,mcm", store=store))
    assert "changes its inputs in place" in (probe.error or "")
    (alone,) = results(request(images, tmp_path / "alone", methods="mcm", store=tmp_path / "other"))
    assert mcm.digest == alone.digest


@pytest.mark.parametrize(
    "wrong", ["batch.features.argmax(0)", "batch.features", "task.text('simple').argmax(0)[:1] + 99"]
)
def test_wrong_predictions_fail_their_method_alone(wrong: str, images: Path, tmp_path: Path) -> None:
    plugin = f"""    def score(self, batch, task, state):
        return batch.features[:, 0]
    def predict(self, batch, task, state):
        return {wrong}
"""
    probe, mcm = results(request(images, tmp_path, plugin, methods="probe,mcm"))
    assert "predict() must return" in (probe.error or "")
    assert mcm.status == "ok"


def test_accuracy_needs_no_declared_features(images: Path, tmp_path: Path) -> None:
    plugin = """    needs = Needs.ACTIVATIONS
    templates: str = "simple"
    def score(self, batch, task, state):
        return batch.activations[:, 0]
"""
    probe, mcm = results(request(images, tmp_path, plugin, methods="probe,mcm"))
    assert probe.id.accuracy == mcm.id.accuracy


def test_equal_names_sizes_and_times_in_two_folders_are_encoded_apart(images: Path, tmp_path: Path) -> None:
    import os

    for folder, value in (("a", 0), ("b", 255)):
        for label in ("x", "y"):
            path = tmp_path / folder / label / "1.bmp"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32), (value, value, value)).save(path)
            os.utime(path, (1, 1))
    (row,) = results(
        request(images, tmp_path / "r", methods="maxlogit", id=f"folder:{tmp_path}/a", ood=[f"folder:{tmp_path}/b"])
    )
    assert row.id.list_digest == row.ood[0].list_digest  # it counts what two copies of a set share
    assert row.ood[0].auroc in (0, 1), "black against white, not black against black"


def test_prompts_truncated_before_the_class_name_are_refused(images: Path, tmp_path: Path) -> None:
    long = "a very long and detailed studio photograph, taken last sunny summer in the garden, of one single {}"
    (row,) = results(request(images, tmp_path, methods="mcm", templates=long))
    assert row.status == "failed"
    assert "class names are cut off" in (row.error or "")


def test_a_plugin_may_have_several_files(images: Path, tmp_path: Path) -> None:
    (tmp_path / "_part.py").write_text("COLUMN = 3\n")
    plugin = """    def score(self, batch, task, state):
        from ._part import COLUMN
        return batch.features[:, COLUMN]
"""
    (before,) = results(request(images, tmp_path, plugin, methods="probe"))
    (tmp_path / "_part.py").write_text("COLUMN = 4\n")
    (after,) = results(request(images, tmp_path, plugin, methods="probe"))
    assert before.status == after.status == "ok"
    assert before.source != after.source


def test_a_dry_run_reports_skipped_images_that_stop_the_run(images: Path, tmp_path: Path) -> None:
    import shutil

    from oodbench.cli.run import plan_text
    from oodbench.pipeline.plan import make_plan

    shutil.copytree(images / "ood", tmp_path / "ood")
    (tmp_path / "ood" / "zz.jpg").write_bytes(b"no image")
    wanted = request(images, tmp_path / "r", methods="mcm", ood=[f"folder:{tmp_path}/ood"], on_error="skip")
    (row,) = results(wanted)
    assert row.ood[0].skipped == 1
    from dataclasses import replace

    assert plan_text(make_plan(wanted)).endswith(": stored")
    assert "to score: folder:" in plan_text(make_plan(replace(wanted, on_error="stop")))


@pytest.mark.slow
def test_variants_and_templates_are_rows_of_their_own(images: Path, tmp_path: Path) -> None:
    labels = [r.label for r in results(request(images, tmp_path, methods="energy,energy[scale=1],mcm"))]
    assert labels == ["energy", "energy[scale=1]", "mcm"]
    (equal,) = results(request(images, tmp_path, methods="mcm", templates="openai7"))
    assert equal.label == "mcm[templates=openai7]"
    assert equal.templates["count"] == 7
    assert len(list(tmp_path.rglob("*.json"))) == 4


def test_an_equal_run_changes_no_file(images: Path, tmp_path: Path) -> None:
    wanted = request(images, tmp_path, methods="mcm")
    results(wanted)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}
    results(wanted)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_row_has_the_access_card_and_an_older_one_gets_it(images: Path, tmp_path: Path) -> None:
    wanted = request(images, tmp_path, methods="mcm,react[threshold=1]")
    results(wanted)
    first, _ = paths = sorted((tmp_path / "runs").rglob("*.json"))
    for path in paths:
        card = json.loads(path.read_text())["access"]
        assert (card["group"], card["id_images"], card["id_labels"]) == ("zero-shot", False, None)
    old = {name: value for name, value in json.loads(first.read_text()).items() if name != "access"}
    first.write_text(json.dumps(old | {"created": "2024-01-01T00:00:00+00:00"}))
    results(wanted)
    new = json.loads(first.read_text())
    assert new["access"] == card and (new["created"], new["digest"]) == ("2024-01-01T00:00:00+00:00", old["digest"])


def test_options_without_effect_give_no_new_row(images: Path, tmp_path: Path) -> None:
    digests = {
        results(request(images, tmp_path, methods="mcm", **options))[0].digest
        for options in ({}, {"on_error": "skip"}, {"limit": 100_000}, {"workers": 1})
    }
    assert len(digests) == 1
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_a_failed_row_never_replaces_a_finished_one(images: Path, tmp_path: Path) -> None:
    from oodbench.pipeline import evaluate
    from oodbench.pipeline.plan import make_plan
    from oodbench.pipeline.rows import write_row

    plan = make_plan(request(images, tmp_path, methods="mcm"))
    (job,) = plan.jobs
    failed = evaluate.failed(plan, job, "no luck")
    path = write_row(plan, failed, {})
    assert json.loads(path.read_text())["status"] == "failed"
    (good,) = results(plan.request)
    assert json.loads(path.read_text())["digest"] == good.digest
    path.with_suffix(".parquet").unlink()
    assert write_row(plan, failed, {}) == path
    assert json.loads(path.read_text())["digest"] == good.digest
    results(plan.request)
    assert path.with_suffix(".parquet").is_file(), "what is lost comes back"


@pytest.mark.slow
def test_rows_never_overwrite_one_another(images: Path, tmp_path: Path) -> None:
    for options in ({}, {"seed": 1}, {"precision": "bf16"}, {"resize": "bilinear"}, {"limit": 9}, {"at95": "nearest"}):
        results(request(images, tmp_path, methods="mcm", **options))
    assert len(list(tmp_path.rglob("*.json"))) == 6


@pytest.mark.slow
def test_the_default_row_keeps_its_plain_name(tmp_path: Path) -> None:
    wanted = request(Path(), tmp_path, methods="mcm", id="glyphs", ood=[])
    (row,) = results(wanted)
    plain = tmp_path / "runs" / "glyphs" / "glyphs" / "mcm.json"
    assert json.loads(plain.read_text())["digest"] == row.digest
    changed = json.loads(plain.read_text())
    changed["source"] = "another version of the method"
    del changed["digest"]
    from oodbench.results import IdRow, SetRow

    other = Result(**{**changed, "id": IdRow(**changed["id"]), "ood": tuple(SetRow(**s) for s in changed["ood"])})
    plain.write_text(other.to_json())
    results(wanted)
    assert json.loads(plain.read_text())["source"] == "another version of the method"
    assert len(list(plain.parent.glob("mcm-*.json"))) == 1


def test_python_api_returns_a_long_table(images: Path, tmp_path: Path) -> None:
    frame = oodbench.run(
        "mcm,msp", id=f"folder:{images}/id", ood=[f"folder:{images}/ood"], encoder="glyphs", results=tmp_path
    )
    assert set(frame["metric"]) == {"auroc", "fpr95", "fpr95_ood", "aupr_in", "aupr_out", "id_accuracy"}
    assert len(frame) == 2 * 6
    assert frame["value"].between(0, 1).all()
    with pytest.raises(UserError, match="no option 'encodr'; did you mean 'encoder'"):
        oodbench.run("mcm", encodr="glyphs")  # type: ignore[call-arg]


def test_python_options_are_checked(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        oodbench.run("mcm", limit="5", data=5, batch_size=2.5, strict=1)  # type: ignore[arg-type]
    for name in ("limit", "data", "batch_size", "strict"):
        assert f"option '{name}' takes" in str(error.value)
    wanted = request_from(ood="a,b", settings={"mcm.temperature": 0.5}, plugins="x.py", methods=["mcm", "msp"])
    assert wanted.ood == ("a", "b")
    assert wanted.settings == ("mcm.temperature=0.5",)
    assert wanted.plugins == (Path("x.py"),)
    assert wanted.methods == "mcm,msp"
