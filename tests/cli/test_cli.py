"""The main workflow: `oodbench run` and `oodbench report` as processes, on glyphs and on real images."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from oodbench.method import registry
from tests.first_run import first_run

pytestmark = pytest.mark.slow
Cli = Callable[..., subprocess.CompletedProcess[str]]
METHODS = {name: registry.methods()[name] for name in registry.CORE if name != "zoc_coca"}  # which reads captions


@pytest.fixture(scope="module")
def home() -> Path:
    """A folder after one `oodbench run`, with a separate store."""
    return first_run()


def rows_of(folder: Path) -> dict[str, dict[str, object]]:
    found = {path.stem: json.loads(path.read_text()) for path in (folder / "results" / "runs").rglob("*.json")}
    return {name: row for name, row in found.items() if not name.startswith(".")}


def test_a_first_run_prints_every_method_and_set(home: Path) -> None:
    out = (home / "stdout").read_text()
    titles = [info.title for info in METHODS.values()]
    for word in (*titles, "Letters", "Textures", "Digits", "Other symbols", "Average", "Seconds"):
        assert word in out
    assert "ID positive" in out
    assert not (home / "mlruns").exists()
    assert {p.name for p in (home / "results").iterdir()} >= {"runs", "mlflow.db", "mlartifacts"}


def test_metrics_equal_scikit_learn_on_the_stored_scores(home: Path) -> None:
    for name, row in rows_of(home).items():
        table = pyarrow.parquet.read_table(home / f"results/runs/glyphs/glyphs/{name}.parquet").to_pandas()
        id = table[table["dataset"] == "glyphs"]
        assert (id["prediction"] == id["label"]).mean() == row["id"]["accuracy"]  # type: ignore[index]
        for one in row["ood"]:  # type: ignore[attr-defined]
            ood = table[table["dataset"] == one["dataset"]]
            truth = np.r_[np.ones(len(id)), np.zeros(len(ood))]
            scores = np.r_[id["score"], ood["score"]]
            assert one["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
            fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
            assert one["fpr95"] == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)
            fpr, tpr, _ = roc_curve(1 - truth, -scores, drop_intermediate=False)
            assert one["fpr95_ood"] == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_a_warm_run_computes_nothing_and_imports_no_torch(home: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (home / "results").rglob("*") if p.is_file()}
    code = (
        "import sys\n"
        "from oodbench.cli import main\n"
        "try:\n    main(['run'])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'open_clip', 'mlflow', 'pandas', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    env = {**os.environ, "OODBENCH_STORE": str(home / "store")}
    done = subprocess.run([sys.executable, "-c", code], cwd=home, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (home / "stdout").read_text()
    assert {p: p.stat().st_mtime_ns for p in (home / "results").rglob("*") if p.is_file()} == before


def test_entries_removed_by_gc_are_recomputed_exactly(cli: Cli, home: Path, tmp_path: Path) -> None:
    """For methods that read embeddings, activations, prompts, trained weights and pixels."""
    copy = tmp_path / "store"
    shutil.copytree(home / "store", copy)
    done = cli("store", "gc", "--max-size", "0B", OODBENCH_STORE=str(copy))
    assert done.returncode == 0
    assert not list(copy.rglob("entry.json"))
    methods = ("mcm", "react", "clipn", "zoc", "odin")
    again = cli("run", "--methods", ",".join(methods), "--tracking-uri", "none", cwd=tmp_path, OODBENCH_STORE=str(copy))
    assert again.returncode == 0
    old, new = rows_of(home), rows_of(tmp_path)
    assert {name: row["digest"] for name, row in new.items()} == {name: old[name]["digest"] for name in methods}


def test_reports_of_a_run(cli: Cli, home: Path) -> None:
    latex = cli("report", "--format", "latex", cwd=home).stdout
    assert r"\toprule" in latex
    assert r"\textbf" in latex
    assert cli("report", "--format", "markdown", cwd=home).stdout.count("\n| ") >= len(METHODS)
    lines = list(csv.DictReader(io.StringIO(cli("report", "--format", "csv", cwd=home).stdout)))
    assert len(lines) == len(METHODS)
    wrong = cli("report", "--format", "latx", cwd=home)
    assert (wrong.returncode, wrong.stderr) == (2, "error: no format 'latx'; did you mean 'latex'?\n")
    empty = cli("report", "--results", "nowhere", cwd=home)
    assert empty.returncode == 2
    assert "oodbench run --results nowhere" in empty.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow calls SQLAlchemy in an old way
def test_results_reach_mlflow_once(home: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/results/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "oodbench/glyphs"]
    children = client.search_runs([experiment.experiment_id], "tags.`mlflow.parentRunId` != ''")
    rows = rows_of(home)
    assert {c.data.tags["oodbench.digest"] for c in children} == {row["digest"] for row in rows.values()}
    by_name = {c.data.tags["method"]: c for c in children}
    letters = next(s for s in rows["mcm"]["ood"] if s["dataset"] == "glyphs-letters")  # type: ignore[attr-defined]
    assert by_name["mcm"].data.metrics["auroc/glyphs-letters"] == letters["auroc"]
    assert by_name["mcm"].data.params["mcm.temperature"] == "1.0"


def test_a_dead_mlflow_server_loses_no_result(cli: Cli, home: Path, tmp_path: Path) -> None:
    env = {"OODBENCH_STORE": str(home / "store")}
    done = cli("run", "--tracking-uri", "http://127.0.0.1:9", "--results", tmp_path / "r", **env)
    assert done.returncode == 0
    assert "oodbench sync" in done.stderr
    assert len(list((tmp_path / "r" / "runs").rglob("*.json"))) == len(METHODS)
    sent = cli("sync", "--results", tmp_path / "r")
    assert (sent.returncode, sent.stdout) == (0, f"{len(METHODS)} results sent, 0 already there, 0 waiting\n")
    assert (
        cli("sync", "--results", tmp_path / "r").stdout == f"0 results sent, {len(METHODS)} already there, 0 waiting\n"
    )


def test_one_failed_method_is_exit_1_with_its_reason(cli: Cli, home: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "unlucky.py"
    plugin.write_text(
        '"""Unlucky: fails (Doe et al., ICML 2020, arXiv:2001.00001)."""\n'
        "from dataclasses import dataclass\nfrom oodbench.method import Method\n\n"
        "@dataclass(frozen=True)\nclass Unlucky(Method):\n    '''Fails.'''\n\n"
        "    def score(self, batch, task, state):\n        raise ValueError('no luck')\n"
    )
    env = {"OODBENCH_STORE": str(home / "store")}
    done = cli("run", "--plugin", plugin, "--results", tmp_path / "r", "--tracking-uri", "none", "--limit", "30", **env)
    assert done.returncode == 1
    assert "failed: unlucky: ValueError: no luck" in done.stderr
    assert "MaxLogit" in done.stdout


def test_config_file_takes_every_flag_and_the_command_line_wins(cli: Cli, home: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'methods = ["mcm"]\nood = ["glyphs-letters", "glyphs-digits"]\nlimit = 25\nresults = "from-config"\n'
        'tracking-uri = "none"\n[set.mcm]\ntemperature = 0.5\n'
    )
    env = {"OODBENCH_STORE": str(home / "store")}
    done = cli("run", "--config", "run.toml", "--limit", "20", cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "from-config").rglob("*.json")
    row = json.loads(path.read_text())
    assert (row["label"], row["id"]["n"], row["run"]["limit"]) == ("mcm[temperature=0.5]", 20, 20)
    (tmp_path / "bad.toml").write_text("methds = 'mcm'\n")
    wrong = cli("run", "--config", "bad.toml", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "no option 'methds'; did you mean 'methods'?" in wrong.stderr


def test_dry_run_computes_nothing(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", "--dry-run", cwd=tmp_path, OODBENCH_STORE=str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    assert "1,500 to encode" in done.stdout
    assert not (tmp_path / "results").exists()
    assert not list((tmp_path / "store").glob("embeddings"))


def test_imagenet_with_a_vit_b_32_of_real_size(cli: Cli, shared: Path, tmp_path: Path) -> None:
    """Random weights, real images: the sets are partial, which result and table state, and refused without the flag."""
    import open_clip
    import torch

    torch.manual_seed(0)
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    torch.save(model.state_dict(), tmp_path / "b32.pt")
    arguments = (
        "run",
        "--methods",
        "energy,maxlogit,mcm,msp",
        "--id",
        "imagenet1k",
        "--ood",
        "dtd,places",
        "--encoder",
        f"ViT-B-32/openai@{tmp_path}/b32.pt",
    )
    where = ("--data", shared / "data", "--results", tmp_path / "r", "--tracking-uri", "none")
    refused = cli(*arguments, *where)
    assert refused.returncode == 2
    for n, total in (("1000", "50000"), ("400", "5640"), ("1000", "10000")):
        assert f"holds {n} images, but the catalogue declares {total}" in refused.stderr
    plan = cli(*arguments, *where, "--allow-partial", "--dry-run")
    for line in (
        "imagenet1k: 1,000 of 50,000 images",
        "textures: 400 of 5,640 images",
        "places: 1,000 of 10,000 images",
    ):
        assert line in plan.stdout
    done = cli(*arguments, *where, "--allow-partial", "--limit", "16")  # all 2,400 would take minutes
    assert done.returncode == 0, done.stderr
    assert "16/5640" in done.stdout
    found = {path.stem.split("-")[0]: json.loads(path.read_text()) for path in (tmp_path / "r").rglob("*.json")}
    assert set(found) == {"energy", "maxlogit", "mcm", "msp"}
    row = found["mcm"]
    assert (row["id"]["n"], [s["n"] for s in row["ood"]]) == (16, [16, 16])
    assert row["classes"]["duplicates"] == ["missile", "sunglasses"]
    assert row["encoder"]["config"]["quick_gelu"] is True
    assert row["encoder"]["width"] == 768
