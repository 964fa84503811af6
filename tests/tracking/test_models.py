"""The model registry and MLflow's own pages: a real server, models loaded by fresh processes, a headless browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import oodbench
from oodbench.api import Attachments
from oodbench.data.glyphs import world
from oodbench.detector import pyfunc
from oodbench.detector.registration import model_of
from oodbench.errors import UserError
from oodbench.pipeline.weights import SHIPPED, recipe_of
from oodbench.storage.store import file_digest
from oodbench.tracking import Tracker, send
from tests.conftest import Cli
from tests.photos import lay
from tests.tracking.test_tracking import Store, row

CLIPN = SHIPPED / "clipn.safetensors"
CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of known classes, new images, names, and a detector that was fitted on them."""
    folder = lay(tmp_path_factory.mktemp("place"), known=30, new=8)
    oodbench.Detector("clipn", classes=str(folder / "names.txt")).fit(folder / "photos").save(folder / "detector")
    return folder


def images(place: Path) -> list[str]:
    return sorted(map(str, (place / "new").iterdir()))


def elsewhere(code: str, uri: str, folder: Path, *arguments: str) -> pd.DataFrame:
    """Run `code` on a model in a process that does not import oodbench itself, and return `found`."""
    lines = ["import sys, mlflow, pandas as pd", code, f"found.to_parquet({str(folder / 'found.parquet')!r})"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-c", "\n".join(lines), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return pd.read_parquet(folder / "found.parquet")


@pytest.mark.slow
def test_a_detector_in_the_registry(cli: Cli, place: Path, server: str, tmp_path: Path) -> None:
    done = cli("register", place / "detector", "--name", "glyph gate", "--tracking-uri", server, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"models:/glyph gate/1 in {server}\n"
    load = 'model = mlflow.pyfunc.load_model("models:/glyph gate/1", model_config={"device": "cpu"})\n'
    found = elsewhere(
        f'{load}found = model.predict(pd.DataFrame({{"image": sys.argv[1:]}}))', server, tmp_path, *images(place)
    )
    one = oodbench.Detector.load(place / "detector")
    assert list(found) == ["score", "class", "decision"]
    assert (found["score"].to_numpy() == one.score_samples(images(place))).all()
    assert (found["class"] == one.classify(images(place))).all()
    assert (found["decision"] == one.predict(images(place))).all() and set(found["decision"]) == {1, -1}

    again = cli("register", place / "detector", "--name", "glyph gate", "--tracking-uri", server, cwd=tmp_path)
    assert again.stdout == f"models:/glyph gate/2 in {server}\n"
    version = Store(server).client.get_model_version("glyph gate", "1")
    recipe = json.loads((place / "detector/detector.json").read_text())
    assert version.tags["method"] == "clipn" and version.tags["encoder"] == "glyphs"
    assert version.tags["classes"] == str(len(world.CLASSES)) and version.tags["weights"] == file_digest(CLIPN)
    assert float(version.tags["threshold"]) == one.threshold_ and version.tags["commit"] == recipe["commit"]
    assert "load_model('models:/glyph gate/1'" in version.description
    assert version.status == "READY" and not version.run_id


@pytest.mark.slow
def test_registered_weights_link_to_their_training(
    cli: Cli, place: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are trained briefly and registered; scores for given class names equal those of `--weights FILE`."""
    monkeypatch.setitem(world._LENGTHS, "pairs", 640)  # of 40,000, which all would be embedded
    flags = ("--encoder", "glyphs", "--captions", "glyphs", "--steps", "2", "--batch-size", "32")
    trained = cli("train", "clipn", *flags, "--output", tmp_path / "w.safetensors", "--tracking-uri", server)
    assert trained.returncode == 0, trained.stderr
    done = cli("register", tmp_path / "w.safetensors", "--name", "clipn", "--tracking-uri", server, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"models:/clipn/1 in {server}\n"), done.stderr
    code = 'model = mlflow.pyfunc.load_model("models:/clipn/1", model_config={"device": "cpu"})\n'
    code += 'found = model.predict(pd.DataFrame({"image": sys.argv[3:]}), params={"classes": sys.argv[1:3]})'
    found = elsewhere(code, server, tmp_path, "anchor", "umbrella", *images(place))
    one = oodbench.Detector("clipn", classes=["anchor", "umbrella"], weights=tmp_path / "w.safetensors").fit()
    assert list(found) == ["score", "class"]
    assert (found["score"].to_numpy() == one.score_samples(images(place))).all()
    assert set(found["class"]) == {"anchor", "umbrella"}

    client = Store(server).client
    version = client.get_model_version("clipn", "1")
    run = client.get_run(version.run_id)
    assert run.info.run_name == "train clipn · glyphs" and run.info.status == "FINISHED"
    assert run.data.tags["weights"] == file_digest(tmp_path / "w.safetensors") == version.tags["weights"]


@pytest.mark.slow
def test_weights_with_class_names_in_the_default_store(cli: Cli, place: Path, tmp_path: Path) -> None:
    done = cli("register", CLIPN, "--name", "clipn", "--classes", place / "names.txt", cwd=tmp_path)
    uri = f"sqlite:///{tmp_path}/results/mlflow.db"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"models:/clipn/1 in {uri}\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]
    code = 'model = mlflow.pyfunc.load_model("models:/clipn/1", model_config={"device": "cpu"})\n'
    code += 'contents = [open(path, "rb").read() for path in sys.argv[1:]]\n'
    code += 'found = model.predict(pd.DataFrame({"bytes": contents}))'
    found = elsewhere(code, uri, tmp_path, *images(place))
    one = oodbench.Detector.load(place / "detector")
    assert (found["score"].to_numpy() == one.score_samples(images(place))).all()
    files = {path.name for path in (tmp_path / "results/mlartifacts").rglob("*") if path.is_file()}
    assert "clipn.safetensors" in files and not {name for name in files if name.endswith((".pkl", ".py"))}


@pytest.mark.slow
def test_weights_without_class_names_are_an_error(place: Path) -> None:
    model = pyfunc._load_pyfunc(str(CLIPN), {"device": "cpu", "encoder": ""})
    frame = pd.DataFrame({"image": images(place)}, index=range(5, 21))
    with pytest.raises(UserError, match=r'need class names: predict\(images, params={"classes"'):
        model.predict(frame, {"classes": []})
    with pytest.raises(UserError, match="give a column 'image' of paths, or 'bytes'"):
        model.predict(pd.DataFrame({"picture": ["x"]}), {"classes": ["anchor"]})
    with pytest.raises(UserError, match="the bytes are not an image"):
        model.predict(pd.DataFrame({"bytes": [b"x"]}), {"classes": ["anchor"]})
    found = model.predict(frame, {"classes": np.array(["anchor", "umbrella"])})
    assert list(found.index) == list(range(5, 21)) and found["score"].notna().all()


@pytest.mark.slow
def test_the_description_of_a_model(place: Path) -> None:
    detector = model_of(place / "detector")
    assert set(detector.outputs) == {"score", "class", "decision"} and detector.classes is None
    weights = model_of(CLIPN, str(place / "names.txt"), "ViT-B-16/openai")
    assert weights.classes == tuple(world.CLASSES) and weights.config["encoder"] == "ViT-B-16/openai"
    assert weights.tags["captions"] == recipe_of(CLIPN)["captions"]["name"] and weights.tags["kind"] == "weights"
    assert all(re.fullmatch(r"\w+==\d\S*", line) for line in weights.requirements)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone"], "error: no gone; name the folder of a saved detector, or a file of trained weights"),
        (["new"], "error: new holds no detector: new/detector.json does not exist"),
        (["names.txt"], "error: names.txt was not written by oodbench train; register a detector that uses it"),
        (["detector", "--classes", "names.txt"], "error: the detector in detector has its class names; leave out"),
        (["detector", "--name", "a/b"], "error: --name 'a/b': Invalid model name 'a/b'. Names cannot contain '/' or"),
        (["detector", "--name", " "], "error: --name ' ': "),
        (["detector", "--tracking-uri", "http://me:hunter2@127.0.0.1:9"], "error: tracking store http://127.0.0.1:9 "),
        (["detector", "--tracking-uri", "results"], "error: --tracking-uri 'results' has no scheme; write for example"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_registered(arguments: list[str], told: str, place: Path, cli: Cli) -> None:
    name = () if "--name" in arguments else ("--name", "some")
    done = cli("register", *arguments, *name, "--results", "r", cwd=place)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(told) and done.stderr.count("\n") == 1 and "hunter2" not in done.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


HOSTILE = "a_b & 50% <script>alert(1)</script>"


@pytest.mark.slow
def test_pages_of_mlflow(cli: Cli, place: Path, server: str, browser: Any, tmp_path: Path) -> None:
    """Run names, the table, a figure and a registered model, in MLflow's web interface."""
    flags = ("--methods", "mcm,energy", "--limit", "40", "--allow-partial", "--bootstrap", "0", "--seed", "5")
    done = cli("run", *flags, "--results", tmp_path / "r", "--tracking-uri", server, cwd=tmp_path)
    assert (done.returncode, "MLflow:" in done.stderr) == (0, False), done.stderr
    assert cli("register", place / "detector", "--name", "seen", "--tracking-uri", server).returncode == 0
    store = Store(server)
    parent = next(run for run in store.parents if run.info.run_name.endswith("seed 5, limit 40"))
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    home = f"{server}/#/experiments/{store.experiment.experiment_id}"
    page.goto(f"{home}/runs?searchFilter=tags.method%20%3D%20'mcm'&orderByKey=metrics.%60auroc%2Fmean%60")
    page.get_by_text("mcm · glyphs, seed 5, limit 40").first.wait_for(timeout=60_000)
    assert page.get_by_text("energy · glyphs").count() == 0
    (link,) = re.findall(r"next: open '(.+)'", done.stderr)
    for order in ("false", "true"):  # as the link says, and the other way round
        page.goto("about:blank")  # a change of the part after # alone would keep the page
        page.goto(link.replace("orderByAsc=false", f"orderByAsc={order}"))
        page.locator(f"[role=row] a[href*='{parent.info.run_id}']").first.wait_for(timeout=60_000)
        # The order of a grid's rows on the screen is not that of its elements.
        places = "all => all.map(a => [Number(a.closest('[role=row]').getAttribute('row-index')), a.href])"
        links = [one for _, one in sorted(page.locator("[role=row] a[href*='/runs/']").evaluate_all(places))]
        means = {run.info.run_id: run.data.metrics.get("auroc/mean") for run in store.runs}
        shown = [means[re.findall("/runs/(\\w+)", one)[0]] for one in dict.fromkeys(links)]
        children = [value for value in shown if value is not None]
        assert len(children) > 1 and children == sorted(children, reverse=order == "false"), shown
        assert shown[: len(children)] == children  # those without the metric, the runs above them, come last
    page.goto(f"{home}/runs/{parent.info.run_id}")
    page.get_by_text("glyphs on glyphs: mcm, energy, seed 5, limit 40").first.wait_for(timeout=60_000)
    page.get_by_text("AUROC, FPR95 and ID accuracy in %.").first.wait_for(timeout=60_000)
    page.goto(f"{home}/runs/{parent.info.run_id}/artifacts/table.html")
    page.frame_locator("iframe").get_by_text("AUROC, FPR95 and ID accuracy in %.").first.wait_for(timeout=60_000)
    page.goto("about:blank")
    page.goto(f"{home}/runs/{parent.info.run_id}/artifacts/figures/glyphs-roc.png")
    page.wait_for_function("[...document.images].some(i => i.naturalWidth > 600)", timeout=60_000)
    page.goto(f"{server}/#/models/seen/versions/1")
    page.get_by_text("load_model('models:/seen/1'").first.wait_for(timeout=60_000)
    page.close()


@pytest.mark.slow
def test_hostile_names_are_escaped(server: str, browser: Any, tmp_path: Path) -> None:
    odd = row(
        label=HOSTILE, title=HOSTILE, benchmark="hostile", benchmark_title=HOSTILE, status="failed", error=HOSTILE
    )
    assert send(Tracker(server, tmp_path), [odd], Attachments(tmp_path)).arrived == 1
    store = Store(server, "hostile")
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    alerts: list[str] = []
    page.on("dialog", lambda dialog: alerts.append(dialog.message))
    for run, names in ((store.parents[0], 2), (store.children[0], 2)):  # in the title; in the description or tags
        page.goto(f"{server}/#/experiments/{store.experiment.experiment_id}/runs/{run.info.run_id}")
        page.get_by_text(HOSTILE).nth(names - 1).wait_for(timeout=60_000)
    assert not alerts
    page.close()
