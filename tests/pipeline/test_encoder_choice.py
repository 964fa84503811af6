"""The encoder of a run without --encoder, and the messages about missing weights."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from oodbench.data import catalog
from oodbench.data.released import releases
from oodbench.encoder.card import parse_encoder
from oodbench.errors import UserError
from oodbench.pipeline import assign_weights, weights
from oodbench.pipeline.encoder_choice import EncoderChoice, benchmark_of_classes, choose_encoder, encoder_without_run
from oodbench.pipeline.jobs import make_jobs
from oodbench.pipeline.request import RunRequest, command
from tests.conftest import Cli

LAION, OPENAI, SMALL = "ViT-B-16/laion2b_s34b_b88k", "ViT-B-16/openai", "ViT-B-32/openai"


def chosen(methods: str, id: str = "imagenet1k", **options: Any) -> EncoderChoice:
    request = RunRequest(methods=methods, id=id, **options)
    from oodbench.method import registry

    files = assign_weights.weights_files(request, registry.methods())
    return choose_encoder(request, make_jobs(request), files, catalog.protocol(id, request.ood).benchmark)


def trained(path: Path, encoder: str, method: str = "clipn") -> str:
    """The option that names a file whose recipe has this encoder."""
    recipe = {"method": method, "parameters": {}, "encoder": {"name": encoder, "weights": "ab", "config": {}}}
    weights.write(path, {"x": torch.zeros(1)}, recipe)
    return f"{method}={path}"


def test_every_benchmark_of_real_data_names_an_encoder() -> None:
    named = {name: one.encoder for name, one in catalog.benchmarks().items()}
    assert named.pop("glyphs") == "glyphs" and len(named) > 35
    assert {named[name] for name in ("mos", "openood", "mcm-hard-10-20", "fine-grained-cub")} == {OPENAI}
    assert {encoder for name, encoder in named.items() if name.startswith("zoc-")} == {SMALL}
    for encoder in named.values():
        assert parse_encoder(encoder).tag, encoder


@pytest.mark.parametrize(
    ("methods", "id", "encoder"),
    [
        ("mcm,energy", "imagenet1k", OPENAI),
        ("all", "imagenet1k", OPENAI),
        ("clipn,mcm", "imagenet1k", LAION),
        ("clipn", "mos", LAION),
        ("clipn[rule=ctw],clipn", "openood", LAION),
        ("clipn[prompt=handcrafted],mcm", "imagenet1k", OPENAI),  # no such weights were released
        ("mcm", "zoc-cifar10-1", SMALL),
        ("zoc,mcm", "imagenet1k", SMALL),
        ("mcm", "cifar100", "ViT-B-32/laion2b_s34b_b79k"),
        ("clipn,mcm", "cifar100", LAION),
        ("clipn,zoc,mcm", "glyphs", "glyphs"),
    ],
)
def test_released_weights_decide_before_the_benchmark(methods: str, id: str, encoder: str) -> None:
    assert chosen(methods, id).text == encoder


def test_the_choice_is_explained_with_a_command_for_the_others() -> None:
    reason = chosen("clipn,mcm,energy[scale=1]").reason
    assert LAION in reason and "released weights of clipn" in reason
    alone = shlex.split(reason.rpartition(": ")[2])
    assert alone == [*"oodbench run --methods mcm,energy[scale=1] --id imagenet1k --encoder".split(), OPENAI]
    assert "the default of benchmark 'mos'" in chosen("mcm").reason
    assert chosen("mcm", encoder=SMALL) == EncoderChoice(SMALL) and not chosen("mcm", "glyphs").reason


def test_own_weights_take_precedence_over_released_ones(tmp_path: Path) -> None:
    own = (trained(tmp_path / "own.safetensors", "ViT-L-14/openai"),)
    for methods in ("clipn,mcm", "all", "clipn,zoc"):
        assert chosen(methods, weights=own).text == "ViT-L-14/openai"
    assert chosen("clipn", "glyphs", weights=own).text == "ViT-L-14/openai"
    assert chosen("clipn", weights=own, encoder=OPENAI).text == OPENAI
    (tmp_path / "released.pt").write_bytes(b"PK")  # no recipe: what the authors released
    assert chosen("all", weights=(f"clipn={tmp_path / 'released.pt'}",)).text == LAION


def test_own_weights_of_a_file_ask_for_its_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was trained for ViT-B-16@mine\.pt; name that encoder, with its path"):
        chosen("clipn", weights=(trained(tmp_path / "own.safetensors", "ViT-B-16@mine.pt"),))


def test_different_encoders_are_refused_with_a_command_for_each(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        chosen("clipn,zoc,mcm")
    said, *commands = str(refused.value).split("\n  ")
    assert "need different encoders" in said
    assert commands == [
        f"oodbench run --methods clipn,mcm --id imagenet1k --encoder {LAION}",
        f"oodbench run --methods zoc,mcm --id imagenet1k --encoder {SMALL}",
    ]
    both = (trained(tmp_path / "a.safetensors", OPENAI), trained(tmp_path / "b.safetensors", SMALL, "zoc"))
    with pytest.raises(UserError) as refused:
        chosen("clipn,zoc", weights=both)
    assert [line.split()[-2:] for line in str(refused.value).split("\n  ")[1:]] == [
        ["--weights", both[0]],
        ["--weights", both[1]],
    ]


def test_a_set_without_benchmark_needs_an_encoder() -> None:
    with pytest.raises(UserError) as refused:
        chosen("mcm", "folder:photos", ood=("folder:a,b",))
    assert "needs an encoder; name one, e.g. --encoder ViT-B-16/openai" in str(refused.value)
    assert f"{LAION}, {OPENAI}" in str(refused.value)
    pasted = shlex.split(str(refused.value).splitlines()[-1])
    assert pasted == [
        *"oodbench run --methods mcm --id folder:photos --ood".split(),
        '"folder:a,b"',
        "--encoder",
        OPENAI,
    ]
    assert chosen("clipn", "folder:photos", ood=("folder:other",)).text == LAION


def test_a_command_repeats_the_request() -> None:
    request = RunRequest(
        methods="mcm[temperature=2]", ood=("a", "folder:b c"), settings=("mcm.temperature=1",), limit=5,
        out=Path("r s"), allow_partial=True, plugins=(Path("p.py"), Path("q.py")), skip_missing=True,
        data=Path("d"),
    )  # fmt: skip
    assert shlex.split(command(request, limit=6)) == [
        *("oodbench run --methods mcm[temperature=2] --ood".split()), "a,folder:b c", "--data", "d",
        *("--set mcm.temperature=1 --limit 6 --allow-partial --skip-missing --plugin p.py --plugin q.py".split()),
        "--results", "r s",
    ]  # fmt: skip
    several = RunRequest(methods="clipn,mcm", settings=("clipn.rule=ctw", "mcm.temperature=2"), sweeps=("clipn.x=1,2",))
    assert command(several, methods="mcm") == "oodbench run --methods mcm --set mcm.temperature=2"
    from oodbench.cli.run import run

    known = {option for parameter in run.params for option in parameter.opts}
    everything = RunRequest(**{name: "x" for name in RunRequest.__dataclass_fields__})  # type: ignore[arg-type]
    assert {word for word in shlex.split(command(everything)) if word.startswith("--")} <= known


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for shade, name in enumerate(("id/cat/1.png", "id/cat/2.png", "id/dog/1.png", "ood/1.png", "ood/2.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (50 * shade, 90, 200 - 40 * shade)).save(tmp_path / name)
    return tmp_path


def plan_of(photos: Path, **options: Any) -> Any:
    from oodbench.pipeline.plan import make_plan

    given = {"id": f"folder:{photos}/id", "ood": (f"folder:{photos}/ood",), "data": photos / "data"}
    return make_plan(RunRequest(store=photos / "store", out=photos / "results", **{**given, **options}))


def test_missing_weights_are_reported_with_every_way_to_get_them(photos: Path) -> None:
    with pytest.raises(UserError) as refused:
        plan_of(photos, methods="clipn,mcm")
    said = str(refused.value)
    way = f"get the released ones: oodbench get weights clipn --data {photos}/data"
    assert f"clipn has no weights for {LAION}\n  {way}\n" in said
    assert f"oodbench train clipn --encoder {LAION} --captions FILE" in said and "--weights clipn=FILE" in said
    assert said.endswith("--skip-missing") or "--skip-missing --" in said
    with pytest.raises(UserError, match=r"the released ones are for ViT-B-16/laion2b_s34b_b88k: oodbench run"):
        plan_of(photos, methods="clipn", encoder="ViT-B-32/openai")
    with pytest.raises(UserError, match="clipn has no weights"):
        plan_of(photos, methods="clipn", skip_missing=True)  # nothing is left to run
    with pytest.raises(UserError, match=r"not downloaded yet; get it with\n  oodbench get weights clipn-2 --data "):
        plan_of(photos, methods="clipn", weights=("clipn=clipn-2",))


@pytest.mark.slow
def test_skip_missing_runs_the_others_and_names_what_is_absent(
    photos: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the weights of ViT-B-16, the embedded encoder replaces it."""
    from oodbench.encoder.resolve import resolve as embedded
    from oodbench.pipeline import plan

    asked: list[str] = []

    def resolve(spec: Any, *options: Any, **more: Any) -> Any:
        asked.append(spec.text)
        return embedded(parse_encoder("glyphs"), *options, **more)

    monkeypatch.setattr(plan, "resolve", resolve)
    command = ["run", "--methods", "clipn,mcm", "--id", "folder:id", "--ood", "folder:ood", "--bootstrap", "0"]
    command += ["--tracking-uri", "none", "--results", "results", "--store", "store"]
    refused = cli(*command, cwd=photos)
    assert refused.returncode == 2 and f"clipn has no weights for {LAION}" in refused.stderr and not asked
    assert "or leave it out: oodbench run --methods clipn,mcm" in refused.stderr
    done = cli(*command, "--skip-missing", cwd=photos)
    assert done.returncode == 0, done.stderr
    assert f"note: encoder {LAION}, which the released weights of clipn belong to" in done.stderr
    assert f"skipped: clipn: has no weights for {LAION}\n  get the released ones" in done.stderr
    assert set(asked) == {LAION} and "MCM" in done.stdout and "CLIPN" not in done.stdout
    assert [path.stem.partition("-")[0] for path in photos.rglob("results/runs/**/*.json")] == ["mcm"]
    dry = cli(*command, "--skip-missing", "--dry-run", cwd=photos).stdout
    assert f"  skipped: clipn: has no weights for {LAION}\n    get the released ones" in dry


def test_downloaded_weights_are_found(tmp_path: Path) -> None:
    request = RunRequest(methods="clipn,clipn[prompt=handcrafted],mcm", data=tmp_path)
    jobs, first, second = make_jobs(request), releases("weights")["clipn-1"], releases("weights")["clipn-2"]
    for file in (second.folder(tmp_path) / "any name.pt", first.folder(tmp_path) / "CLIPN_ATD_Repeat1_epoch_10.pt"):
        assert file not in assign_weights.locate(jobs, request, {}, parse_encoder(LAION)).values()
        file.parent.mkdir(parents=True)
        file.write_bytes(b"PK")
        assert assign_weights.locate(jobs, request, {}, parse_encoder(LAION)) == {"clipn": file}
    assert not assign_weights.locate(jobs, request, {}, parse_encoder(OPENAI))
    (tmp_path / "own.pt").write_bytes(b"PK")
    with_file = parse_encoder(f"{LAION}@{tmp_path / 'own.pt'}")  # the tag's weights in a file
    assert assign_weights.locate(jobs, request, {}, with_file) == {"clipn": file}
    from oodbench.method import registry

    named = RunRequest(methods="clipn", data=tmp_path, weights=("clipn=clipn-2",))
    assert assign_weights.weights_files(named, registry.methods()) == {"clipn": second.path(tmp_path)}
    (first.folder(tmp_path) / "second.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="holds CLIPN_ATD_Repeat1_epoch_10.pt, second.pt; remove the others"):
        assign_weights.locate(jobs, request, {}, parse_encoder(LAION))


def test_own_images_take_the_encoder_of_the_set_that_names_the_classes(tmp_path: Path) -> None:
    for method, classes, encoder in (
        ("mcm", "imagenet1k", OPENAI),
        ("clipn", "imagenet1k", LAION),
        ("mcm", "names.txt", "glyphs"),
        ("clipn", "names.txt", "glyphs"),
        ("mcm", "cub200", OPENAI),
    ):
        assert encoder_without_run(RunRequest(methods=method), benchmark_of_classes(classes)).text == encoder, (
            method,
            classes,
        )
    own = (trained(tmp_path / "own.safetensors", SMALL),)
    assert (
        encoder_without_run(RunRequest(methods="clipn", weights=own), benchmark_of_classes("names.txt")).text == SMALL
    )


@pytest.mark.parametrize(
    ("method", "captions", "encoder"),
    [("clipn", "captions.csv", LAION), ("clipn", "glyphs", "glyphs"), ("zoc", "captions.csv", SMALL)],
)
def test_training_takes_the_encoder_of_the_released_weights(
    method: str, captions: str, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oodbench.training import plan
    from oodbench.training.plan import TrainRequest

    (tmp_path / "captions.csv").write_text("filepath,caption\na.jpg,a dog\n")
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def resolve(spec: Any, resize: Any, store: Any) -> Any:
        asked.append(spec.text)
        raise UserError("stop here")

    monkeypatch.setattr(plan, "resolve", resolve)
    for given, expected in (("", encoder), ("ViT-L/14", "ViT-L-14/openai")):
        with pytest.raises(UserError, match="stop here"):
            plan.make_plan(TrainRequest(method, captions=captions, encoder=given, store=tmp_path / "s"))
        assert asked.pop() == expected
