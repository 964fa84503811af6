"""Every method of the registry keeps the contract, and the checks detect methods that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from oodbench.cli import main
from oodbench.method import registry
from oodbench.method.toy import TRAIN, ToyWorld
from oodbench.pipeline.contract import CHECKS, STREAM_CHECKS, citation_problem, run_checks
from tests.conftest import Cli
from tests.elsewhere import elsewhere
from tests.methods import small

METHODS = registry.methods()

GOOD = '''"""Good: a method (Doe et al., ICML 2020, arXiv:2001.00001)."""
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
import torch
from oodbench.method import Batch, Method, Needs, Task, View

CALLS = []

def noisy(image):
    return np.random.default_rng().integers(0, 256, (8, 8, 3), np.uint8)

@dataclass(frozen=True)
class Good(Method[object]):
    """The largest cosine."""

    templates: str = "simple"

    def fit(self, task):
        return None

    def score(self, batch, task, state):
        return task.logits(batch.features, self.templates, None).amax(-1)
'''
SCORE = "return task.logits(batch.features, self.templates, None).amax(-1)"

# What to change in GOOD so that one check fails.
BROKEN = {
    "is_frozen": ("@dataclass(frozen=True)\n", ""),
    "gives_one_finite_score_per_image": (SCORE, SCORE.replace(".amax(-1)", "")),
    "is_deterministic": (SCORE, SCORE + " + torch.rand(batch.size)"),
    "keeps_no_state_between_images": (SCORE, f"CALLS.append(batch.size); {SCORE} - 0.1 * (sum(CALLS) > 2000)"),
    "does_not_depend_on_the_batch": (SCORE, SCORE + " + (batch.size > 500) * batch.features[:, 0]"),
    "leaves_its_input_alone": (SCORE, "batch.features.add_(0.1); " + SCORE),
    "predicts_classes": (
        "    def fit",
        "    def predict(self, batch, task, state):\n        return batch.features.argmax(0)\n\n    def fit",
    ),
    "has_deterministic_views": (
        "    def fit",
        "    needs = Needs.FEATURES | Needs.VIEWS\n    views = (View(noisy),)\n\n    def fit",
    ),
    "ranks_id_above_ood": (SCORE, SCORE.replace("return ", "return -")),
    "has_a_picklable_state": ("return None", "return lambda x: x"),
}


def failed(path: Path, source: str) -> set[str]:
    path.write_text(source)
    return {name.replace(" ", "_") for name, problem in run_checks(registry.methods([path])[path.stem]) if problem}


# AdaNeg, NegLabel and TANL encode 70,000 words for every fit; the others are trained, or write captions.
LONG = {"adaneg", "clipn", "gallop", "neglabel", "tanl", "zoc", "zoc_coca"}
FEW_WORDS = (
    "adaneg",
    "csp",
    "eoe",
    "negrefine",
    "tanl",
)  # CSP's pool has 400,000 texts, and EOE's words have no default
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in METHODS]


@pytest.mark.parametrize("name", NAMES)
def test_method_keeps_the_contract(name: str, tmp_path: Path) -> None:
    parameters = small.settings(tmp_path)[name] if name in FEW_WORDS else {}
    assert not {check: problem for check, problem in run_checks(METHODS[name], parameters) if problem}
    assert not citation_problem(METHODS[name])


def test_every_method_is_checked() -> None:
    here = Path(__file__).resolve().parents[2] / "methods"
    assert set(METHODS) >= {path.stem for path in here.glob("*.py") if not path.name.startswith("_")}


def test_a_correct_method_passes(tmp_path: Path) -> None:
    assert failed(tmp_path / "good.py", GOOD) == set()


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_method_fails_the_check_it_breaks(check: str, tmp_path: Path) -> None:
    old, new = BROKEN[check]
    assert old in GOOD
    assert check in failed(tmp_path / "bad.py", GOOD.replace(old, new))


def test_every_check_has_a_method_that_breaks_it() -> None:
    assert {check.__name__ for check in CHECKS} == set(BROKEN)
    assert {check.__name__ for check in STREAM_CHECKS} == set(BROKEN_STREAMS)


@pytest.mark.parametrize("limit", [1, 5, 12, 60, 90, 100, 200, 400, 2000])
def test_a_method_that_counts_images_fails_at_any_limit(limit: int, tmp_path: Path) -> None:
    counts = f"CALLS.append(batch.size); {SCORE} - 0.1 * (sum(CALLS) > {limit})"
    assert failed(tmp_path / "counts.py", GOOD.replace(SCORE, counts)) & {
        "is_deterministic",
        "keeps_no_state_between_images",
    }


# Where a method may hide state, and the check that detects it.
HIDDEN = {
    "the first batch's mean, in a module": (
        "global MEAN\n        MEAN = batch.features.mean(0) if MEAN is None else MEAN\n"
        "        return task.logits(batch.features - MEAN, self.templates, None).amax(-1)",
        "is_deterministic",
    ),
    "a count on the method": (
        "object.__setattr__(self, 'n', getattr(self, 'n', 0) + 1); " + SCORE,
        "keeps_no_state_between_images",
    ),
    "a write past torch": (
        "f = batch.features.numpy(); f += 0.5; " + SCORE,
        "leaves_its_input_alone",
    ),
    "a write into patches past torch": (
        "batch.patches.numpy()[:, 0] = 0; " + SCORE,
        "leaves_its_input_alone",
    ),
    "a scaler that copies nothing": (
        "from sklearn.preprocessing import scale; scale(batch.features.numpy(), copy=False); " + SCORE,
        "leaves_its_input_alone",
    ),
    "a write into class vectors": (
        "f = task.text('simple').numpy(); f *= 2; " + SCORE,
        "leaves_its_input_alone",
    ),
}


# Where a method may count images, and how the message names the place; `n` is the count.
COUNTS = {
    "a dict that is the state": ("state['n'] += batch.size; n = state['n']", "changes state['n']"),
    "a dict in the module": ("SEEN['n'] += batch.size; n = SEEN['n']", "the same images score differently"),
    "an attribute": (
        "object.__setattr__(self, 'n', getattr(self, 'n', 0) + batch.size); n = self.n",
        "changes self['n']",
    ),
    "a closure in the module": ("n = count(batch.size)", "the same images score differently"),
}
COUNTING = """SEEN = {'n': 0}

def counting(n=0):
    def add(m):
        nonlocal n
        n += m
        return n
    return add

count = counting()
"""


def problems(path: Path, source: str) -> list[str]:
    path.write_text(source)
    return [problem for _, problem in run_checks(registry.methods([path])[path.stem]) if problem]


@pytest.mark.parametrize("where", COUNTS)
def test_a_method_that_counts_images_fails_with_advice(where: str, tmp_path: Path) -> None:
    """The count lowers scores a little from the 2,000th image on."""
    count, said = COUNTS[where]
    source = GOOD.replace("CALLS = []", COUNTING).replace("return None", "return {'n': 0}")
    source = source.replace(SCORE, f"{count}; {SCORE} - 0.1 * (n > 2000)")
    told = problems(tmp_path / "good.py", source)
    assert any(
        said in one and one.endswith("; write a StreamMethod if it is meant to learn from the test images")
        for one in told
    ), told


@pytest.mark.parametrize("what", HIDDEN)
def test_hidden_state_is_detected(what: str, tmp_path: Path) -> None:
    body, check = HIDDEN[what]
    needs = "    needs = Needs.FEATURES | Needs.PATCHES\n\n    templates"
    source = GOOD.replace("CALLS = []", "MEAN = None").replace(SCORE, body).replace("    templates", needs)
    assert check in failed(tmp_path / "bad.py", source)


def test_undeclared_inputs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "peeks.py"
    path.write_text(GOOD.replace(SCORE, "return batch.pixels.mean((1, 2, 3))"))
    problems = " ".join(problem for _, problem in run_checks(registry.methods([path])["peeks"]))
    assert "batch.pixels was read but not declared: add Needs.PIXELS" in problems


def test_messages_of_methods_are_one_line_without_credentials(tmp_path: Path) -> None:
    fails = "raise ValueError('a\\n\\x1b[31mb http://me:secret@host/x')"
    file = tmp_path / "good.py"
    file.write_text(
        GOOD.replace("    def score(self, batch, task, state):\n", f"    def score(self, *given):\n        {fails}\n")
    )
    assert fails in file.read_text()
    done = CliRunner().invoke(main, ["methods", "check", str(file)])
    assert done.exit_code == 1 and "secret" not in done.output
    lines = done.output.splitlines()
    assert r"FAIL gives one finite score per image: ValueError: a\n\x1b[31mb http://host/x" in lines
    assert all(line.startswith(("ok ", "FAIL ", "good: ")) for line in lines), done.output


KNN = GOOD.replace(
    "class Good(Method[object]):", "class Good(Method[object]):\n    needs = Needs.FEATURES | Needs.CALIBRATION"
)
KNN = KNN.replace('templates: str = "simple"', "k: int = 1")
KNN = KNN.replace("return None", "return torch.cat([batch.features for batch in task.calibration()])")
KNN = KNN.replace(SCORE, "return (batch.features @ state.T).topk(self.k).values[:, -1]")


@pytest.mark.slow
def test_a_method_is_checked_by_name_with_hyper_parameters(cli: Cli, tmp_path: Path) -> None:
    """The hundredth neighbour needs a hundred toy images; a missing citation is a warning; bad input is reported."""
    path = tmp_path / "good.py"
    path.write_text(KNN.replace(" (Doe et al., ICML 2020, arXiv:2001.00001)", ""))
    options: tuple[str | Path, ...]
    for method, options, label in (
        (path, ("--set", "good.k=100"), "good[k=100]"),
        ("good[k=50]", ("--plugin", path), "good[k=50]"),
        ("mcm", ("--set", "mcm.temperature=0.01"), "mcm[temperature=0.01]"),
        ("oodd[base=neglabel[groups=10]]", ("--set", "oodd.k=3"), "oodd[base=neglabel[groups=10],k=3]"),
    ):
        done = cli("methods", "check", method, *options)
        assert done.returncode == 0 and done.stdout.endswith(f"{label}: keeps the contract\n"), done.stdout
        assert ("warn its first line does not end with (Authors" in done.stdout) == ("good" in label)
        assert "ok   scores the same in another process" in done.stdout
    for method, options, said in (
        ("mcn", (), "no method 'mcn'; did you mean 'mcm'?"),
        (tmp_path / "none.py", (), "none.py does not exist"),
        ("mcm,msp", (), "one method at a time, not mcm,msp: oodbench methods check mcm"),
        ("mcm", ("--set", "mcm.tau=1"), "mcm has no hyper-parameter 'tau'"),
        ("mcm", ("--device", "cuda:99"), "--device cuda:99 cannot be used"),
    ):
        done = cli("methods", "check", method, *options)
        assert done.returncode == 2 and said in done.stderr and not done.stdout, done.stderr
    done = cli("methods", "check", path, "--set", f"good.k={TRAIN + 1}")
    assert done.returncode == 1 and "FAIL gives one finite score per image: RuntimeError: selected index" in done.stdout


def test_images_and_tokens_of_the_toy_dataset() -> None:
    world = ToyWorld()
    labels = torch.cat([batch._labels for batch in world.task().calibration() if batch._labels is not None])
    assert len(world.train) == len(labels) == 1024 and set(torch.bincount(labels).tolist()) == {128}
    tokens = world.encoder.tokenize(["a photo of a bell", "x"])
    assert tokens.shape == (2, 77) and (tokens[:, 0] == tokens[0, 0]).all(), "start, in CLIP's context"
    ends = tokens.argmax(-1)
    assert (tokens[[0, 1], ends] == tokens.max()).all() and not tokens[0, ends[0] + 1 :].any(), "end, then zeros"


@pytest.mark.slow
def test_another_process_detects_the_order_of_sets(cli: Cli, tmp_path: Path) -> None:
    # With five words, two orders of the set almost never score alike.
    order = "[*set(map('k{}'.format, range(15)))]"
    unordered = f"{SCORE} + sum(batch.features[:, {order}.index('k' + str(i))] * (i + 1) for i in range(5))"
    (tmp_path / "good.py").write_text(GOOD.replace(SCORE, unordered))
    done = cli("methods", "check", tmp_path / "good.py")
    assert "FAIL scores the same in another process: another process, with another PYTHONHASHSEED" in done.stdout


def test_a_run_reports_problems_of_a_plugin_before_it_encodes(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD.replace(SCORE, "return batch.featurs"))
    options = ("--ood", "glyphs-digits", "--limit", "8", "--bootstrap", "0", "--tracking-uri", "none")
    done = cli("run", "--plugin", "good.py", "--methods", "good,mcm", *options, cwd=tmp_path)
    first, last = (line for line in done.stderr.splitlines() if "no attribute 'featurs'" in line)
    assert first.startswith("warning: good on the toy dataset: gives one finite score per image: AttributeError")
    assert last.startswith("failed: good: AttributeError") and done.returncode == 1 and "MCM" in done.stdout


def test_a_method_is_checked_on_the_requested_device(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(KNN)
    checks = [one for one in CHECKS if one.__name__ != "has_a_picklable_state"]  # the stand-in pickles CPU tensors
    with elsewhere() as device:
        for info in (METHODS["react"], registry.methods([tmp_path / "good.py"])["good"]):
            assert not {check: said for check, said in run_checks(info, None, device, checks) if said}
        (tmp_path / "bad.py").write_text(KNN.replace("topk", "cpu().topk").replace("state.T", "state.cpu().T"))
        found = run_checks(registry.methods([tmp_path / "bad.py"])["bad"], None, device, checks)
        assert any(f"is on {device}" in said for _, said in found), found


STREAM = (
    GOOD[: GOOD.index("@dataclass")]
    .replace("CALLS = []", COUNTING)
    .replace("import Batch, Method", "import Batch, StreamMethod")
)
STREAM += '''@dataclass(frozen=True)
class Good(StreamMethod[object]):
    """The score of another method, less a little of the cosine with the mean of the images before."""

    base: str = "mcm"
    weight: float = 0.01

    def begin(self, task):
        return torch.zeros(task.text("simple").shape[1])

    def step(self, batch, task, state):
        scores = batch.base - self.weight * (batch.features @ state)
        return scores, state.mul_(0.9).add_(0.1 * batch.features.mean(0))
'''
BEGIN, STEP = 'return torch.zeros(task.text("simple").shape[1])', "scores = batch.base"
END = "return scores, state.mul_(0.9)"

# What to change in STREAM so that one check fails.
BROKEN_STREAMS = {
    "is_frozen": ("@dataclass(frozen=True)\n", ""),
    "gives_one_finite_score_per_image": (STEP, "scores = 0 / (batch.size - 1.0) + batch.base"),
    "is_reset_by_begin": (STEP, "scores = torch.rand(batch.size) + batch.base"),
    "keeps_nothing_outside_its_state": (STEP, "scores = (count(batch.size) < 2000) + batch.base"),
    "does_not_use_later_images": (END, f"SEEN.setdefault('last', scores).zero_(); SEEN['last'] = scores; {END}"),
    "declares_sees_itself": (STEP, f"state = state + batch.features.mean(0); {STEP}"),
    "leaves_its_input_alone": (END, f"batch.base.numpy()[:] = 0; {END}"),
    "predicts_classes": (END, f"if state.any(): return scores, state, scores.argsort() % 8\n        {END}"),
    "ranks_id_above_ood": (END, END.replace("return scores", "return -scores")),
    "has_a_picklable_state": (BEGIN, BEGIN.replace("return", "state =") + "; state.note = lambda: 0; return state"),
}


def test_a_correct_stream_passes_with_a_base_and_without(tmp_path: Path) -> None:
    assert not problems(tmp_path / "good.py", STREAM)
    alone = STREAM.replace('base: str = "mcm"', 'templates: str = "simple"').replace("batch.base", SCORE[7:])
    assert not problems(tmp_path / "alone.py", alone)
    (tmp_path / "lacks.py").write_text(alone.replace("scores = ", "scores = batch.base + "))
    (first, *_) = problems(tmp_path / "lacks.py", alone.replace("scores = ", "scores = batch.base + "))
    assert "batch.base was read, but no method is named" in first


@pytest.mark.parametrize("check", BROKEN_STREAMS)
def test_a_broken_stream_fails_the_check_it_breaks(check: str, tmp_path: Path) -> None:
    old, new = BROKEN_STREAMS[check]
    assert old in STREAM
    found = failed(tmp_path / "bad.py", STREAM.replace(old, new))
    assert check in found, found


# Where a stream may hide state: the value of begin(), how step() counts the images, and the message.
TWICE = "the same stream scores differently the second time"
HIDDEN_STREAMS = {
    "a dict in the module": ("0", "SEEN['n'] += batch.size; n = SEEN['n']", TWICE),
    "a closure in the module": ("0", "n = count(batch.size)", TWICE),
    "the class": ("0", "type(self).n = n = getattr(type(self), 'n', 0) + batch.size", TWICE),
    "an attribute": (
        "0",
        "object.__setattr__(self, 'n', getattr(self, 'n', 0) + batch.size); n = self.n",
        "step() changes self['n']; learning belongs to the state that step() returns",
    ),
    "a dict that begin() empties": (
        "SEEN.update(n=0)",
        "SEEN['n'] += batch.size; n = SEEN['n']",
        "the state scores differently after pickling",
    ),
    "what begin() returns each time": ("SEEN", "state['n'] += batch.size; n = state['n']", "another state['n'] after"),
}


@pytest.mark.parametrize("where", HIDDEN_STREAMS)
def test_state_outside_the_state_of_a_stream_is_detected(where: str, tmp_path: Path) -> None:
    begin, count, said = HIDDEN_STREAMS[where]
    source = STREAM[: STREAM.index("    def begin")] + (
        f"    def begin(self, task):\n        return {begin}\n\n    def step(self, batch, task, state):\n"
        f"        {count}\n        return batch.base - 1e-4 * n, state\n"
    )
    told = problems(tmp_path / "good.py", source)
    assert any(said in one for one in told), told
