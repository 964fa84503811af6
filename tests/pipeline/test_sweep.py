"""Several values, encoders and seeds in one command: a row for each, on features that are computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from oodbench.api import run
from oodbench.cli import main
from oodbench.errors import UserError
from oodbench.pipeline.events import Event, Watch
from oodbench.pipeline.jobs import expand_requests, make_jobs
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import RunRequest, request_from
from oodbench.results import rows


def labels(methods: str, *sweeps: str, settings: tuple[str, ...] = ()) -> list[str]:
    return [job.label for job in make_jobs(RunRequest(methods=methods, sweeps=sweeps, settings=settings)).jobs]


def test_values_become_variants() -> None:
    assert labels("mcm,energy", "mcm.temperature=0.1,1,10") == [
        "mcm[temperature=0.1]", "mcm", "mcm[temperature=10]", "energy"
    ]  # fmt: skip
    assert labels("energy", "energy.scale=1,2", "energy.temperature=3,4") == [
        f"energy[scale={scale},temperature={temperature}]" for scale in (1, 2) for temperature in (3, 4)
    ]
    assert labels("energy", "energy.scale=1,2", settings=("energy.temperature=3",)) == [
        "energy[scale=1,temperature=3]", "energy[scale=2,temperature=3]"
    ]  # fmt: skip
    assert labels("mcm", "mcm.templates='a {}, b','c {}'") == ["mcm[templates='a {}, b']", "mcm[templates='c {}']"]


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("mcm.temperature", "cannot read --sweep mcm.temperature; write --sweep method.parameter=value,value,..."),
        ("mcn.temperature=1", "no method 'mcn'; did you mean 'mcm'"),
        ("energy.scale=1", "energy is not among --methods"),
        ("mcm.temprature=1", "mcm has no hyper-parameter 'temprature'"),
    ],
)
def test_a_sweep_that_cannot_be_read_is_refused(sweep: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        labels("mcm", sweep)
    assert said in str(error.value)


def test_encoders_and_seeds_become_requests() -> None:
    made = expand_requests(RunRequest(), 'a/b, "c/d@x,y.pt"', (0, 1))
    assert [(r.encoder, r.seed) for r in made] == [("a/b", 0), ("a/b", 1), ("c/d@x,y.pt", 0), ("c/d@x,y.pt", 1)]
    assert expand_requests(RunRequest(seed=3), "", ()) == [RunRequest(seed=3)]


def test_seeds_share_features(tmp_path: Path) -> None:
    asked = request_from(id="glyphs", limit=20, methods="mcm", sweeps=["mcm.temperature=1,2"], out=tmp_path, ray="no")
    events: list[Event] = []
    for request in expand_requests(asked, "", (0, 1)):
        run(make_plan(request), Watch(event=events.append))
    done = [event.name for event in events if event.what == "done" and event.stage == "extract"]
    assert len(done) == len(set(done)), "the second seed encodes nothing"
    found = [row for _, row in rows(tmp_path)]
    assert sorted((row.label, row.run["seed"]) for row in found) == [
        ("mcm", 0), ("mcm", 1), ("mcm[temperature=2]", 0), ("mcm[temperature=2]", 1)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", ["seed = 7", "seed = [7, 8]", 'seed = "7,8"'])
def test_a_file_of_flags_names_seeds(seed: str, tmp_path: Path) -> None:
    (tmp_path / "flags.toml").write_text(seed)
    done = CliRunner().invoke(main, ["run", "--config", str(tmp_path / "flags.toml"), "--seed", "x"])
    assert done.exit_code == 2 and "'x' is neither an integer nor a list" in done.output
    (tmp_path / "wrong.toml").write_text("seed = 1.7")
    done = CliRunner().invoke(main, ["run", "--config", str(tmp_path / "wrong.toml")])
    assert "takes a integers, not 1.7" in done.output
