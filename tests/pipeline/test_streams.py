"""Streams: the order of the images, reference scores of a running mean, results, resumed runs, refusals."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from oodbench import Detector
from oodbench.api import run
from oodbench.cli.run import run as run_command
from oodbench.detector.explain import explain
from oodbench.errors import UserError
from oodbench.method.parameters import label, parse_choices, written
from oodbench.pipeline import run as local
from oodbench.pipeline.extract import extract
from oodbench.pipeline.jobs import make_jobs
from oodbench.pipeline.plan import Plan, make_plan
from oodbench.pipeline.request import RunRequest, check_options, command, request_from
from oodbench.pipeline.run import RunState
from oodbench.pipeline.score import find_scores
from oodbench.pipeline.stream_order import StreamProtocol, canonical_order, canonical_ratio, kept_sizes
from oodbench.pipeline.streams import find_streams, run_stream, stream_inputs
from oodbench.pipeline.text_embeddings import class_embeddings
from oodbench.results import Result
from oodbench.storage.store import Store
from tests.conftest import Cli

HEAD = '''"""Stream: for this test (Doe et al., ICML 2026, arXiv:2601.00001)."""
from dataclasses import dataclass
import torch
from oodbench.method import Needs, StreamMethod

SEEN = []

@dataclass(frozen=True)
class Stream(StreamMethod):
    """A stream."""
    needs = Needs.FEATURES | Needs.STREAM
'''
# The images before this batch have the mean; the base's score counts twice.
RUNMEAN = """
    sees_itself = True
    base: str = "mcm"
    weight: float = 2.0

    def begin(self, task):
        return {"total": torch.zeros(task.encoder.card.embed_dim, dtype=torch.float64), "n": 0}

    def step(self, batch, task, state):
        state["total"] += batch.features.double().sum(0)
        state["n"] += batch.size
        mean = state["total"] / state["n"]
        classes = torch.full((batch.size,), state["n"] % len(task.classes))
        return self.weight * batch.base + batch.features.double() @ mean, state, classes
"""
PLAIN = """
    templates: str = "simple"
    def begin(self, task):
        return None
"""
# What each does, and a part of its error message.
FAULTY = {
    "module_global": (
        "    def step(self, batch, task, state):\n        SEEN.append(1)\n"
        "        return batch.features[:, 0] * len(SEEN), state",
        r"it keeps something outside its state: '.*\.png' of folder:.* scores .* when begin\(\) starts it again",
    ),
    "own_attribute": (
        "    def step(self, batch, task, state):\n        object.__setattr__(self, 'seen', batch.size)\n"
        "        return batch.features[:, 0], state",
        r"step\(\) changes self\['seen'\]: learning belongs to the state",
    ),
    "not_a_number": (
        "    def step(self, batch, task, state):\n        scores = batch.features[:, 0].clone()\n"
        "        scores[3] = float('nan')\n        return scores, state",
        r"1 of 8 scores are NaN in the batch from place 0 of the stream, that of '.*\.png' of folder:.* first",
    ),
    "writer": (
        "    def step(self, batch, task, state):\n        return batch.features.mul_(2)[:, 0], state",
        r"step\(\) changes its inputs in place",
    ),
    "one_value": (
        "    def step(self, batch, task, state):\n        return batch.features[:, 0]",
        r"step\(\) must return \(scores, state\) or \(scores, state, classes\), not Tensor",
    ),
    "too_few": (
        "    def step(self, batch, task, state):\n        return batch.features[1:, 0], state",
        r"step\(\) must return one score per image, a tensor \[8\], not \[7\]",
    ),
    "no_base": ("    def step(self, batch, task, state):\n        return batch.base, state", "no method is named"),
    "bad_class": (
        "    def step(self, batch, task, state):\n"
        "        return batch.features[:, 0], state, torch.full((batch.size,), 9)",
        "class indices below 2, not 9",
    ),
}
VIEWED = """    def begin(self, task):
        return torch.zeros(8)
    def step(self, batch, task, state):
        state[: batch.size] = batch.features[:, 0]  # the same memory in every step
        return state[: batch.size], state
"""


def write(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(HEAD + body)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """id/{green,red}: 12 images each; ood: 20; few: 3; runmean.py and the faulty methods. 32x32, coloured noise."""
    root = tmp_path_factory.mktemp("streams")
    rng = np.random.default_rng(0)
    for folder, n in (("id/green", 12), ("id/red", 12), ("ood", 20), ("few", 3)):
        (root / folder).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(root / folder / f"{i:02}.png")
    write(root, "runmean", RUNMEAN)
    write(root, "viewed", VIEWED)
    for name, (body, _) in FAULTY.items():
        write(root, name, PLAIN + body)
    return root


def request(place: Path, out: Path, **options: Any) -> RunRequest:
    usual = {
        "methods": "runmean",
        "plugins": place / "runmean.py",
        "id": f"folder:{place}/id",
        "ood": [f"folder:{place}/ood", f"folder:{place}/few"],
        "encoder": "glyphs",
        "out": out,
        "bootstrap": 0,
        "stream_batch": 8,
        "stream_seeds": 0,
    }
    return request_from(**{**usual, **options})


def results(wanted: RunRequest) -> tuple[Result, ...]:
    return run(make_plan(wanted)).results


# Of 4 ID images (0 to 3) and 3 OOD images (4 to 6); RandomState(0) permutes 7 to 6 2 1 3 0 5 4.
ORDERS = {
    "shuffled": [6, 2, 1, 3, 0, 5, 4],
    "id-first": [2, 1, 3, 0, 6, 5, 4],
    "ood-first": [6, 5, 4, 2, 1, 3, 0],
    "blocks=1": [2, 1, 3, 0, 6, 5, 4],
    "blocks=2": [2, 1, 6, 5, 3, 0, 4],
    "blocks=3": [2, 1, 6, 3, 5, 0, 4],
    "blocks=9": [2, 6, 1, 5, 3, 4, 0],
}


@pytest.mark.parametrize("order", ORDERS)
def test_orders_equal_a_reference_computation(order: str) -> None:
    assert StreamProtocol(order, seed=0).positions(4, 3).tolist() == ORDERS[order]
    assert StreamProtocol(order, seed=1).positions(4, 3).tolist() != ORDERS[order]


def test_a_ratio_keeps_the_largest_numbers() -> None:
    assert [kept_sizes(10, 5, ratio) for ratio in ("all", "1:1", "1:2", "2:1", "3:1", "11:1")] == [
        (10, 5),
        (5, 5),
        (2, 4),
        (10, 5),
        (9, 3),
        (0, 0),
    ]
    draw = np.random.RandomState(7)
    of_id, of_ood = sorted(draw.permutation(10)[:2]), sorted(draw.permutation(5)[:4])
    pair = np.array([*of_id, *(10 + position for position in of_ood)])
    stream = StreamProtocol("shuffled", 7, ratio="1:2").positions(10, 5)
    assert stream.tolist() == pair[np.random.RandomState(7).permutation(6)].tolist()


def test_orders_and_ratios_have_a_canonical_spelling() -> None:
    assert [canonical_order(text) for text in (" shuffled", "blocks=010", "blocks = 2")] == [
        "shuffled",
        "blocks=10",
        "blocks=2",
    ]
    assert [canonical_ratio(text) for text in ("all", "4:2", " 10 : 1 ")] == ["all", "2:1", "10:1"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("stream_order", "id first", "--stream-order id first; did you mean 'id-first'?"),
        ("stream_order", "reversed", "known: blocks=N, id-first, ood-first, shuffled"),
        ("stream_order", "shuffled,blocks=0", "--stream-order blocks=0: write blocks=N"),
        ("stream_order", "blocks", "such as blocks=10"),
        ("stream_order", "", "--stream-order names no order"),
        ("stream_seeds", (), "--stream-seeds names no seed"),
        ("stream_seeds", (0, -1), "--stream-seeds must be at least 0, not -1"),
        ("stream_seeds", 2**32, "--stream-seeds must be a number of at most 4294967295"),
        ("stream_seeds", "0,x", "option 'stream_seeds' takes"),
        ("stream_batch", 0, "--stream-batch must be at least 1, not 0"),
        ("stream_ratio", "1:0", "--stream-ratio 1:0: write all, or ID:OOD"),
        ("stream_ratio", "half", "--stream-ratio half: write all, or ID:OOD"),
        ("stream_ratio", "-1:2", "two numbers above 0"),
    ],
)
def test_bad_protocols_are_refused(tmp_path: Path, option: str, value: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        check_options(request_from(out=tmp_path, **{option: value}))
    assert said in str(error.value)


def test_a_command_repeats_the_protocol(tmp_path: Path) -> None:
    wanted = request_from(
        methods="oodd[base=neglabel[groups=10],k=3],mcm",
        stream_order="shuffled,blocks=10",
        stream_seeds=[4, 5],
        stream_batch=64,
        stream_ratio="2:1",
        settings=["mcm.temperature=0.5"],
        out=tmp_path,
    )
    words = shlex.split(command(wanted, methods=wanted.methods))
    assert words[:2] == ["oodbench", "run"]
    values = run_command.make_context("run", words[2:]).params
    given = {name: values[name] for name in values if name.startswith("stream_") or name in ("methods", "settings")}
    assert request_from(**given, out=tmp_path) == wanted  # --set of mcm, which is among the methods, is kept


@pytest.mark.parametrize(
    "text",
    [
        "oodd[base=neglabel[groups=10]]",
        "oodd[base=neglabel[groups=10,scale=None],k=3]",
        "oodd[base=mcm[templates='a photo of a {}, big']]",
        "oodd[base=clipn[rule=ctw]]",
    ],
)
def test_a_base_is_written_without_quotes(text: str) -> None:
    (choice,) = parse_choices(text)
    assert label("oodd", choice.overrides, {"base": "mcm", "k": 5}) == text
    (base,) = parse_choices(choice.overrides["base"])
    assert (
        written(label(base.name, base.overrides, dict.fromkeys(base.overrides, "another"))) == choice.overrides["base"]
    )


def test_text_that_is_not_a_method_keeps_its_quotes() -> None:
    values = ("a[b", "words[1]", "x[y=1] z", "x[y=1]]", "x[y=[1]", "{}[a=1]")
    assert [written(value) for value in values] == list(map(repr, values))


def test_equal_bases_are_one_job(place: Path, tmp_path: Path) -> None:
    """Named with its default or without, with an integer or a float: the same key, and the same score of the base."""
    methods = "runmean[base=mcm[temperature=1]],runmean,runmean[base=mcm[temperature=2]],mcm[temperature=2.0],energy"
    jobs = make_jobs(request(place, tmp_path, methods=methods))
    assert [job.label for job in jobs.rows] == [
        "runmean",
        "runmean[base=mcm[temperature=2]]",
        "mcm[temperature=2]",
        "energy",
    ]
    assert [(job.label, job.only_base) for job in jobs.jobs if not job.is_stream] == [
        ("mcm[temperature=2]", False),
        ("energy", False),
        ("mcm", True),
    ]
    assert [job.base for job in jobs.rows] == ["mcm", "mcm[temperature=2]", "", ""]
    (job,) = make_jobs(request(place, tmp_path, templates="openai7")).rows
    assert (job.label, job.base) == ("runmean[base=mcm[templates=openai7]]", "mcm[templates=openai7]")
    swept = make_jobs(request(place, tmp_path, sweeps=["runmean.base=mcm,energy[scale=1]"])).rows
    assert [job.label for job in swept] == ["runmean", "runmean[base=energy[scale=1]]"]


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("mcn", "runmean.base: no method 'mcn'; did you mean 'mcm'?"),
        ("core", "runmean.base: 'core' is a group"),
        ("'mcm,energy'", "runmean.base is one method, not 'mcm,energy'"),
        ("runmean", "runmean learns from the test images itself"),
        ("mcm[tau=1]", "mcm has no hyper-parameter 'tau'"),
        ("mcm[temperature=x]", "mcm.temperature takes float, not 'x'"),
        ("mcm[", "cannot read"),
    ],
)
def test_bad_bases_are_refused(place: Path, tmp_path: Path, base: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        make_jobs(request(place, tmp_path, methods="runmean", settings=[f"runmean.base={base}"]))
    assert said in str(error.value)


def test_inputs_that_a_stream_cannot_read_are_refused_in_the_plan(place: Path, tmp_path: Path) -> None:
    plugin = write(tmp_path, "pixels", PLAIN + FAULTY["no_base"][0])
    plugin.write_text(plugin.read_text().replace("Needs.FEATURES", "Needs.PIXELS"))
    with pytest.raises(
        UserError, match="it learns from the test images and reads PIXELS, which a stream does not have"
    ):
        make_plan(request(place, tmp_path, methods="pixels", plugins=plugin))
    with pytest.raises(UserError, match=r"as the base of a stream, write runmean\[base=mcm\[temperature=0.5\]\]"):
        make_plan(request(place, tmp_path, settings=["mcm.temperature=0.5"]))
    with pytest.raises(UserError, match=r"--stream-ratio 1:5 leaves no image of .*id \(24\) and .*few \(3\)") as error:
        make_plan(request(place, tmp_path, stream_ratio="2:10"))
    assert len(error.value.problems) == 1  # the other OOD set has 20 images
    ignored = make_plan(request(place, tmp_path, methods="mcm", stream_seeds=[1], stream_batch=256)).notes
    assert "--stream-seeds is ignored: no method of this run learns from the test images" in ignored


def embeddings(plan: Plan, number: int) -> npt.NDArray[np.float64]:
    """The stored embeddings of an image set, of unit length."""
    stored = extract(plan.extraction_job(plan.listings[number]), pytest.fail)
    vectors = np.concatenate([shard.array("embeddings") for shard in stored.shards]).astype(np.float64)
    unit: npt.NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def reference_scores(plan: Plan, number: int, protocol: StreamProtocol) -> npt.NDArray[np.float64]:
    """The scores of RUNMEAN in the order of the stream, image by image; MCM is the log of the largest probability."""
    features = np.concatenate([embeddings(plan, 0), embeddings(plan, number)])
    logits = features @ class_embeddings(plan, "simple", pytest.fail).T.astype(np.float64)
    exponentials = np.exp(logits)
    base = np.log((exponentials / exponentials.sum(1, keepdims=True)).max(1))
    order, scores = protocol.positions(len(plan.id), len(plan.listings[number])), []
    for start in range(0, len(order), protocol.batch):
        seen, batch = order[: start + protocol.batch], order[start : start + protocol.batch]
        scores += [2 * base[row] + features[row] @ features[seen].mean(0) for row in batch]
    return np.array(scores)


def test_a_stream_equals_a_reference_computation(place: Path, tmp_path: Path) -> None:
    """Scores, place by place, in the store and in the Parquet file; metrics of both pairs; the row's protocol."""
    plan = make_plan(request(place, tmp_path, stream_order="shuffled,blocks=3", stream_seeds=[3, 4]))
    rows = run(plan).results
    assert [(row.label, row.stream["order"], row.stream["seed"]) for row in rows] == [
        ("runmean", "shuffled", 3),
        ("runmean", "shuffled", 4),
        ("runmean", "blocks=3", 3),
        ("runmean", "blocks=3", 4),
    ]
    assert [row.status for row in rows] == ["ok"] * 4
    for row, protocol in zip(rows, plan.protocols, strict=True):
        assert row.stream == {
            "order": protocol.order,
            "seed": protocol.seed,
            "batch": 8,
            "ratio": "all",
            "reset": "pair",
            "sees_itself": True,
            "base": "mcm",
        }
        (path,) = tmp_path.rglob(f"*{protocol.order.replace('=', '-')}-{protocol.seed}-*.parquet")
        table = pyarrow.parquet.read_table(path).to_pandas()
        entries = find_streams(plan, plan.rows[0], protocol)
        for number, of_set in enumerate(row.ood, start=1):
            expected = reference_scores(plan, number, protocol)
            entry = entries[of_set.dataset]
            np.testing.assert_allclose(entry.array("scores"), expected, rtol=1e-6)
            order = protocol.positions(24, of_set.n)
            is_id = order < 24
            np.testing.assert_array_equal(entry.array("is_id"), is_id)
            np.testing.assert_array_equal(entry.array("positions"), np.where(is_id, order, order - 24))
            assert of_set.auroc == pytest.approx(roc_auc_score(is_id, expected), abs=1e-9)
            assert row.scores[of_set.dataset] == entry.key
            part = table[table["pair"] == of_set.dataset]
            listed = [*plan.id.names, *plan.listings[number].names]
            assert list(part["name"]) == listed
            assert list(part["dataset"]) == [plan.id.dataset.name] * 24 + [of_set.dataset] * of_set.n
            np.testing.assert_allclose(part["score"], expected[np.argsort(order)], rtol=1e-6)
            np.testing.assert_array_equal(part["place"], np.argsort(order))
            # The class of a step is the number of images so far, modulo two classes; 12 images have each label.
            classes = (np.minimum(8 * (np.arange(len(order)) // 8 + 1), len(order)) % 2)[np.argsort(order)]
            np.testing.assert_array_equal(part["prediction"], classes)
            accuracy = (classes[:24] == np.repeat([0, 1], 12)).mean()
            assert of_set.stream["accuracy"] == pytest.approx(accuracy)
            assert of_set.stream["n_id"] == 24
            assert of_set.stream["first"] == of_set.stream["thousands"][0]
            assert of_set.stream["first"]["auroc"] == round(of_set.auroc, 9)
            assert of_set.stream["rest"] == {"n": 0, "n_id": 0, "auroc": None, "fpr95": None, "fpr95_ood": None}
            assert of_set.intervals
        assert row.id.accuracy == pytest.approx(np.mean([one.stream["accuracy"] for one in row.ood]))
    assert not [row for row in tmp_path.rglob("mcm*")]  # a base that was not asked for has no row
    # A second run finds everything, and imports no method.
    state = RunState(make_plan(request(place, tmp_path, stream_order="shuffled,blocks=3", stream_seeds=[3, 4])))
    assert (state.running, state.streams) == ([], [])
    assert [row.digest for row in state.outcome().results] == [row.digest for row in rows]


def test_parts_of_a_stream(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 10 images, against a reference computation; one with OOD images alone has no metrics."""
    monkeypatch.setattr("oodbench.pipeline.stream_results.PART", 10)
    plan = make_plan(
        request(place, tmp_path, stream_order="ood-first", ood=[f"folder:{place}/ood"], stream_ratio="6:5")
    )
    (row,) = run(plan).results
    (found,) = row.ood
    (entry,) = find_streams(plan, plan.rows[0], plan.protocols[0]).values()
    scores, is_id = entry.array("scores"), entry.array("is_id")
    sizes = [(part["n"], part["n_id"]) for part in found.stream["thousands"]]
    assert sizes == [(10, 0), (10, 0), (10, 10), (10, 10), (4, 4)]
    assert found.stream["first"]["auroc"] is None
    assert (found.stream["rest"]["n"], found.stream["rest"]["n_id"]) == (34, 24)
    assert found.stream["rest"]["auroc"] == pytest.approx(roc_auc_score(is_id[10:], scores[10:]), abs=1e-9)
    assert (found.n, found.partial) == (20, "")
    assert results(request(place, tmp_path, stream_ratio="1:1"))[0].ood[1].stream["n_id"] == 3


def test_what_a_key_depends_on(place: Path, tmp_path: Path) -> None:
    def key(methods: str = "runmean", **options: Any) -> str:
        plan = make_plan(request(place, tmp_path, methods=methods, **options))
        return Store(tmp_path).key("streams", stream_inputs(plan, plan.rows[0], plan.ood[0].listing, plan.protocols[0]))

    changes: list[dict[str, Any]] = [
        {},
        {"methods": "runmean[weight=3]"},
        {"methods": "runmean[base=energy]"},
        {"methods": "runmean[base=mcm[temperature=2]]"},
        {"stream_order": "id-first"},
        {"stream_seeds": 1},
        {"stream_batch": 9},
        {"stream_ratio": "1:1"},
        {"precision": "bf16"},
    ]
    keys = [key(**change) for change in changes]
    assert len(set(keys)) == len(changes)
    assert key(methods="runmean[base=mcm]", stream_seeds=[0, 5]) == keys[0]


def test_faulty_streams_fail_by_name_and_alone(place: Path, tmp_path: Path) -> None:
    plugins = [place / f"{name}.py" for name in (*FAULTY, "viewed", "runmean")]
    names = ",".join([*FAULTY, "viewed", "runmean"])
    plan = make_plan(request(place, tmp_path, methods=names, plugins=plugins, ood=[f"folder:{place}/ood"]))
    found = {row.label: row for row in run(plan).results}
    for name, (_, said) in FAULTY.items():
        with pytest.raises(UserError, match=said):
            raise UserError(found[name].error)
        assert found[name].status == "failed"
        assert found[name].stream["seed"] == 0
    jobs = {job.label: job for job in plan.rows}
    assert not [name for name in FAULTY if find_streams(plan, jobs[name], plan.protocols[0])]
    assert found["runmean"].status == "ok"
    (entry,) = find_streams(plan, jobs["viewed"], plan.protocols[0]).values()
    features = np.concatenate([embeddings(plan, 0), embeddings(plan, 1)])
    np.testing.assert_allclose(entry.array("scores"), features[plan.protocols[0].positions(24, 20), 0], rtol=1e-5)


def test_a_base_that_fails_fails_its_streams(place: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    text = (HEAD + "    def score(self, batch, task, state):\n        raise RuntimeError('no score')\n").replace(
        "StreamMethod", "Method"
    )
    broken.write_text(text.replace("    needs = Needs.FEATURES | Needs.STREAM\n", ""))
    plugins = [broken, place / "runmean.py"]
    rows = results(request(place, tmp_path, methods="runmean[base=broken],runmean", plugins=plugins))
    assert [(row.label, row.status) for row in rows] == [("runmean[base=broken]", "failed"), ("runmean", "ok")]
    assert rows[0].error == "its base broken failed: RuntimeError: no score"
    asked = results(request(place, tmp_path, methods="broken,runmean[base=broken]", plugins=plugins))
    assert [row.error for row in asked] == ["RuntimeError: no score", rows[0].error]


def test_a_method_without_classes_has_those_of_its_base(place: Path, tmp_path: Path) -> None:
    body = "    base: str = 'mcm'\n    def begin(self, task):\n        return None\n"
    plugin = write(tmp_path, "same", body + FAULTY["no_base"][0])
    plan = make_plan(request(place, tmp_path, methods="same,mcm", plugins=plugin))
    same, mcm = run(plan).results
    assert same.id.accuracy == mcm.id.accuracy is not None
    assert [row.auroc for row in same.ood] == [row.auroc for row in mcm.ood]  # its scores are those of the base
    (entry,) = (found for name, found in find_streams(plan, plan.rows[0], plan.protocols[0]).items() if "few" in name)
    stored = [find_scores(plan, plan.rows[1], plan.listings[number]) for number in (0, 2)]
    classes = np.concatenate([one.array("predictions") for one in stored if one])
    np.testing.assert_array_equal(entry.array("predictions"), classes[plan.protocols[0].positions(24, 3)])


def test_a_base_that_cannot_run_is_named(place: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"runmean\[base=clipn\] needs its base clipn, which has no weights for ViT-B-16"
    ):
        make_plan(request(place, tmp_path, methods="runmean[base=clipn],mcm", encoder="ViT-B-16/openai"))
    with pytest.raises(UserError, match=r"runmean\[base=knn\] needs its base knn, which calibrates on ID training"):
        make_plan(request(place, tmp_path, methods="runmean[base=knn],mcm"))
    with pytest.raises(
        UserError, match=r"runmean\[base=zoc_coca\]: needs its base zoc_coca: .* does not write captions"
    ):
        make_plan(request(place, tmp_path, methods="runmean[base=zoc_coca],mcm"))


def test_a_run_killed_between_pairs_resumes_with_equal_rows(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"stream_seeds": [0, 1], "stream_order": "shuffled,id-first"}
    whole = results(request(place, tmp_path / "whole", **options))
    plan = make_plan(request(place, tmp_path / "killed", **options))
    job = plan.rows[0]
    for protocol, one in [(protocol, one) for protocol in plan.protocols for one in plan.ood]:
        plan.store.remove("streams", stream_inputs(plan, job, one.listing, protocol))
    calls: list[Any] = []

    def counted(*arguments: Any) -> None:
        calls.append(arguments)
        run_stream(*arguments)

    def killed(*arguments: Any) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt
        counted(*arguments)

    monkeypatch.setattr(local, "run_stream", killed)
    with pytest.raises(KeyboardInterrupt):
        run(plan)
    assert [len(find_streams(plan, job, protocol)) for protocol in plan.protocols] == [2, 1, 0, 0]
    calls.clear()
    monkeypatch.setattr(local, "run_stream", counted)
    resumed = run(make_plan(request(place, tmp_path / "killed", **options))).results
    assert len(calls) == 5
    assert [row.digest for row in resumed] == [row.digest for row in whole]


def test_images_that_are_skipped_are_left_out(place: Path, tmp_path: Path) -> None:
    for name in ("ok", "broken"):
        (tmp_path / "sets" / name).mkdir(parents=True)
    for path in (place / "ood").iterdir():
        (tmp_path / "sets/broken" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "sets/broken/05.png").write_bytes(b"no image")
    options: dict[str, Any] = {"ood": [f"folder:{tmp_path}/sets/broken"], "on_error": "skip"}
    plan = make_plan(request(place, tmp_path, **options))
    (row,) = run(plan).results
    (entry,) = find_streams(plan, plan.rows[0], plan.protocols[0]).values()
    listed = np.array(entry.array("positions"))[~np.array(entry.array("is_id"))]
    assert sorted(listed) == [position for position in range(20) if position != 5]
    assert (row.ood[0].n, row.ood[0].skipped, row.ood[0].partial) == (19, 1, "partial 19/20")
    strict = make_plan(request(place, tmp_path, ood=options["ood"]))
    assert not find_streams(strict, strict.rows[0], strict.protocols[0])


def test_commands_for_single_images_refuse_streams(place: Path, tmp_path: Path) -> None:
    said = r"runmean learns from a test stream.*; use\n  oodbench run --methods runmean"
    with pytest.raises(UserError, match=said):
        Detector("runmean", classes=["green", "red"], plugins=[place / "runmean.py"]).fit()
    image = place / "ood/00.png"
    with pytest.raises(UserError, match=said):
        explain(request(place, tmp_path), image)
    (explained,) = explain(request(place, tmp_path, methods="mcm,test-time"), image)
    assert any("skipped: runmean: learns from a test stream" in note for note in explained.notes)


def test_a_dry_run_prints_the_protocol(place: Path, tmp_path: Path, cli: Cli) -> None:
    sets = ["--id", f"folder:{place}/id", "--ood", f"folder:{place}/ood,folder:{place}/few", "--encoder", "glyphs"]
    words = ["--plugin", place / "runmean.py", "--methods", "runmean", "--results", tmp_path, "--dry-run"]
    done = cli(
        "run", *sets, *words, "--stream-order", "shuffled,blocks=3", "--stream-seeds", "7,8", "--stream-batch", "64"
    )
    assert done.returncode == 0, done.stderr
    assert (
        "  order shuffled, blocks=3; seed 7, 8; batch 64; all images; the method is reset for each pair" in done.stdout
    )
    assert "  2 pairs x 4 = 8 streams for each method" in done.stdout
    assert "  runmean (base=mcm, weight=2.0): 8 of 8 streams to score" in done.stdout
    assert ", base of runmean: " in done.stdout
