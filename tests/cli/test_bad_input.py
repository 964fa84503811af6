"""Bad input, as a user gives it: exit code 2, one line per problem with the remedy, no traceback, no model loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.pipeline.jobs import make_jobs
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import RunRequest
from tests.first_run import first_run

Cli = Callable[..., subprocess.CompletedProcess[str]]
# For each line of arguments a fork of an interpreter that has loaded nothing heavy, and its exit code.
FORKS = """
import json, os, sys
import oodbench.cli.run, oodbench.pipeline.plan, oodbench.storage.store
from oodbench.cli import main
from oodbench.data import catalog
from oodbench.method import registry

registry.methods(), catalog.benchmarks()  # every command reads these files: once for all forks
for line in sys.stdin:
    if (child := os.fork()) == 0:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(os.path.join(sys.argv[1], name), os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
        sys.argv[1:] = json.loads(line)
        try:
            main()
        finally:
            heavy = {"torch", "open_clip", "mlflow", "pandas", "oodbench_methods"} & set(sys.modules)
            print(f"loaded: {sorted(heavy)}")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
CALIBRATED = '''"""Calm: a method (Doe et al., ICML 2020, arXiv:2001.00001)."""
from dataclasses import dataclass
from oodbench.method import Method, Needs

@dataclass(frozen=True)
class Calm(Method[None]):
    """Calibrates."""

    needs = Needs.FEATURES | Needs.CALIBRATION
    threshold: float = 1.0
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder: ID folders with two classes, OOD images, an empty folder, lists, plugins, a short MOS set."""
    home = tmp_path_factory.mktemp("place")
    for name in (
        "id/cat/1.png",
        "id/big_dog/2.png",
        "loose/3.png",
        "ood/4.png",
        "a/x/5.png",
        "b/x/6.png",
        "a,b/7.png",
        "data/imagenet1k/val/n01440764/8.png",
        "data/dtd/images/banded/9.png",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 9, 9)).save(home / name)
    (home / "empty/sub").mkdir(parents=True)
    (home / "three.txt").write_text("cat\ndog\nbird\n")
    (home / "plain.txt").write_text("a photo\n")
    (home / "broken.py").write_text("def f(:\n")
    (home / "calm.py").write_text(CALIBRATED)
    (home / "bad.toml").write_text('metods = "mcm"\n')
    (home / "no.toml").write_text("id = \n")
    (home / "file").write_text("")
    return home


@pytest.fixture(scope="module")
def call(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command in `place`, and which heavy modules it has loaded."""
    streams = tmp_path_factory.mktemp("streams")
    words = [sys.executable, "-c", FORKS, str(streams)]
    with subprocess.Popen(words, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forks:
        assert forks.stdin and forks.stdout

        def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            assert forks.stdin and forks.stdout
            forks.stdin.write(json.dumps([*map(str, arguments)]) + "\n")
            forks.stdin.flush()
            code = int(forks.stdout.readline())
            out, err = ((streams / name).read_text() for name in ("stdout", "stderr"))
            return subprocess.CompletedProcess(arguments, code, out, err)

        yield run
        forks.stdin.close()


def refuse(call: Cli, place: Path, arguments: Sequence[str | Path], said: Sequence[str]) -> None:
    """The command fails with these problems, one line each, and imports no heavy module."""
    done = call(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "loaded: []\n"
    lines = done.stderr.splitlines()
    errors = [line for line in lines if not line.startswith("  ")]
    assert [line for line in errors if not line.startswith("error: ")] == []
    assert len(errors) == len(said), done.stderr
    for piece in said:
        assert any(piece in line for line in lines), f"{piece!r} is not in:\n{done.stderr}"
    assert not (place / "results").exists()


FOLDERS = ("--id", "folder:id", "--ood", "folder:ood", "--encoder", "ViT-B-32/openai")
CASES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "unknown method": (["--methods", "mcm,enregy"], ["no method 'enregy'; did you mean 'energy'?"]),
    "unknown dataset": (
        ["--ood", "glyphs-leters,textures-of-mars"],
        ["no dataset 'glyphs-leters'; did you mean 'glyphs-letters'?", "no dataset 'textures-of-mars'"],
    ),
    "unknown parameter": (
        ["--set", "mcm.temprature=1", "--set", "mcn.x=1", "--methods", "mcm[scale=1]"],
        [
            "mcm has no hyper-parameter 'temprature'; it has: templates ('simple'), temperature (1.0); did you mean",
            "no method 'mcn'; did you mean 'mcm'?",
            "mcm has no hyper-parameter 'scale'",
        ],
    ),
    "wrong type": (
        ["--methods", "energy[scale=big],energy[temperature=none]"],
        ["energy.scale takes float | None, not 'big'", "energy.temperature takes float, not None"],
    ),
    "missing data": (
        ["--id", "imagenet1k", "--encoder", "ViT-B-16/openai", "--data", "elsewhere", "--ood", "sun"],
        [
            "dataset 'imagenet1k' was not found at $OODBENCH_DATA/imagenet1k/val (elsewhere/imagenet1k/val)",
            "dataset 'sun' was not found at",
        ],
    ),
    "missing benchmark": (
        ["--id", "imagenet1k", "--data", "else where"],
        [
            "dataset 'imagenet1k' was not found at",
            *(f"dataset '{name}' was not found at" for name in ("inaturalist", "sun", "places")),
            "to get all 5 missing sets: oodbench datasets get mos --data 'else where'",
        ],
    ),
    "fewer images than the catalogue declares": (
        ["--id", "imagenet1k", "--encoder", "ViT-B-16/openai", "--data", "data", "--ood", "textures"],
        [
            "holds 1 images, but the catalogue declares 50000; complete it, or use it as it is with --allow-partial",
            "holds 1 images, but the catalogue declares 5640",
        ],
    ),
    "empty folder": (
        ["--id", "folder:empty", "--ood", "folder:ood", "--encoder", "ViT-B-32/openai"],
        ["dataset 'folder:empty': "],
    ),
    "missing folder": (
        ["--id", "folder:id", "--ood", "folder:od", "--encoder", "ViT-B-32/openai"],
        ["dataset 'folder:od' was not found at "],
    ),
    "ID set without class folders": (
        ["--id", "folder:loose", "--ood", "folder:ood", "--encoder", "ViT-B-32/openai"],
        ["an ID set needs one folder per class"],
    ),
    "class list of another length": (
        [*FOLDERS, "--classes", "three.txt"],
        ["class list 'three.txt' has 3 names, "],
    ),
    "no such class list": ([*FOLDERS, "--classes", "four.txt"], ["no class list 'four.txt', neither shipped nor"]),
    "ID and OOD the same": (
        ["--id", "glyphs", "--ood", "glyphs,glyphs-near"],
        ["'glyphs' is both the ID set and an OOD set"],
    ),
    "one folder in the other": (
        ["--id", "folder:id", "--ood", "folder:./id,folder:id/cat,folder:.", "--encoder", "ViT-B-32/openai"],
        ["'folder:id' and 'folder:./id' share images", "'folder:id/cat' share images", "'folder:.' share images"],
    ),
    "no encoder, no OOD": (["--id", "folder:id"], ["has no benchmark of its own; name its OOD sets with --ood"]),
    "no encoder": (["--id", "folder:id", "--ood", "folder:ood"], ["needs an encoder; name one, e.g. --encoder ViT"]),
    "encoder that cannot be read": (["--encoder", "ViT-B16"], ["cannot read encoder 'ViT-B16'; write glyphs, "]),
    "no such checkpoint": (["--encoder", "ViT-B-16@gone.pt"], ["gone.pt does not exist"]),
    "results that cannot be written": (
        ["--results", "file/below"],
        ["the results folder file/below cannot be written"],
    ),
    "store that cannot be written": (["--store", "file"], ["the store file cannot be written"]),
    "no such template": (
        ["--templates", "openai8"],
        [
            "no prompt set 'openai8'",
        ],
    ),
    "template without a place": (["--templates", "plain.txt"], ["template 'a photo' must contain {} once"]),
    "options out of range": (
        ["--batch-size", "0", "--limit", "0", "--workers", "-1", "--seed", "-1", "--precision", "fp64", "--at95", "x"],
        ["--batch-size", "--limit", "--workers", "--seed", "--precision fp64; did you mean", "--at95 x; known: "],
    ),
    "plugin that is not there": (
        ["--plugin", "gone.py", "--plugin", "lost.py"],
        ["plugin file gone.py does not exist", "plugin file lost.py does not exist"],
    ),
    "plugin that cannot be read": (
        ["--plugin", "broken.py", "--methods", "broken"],
        ["(broken.py, line 1)"],
    ),
    "calibration without a training split": (
        [*FOLDERS, "--plugin", "calm.py", "--methods", "calm"],
        ["calm calibrates on ID training images: 'folder:id' has no training split in the catalogue; "],
    ),
    "unknown flag in a file": (["--config", "bad.toml"], ["no option 'metods'; did you mean 'methods'?"]),
    "file that is no TOML": (["--config", "no.toml"], ["--config no.toml: Invalid value"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_before_anything_is_loaded(case: str, call: Cli, place: Path) -> None:
    arguments, said = CASES[case]
    refuse(call, place, ["run", *arguments], said)


def test_all_problems_are_reported_at_once(call: Cli, place: Path) -> None:
    arguments = ["run", "--methods", "mcmm,energy[scale=x]", "--id", "folder:gone", "--ood", "sunn,folder:empty"]
    arguments += ["--precision", "fp8", "--results", "file/x", "--encoder", "ViT@gone.pt", "--set", "mcm.temperature"]
    said = ["'folder:gone'", "--precision fp8", "results folder", "'mcmm'", "energy.scale", "--set mcm.temperature"]
    said += ["'sunn'", "gone.pt"]
    refuse(call, place, arguments, said)
    arguments[arguments.index("sunn,folder:empty")] = "folder:empty"
    refuse(call, place, arguments, [*said[:6], "gone.pt", "'folder:empty': "])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["methods", "mcn"], "no method 'mcn'; did you mean 'mcm'?"),
        (["datasets", "glyph"], "no dataset 'glyph'; did you mean 'glyphs'?"),
        (["report", "--results", "gone"], "no results folder gone; make one with: oodbench run --results gone"),
        (["methods", "check", "gone.py"], "plugin file gone.py does not exist"),
        (["store", "gc", "--max-size", "much"], "cannot read the size 'much'"),
    ],
)
def test_other_commands_refuse_bad_input_in_one_line(arguments: list[str], said: str, call: Cli, place: Path) -> None:
    refuse(call, place, arguments, [said])


@pytest.mark.slow
def test_verbose_shows_the_traceback(place: Path, process: Cli) -> None:
    done = process("run", "--methods", "mcmm", "-v", cwd=place)
    assert done.returncode != 0 and "Traceback" in done.stderr and "no method 'mcmm'" in done.stderr


# What is not an error


def planned(place: Path, **options: object) -> RunRequest:
    return RunRequest(data=place / "data", out=place / "results", **options)  # type: ignore[arg-type]


def test_all_runs_what_can_run(place: Path) -> None:
    everything = make_jobs(planned(place, methods="all", plugins=(place / "broken.py",)))
    assert [name for name, _ in everything.skipped_methods] == ["broken"]
    assert {job.info.name for job in everything.jobs} == set(registry.methods())
    named = make_jobs(planned(place, plugins=(place / "broken.py",), methods="mcm"))
    assert [job.label for job in named.jobs] == ["mcm"] and not named.skipped_methods


def test_variants_are_results_and_duplicates_are_not(place: Path) -> None:
    request = planned(
        place,
        methods="energy[scale=1],energy[scale=100],energy,energy[scale=1.0],energy[temperature=1]",
        settings=("energy.temperature=2",),
    )
    labels = [job.label for job in make_jobs(request).jobs]
    assert labels == [
        "energy[scale=1,temperature=2]",
        "energy[scale=100,temperature=2]",
        "energy[temperature=2]",
        "energy",
    ]
    with pytest.raises(UserError, match="'all' is a group, which has no hyper-parameters; use --set"):
        make_jobs(planned(place, methods="all[scale=1]"))
    with pytest.raises(UserError, match="--set msp.scale=1: msp is not among --methods energy"):
        make_jobs(planned(place, methods="energy", settings=("msp.scale=1",)))


def test_templates_are_set_for_every_method_that_has_them(place: Path) -> None:
    jobs = make_jobs(planned(place, methods="mcm,msp[templates=simple]", templates="a {}.")).jobs
    assert [job.label for job in jobs] == ["mcm[templates='a {}.']", "msp"]


@pytest.mark.slow
def test_folders_of_one_name_have_distinct_names_and_titles(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    plan = make_plan(planned(place, id="glyphs", ood=("folder:a/x", "folder:b/x", "folder:./a/x", "folder:a,b")))
    assert [one.listing.dataset.title for one in plan.ood] == ["a/x", "b/x", "a,b"]
    assert len({one.listing.dataset.name for one in plan.ood}) == 3
    with pytest.raises(UserError, match="'textures' and 'folder:data/dtd/images' are one folder"):
        make_plan(planned(place, id="glyphs", ood=("textures", "folder:data/dtd/images"), allow_partial=True))


def test_folder_names_are_class_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    plan = make_plan(planned(place, id="folder:id", ood=("glyphs-near",), encoder="glyphs"))
    assert plan.classes.lines == ("big dog", "cat")


@pytest.mark.parametrize("allowance", [{"allow_partial": True}, {"limit": 5}])
def test_fewer_images_run_when_allowed(allowance: dict[str, object], place: Path) -> None:
    plan = make_plan(planned(place, id="glyphs", ood=("textures",), **allowance))
    assert len(plan.ood[0].listing) == 1 and plan.ood[0].listing.dataset.count == 5640


# What needs the checkpoint


@pytest.mark.slow
def test_unsuitable_checkpoints_are_refused(place: Path, cli: Cli) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"visual.proj": torch.zeros(2, 2), "logit_scale": torch.zeros(())}, place / "other.safetensors")
    (place / "garbage.safetensors").write_bytes(b"not weights")
    (place / "garbage.pt").write_bytes(b"not weights")
    for number, (encoder, said) in enumerate(
        (
            ("ViT-B-32@garbage.safetensors", "cannot be read"),
            ("ViT-B-32@garbage.pt", "cannot be read"),
            ("ViT-B-32@other.safetensors", "is of another architecture"),
            ("ViT-B-23@other.safetensors", "no architecture 'ViT-B-23'; did you mean"),
            ("ViT-B-32/openay@other.safetensors", "'openay'; did you mean 'openai'?"),
        )
    ):
        head, _, file = encoder.partition("@")
        with pytest.raises(UserError) as error:
            make_plan(planned(place, encoder=f"{head}@{place / file}", limit=2))
        assert said in str(error.value)
        if number == 2:
            done = cli("run", "--encoder", encoder, "--limit", "2", cwd=place)
            assert (done.returncode, done.stderr.count("error:")) == (2, 1), done.stderr
            assert said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_a_network_a_tag_asks_for_a_path(place: Path, process: Cli) -> None:
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub"), "https_proxy": "http://127.0.0.1:9"}
    encoder = "ViT-B-32/laion2b_s34b_b79k"
    done = process("run", "--encoder", encoder, "--limit", "2", "--tracking-uri", "none", cwd=place, **nowhere)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    error, recipe = done.stderr.splitlines()
    assert error.startswith("error: ") and encoder in error and "not on this machine" in error
    assert f"--encoder {encoder}@path/to/weights.safetensors" in recipe


@pytest.mark.slow
def test_a_plugin_that_does_not_import_is_refused_when_chosen(place: Path, cli: Cli) -> None:
    body = CALIBRATED.replace("CALIBRATION", "ACTIVATIONS").replace("Calm", "Sad")
    (place / "sad.py").write_text(f"{body}import no_such_module\n")
    run = ("run", "--plugin", "sad.py", "--limit", "8", "--tracking-uri", "none", "--results", "out")
    done = cli(*run, "--methods", "sad,mcm", cwd=place)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "does not import: ModuleNotFoundError: No module named 'no_such_module'" in done.stderr
    done = cli(*run, "--methods", "mcm", cwd=place)
    assert done.returncode == 0, done.stderr
    done = cli(*run, cwd=place, OODBENCH_STORE=str(first_run() / "store"))  # with the words of NegLabel
    assert done.returncode == 0 and "skipped: sad: " in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "run --id folder:gone --methods enregy --encoder ViT-B16 --weights x.pt",  # nor is there an --ood
        "run --id folder:id --ood folder:ood,folder:gone --methods enregy --encoder ViT-B16",
        "run --calibration folder:gone --methods enregy --shots 4",
        "score folder:gone --method enregy",
        "score loose --method enregy --id folder:gone --encoder ViT-B16",
        "score loose --method mcm --classes three.txt --threshold-from folder:gone",
        "train coop --id folder:gone --encoder ViT-B16 --shots 0",
        "datasets check folder:gone --workers -1",
        "datasets check folder:ood --id folder:gone",
        "explain loose/3.png --id folder:gone --methods enregy",
    ],
)
def test_a_missing_folder_is_reported_first(call: Cli, arguments: str) -> None:
    done = call(*arguments.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: dataset 'folder:gone' was not found at "), done.stderr
    assert done.stdout == "loaded: []\n"
