"""`oodbench submit`: refusals, written files, and the problems that --check reports."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml

from oodbench.cli import main
from oodbench.cli.help import SECTIONS
from oodbench.cli.submit import _chosen
from oodbench.data import catalog
from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.report import eligibility, submission
from oodbench.report.options import TableOptions
from oodbench.report.submission import read_submission, submissions
from oodbench.report.verify import ImageScores, recomputed
from oodbench.results import IdRow, Result, SetRow, read
from tests.conftest import Cli

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference" / "glyphs" / "glyphs"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STATED = {
    "--handle": "jane",
    "--authors": 'Jane "J." Doe, Universität X',
    "--paper": "arXiv:2401.00001",
    "--code": "https://github.com/jane/mine",
    "--licence": "CC-BY-4.0",
    "--hardware": "1x A100 80 GB",
}
FORM = [*(word for pair in STATED.items() for word in pair), "--not-tuned-on-test-data"]


def measured(own: str = "mcm", **changes: Any) -> Result:
    """The project's own result on the embedded benchmark, of fewer images and without intervals, to be quick.

    The catalogue does not declare how many images these sets have; their lists are known by their digests.
    """
    row = read(REFERENCE / f"{own}.json")
    few: dict[str, Any] = {"n": 30, "expected": 30}
    ood = tuple(dataclasses.replace(one, intervals={}, **few) for one in row.ood)
    stamp = {**row.run["extracted"][0], "commit": COMMIT}
    run = {**row.run, "extracted": [stamp], **changes.pop("run", {})}
    id_row = dataclasses.replace(row.id, **few)
    plain = dataclasses.replace(row, id=id_row, ood=ood, uncertainty={}, mean_intervals={}, commit=COMMIT, run=run)
    return dataclasses.replace(plain, **changes)


def lay(folder: Path, row: Result, name: str = "", names: dict[str, list[str]] | None = None) -> Path:
    """Write a result whose numbers are those of random scores, and these scores."""
    import pyarrow as pa
    from pyarrow import parquet

    draw = np.random.default_rng(0)
    sets: tuple[IdRow | SetRow, ...] = (row.id, *row.ood)
    images = {
        one.dataset: ImageScores(
            np.full(one.n, 0 if one is row.id else -1),
            draw.normal(1.0 if one is row.id else 0.0, size=one.n),
            np.zeros(one.n, np.int64) if one is row.id else np.full(one.n, -1),
        )
        for one in sets
    }
    row = recomputed(row, images)
    path = folder / f"{name or row.label}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(row.to_json())
    columns = {
        "dataset": [one.dataset for one in sets for _ in range(one.n)],
        "name": [name for one in sets for name in (names or {}).get(one.dataset, list(map(str, range(one.n))))],
        "label": np.concatenate([one.labels for one in images.values()]),
        "score": np.concatenate([one.scores for one in images.values()]),
        "prediction": np.concatenate([one.predictions for one in images.values()]),
    }
    parquet.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def submitted(tmp_path: Path, cli: Cli) -> Path:
    """A folder with one submission."""
    lay(tmp_path / "results", measured())
    done = cli("submit", "results", *FORM, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / "submissions"


def test_a_submission_has_the_result_its_scores_and_the_statement(tmp_path: Path, cli: Cli) -> None:
    results = tmp_path / "results"
    variant = measured(label="mcm[temperature=2.0]", parameters={"temperature": 2.0, "templates": "simple"})
    stated = {"by": "Jane Doe", "higher": "id"}
    rows = [measured(), variant, measured(run={"seed": 1}), measured(run={"seed": 2}), measured("energy")]
    rows.append(measured(run={"imported": stated}, source=""))
    for number, row in enumerate(rows):
        lay(results, row, str(number))
    done = cli("submit", "results", *FORM, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = [Path(line) for line in done.stdout.splitlines()]
    assert printed == sorted(printed, key=printed.index) and len({*printed}) == len(rows)
    assert submissions(tmp_path / "submissions") == sorted(tmp_path / folder for folder in printed)
    parent = Path("submissions/jane/glyphs/glyphs")
    assert {folder.parent for folder in printed} == {parent}
    plain = {parent / "mcm", parent / "energy"}
    assert plain < {*printed}
    stems = {folder.name.rpartition("-")[0] for folder in {*printed} - plain}
    assert stems == {"mcm-temperature-2.0", "mcm-seed-1", "mcm-seed-2", "mcm-imported"}

    folder = tmp_path / parent / "mcm"
    assert {path.name for path in folder.iterdir()} == {"submission.toml", "result.json", "result.parquet"}
    for suffix in (".json", ".parquet"):
        assert (folder / f"result{suffix}").read_bytes() == (results / f"0{suffix}").read_bytes()
    found = tomllib.loads((folder / "submission.toml").read_text())
    created = found["submission"].pop("created")
    assert created.startswith("20") and created.endswith("+00:00")
    assert found["submission"].pop("oodbench")
    words = {option[2:]: value for option, value in STATED.items()}
    assert found["submission"] == {**words, "tuned_on_test_data": False}
    assert found["files"] == {
        f"result{suffix}": hashlib.sha256((results / f"0{suffix}").read_bytes()).hexdigest()
        for suffix in (".json", ".parquet")
    }
    one = read_submission(folder)
    assert (one.handle, one.paper_url, one.result) == (
        "jane",
        "https://arxiv.org/abs/2401.00001",
        folder / "result.json",
    )
    assert cli("submit", "--check", "submissions", cwd=tmp_path).stdout.endswith("6 of 6 submissions OK\n")


Change = Callable[[Result], Result]


def of_sets(**changes: Any) -> Change:
    """Change the first OOD set of a result."""
    return lambda row: dataclasses.replace(row, ood=(dataclasses.replace(row.ood[0], **changes), *row.ood[1:]))


REFUSED: dict[str, tuple[Change, str]] = {
    "a limit": (lambda row: dataclasses.replace(row, run={**row.run, "limit": 100}), "run with --limit 100"),
    "a partial set": (of_sets(n=29, list_digest="f" * 64), "glyphs-near: partial 29/30"),  # one problem, not two
    "skipped images": (of_sets(skipped=2), "glyphs-near: 2 images could not be read"),
    "skipped calibration images": (
        lambda row: dataclasses.replace(row, run={**row.run, "calibration": {"skipped": 3}}),
        "3 calibration images could not be read",
    ),
    "no commit": (
        lambda row: dataclasses.replace(row, commit=None),
        "the commit of oodbench for the result is unknown",
    ),
    "a dirty commit": (
        lambda row: dataclasses.replace(row, commit=f"{COMMIT}-dirty"),
        "the code of the result had uncommitted changes (0123456789ab-dirty): commit them, and run it again",
    ),
    "a dirty import": (
        lambda row: dataclasses.replace(
            row, commit=f"{COMMIT}-dirty", run={**row.run, "imported": {"by": "Doe", "higher": "id"}}
        ),
        "commit them, and import it again",
    ),
    "dirty embeddings": (
        lambda row: dataclasses.replace(row, run={**row.run, "extracted": [{"commit": f"{COMMIT}-dirty"}]}),
        "the code of its embeddings had uncommitted changes",
    ),
    "a commit that is none": (lambda row: dataclasses.replace(row, commit="main"), "the result is 'main', not 40"),
    "a benchmark of one's own": (
        lambda row: dataclasses.replace(row, benchmark="glyfs"),
        "its benchmark 'glyfs' is not declared; did you mean 'glyphs'?",
    ),
    "a set that is missing": (
        lambda row: dataclasses.replace(row, ood=row.ood[1:]),
        "glyphs: the result lacks glyphs-near",
    ),
    "another group": (of_sets(group="far"), "glyphs-near: its group is 'far', but 'near' in the catalogue"),
    "images that are not named": (
        of_sets(list_digest=""),
        "glyphs-near: its images are not those that oodbench renders (list not named)",
    ),
    "other images": (
        of_sets(list_digest="f" * 64),
        "glyphs-near: its images are not those that oodbench renders (list ffffffffffff)",
    ),
    "an unknown source": (
        lambda row: dataclasses.replace(row, run={**row.run, "imported": {"by": "unknown"}}),
        "it is not stated who computed them: import them again with --by",
    ),
    "a method that is not installed": (
        lambda row: dataclasses.replace(row, method="mine"),
        "mine is not installed; give its file, so that its contract is checked: --plugin mine.py",
    ),
}


def test_all_problems_are_listed_and_nothing_is_written(tmp_path: Path, cli: Cli) -> None:
    for number, (change, _) in enumerate(REFUSED.values()):
        lay(tmp_path / "results", change(measured()), f"{number:02}")
    lay(tmp_path / "results", measured("energy"), "energy")
    done = cli("submit", "results", *FORM, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "submissions").exists()
    lines = done.stderr.splitlines()
    assert len(lines) == len(REFUSED) and "energy" not in done.stderr
    for number, (name, (_, message)) in enumerate(REFUSED.items()):
        (line,) = [line for line in lines if message in line]
        assert f"{number:02}.json: mcm: " in line or name == "a method that is not installed"


def test_a_failed_result_and_scores_with_other_numbers_are_refused(tmp_path: Path, cli: Cli) -> None:
    path = lay(tmp_path / "results", measured())
    row = read(path)
    better = dataclasses.replace(row.ood[0], auroc=row.ood[0].auroc + 0.01)
    path.write_text(dataclasses.replace(row, ood=(better, *row.ood[1:])).to_json())
    (tmp_path / "results" / "failed.json").write_text(measured(status="failed", error="no weights", ood=()).to_json())
    lay(tmp_path / "results", measured("energy")).with_suffix(".parquet").unlink()
    lay(tmp_path / "results", measured("msp")).with_suffix(".json").write_text('{"digest": 1}')
    (tmp_path / "results" / "speed.json").write_text('{"seconds": 1}')
    done = cli("submit", "results", *FORM, cwd=tmp_path)
    skipped, problem = done.stderr.splitlines()
    assert done.returncode == 2 and "msp.json has schema" in problem
    assert skipped.endswith("speed.json is JSON, but not a result: skipped")
    (tmp_path / "results" / "speed.json").unlink()
    (tmp_path / "results" / "msp.json").unlink()
    done = cli("submit", "results", *FORM, cwd=tmp_path)
    damaged, failed, differs = sorted(done.stderr.splitlines())
    assert "energy.parquet does not exist: the result has no scores per image" in damaged
    assert "failed.json: mcm: it failed (no weights)" in failed
    assert f"glyphs-near: auroc is {better.auroc!r} in the result, {row.ood[0].auroc!r} from its scores" in differs
    assert done.returncode == 2 and not (tmp_path / "submissions").exists()


def test_the_names_of_images_are_those_of_the_declared_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of a list file is that of its lines, `name label`; image sets by list have its names and labels."""
    from pyarrow import parquet

    config = tmp_path / "config"
    monkeypatch.setenv("OODBENCH_CONFIG", str(config))
    names = [f"far/{number}.png" for number in range(5)]
    digest = hashlib.sha256("".join(f"{name} -1\n" for name in names).encode()).hexdigest()
    common = 'loader = "list"\npath = "x"\nlist = "far.txt"\n'
    for name, text in {
        "datasets/cats.toml": 'title = "Cats"\nloader = "classes"\npath = "cats"\ncount = 6\n',
        "datasets/far.toml": f'title = "Far"\n{common}digest = "{digest}"\ncount = 5\n',
        "benchmarks/toy.toml": 'title = "Toy"\nid = "cats"\nood = ["far"]\n',
    }.items():
        (config / name).parent.mkdir(parents=True, exist_ok=True)
        (config / name).write_text(text)
    try:
        catalog.datasets.cache_clear()
        catalog.benchmarks.cache_clear()
        far = dataclasses.replace(measured().ood[0], dataset="far", group="", n=5, expected=5, list_digest="d")
        sets: dict[str, Any] = {"id": IdRow("cats", "Cats", 6, 6, 0, "c", None), "ood": (far,)}
        row = measured(benchmark="toy", **sets)

        def problems(names: list[str], row: Result = row) -> list[str]:
            path = lay(tmp_path, row, "toy", {"far": names})
            return eligibility.problems(path, read(path))

        assert problems(names) == []
        assert problems(names[::-1]) == [
            f"far: the names of its images differ from the list in the catalogue (sha256 {digest[:12]})"
        ]
        scores = tmp_path / "toy.parquet"
        parquet.write_table(parquet.read_table(scores).drop_columns(["name"]), scores)
        (unnamed,) = eligibility.problems(scores.with_suffix(".json"), read(scores.with_suffix(".json")))
        assert "toy.parquet cannot be read" in unnamed and "name" in unnamed
        fewer: tuple[SetRow, ...] = (dataclasses.replace(far, n=4, expected=4),)
        (count, _) = problems(names[:4], dataclasses.replace(row, ood=fewer))
        assert count == "far: 4 images, but 5 in the catalogue"
    finally:
        catalog.datasets.cache_clear()
        catalog.benchmarks.cache_clear()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--handle", "../jane", "the handle '../jane' is not valid"),
        ("--handle", "j" * 40, "1 to 39 letters, digits, - and _"),
        ("--authors", "Jane\nDoe", "'authors' is 'Jane\\nDoe', but must be one line"),
        ("--paper", "in preparation", "the paper 'in preparation' is not a URL, DOI"),
        ("--paper", "https://me:secret@example.org/x", "the paper 'https://example.org/x' has a user or password"),
        (
            "--code",
            "https://example.org/x?token=1",
            "the code 'https://example.org/x' has a user or password, or a token",
        ),
        ("--code", "github.com/jane/mine", "the code 'github.com/jane/mine' is not a URL"),
        ("--code", "file:///etc/passwd", "is not a URL such as"),
        ("--licence", " ", "'licence' is ' '"),
        ("--hardware", "A100" * 100, "of at most 300 characters"),
    ],
)
def test_statements_are_validated(option: str, value: str, message: str) -> None:
    stated: dict[str, Any] = {name[2:]: text for name, text in ({**STATED, option: value}).items()}
    (problem,) = submission.Statement(**stated, tuned_on_test_data=False).problems()
    assert message in problem


@pytest.mark.parametrize(
    ("paper", "url"),
    [
        ("2401.00001v2", "https://arxiv.org/abs/2401.00001v2"),
        ("cs/0112017", "https://arxiv.org/abs/cs/0112017"),
        ("doi:10.1109/5.771073", "https://doi.org/10.1109/5.771073"),
        ("https://openreview.net/forum?id=x", "https://openreview.net/forum?id=x"),
        ("none", ""),
    ],
)
def test_forms_of_a_paper(paper: str, url: str) -> None:
    stated: dict[str, Any] = {name[2:]: text for name, text in ({**STATED, "--paper": paper}).items()}
    one = submission.Statement(**stated, tuned_on_test_data=False)
    assert one.problems() == [] and one.paper_url == url


def test_missing_statements_are_prompted_or_reported(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path / "results", measured())
    given = ["results", "--handle", "jane", "--methods", "mcm", "--output", "out put"]
    done = cli("submit", *given, cwd=tmp_path)
    message, command = done.stderr.splitlines()
    options = ", ".join([*list(STATED)[1:], "--not-tuned-on-test-data"])
    assert done.returncode == 2 and message == f"error: missing: {options}; write"
    done = cli(*shlex.split(command)[1:], cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "out put/jane/glyphs/glyphs/mcm\n"

    class Terminal:
        def isatty(self) -> bool:
            return True

    answers = [*list(STATED.values())[1:], "y"]
    asked: list[str] = []

    def answer(question: str, value_proc: Callable[[str], str] = str) -> str:
        asked.append(question)
        if question.startswith("Code"):
            with pytest.raises(click.BadParameter, match="the code 'mine' is not a URL"):  # click asks again
                value_proc("mine")
        return value_proc(answers.pop(0))

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("click.prompt", answer)
    monkeypatch.setattr("click.confirm", lambda question: answer(question) == "y")
    monkeypatch.chdir(tmp_path)
    main(["submit", *given[:-1], "asked"], standalone_mode=False)
    assert len(asked) == len(STATED) and "test sets" in asked[-1]
    found, other = (read_submission(tmp_path / name / "jane/glyphs/glyphs/mcm") for name in ("asked", "out put"))
    assert (found.authors, found.tuned_on_test_data) == (STATED["--authors"], False) and other.authors != found.authors
    answers[:] = [*list(STATED.values())[1:], "n"]
    with pytest.raises(UserError, match="tuned on the test data are not accepted"):
        main.commands["submit"].main([*given[:-1], "tuned"], standalone_mode=False)
    assert not (tmp_path / "tuned").exists()


def test_the_former_name_of_authors_is_read(tmp_path: Path, cli: Cli) -> None:
    lay(tmp_path / "results", measured())
    done = cli("submit", "results", *("--who" if word == "--authors" else word for word in FORM), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.strip()
    assert "authors = " in (folder / submission.FILE).read_text()
    change_toml("authors =", "who =")(folder)
    assert read_submission(folder).authors == STATED["--authors"]
    change_toml("who =", 'authors = "John"\nwho =')(folder)
    with pytest.raises(UserError, match="no key 'who'"):
        read_submission(folder)


def test_a_submission_is_replaced_on_request(submitted: Path, cli: Cli) -> None:
    before = tree(submitted)
    work = submitted.parent
    lay(work / "results", measured("energy"))
    done = cli("submit", "results", *FORM, cwd=work)
    assert done.returncode == 2 and tree(submitted) == before
    assert done.stderr == "error: submissions/jane/glyphs/glyphs/mcm exists; replace it with --replace\n"
    assert cli("submit", "results", *FORM, "--methods", "energy", cwd=work).returncode == 0
    form = [*FORM[:-1], "--not-tuned-on-test-data", "--replace", "--hardware", "2x A100"]
    assert cli("submit", "results", *form, cwd=work).returncode == 0
    hardware = [read_submission(folder).hardware for folder in submissions(submitted)]
    assert hardware == ["2x A100"] * 2 and {path.name for path in submitted.iterdir()} == {"jane"}


def test_two_results_of_one_folder(tmp_path: Path, cli: Cli) -> None:
    lay(tmp_path / "a", measured())
    lay(tmp_path / "b", measured(commit="f" * 40))
    done = cli("submit", "a", "b", *FORM, cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "submissions").exists()
    assert "a/mcm.json and b/mcm.json both belong in submissions/jane/glyphs/glyphs/mcm: submit one" in done.stderr
    done = cli("submit", "a", "a/mcm.json", f"{tmp_path}/a", *FORM, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "submissions/jane/glyphs/glyphs/mcm\n"


SPLIT = {"dataset": "glyphs-train", "n": 2000, "of": 2000, "digest": "d"}


@pytest.mark.parametrize(
    ("changes", "usual"),
    [
        ({}, True),
        ({"classes": {"name": "words.txt"}}, False),
        ({"classes": {"name": "folders, as words"}}, False),
        ({"run": {"calibration": SPLIT}}, True),
        ({"run": {"calibration": {**SPLIT, "labels": "all"}}}, True),
        ({"run": {"calibration": {**SPLIT, "labels": 4, "shot_seed": 0}}}, False),
        ({"run": {"calibration": {**SPLIT, "dataset": "folder:/mine"}}}, False),
        ({"run": {"calibration": {**SPLIT, "n": 100}}}, False),
        ({"run": {"seed": 1}}, False),
        ({"conventions": {"at95": "nearest"}}, False),
    ],
)
def test_only_a_result_with_default_settings_has_the_short_path(changes: dict[str, Any], usual: bool) -> None:
    """Results that differ in a setting can be submitted side by side."""
    row = measured("react", **changes)
    found = submission.place("jane", row).name
    assert found == "react" if usual else re.fullmatch(r"react-.*[0-9a-f]{8}", found)
    assert usual or found != submission.place("jane", measured("react", run={"precision": "bf16"})).name


@pytest.mark.parametrize(
    ("benchmark", "id", "calibration", "usual"),
    [
        ("mos", "imagenet1k", "imagenet1k-train", True),
        ("mos", "imagenet1k", "imagenet1k-val-openood", False),
        ("openood", "imagenet1k-test-openood", "imagenet1k-val-openood", True),
        ("mine", "imagenet1k", "imagenet1k-val-openood", True),  # no default is declared
    ],
)
def test_the_usual_calibration_images_are_those_of_the_benchmark(
    benchmark: str, id: str, calibration: str, usual: bool
) -> None:
    names = {"benchmark": benchmark, "classes": {"name": catalog.dataset(id).classes}}
    split = {"calibration": {"dataset": calibration, "n": 5, "of": 5}}
    row = measured("react", id=dataclasses.replace(measured().id, dataset=id), run=split, **names)
    assert (submission.place("jane", row).name == "react") == usual


def test_a_result_has_one_submitter(submitted: Path, cli: Cli) -> None:
    """That of the first one stands, although the copy is earlier in the alphabet."""
    first = submitted / "jane/glyphs/glyphs/mcm"
    for handle in ("aaron", "Jane"):
        folder = submitted / handle / "glyphs/glyphs/mcm"
        shutil.copytree(first, folder)
        change_toml('handle = "jane"', f'handle = "{handle}"')(folder)
        text = (folder / "submission.toml").read_text()
        (folder / "submission.toml").write_text(re.sub('created = ".*"', 'created = "2999-01-01"', text))
    found = {one.folder.parts[-4]: one.problems for one in submission.check(submitted)}
    assert found["jane"] == ()
    assert found["aaron"] == (f"aaron submits the result of jane in {first}: keep one of them",)
    assert found["Jane"] == ("the handle Jane differs from jane in case only",)
    shutil.rmtree(submitted / "Jane")
    done = cli("submit", "results", *FORM, "--handle", "JANE", cwd=submitted.parent)
    assert done.returncode == 2 and "the handle JANE differs from jane in submissions in case only" in done.stderr


def test_choices_and_arguments(tmp_path: Path, cli: Cli) -> None:
    lay(tmp_path / "results", measured())
    for arguments, message in {
        (): "give one of: results to submit, --check FOLDER, --workflow",
        ("results", "--workflow"): "give one of",
        ("nowhere",): "no results in nowhere; make some with: oodbench run --results nowhere",
        ("results", "--methods", "mcmm"): "--methods: no results of 'mcmm'; did you mean 'mcm'?",
        ("results", "--id", "mos"): "--id: no results of 'mos'; known: glyphs",
        ("results", "--encoder", "ViT-L-14/openai"): "--encoder: no results of 'ViT-L-14/openai'; known: glyphs",
        ("--check", "results/mcm.json"): "mcm.json is not a folder",
        ("--check", "results"): "it has results but no submission.toml",
    }.items():
        done = cli("submit", *arguments, cwd=tmp_path)
        assert done.returncode in (1, 2) and message in done.stderr + done.stdout
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):  # as in a new repository
        done = cli("submit", "--check", folder, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "0 of 0 submissions OK\n")
        assert done.stderr.startswith(f"{folder} has no submissions; create some with: oodbench submit")


@pytest.mark.parametrize("name", ["ViT-B-16/openai", "ViT-B/16", "ViT-B-16", "ViT-B-16-openai"])
def test_an_encoder_is_chosen_by_any_of_its_names(name: str, tmp_path: Path) -> None:
    encoder = {"name": "ViT-B-16/openai", "slug": "ViT-B-16-openai", "architecture": "ViT-B-16"}
    paths = [lay(tmp_path, measured(encoder=encoder), "b"), lay(tmp_path, measured(), "glyphs")]
    options = {"methods": "", "ids": "", "encoders": name}
    assert [path for path, _ in _chosen([tmp_path], options)] == paths[:1]
    assert TableOptions(encoders=(name,)).chooses(read(paths[0]))


def change_toml(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "submission.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def forge(change: Change) -> Callable[[Path], None]:
    """Change a result, its digest, and the digest of its file."""

    def forged(folder: Path) -> None:
        path = folder / "result.json"
        before = hashlib.sha256(path.read_bytes()).hexdigest()
        path.write_text(change(read(path)).to_json())
        change_toml(before, hashlib.sha256(path.read_bytes()).hexdigest())(folder)

    return forged


def in_run(**values: Any) -> Change:
    return lambda row: dataclasses.replace(row, run={**row.run, **values})


TAMPERED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "numbers": (forge(of_sets(fpr95=0.001)), "glyphs-near: fpr95 is 0.001 in the result"),
    "stamps of another kind": (forge(in_run(extracted=[1])), "its content does not have the form that oodbench writes"),
    "calibration of another kind": (forge(in_run(calibration=1)), "run.calibration is of another type than dict"),
    "scores": (
        lambda folder: (folder / "result.parquet").write_bytes(b"PAR1"),
        "result.parquet was changed: its sha256 differs from that in submission.toml",
    ),
    "a result": (
        lambda folder: (folder / "result.json").write_text((folder / "result.json").read_text().replace("0.", "1.", 1)),
        "was changed after it was written",
    ),
    "no scores": (lambda folder: (folder / "result.parquet").unlink(), "result.parquet is missing"),
    "another file": (lambda folder: (folder / "run.sh").touch(), "run.sh does not belong to a submission"),
    "a file outside": (
        change_toml("[files]", f'[files]\n"../../../../../x" = "{"0" * 64}"'),
        "../../../../../x does not belong to a submission",
    ),
    "another handle": (
        change_toml('handle = "jane"', 'handle = "john"'),
        "it belongs in the folder john/glyphs/glyphs/mcm",
    ),
    "another method": (
        lambda folder: folder.rename(folder.with_name("energy")),
        "in the folder jane/glyphs/glyphs/mcm",
    ),
    "tuned": (change_toml("test_data = false", "test_data = true"), "tuned on the test data are not accepted"),
    "nobody": (change_toml("authors =", "author ="), "submission.toml: no key 'author'; did you mean 'authors'?"),
    "no code": (change_toml('code = "https://github.com/jane/mine"\n', ""), "submission.toml: 'code' is missing"),
    "a number": (change_toml('paper = "arXiv:2401.00001"', "paper = 2401.00001"), "'paper' is 2401.00001, not a str"),
    "no TOML": (change_toml("[files]", "[files"), "submission.toml: Expected"),
    "no date": (change_toml('created = "', 'created = "on '), "'created' is 'on 2"),
    "no digest": (change_toml('"result.json" = "', '"result.json" = "x'), "digest of 'result.json' is not a sha256"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_check_reports_problems(name: str, submitted: Path, cli: Cli) -> None:
    tamper, message = TAMPERED[name]
    tamper(submitted / "jane/glyphs/glyphs/mcm")
    done = cli("submit", "--check", "submissions", cwd=submitted.parent)
    assert done.returncode == 1 and message in done.stdout and "FAILS\n" in done.stdout
    assert done.stdout.endswith("0 of 1 submissions OK\n")


PLUGIN = '''"""Mine: the largest logit (Doe, 2026, arXiv:2601.00001)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task


@dataclass(frozen=True)
class Mine(Method[None]):
    """The largest logit."""

    templates: str = "simple"

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        return SIGN * task.logits(batch.features, self.templates, 1.0).amax(-1)
'''


@pytest.mark.slow
def test_the_contract_of_a_plugin_method_is_checked(tmp_path: Path, cli: Cli) -> None:
    plugin = tmp_path / "mine.py"

    def submit(sign: str, written: str) -> subprocess.CompletedProcess[str]:
        plugin.write_text(PLUGIN.replace("SIGN", written))
        source = registry.methods([plugin])["mine"].source
        lay(tmp_path / "results", measured(method="mine", label="mine", source=source))
        plugin.write_text(PLUGIN.replace("SIGN", sign))
        return cli("submit", "results", "--plugin", "mine.py", *FORM, cwd=tmp_path)

    done = submit("2", "1")
    assert done.returncode == 2 and "mine.py is not the source that computed its result" in done.stderr
    done = submit("-1", "-1")
    assert done.returncode == 2 and "mine breaks the contract: ranks id above ood" in done.stderr
    assert not (tmp_path / "submissions").exists()
    done = submit("1", "1")
    assert (done.returncode, done.stdout) == (0, "submissions/jane/glyphs/glyphs/mine\n")
    assert cli("submit", "--check", "submissions", cwd=tmp_path).returncode == 0  # without the plugin


@pytest.mark.slow
def test_check_needs_no_torch(submitted: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'open_clip', 'mlflow', 'ray')))\n"
        "from oodbench.cli import main; main(['submit', '--check', sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", code, submitted], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("1 of 1 submissions OK\n")


def test_the_workflow_runs_commands_that_exist(cli: Cli) -> None:
    text = cli("submit", "--workflow").stdout
    workflow = yaml.safe_load(text)
    assert workflow[True].keys() == {"pull_request", "push", "workflow_dispatch"}  # YAML reads `on` as true
    check, publish = workflow["jobs"]["check"], workflow["jobs"]["publish"]
    assert publish["needs"] == "check" and "pull_request" in publish["if"]
    assert workflow["permissions"] == {"contents": "read"} and "permissions" not in check
    commands = [step["run"] for job in (check, publish) for step in job["steps"] if "run" in step]
    assert not [line for line in commands if "${{" in line]  # nothing of a pull request becomes shell code
    ours = [shlex.split(line)[1:] for line in commands if line.startswith("oodbench ")]
    assert ours == [["submit", "--check", "submissions"], ["leaderboard", "submissions", "--output", "site"]]
    assert json.dumps(workflow).count("pip install") == 2
    guard = commands[commands.index('pip install "$OODBENCH"') - 1]
    for value, code in (
        (workflow["env"]["OODBENCH"], 1),
        ("", 1),
        ("oodbench @ git+https://example.org/oodbench@1f2e", 0),
    ):
        done = subprocess.run(["sh", "-c", guard], env={"OODBENCH": value}, capture_output=True, text=True, check=False)
        assert done.returncode == code and ("set OODBENCH at the top" in done.stdout) == bool(code)
    for name, *arguments in ours:
        assert name in SECTIONS["Compare methods"].split()
        if name in main.commands:  # `leaderboard` is built elsewhere
            main.commands[name].make_context(name, arguments)
