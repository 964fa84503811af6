"""The groups of --methods: their members, mixed with names; methods skipped in a group but refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.pipeline.jobs import Job, make_jobs
from oodbench.pipeline.request import RunRequest

NINE = ["clipn", "energy", "maxlogit", "mcm", "msp", "neglabel", "odin", "react", "zoc"]
PLUGIN = '''"""Mine: a method (Doe et al., ICML 2026, arXiv:2601.00001)."""
from dataclasses import dataclass
from typing import ClassVar
from oodbench.method import Access, Method


@dataclass(frozen=True)
class Mine(Method[None]):
    """Says how likely."""

    {body}

    def score(self, batch, task, state):
        return batch.features[:, 0]
'''


def jobs(methods: str, *plugins: Path, **options: object) -> list[Job]:
    return list(make_jobs(RunRequest(methods=methods, plugins=plugins, **options)).jobs)  # type: ignore[arg-type]


def labels(methods: str, *plugins: Path, **options: object) -> list[str]:
    return [
        job.label for job in jobs(methods, *plugins, **options) if job.info.name in {*NINE, *(p.stem for p in plugins)}
    ]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    return tmp_path / "mine.py"


def write(file: Path, body: str) -> Path:
    file.write_text(PLUGIN.replace("{body}", body))
    return file


def test_the_default_is_the_nine_core_methods() -> None:
    assert RunRequest().methods == "core" and labels("core") == NINE
    assert {job.info.name for job in jobs("core")} - set(NINE) == {"zoc_coca"}  # skipped without a CoCa
    assert set(labels("all")) == set(NINE) and len(jobs("all")) == len(registry.methods())


@pytest.mark.parametrize(
    ("body", "group"),
    [
        ("access: ClassVar[Access] = Access(lm_words=True)", "zero-shot"),
        ("access = Access(id_images=True)", "post-hoc"),
        ("access = Access(generated=True)", "trained"),
        ("access = Access(id_labels=16)", "few-shot"),
        ("access = Access(stream=True)", "test-time"),
        ('family: ClassVar[str] = "post-hoc"', "post-hoc"),
    ],
)
def test_a_plugin_joins_its_group(plugin: Path, body: str, group: str) -> None:
    write(plugin, body)
    assert "mine" in labels(group, plugin) and "mine" in labels("core", plugin) and "mine" in labels("all", plugin)
    others = {"zero-shot", "post-hoc", "trained"} - {group} - ({"zero-shot"} if "family" in body else set())
    assert not [name for name in others if "mine" in labels(name, plugin)]


def test_groups_mix_with_names_and_a_method_is_one_row() -> None:
    assert set(labels("trained")) == {"clipn", "zoc"} and "react" in labels("post-hoc")
    assert labels("react,trained,mcm[temperature=2],clipn") == ["react", "clipn", "zoc", "mcm[temperature=2]"]
    named = {job.label: job.named for job in jobs("trained,clipn,msp")}
    assert named == {"clipn": True, "zoc": False, "msp": True}
    assert labels("clipn, core")[:3] == ["clipn", "energy", "maxlogit"]
    assert labels("core", settings=("mcm.temperature=2",))[3] == "mcm[temperature=2]"


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("core[scale=1]", "'core' is a group, which has no hyper-parameters; use --set METHOD.NAME=VALUE"),
        ("post-hok", "no method 'post-hok'; did you mean 'post-hoc'?"),
        ("core,mmc", "no method 'mmc'; did you mean 'mcm'?"),
        ("", "write e.g. --methods mcm,energy, or --methods core"),
    ],
)
def test_unknown_groups_are_refused(methods: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        jobs(methods)
    assert said in str(error.value)


def test_an_empty_group_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: info for name, info in registry.methods().items() if name in NINE}
    monkeypatch.setattr(registry, "methods", lambda plugins=(): found)
    with pytest.raises(UserError) as error:
        jobs("few-shot,mcm,test-time")
    for name in ("few-shot", "test-time"):
        assert f"--methods {name}: no method of this group is installed; add one with --plugin FILE" in str(error.value)


def test_a_plugin_may_not_take_the_name_of_a_group(tmp_path: Path) -> None:
    for name in ("core", "all", "post-hoc"):
        with pytest.raises(UserError, match="not that of a group"):
            jobs("all", write(tmp_path / f"{name}.py", "pass"))


def test_a_broken_method_is_skipped_in_a_group_and_refused_by_name(plugin: Path) -> None:
    plugin.write_text("import nothing_there\n")
    assert make_jobs(RunRequest(plugins=(plugin,))).skipped_methods[0][0] == "mine"
    with pytest.raises(UserError, match="mine"):
        jobs("core,mine", plugin)
