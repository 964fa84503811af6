"""Tracking against real stores: sqlite files, an `mlflow server` process, sockets that refuse or never answer."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from oodbench.errors import UserError
from oodbench.results import IdRow, Result, SetRow, slug
from oodbench.tracking import SyncReport, Tracker, default_uri, links, runs, send, sync, tracker_of
from oodbench.tracking import connection as tracker
from oodbench.tracking import fields as entries
from oodbench.tracking.connection import quiet_mlflow
from oodbench.tracking.reader import collect
from tests.servers import Server, forwarding, unused_port

TABLE = "| method | AUROC |\n|---|---|\n| Energy | 91.25 |\n"

pytestmark = pytest.mark.slow


def ood(dataset: str, group: str, auroc: float) -> SetRow:
    return SetRow(dataset, dataset.title(), group, 50, 50, 1, "d0", auroc, 0.25, 0.5, 0.75, 0.625, 0.01)


def row(method: str = "energy", benchmark: str = "glyphs", **changes: Any) -> Result:
    plain = Result(
        method=method,
        label=f"{method}[scale=1]",
        title=method.title(),
        parameters={"scale": None, "templates": "simple", "negatives": {"count": 7}},
        benchmark=benchmark,
        benchmark_title="Glyphs",
        encoder={"name": "Vi/T B", "slug": "Vi-T-B", "weights": "w" * 64, "mean": [0.5, 0.5, 0.5]},
        id=IdRow("letters", "Letters", 200, 200, 0, "d1", 0.875),
        ood=(ood("textures", "far", 0.5), ood("digits", "near", 0.75), ood("shapes", "near", 1.0)),
        conventions={"at95": "id", "aupr": "both", "headline": "mean"},
        classes={"name": "letters", "count": 26, "digest": "c"},
        templates={},
        files={},
        run={"seed": 3, "device": "cpu", "precision": "fp32", "batch_size": 64, "limit": None},
        source="s",
        versions={"torch": "2.4", "open-clip": "2.30"},
        commit="abc123",
        scores={"textures": "k"},
        seconds={"fit": 1.0, "score": 2.5},
        created="2025-01-02T03:04:05+00:00",
    )
    return replace(plain, **changes)


@dataclass(frozen=True)
class Store:
    """What an independent client reads in an MLflow store."""

    uri: str
    benchmark: str = "glyphs"

    @property
    def client(self) -> Any:
        with quiet_mlflow():
            from mlflow import MlflowClient

            return MlflowClient(tracking_uri=self.uri)

    @property
    def experiment(self) -> Any:
        return self.client.get_experiment_by_name(f"oodbench/{self.benchmark}")

    @property
    def runs(self) -> list[Any]:
        return list(self.client.search_runs([self.experiment.experiment_id])) if self.experiment else []

    @property
    def parents(self) -> list[Any]:
        return [run for run in self.runs if "mlflow.parentRunId" not in run.data.tags]

    @property
    def children(self) -> list[Any]:
        return [run for run in self.runs if "mlflow.parentRunId" in run.data.tags]

    @property
    def digests(self) -> list[str]:
        return sorted(run.data.tags["oodbench.digest"] for run in self.runs if "oodbench.digest" in run.data.tags)


def attach(rows: Sequence[Result]) -> Iterator[tuple[str, bytes]]:
    yield "table.md", TABLE.encode()
    yield "figures/one.png", b"a picture"


def digests(*rows: Result) -> list[str]:
    return sorted(row.digest for row in rows)


def artifact(run: Any, name: str) -> str:
    return (Path(url2pathname(urlsplit(run.info.artifact_uri).path)) / name).read_text(encoding="utf-8")


def lay(results: Path, *rows: Result) -> None:
    """Put rows on disk as the driver does."""
    for number, each in enumerate(rows):
        file = results / "runs" / slug(each.benchmark)[:80] / f"{each.method}-{number}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(each.to_json(), encoding="utf-8")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test works in an empty folder, and leaves it empty: no mlruns/, no mlflow.db."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def fresh(tmp_path: Path) -> Tracker:
    """The default store of a new results folder."""
    results = tmp_path / "my résults 100%"  # a space, an accent, a per cent sign: sqlite and file URIs must take them
    return Tracker(default_uri(results), results)


@pytest.fixture
def local(fresh: Tracker, empty_store: Path) -> Tracker:
    """The default store of a results folder that was used before."""
    fresh.results.mkdir()
    shutil.copy(empty_store, fresh.results / "mlflow.db")
    return fresh


# An SQLite file next to the results


@pytest.mark.slow
def test_one_parent_one_child_per_method(fresh: Tracker, capfd: pytest.CaptureFixture[str]) -> None:
    energy, mcm = row("energy"), row("mcm", parameters={"temperature": 0.01})
    environment = dict(os.environ)
    assert send(fresh, [energy, mcm], attach) == SyncReport(arrived=2, known=0, waiting=0, reason="")
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == environment

    store = Store(fresh.uri)
    (parent,) = store.parents
    name = "Vi/T B on glyphs: energy[scale=1], mcm[scale=1], seed 3"
    assert (parent.info.run_name, parent.info.status) == (name, "FINISHED")
    assert (parent.info.start_time, parent.info.end_time) == (1735787045000 - 7000, 1735787045000)
    assert artifact(parent, "table.md") == TABLE == parent.data.tags["mlflow.note.content"]
    assert artifact(parent, "figures/one.png") == "a picture"
    # Both have AUROCs 0.5, 0.75, 1.0 and FPR95s 0.25; 0.75 and 1.0 are near.
    means = {"auroc/mean": 0.75, "auroc/near": 0.875, "auroc/far": 0.5, "id_accuracy": 0.875}
    means |= dict.fromkeys(("fpr95/mean", "fpr95/near", "fpr95/far"), 0.25)
    assert parent.data.metrics == {f"{how}/{key}": value for how in ("best", "median") for key, value in means.items()}
    assert "run.seed" in parent.data.params and "auroc/mean" in store.experiment.tags["mlflow.note.content"]
    assert [each["method"] for each in json.loads(artifact(parent, "rows.json"))] == ["energy", "mcm"]
    children = {run.info.run_name: run for run in store.children}
    assert set(children) == {"energy[scale=1] · Vi/T B, seed 3", "mcm[scale=1] · Vi/T B, seed 3"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert children["mcm[scale=1] · Vi/T B, seed 3"].data.params["mcm.temperature"] == "0.01"
    child = children["energy[scale=1] · Vi/T B, seed 3"]
    assert child.info.status == "FINISHED"
    assert child.info.end_time == 1735787045000  # date -u -d 2025-01-02T03:04:05 +%s
    assert child.info.end_time - child.info.start_time == 3500
    assert artifact(child, "row.json") == energy.to_json()
    assert (fresh.results / "mlartifacts").is_dir()


def test_parameters_metrics_and_tags(local: Tracker) -> None:
    energy = row(access={"id_images": True, "id_labels": None, "stream": False, "group": "uses ID images"})
    send(local, [energy], attach)
    (child,) = Store(local.uri).children
    assert child.data.params == {
        "energy.scale": "None",
        "energy.templates": "simple",
        "energy.negatives.count": "7",
        "run.seed": "3",
        "run.device": "cpu",
        "run.precision": "fp32",
        "run.batch_size": "64",
        "run.limit": "None",
        "run.at95": "id",
        "run.aupr": "both",
        "run.headline": "mean",
        "encoder.name": "Vi/T B",
        "encoder.weights": "w" * 64,
        "classes.name": "letters",
        "classes.count": "26",
        "classes.digest": "c",
        "sets.id": "letters",
        "sets.ood": "textures, digits, shapes",
        "versions.torch": "2.4",
        "versions.open-clip": "2.30",
    }
    expected = {"auroc/textures": 0.5, "auroc/digits": 0.75, "auroc/shapes": 1.0, "fpr95/textures": 0.25}
    expected |= {"auroc/mean": 0.75, "auroc/near": 0.875, "auroc/far": 0.5, "fpr95/mean": 0.25}
    expected |= {"more/aupr_out/near": 0.625, "more/tied/digits": 0.01, "id_accuracy": 0.875, "seconds/score": 2.5}
    assert {name: child.data.metrics.get(name) for name in expected} == expected
    assert len(child.data.metrics) == 5 * (3 + 3) + 3 + 1 + 2  # metrics, ties, ID accuracy, seconds
    sets = {one.dataset.name: one for one in child.inputs.dataset_inputs}
    assert {name: one.tags[0].value for name, one in sets.items()} == {
        "letters": "id",
        "textures": "far",
        "digits": "near",
        "shapes": "near",
    }
    assert sets["letters"].dataset.digest == "d1" and json.loads(sets["letters"].dataset.profile) == {"num_rows": 200}
    tags = {name: text for name, text in child.data.tags.items() if not name.startswith("mlflow.")}
    assert tags == {
        "oodbench.digest": energy.digest,
        "oodbench.encoder": "Vi-T-B",
        "oodbench.source": "s",
        "method": "energy",
        "label": "energy[scale=1]",
        "status": "ok",
        "benchmark": "glyphs",
        "encoder": "Vi/T B",
        "commit": "abc123",
        "access.group": "uses ID images",
        "access.id_images": "true",
        "access.id_labels": "none",
        "access.stream": "false",
    }


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("tags.method = 'mcm'", ["mcm"]),
        ("tags.encoder = 'Vi/T B' AND tags.method LIKE '%'", ["energy", "mcm", "msp"]),
        ("tags.status = 'failed' AND tags.method LIKE '%'", ["msp"]),
        ("tags.partial = 'yes'", ["mcm"]),
        ("tags.method LIKE '%' AND metrics.\"fpr95/mean\" < 0.3", ["energy", "mcm"]),
        ("dataset.name = 'digits' AND tags.benchmark = 'glyphs' AND tags.method = 'energy'", ["energy"]),
    ],
)
def test_filters_of_the_page(condition: str, found: list[str], tagged: Store) -> None:
    runs = tagged.client.search_runs([tagged.experiment.experiment_id], condition, order_by=["tags.method"])
    assert [run.data.tags["method"] for run in runs] == found


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a usual row, one on part of the ID images, and a failed one."""
    folder = tmp_path_factory.mktemp("tagged")
    part = row("mcm", id=IdRow("letters", "Letters", 150, 200, 0, "d1", 0.875))
    tracker = Tracker(default_uri(folder), folder)
    assert send(tracker, [row("energy"), part, row("msp", status="failed", error="x", ood=())]).arrived == 3
    return Store(tracker.uri)


def test_names_of_runs() -> None:
    many = [row(f"method{number}") for number in range(9)]
    assert entries.run_name(many) == "Vi/T B on glyphs: 9 methods, seed 3"
    hostile = "a_b & 50% <script>alert(1)</script>"
    one = row(label=hostile, encoder={"slug": "S"}, run={"seed": 0, "limit": 7}, benchmark=hostile)
    assert entries.run_name([one]) == f"S on {hostile}: {hostile}, limit 7"
    assert entries.row_name(one) == f"{hostile} · S, limit 7"


def test_rows_sent_by_an_older_oodbench_are_not_sent_again(local: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its tags had the prefix; those that identify rows still have it."""
    with monkeypatch.context() as patch:
        patch.setattr(entries, "row_tags", lambda row: {"oodbench.encoder": "Vi-T-B", "oodbench.method": row.method})
        assert send(local, [row()], attach).arrived == 1
    (local.results / runs.SENT_FILE).unlink()
    assert send(local, [row(), row("mcm")], attach) == SyncReport(1, 1, 0, "")


def test_a_row_arrives_once(local: Tracker) -> None:
    energy, mcm, msp = row("energy"), row("mcm"), row("msp")
    assert send(local, [energy], attach) == SyncReport(1, 0, 0, "")
    assert send(local, [energy], attach) == SyncReport(0, 1, 0, "")
    assert len(Store(local.uri).runs) == 2
    (local.results / runs.SENT_FILE).unlink()
    assert send(local, [energy], attach) == SyncReport(0, 1, 0, "")
    assert len(Store(local.uri).runs) == 2  # the store was asked; no empty parent was made
    assert runs.sent_digests(local) == {energy.digest}

    with (local.results / runs.SENT_FILE).open("ab") as file:
        file.write(b'{"uri": "sqlite:///x", "dig\xc3')  # a crash while writing
    assert send(local, [energy, mcm], attach) == SyncReport(1, 1, 0, "")
    assert runs.sent_digests(local) == {energy.digest, mcm.digest}
    assert send(local, [energy, mcm, mcm], attach) == SyncReport(0, 2, 0, "")
    written = (local.results / runs.SENT_FILE).read_bytes()
    (local.results / runs.SENT_FILE).write_bytes(written[:-20])  # the torn line is the one of mcm
    assert runs.sent_digests(local) == {energy.digest}
    assert send(local, [energy, mcm, msp, msp], attach) == SyncReport(1, 2, 0, "")
    assert Store(local.uri).digests == digests(energy, mcm, msp)
    assert len(Store(local.uri).parents) == 3


def test_links_to_the_experiments_of_rows(local: Tracker) -> None:
    """The id of an experiment is recorded with what was sent, so that a warm run needs no MLflow for the link."""
    glyphs, other, new = row(), row(benchmark="other"), row("new")
    send(local, [glyphs], attach)
    send(local, [other], attach)
    runs.record_sent(local, [new.digest])  # as an earlier version did
    ids = [Store(local.uri, name).experiment.experiment_id for name in ("glyphs", "other")]
    end = "/runs?orderByKey=metrics.%60auroc%2Fmean%60&orderByAsc=false&workflowType=machine_learning"
    expected = [f"http://127.0.0.1:5000/#/experiments/{one}{end}" for one in ids]
    assert links(local, [glyphs, other, new, glyphs, row("never sent")]) == expected
    assert links(Tracker("https://me:secret@host/mlflow", local.results), [glyphs]) == []
    (local.results / runs.SENT_FILE).unlink()
    assert send(local, [glyphs], attach).known == 1 and links(local, [glyphs]) == expected[:1]  # the store was asked
    assert (
        Tracker("https://me:secret@host/mlflow/", local.results).link("7")
        == f"https://host/mlflow/#/experiments/7{end}"
    )


def test_the_same_scores_at_another_time_are_the_same_row(local: Tracker) -> None:
    send(local, [row()], attach)
    assert send(local, [row(created="2026-01-01T00:00:00Z", seconds={})], attach).known == 1


def test_another_store_has_its_own_record(local: Tracker, tmp_path: Path) -> None:
    send(local, [row()], attach)
    other = Tracker(f"sqlite:///{tmp_path}/other.db", local.results)
    assert send(other, [row()], attach) == SyncReport(1, 0, 0, "")
    assert Store(other.uri).digests == digests(row())


def test_a_removed_store_has_no_rows(fresh: Tracker) -> None:
    runs.record_sent(fresh, [row().digest])
    assert runs.sent_digests(fresh) == set()
    assert send(fresh, [row()], attach).arrived == 1


def test_a_failed_row(local: Tracker) -> None:
    failed = row(status="failed", error="out of memory", ood=(), seconds={}, created="")
    assert send(local, [failed], attach).arrived == 1
    (child,) = Store(local.uri).children
    assert child.info.status == "FAILED"
    assert child.data.tags["error"] == "out of memory"
    assert abs(child.info.end_time / 1000 - time.time()) < 60
    assert child.data.metrics == {"id_accuracy": 0.875}


def test_odd_names_and_big_rows(local: Tracker) -> None:
    names = ("a+b", "a-b", "folder:my photos/x", "mean", "near", "数", "..", "y" * 400)
    sets = tuple(ood(name, "near", number / 8) for number, name in enumerate(names))
    many = {f"p{number}": number for number in range(150)}
    odd = row(ood=sets, parameters={**many, "words": "w" * 10_000, "nothing": ""}, error="e" * 10_000)
    odd = replace(odd, ood=(*odd.ood, ood("void", "", math.nan)))
    assert send(local, [odd], attach) == SyncReport(1, 0, 0, "")
    (child,) = Store(local.uri).children
    params, metrics = child.data.params, child.data.metrics
    assert {name: params[f"energy.{name}"] for name in many} == {name: str(value) for name, value in many.items()}
    assert params["energy.words"].startswith("wwww") and params["energy.words"].endswith("(cut; in full in row.json)")
    assert params["energy.nothing"] == "" and len(child.data.tags["error"]) <= 8000
    values = [value for name, value in metrics.items() if name.startswith("auroc/")]
    assert sorted(v for v in values if not math.isnan(v)) == sorted([*(n / 8 for n in range(8)), 3.5 / 8])
    assert metrics["auroc/near"] == 3.5 / 8 and metrics["auroc/near-2"] == 4 / 8 and metrics["auroc/mean-2"] == 3 / 8
    assert metrics["auroc/folder-my-photos-x"] == 2 / 8 and math.isnan(metrics["auroc/void"])


def test_an_incomplete_child_does_not_count(local: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(client: Any, run: str, *rest: Any, **more: Any) -> None:
        if client.get_run(run).data.tags.get("method") == "mcm":
            raise MlflowException("the disk is full\nand more")

    energy, mcm = row("energy"), row("mcm")
    lay(local.results, energy, mcm)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", fail)
        sent = send(local, [energy, mcm], attach)
    assert (sent.arrived, sent.known, sent.waiting) == (1, 0, 1)
    assert "(the disk is full);" in sent.reason and "oodbench sync --tracking-uri sqlite:///" in sent.reason
    store = Store(local.uri)
    assert [run.info.status for run in store.parents] == ["FAILED"]
    assert {run.info.status for run in store.children} == {"FINISHED", "KILLED"}
    assert store.digests == digests(energy)

    assert sync(local) == SyncReport(arrived=1, known=1, waiting=0, reason="")
    assert store.digests == digests(energy, mcm)
    assert len(store.children) == 3


def test_one_bad_benchmark_does_not_block_the_others(local: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    plain = MlflowClient.create_experiment

    def refuse(client: Any, name: str, *rest: Any, **more: Any) -> Any:
        if name == "oodbench/aaa":
            raise MlflowException("oodbench/aaa is refused")
        return plain(client, name, *rest, **more)

    monkeypatch.setattr(MlflowClient, "create_experiment", refuse)
    lay(local.results, row(benchmark="aaa"), row(benchmark="zzz"), row("mcm", benchmark="zzz"))
    sent = sync(local)
    assert (sent.arrived, sent.waiting) == (2, 1)
    assert "oodbench/aaa is refused" in sent.reason


def test_a_deleted_experiment_is_restored(local: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    """MLflow keeps the name of a deleted experiment and accepts no run for it."""
    assert send(local, [row("msp")], attach).arrived == 1
    Store(local.uri).client.delete_experiment(Store(local.uri).experiment.experiment_id)
    assert send(local, [row("mcm")], attach) == SyncReport(1, 0, 0, "")
    assert Store(local.uri).digests == digests(row("msp"), row("mcm"))
    assert "oodbench/glyphs was deleted" in caplog.text


@pytest.mark.parametrize("fatal", ["log_artifacts", "log_inputs", "log_text", "set_terminated", "set_tag"])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_the_next_sync_ends_the_runs_of_a_killed_process(
    fatal: str, calls: int, local: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    plain = getattr(MlflowClient, fatal)
    left = iter(range(calls - 1))

    def call(client: Any, *rest: Any, **more: Any) -> Any:
        if next(left, None) is None:
            raise SystemExit  # nothing of ours handles it: as a kill does, it leaves everything as it is
        return plain(client, *rest, **more)

    energy, mcm = row("energy"), row("mcm")
    lay(local.results, energy, mcm)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, fatal, call)
        try:
            sync(local, attach)
        except SystemExit:
            assert "RUNNING" in {run.info.status for run in Store(local.uri).runs}
    sent = sync(local, attach)
    assert (sent.arrived + sent.known, sent.waiting, sent.reason) == (2, 0, "")
    store = Store(local.uri)
    assert store.digests == digests(energy, mcm)
    assert {run.info.status for run in store.runs} <= {"FINISHED", "KILLED"}
    assert all(run.info.status == "FINISHED" for run in store.children if "oodbench.digest" in run.data.tags)
    assert all(run.info.status == "KILLED" for run in store.children if "oodbench.digest" not in run.data.tags)
    assert sync(local, attach) == SyncReport(0, 2, 0, "")


def test_runs_of_another_results_folder_are_left_alone(local: Tracker, tmp_path: Path) -> None:
    other = Tracker(local.uri, tmp_path / "other")
    with runs.lock(local) as ours, runs.lock(other) as theirs:
        assert ours != theirs
    assert send(local, [row()], attach).arrived == 1
    store = Store(local.uri)
    live = store.client.create_run(store.experiment.experiment_id, tags={entries.SENDER: theirs}).info.run_id
    assert send(local, [row("mcm")], attach).arrived == 1
    assert store.client.get_run(live).info.status == "RUNNING"
    assert send(other, [row("msp")], attach).arrived == 1
    assert store.client.get_run(live).info.status == "KILLED"


def test_names_beyond_the_limits_of_mlflow(local: Tracker) -> None:
    sets = [f"folder with a long name {number:03}" for number in range(60)]
    benchmark, other = f"mine-vs-{'+'.join(sets)}", f"mine-vs-{'+'.join(sets)}+one"
    odd = row(benchmark=benchmark, ood=tuple(ood(name, "far", 0.5) for name in sets), label=f"m[{'x' * 600}]")
    more = row(benchmark=other, id=replace(odd.id, dataset="i" * 600), encoder={"name": "e" * 9000, "slug": "e" * 9000})
    escape = row(benchmark="a\x1b[31m\u202e\udcff\nb", label="a\nb", error="\x1b[0m")
    lay(local.results, odd, more, escape)
    assert sync(local) == SyncReport(3, 0, 0, "")
    names = {one.name for one in Store(local.uri).client.search_experiments()} - {"Default"}
    assert len(names) == 3 and all(len(name) <= 250 and name.isprintable() for name in names)
    for benchmark in (odd.benchmark, more.benchmark, escape.benchmark):
        store = Store(local.uri, entries.experiment(benchmark).removeprefix("oodbench/"))
        (child,) = store.children
        assert max(map(len, (child.info.run_name, *(one.dataset.name for one in child.inputs.dataset_inputs)))) <= 250
        assert child.info.run_name.isprintable() and all(text.isprintable() for text in child.data.tags.values())
        assert [one.digest for one in collect(local, benchmark)] == store.digests
    (local.results / runs.SENT_FILE).unlink()
    assert sync(local) == SyncReport(0, 3, 0, "")


# The SQLite file


@pytest.mark.parametrize("name", ["a?b", "a%3Fb", "a%25b", "a#b;c&d=e", "a\nb", "a*[b]?.tmp"])
def test_a_results_folder_of_any_name_has_its_own_database(name: str, tmp_path: Path) -> None:
    results = tmp_path / name
    tracker = tracker_of(results, None)
    lay(results, row())
    assert sync(tracker, attach) == SyncReport(1, 0, 0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["cwd", name])
    assert tracker.database == results / "mlflow.db" and runs.sent_digests(tracker) == {row().digest}
    store = Store(tracker.uri)
    assert store.digests == digests(row()) and artifact(store.children[0], "row.json") == row().to_json()
    assert [one.digest for one in collect(tracker)] == digests(row())


def test_a_results_folder_that_mlflow_cannot_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="not UTF-8, as MLflow needs it; name another folder"):
        tracker_of(tmp_path / "a\udcffb", None)
    monkeypatch.setattr(tracker, "_decodes", lambda: False)  # SQLAlchemy 2.0
    with pytest.raises(UserError, match=r"has a `\?`, where MLflow cuts it off; name another folder"):
        tracker_of(tmp_path / "a?b", None)
    assert default_uri(tmp_path / "a%3Fb") == f"sqlite:///{tmp_path}/a%3Fb/mlflow.db"


def half_made(database: Path) -> None:
    """A database that a kill left while MLflow created its tables: some of them, of an early revision or none."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        connection.execute("CREATE TABLE runs (run_uuid TEXT)")
        connection.commit()


def test_an_incomplete_database_is_created_again(fresh: Tracker) -> None:
    lay(fresh.results, row())
    half_made(fresh.results / "mlflow.db")
    (fresh.results / ".mlflow.db.0123456789abcdef.tmp").write_text("of a process that was killed")
    (fresh.results / ".mlflow.db.0123456789abcdef.tmp-journal").write_text("")
    assert sync(fresh) == SyncReport(1, 0, 0, "")
    assert Store(fresh.uri).digests == digests(row())
    names = {".sending", "mlartifacts", "mlflow.db", "runs", "sent.jsonl"}
    assert {path.name for path in fresh.results.iterdir()} == names


def test_a_database_with_runs_is_never_replaced(fresh: Tracker) -> None:
    lay(fresh.results, row())
    half_made(fresh.results / "mlflow.db")
    with closing(sqlite3.connect(fresh.results / "mlflow.db")) as connection:
        connection.execute("INSERT INTO runs VALUES ('somebody')")
        connection.commit()
    before = (fresh.results / "mlflow.db").read_bytes()
    sent = sync(fresh)
    assert sent.waiting == 1 and "cannot be used" in sent.reason
    with closing(sqlite3.connect(fresh.results / "mlflow.db")) as connection:
        assert connection.execute("SELECT * FROM runs").fetchall() == [("somebody",)]
    assert before[:16] == b"SQLite format 3\0"


def test_a_disk_that_fills_while_the_database_is_created(fresh: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    from sqlalchemy.exc import OperationalError

    def full(tracking_uri: str) -> None:
        half_made(Path(tracking_uri.removeprefix("sqlite:///")))
        raise OperationalError("CREATE TABLE", {}, Exception("database or disk is full"))

    lay(fresh.results, row())
    place = replace(fresh, results=fresh.results.with_name("plain"), uri=default_uri(fresh.results.with_name("plain")))
    lay(place.results, row())
    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "MlflowClient", full)
        sent = sync(place)
    assert sent.waiting == 1 and "cannot be used" in sent.reason and "disk is full" in sent.reason
    assert {path.name for path in place.results.iterdir()} <= {"runs", ".sending", "mlflow.db"}
    assert sync(place) == SyncReport(1, 0, 0, "")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_a_damaged_database_is_one_line(share: float, local: Tracker, capfd: pytest.CaptureFixture[str]) -> None:
    assert send(local, [row()], attach).arrived == 1
    database = local.results / "mlflow.db"
    content = bytearray(database.read_bytes())
    start = int(share * len(content)) // 4096 * 4096
    content[start : start + 8192] = bytes(value ^ 0x55 for value in content[start : start + 8192])
    database.write_bytes(content)
    (local.results / runs.SENT_FILE).unlink()
    began = time.monotonic()
    sent = send(local, [row(), row("mcm")], attach)
    assert time.monotonic() - began < 60
    assert sent.arrived + sent.known + sent.waiting == 2
    assert (sent.waiting == 0) == (sent.reason == "") and len(sent.reason.splitlines()) <= 1
    with suppress(UserError):
        collect(local)
    assert "mlflow" not in "".join(capfd.readouterr())


def test_sync_groups_by_benchmark_and_encoder(local: Tracker) -> None:
    large = row("mcm", encoder={"name": "L", "slug": "L"}, status="failed", error="x", ood=())
    all_rows = [row("energy"), row("mcm"), large, row("energy", benchmark="other")]
    assert sync(local) == SyncReport(0, 0, 0, "")
    lay(local.results, *all_rows)
    assert sync(local) == SyncReport(4, 0, 0, "")
    assert sync(local) == SyncReport(0, 4, 0, "")
    glyphs = {run.info.run_name: json.loads(artifact(run, "rows.json")) for run in Store(local.uri).parents}
    both, alone = "Vi/T B on glyphs: energy[scale=1], mcm[scale=1], seed 3", "L on glyphs: mcm[scale=1], seed 3"
    assert {name: len(rows) for name, rows in glyphs.items()} == {both: 2, alone: 1}
    (other,) = Store(local.uri, "other").parents
    assert other.info.run_name == "Vi/T B on other: energy[scale=1], seed 3"


def test_a_warm_run_imports_no_mlflow(local: Tracker) -> None:
    lay(local.results, row())
    send(local, [row()], attach)
    code = (
        "import sys; from pathlib import Path; from oodbench.tracking import Tracker, sync\n"
        "sent = sync(Tracker(sys.argv[1], Path(sys.argv[2])))\n"
        "print(sent.known, sorted({'mlflow', 'pandas', 'torch', 'sqlalchemy', 'requests'} & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "error", "-c", code, local.uri, str(local.results)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1 []\n"


@pytest.mark.slow
def test_a_first_run_prints_nothing(fresh: Tracker) -> None:
    """In a new process, which imports MLflow and creates the database, nothing is printed or left in the folder."""
    lay(fresh.results, row())
    code = (
        "import sys; from pathlib import Path; from oodbench.tracking import Tracker, sync\n"
        "assert sync(Tracker(sys.argv[1], Path(sys.argv[2]))).arrived == 1"
    )
    command = [sys.executable, "-W", "error", "-c", code, fresh.uri, str(fresh.results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_two_processes_at_once(fresh: Tracker) -> None:
    lay(fresh.results, row("energy"), row("mcm"))
    code = (
        "import sys; from pathlib import Path; from oodbench.tracking import Tracker, sync\n"
        "sent = sync(Tracker(sys.argv[1], Path(sys.argv[2])))\n"
        "print(sent.arrived, sent.known, sent.waiting, sent.reason)"
    )
    command = [sys.executable, "-W", "error", "-c", code, fresh.uri, str(fresh.results)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate()[0].strip() for process in both) == ["0 2 0", "2 0 0"]
    assert Store(fresh.uri).digests == digests(row("energy"), row("mcm"))


def test_a_folder_that_another_process_locks(local: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_LOCK_SECONDS", 0.2)
    with runs.lock(local):
        check_waits(local, "locked")
    assert send(local, [row()], attach).arrived == 1


def test_the_variable_of_mlflow_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert default_uri(tmp_path) == "http://mlflow.example:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(
        UserError, match=r"^\$MLFLOW_TRACKING_URI './mlruns' has no scheme; write .* sqlite:///.*mlflow\.db$"
    ):
        tracker_of(tmp_path, None)
    assert tracker_of(tmp_path, "http://mlflow.example").uri == "http://mlflow.example"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="^--tracking-uri './mlruns' has no scheme; write for example"):
        tracker_of(tmp_path, "./mlruns")
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


# Stores that do not exist


def check_waits(tracker: Tracker, cause: str) -> None:
    start = time.monotonic()
    sent = send(tracker, [row("energy"), row("mcm")], attach)
    assert time.monotonic() - start < 60
    assert (sent.arrived, sent.known, sent.waiting) == (0, 0, 2)
    assert cause in sent.reason and f"oodbench sync --tracking-uri {tracker.place}" in sent.reason
    assert str(tracker.results) in sent.reason


def test_no_server_listens(tmp_path: Path) -> None:
    check_waits(Tracker(f"http://127.0.0.1:{unused_port()}/", tmp_path / "results"), "refused")


@pytest.mark.slow
def test_a_server_that_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and is silent
        check_waits(Tracker(f"http://127.0.0.1:{server.getsockname()[1]}", tmp_path / "results"), "timed out")


def test_a_file_that_is_not_sqlite(fresh: Tracker) -> None:
    fresh.results.mkdir()
    (fresh.results / "mlflow.db").write_text("not a database" * 100)
    check_waits(fresh, "not a database")


def test_no_password_is_shown_or_stored(tmp_path: Path) -> None:
    tracker = Tracker(f"http://me:hunter2@127.0.0.1:{unused_port()}", tmp_path)
    assert "hunter2" not in send(tracker, [row()], attach).reason
    runs.record_sent(tracker, ["d"])
    assert "hunter2" not in (tmp_path / runs.SENT_FILE).read_text()
    assert runs.sent_digests(tracker) == {"d"} == runs.sent_digests(Tracker(tracker.place, tmp_path))


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        *((uri, "has no scheme") for uri in ("localhost:5000", "mlruns", "/tmp/x.db", "")),
        *((uri, "names a file store, which MLflow no longer writes") for uri in ("file:mlruns", "file:///tmp/x")),
        ("htp://localhost:5000", "has the scheme htp, which MLflow does not know"),
        ("sqlite:///results?1/mlflow.db", r"has the option '1/mlflow.db' .*a `\?` in a path is written %3F"),
        *((uri, "is a database in memory") for uri in ("sqlite://", "sqlite:///", "sqlite:///:memory:")),
    ],
)
def test_an_unusable_uri_is_refused(uri: str, why: str, tmp_path: Path) -> None:
    """It is refused before hours of work."""
    with pytest.raises(UserError, match=f"^tracking URI '.*' {why}.*; write for example http"):
        Tracker(uri, tmp_path)


@pytest.mark.parametrize("uri", ["http://[::1", "http://a b", "http://localhost:port", f"http://{'ä' * 200}.example"])
def test_a_url_that_cannot_be_read(uri: str, tmp_path: Path) -> None:
    try:
        sent = send(Tracker(uri, tmp_path / "results"), [row()], attach)
    except UserError as error:
        assert "cannot be read as a URL" in str(error)
    else:
        assert sent.waiting == 1 and "does not answer" in sent.reason


# A real server


class Counter:
    """Counts MLflow's HTTP requests; from the given number on they fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_from: int = 10_000) -> None:
        import requests  # type: ignore[import-untyped,unused-ignore]

        self.count = 0
        plain = requests.Session.request

        def request(session: Any, *arguments: Any, **more: Any) -> Any:
            self.count += 1
            if self.count >= fail_from:
                raise requests.ConnectionError("cable cut")
            return plain(session, *arguments, **more)

        monkeypatch.setattr(requests.Session, "request", request)


@pytest.mark.slow
def test_a_server_gets_every_row_once(
    server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = Tracker(server, tmp_path / "here"), Tracker(f"{server}/", tmp_path / "there")
    store = Store(server, "once")
    all_rows = [row(f"m{number}", benchmark="once") for number in range(4)]
    odd = row(
        "odd", benchmark="once", parameters={"nothing": "", "p" * 300: "w" * 9000}, ood=(ood("a+b", "", math.nan),)
    )
    with monkeypatch.context() as patch:
        counter = Counter(patch)
        assert send(here, [*all_rows, odd], attach) == SyncReport(5, 0, 0, "")
    assert counter.count <= 9 * 5 + 14
    assert capfd.readouterr() == ("", "")
    assert send(there, all_rows, attach) == SyncReport(0, 4, 0, "")  # another machine, with an empty results folder
    assert send(there, [*all_rows, row("new", benchmark="once")], attach) == SyncReport(1, 4, 0, "")
    assert store.digests == digests(*all_rows, odd, row("new", benchmark="once"))
    assert len(store.parents) == 2 and len(store.children) == 6
    assert {run.info.status for run in store.runs} == {"FINISHED"}
    assert store.experiment.artifact_location.startswith("mlflow-artifacts:")
    first = next(run for run in store.children if run.info.run_name.startswith("m0"))
    assert first.data.metrics["auroc/near"] == 0.875
    copy = store.client.download_artifacts(first.info.run_id, "row.json", str(tmp_path))
    assert Path(copy).read_text() == all_rows[0].to_json()
    parent = store.client.download_artifacts(first.data.tags["mlflow.parentRunId"], "table.md", str(tmp_path))
    assert Path(parent).read_text() == TABLE
    assert not (tmp_path / "here" / "mlartifacts").exists()
    odd_run = next(run for run in store.children if run.info.run_name.startswith("odd"))
    assert math.isnan(odd_run.data.metrics["auroc/a-b"]) and odd_run.data.params["odd.nothing"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("fail_from", [1, 2, 4, 6, 8, 9, 10, 11, 12, 13, 14, 18])
def test_a_connection_lost_at_any_request(
    server: str, fail_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    benchmark = f"cut-{fail_from}"
    tracker, store = Tracker(server, tmp_path / "results"), Store(server, benchmark)
    both = [row("energy", benchmark=benchmark), row("mcm", benchmark=benchmark)]
    lay(tracker.results, *both)
    with monkeypatch.context() as patch:
        Counter(patch, fail_from)
        sent = send(tracker, both, attach)
    assert sent.reason.startswith(f"tracking server {server} failed in the middle (") and "cable cut" in sent.reason
    assert sent.waiting + sent.arrived == 2 and sent.arrived == len(store.digests)
    assert sync(tracker) == SyncReport(sent.waiting, sent.arrived, 0, "")
    assert store.digests == digests(*both)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_server_that_was_down(server: str, tmp_path: Path) -> None:
    port = unused_port()
    tracker = Tracker(f"http://127.0.0.1:{port}", tmp_path / "results")
    one, other, new = (row(method, benchmark="down") for method in ("energy", "mcm", "new"))
    lay(tracker.results, one, other)
    check_waits(tracker, "refused")
    with forwarding(port, server):
        assert sync(tracker) == SyncReport(2, 0, 0, "")
        assert Store(server, "down").digests == digests(one, other)
        assert sync(tracker) == SyncReport(0, 2, 0, "")
    check = send(tracker, [one, new], attach)
    assert (check.arrived, check.known, check.waiting) == (0, 1, 1)


@pytest.mark.slow
def test_a_server_that_hangs(running_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers the probe and the first request, then stops (SIGSTOP); MLflow alone would retry for minutes."""
    import requests  # type: ignore[import-untyped,unused-ignore]

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    plain = requests.Session.request

    def request(session: Any, *arguments: Any, **more: Any) -> Any:
        answer = plain(session, *arguments, **more)
        os.killpg(running_server.group, signal.SIGSTOP)
        return answer

    monkeypatch.setattr(requests.Session, "request", request)
    try:
        start = time.monotonic()
        sent = send(Tracker(running_server.uri, tmp_path / "results"), [row(benchmark="hangs")], attach)
        assert time.monotonic() - start < 60
        assert (sent.waiting, "timed out" in sent.reason) == (1, True)
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "2"
    finally:
        os.killpg(running_server.group, signal.SIGCONT)
