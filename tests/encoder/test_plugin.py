"""User-defined encoders: found, described, run, keyed, checked against the contract, and refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import oodbench
from oodbench.encoder import contract, plugin
from oodbench.encoder.card import COCA, parse_encoder
from oodbench.encoder.openclip import OpenClip, load_encoder, transform, transform_of
from oodbench.encoder.resolve import ResolvedEncoder, resolve
from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.storage.store import Store

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/encoders.md").read_text(encoding="utf-8")
MINE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]  # type: ignore[index]

SMALL = """
import torch
from torchvision.transforms.functional import pil_to_tensor

W = torch.linspace(-1, 1, 3 * 8 * 8 * 6).view(192, 6).sin()


class Small:
    scale, size, std = 20.0, (8, 8), [0.5, 0.5, 0.5]

    def preprocess(self, image):
        return pil_to_tensor(image.convert("RGB").resize((8, 8))).float() / 255

    def pixels(self, images):
        return ((images - 0.5) / 0.5).flatten(1) @ W

    def tokenize(self, prompts):
        return torch.tensor([[len(p), ord(p[0]), ord(p[-1])] for p in prompts])

    def text(self, prompts):
        return torch.stack([(torch.arange(6.0) * t.sum()).sin() for t in self.tokenize(prompts)])

    def identity(self):
        return "small-1"
"""


def write(folder: Path, text: str = SMALL, name: str = "small.py") -> str:
    (folder / name).write_text(text)
    return f"plugin:{folder / name}"


def resolved(spec: str, folder: Path) -> ResolvedEncoder:
    return resolve(parse_encoder(spec), None, Store(folder / "store"))


def refusal(spec: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        resolved(spec, folder)
    return str(caught.value)


def test_the_example_in_the_docs_equals_the_embedded_encoder(tmp_path: Path) -> None:
    found = resolved(write(tmp_path, MINE, "mine.py"), tmp_path)
    ours = load_encoder(found, "cpu", "fp32")
    glyphs = resolved("glyphs", tmp_path)
    theirs = OpenClip(glyphs, "cpu", "fp32")
    images, prompts = torch.rand(3, 3, 32, 32), ["a photo of a cat", "x"]
    pairs = [(ours.pixels(images), theirs.pixels(images)), (ours.text(prompts), theirs.text(prompts))]
    for mine, expected in pairs:
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert (found.card.scale, found.card.size, found.card.std) == (theirs.scale, theirs.size, glyphs.card.std)
    image = Image.effect_noise((50, 71), 90.0).convert("RGB")
    assert torch.equal(transform_of(found, "cpu", "fp32")(image), transform(glyphs.card)(image))


def test_the_card_records_its_source(tmp_path: Path) -> None:
    found = resolved(write(tmp_path), tmp_path)
    card, row = found.card, found.card.row()
    assert (card.embed_dim, card.width, card.activation, card.scale, card.size) == (6, 6, "embedding", 20.0, (8, 8))
    assert (
        row["name"] == "plugin:small.py"
        and row["config"]["identity"] == "small-1"
        and len(row["config"]["source"]) == 64
    )
    assert re.fullmatch(r"plugin-small-[0-9a-f]{8}", card.slug) and str(tmp_path) not in str(row)
    (tmp_path / "elsewhere").mkdir()
    assert resolved(write(tmp_path / "elsewhere"), tmp_path).card.identity == card.identity, "the place does not count"


@pytest.mark.parametrize(
    "change",
    [("sin()", "cos()"), ('"small-1"', '"small-2"'), ("20.0", "30.0"), ("Small", "Other")],
    ids=["source", "identity", "scale", "class"],
)
def test_the_source_and_the_identity_are_part_of_the_key(change: tuple[str, str], tmp_path: Path) -> None:
    first = resolved(write(tmp_path), tmp_path)
    encoder = load_encoder(first, "cpu", "fp32")
    second = resolved(write(tmp_path, SMALL.replace(*change)), tmp_path)
    assert second.card.identity != first.card.identity
    assert load_encoder(second, "cpu", "fp32") is not encoder
    with pytest.raises(UserError, match="changed since the run was planned; run again"):
        load_encoder(first, "cpu", "fp32")


def test_a_module_next_to_the_file_is_part_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text("NAME = 'one'\n")
    spec = write(tmp_path, SMALL.replace("import torch\n", "import torch\nfrom .part import NAME\n", 1))
    first = resolved(spec, tmp_path).card.identity
    (tmp_path / "part.py").write_text("NAME = 'two'\n")
    assert resolved(spec, tmp_path).card.identity != first


def test_a_function_may_create_it_on_a_device(tmp_path: Path) -> None:
    text = SMALL + "\n\ndef encoder(device):\n    assert device == 'cpu'\n    return Small()\n"
    assert resolved(write(tmp_path, text), tmp_path).card.architecture == "Small"


def test_an_entry_point_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    write(tmp_path, name="their_encoders.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = EntryPoints([EntryPoint("theirs", "their_encoders:Small", plugin.GROUP)])
    monkeypatch.setattr(plugin, "entry_points", lambda **selected: points.select(**selected))
    found = resolved("plugin:theirs", tmp_path)
    assert found.card.row()["name"] == "plugin:theirs" and found.path == tmp_path / "their_encoders.py"
    assert load_encoder(found, "cpu", "fp32").text(["a"]).shape == (1, 6)
    assert "is neither a .py file nor an entry point; did you mean 'theirs'?" in refusal("plugin:their", tmp_path)
    (tmp_path / "their_encoders.py").write_text(f"{SMALL}\n\ndef other():\n    return Small()\n")
    two = EntryPoints([EntryPoint(name, f"their_encoders:{name}", plugin.GROUP) for name in ("Small", "other")])
    monkeypatch.setattr(plugin, "entry_points", lambda **selected: two.select(**selected))
    assert plugin.find_source("plugin:Small").digest != plugin.find_source("plugin:other").digest


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("def identity", "def identify"), "lacks identity; see docs/encoders.md"),
        (("class Small:", "class Small(torch.nn.Nothing):"), "cannot be created: AttributeError"),
        (('return "small-1"', "return 3"), "identity() returns 3, not a string"),
        (('def identity(self):\n        return "small-1"', 'identity = "v1"'), "identity() fails: TypeError"),
        (('return "small-1"', 'return open("/none/w").read()'), "identity() fails: FileNotFoundError"),
        (("float() / 255", "float()"), "not torch.uint8 or numbers in [0, 1]"),
        (("20.0", "-1.0"), "scale is -1.0, not a positive number"),
        (("20.0", "[1.0, 2.0]"), "scale is [1.0, 2.0], not a positive number"),
        (("(8, 8), [0.5, 0.5, 0.5]", "(8, 8), [0.5, 0.5]"), "std is [0.5, 0.5], not three positive numbers"),
        (("(8, 8), [", "(8, 8, 3), ["), "size is (8, 8, 3), not (height, width)"),
        (("(8, 8), [", "(9, 9), ["), "preprocess() returns [3, 8, 8], not a tensor [3, 9, 9]"),
        (("arange(6.0)", "arange(5.0)"), "images have 6 dimensions and texts 5"),
        ((").flatten(1) @ W", ").flatten(1) @ W[:5]"), "fails on an image and two prompts: RuntimeError"),
        (("    def pixels", "    def points"), "its file must have one class with pixels and text"),
    ],
)
def test_outputs_are_checked_when_the_run_is_planned(change: tuple[str, str], told: str, tmp_path: Path) -> None:
    assert change[0] in SMALL and told in refusal(write(tmp_path, SMALL.replace(*change)), tmp_path)


def test_a_path_without_its_prefix_gets_the_command(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=f"--encoder plugin:{tmp_path}/small.py"):
        parse_encoder(f"{tmp_path}/small.py")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"--encoder local-dir:{tmp_path}"):
        parse_encoder(str(tmp_path))


def test_unknown_plugins_are_reported(tmp_path: Path) -> None:
    assert "nowhere.py does not exist" in refusal(f"plugin:{tmp_path}/nowhere.py", tmp_path)
    assert "is not a Python file" in refusal(f"plugin:{tmp_path}/", tmp_path)
    assert "no installed package has an entry point of oodbench.encoders; write plugin:FILE.py" in refusal(
        "plugin:x", tmp_path
    )
    spec = write(tmp_path)
    with pytest.raises(UserError, match=r"--resize bilinear: encoder .* preprocesses images itself"):
        resolve(parse_encoder(spec), "bilinear", Store(tmp_path))


PARTS = """

class Split(Small):
    std = torch.full((3, 1, 1), 0.5)

    def activations(self, images):
        return ((images - 0.5) / 0.5).flatten(1)

    def project(self, activations):
        return activations @ W
"""


def test_methods_that_need_a_missing_part_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oodbench.pipeline.plan import make_plan
    from oodbench.pipeline.request import request_from

    monkeypatch.chdir(tmp_path)
    spec = write(tmp_path)
    weights = ROOT / "methods"  # any file: missing parts are reported before weights are read
    asked = request_from(
        methods="react,zoc_coca,clipn,mcm", ood="glyphs-letters", encoder=spec, weights=(f"clipn={weights}/clipn.py",)
    )
    with pytest.raises(UserError) as caught:
        make_plan(asked)
    assert [line.replace(str(tmp_path), "T") for line in caught.value.problems] == [
        "react: plugin:T/small.py has no activations() and no project()",
        "zoc_coca: plugin:T/small.py does not write captions; use a CoCa, such as --encoder " + COCA,
        "clipn: plugin:T/small.py has no text_tower()",
    ]
    split = make_plan(dataclasses.replace(asked, methods="react", weights=(), encoder=write(tmp_path, SMALL + PARTS)))
    assert (split.card.activation, split.card.width) == ("project", 192)


@pytest.mark.slow
def test_a_run_reads_it_and_a_second_run_computes_nothing(tmp_path: Path, cli: Any) -> None:
    write(tmp_path, SMALL + PARTS)
    run = ("run", "--encoder", "plugin:small.py", "--limit", "30", "--methods", "mcm,react,odin")
    done = cli(*run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [result for _, result in oodbench.results.rows(tmp_path / "results")]
    assert {row.method for row in rows} == {"mcm", "react", "odin"}
    assert {row.encoder["name"] for row in rows} == {"plugin:small.py"}
    table = done.stdout
    again = cli(*run, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.splitlines()[:6] == table.splitlines()[:6]


def test_a_saved_detector_needs_the_plugin_by_name(tmp_path: Path) -> None:
    spec = write(tmp_path)
    images = [Image.effect_noise((20, 20), sigma).convert("RGB") for sigma in (10.0, 200.0)]
    detector = oodbench.Detector("mcm", classes=["cat", "dog"], encoder=spec, store=tmp_path / "store").fit()
    scores = detector.score_samples(images)
    with pytest.raises(UserError, match="is code, which a saved detector does not hold"):
        detector.save(tmp_path / "with", with_encoder=True)
    folder = detector.save(tmp_path / "saved")
    with pytest.raises(UserError, match="is code, .*small.py, which is run only if you name it"):
        oodbench.Detector.load(folder)
    loaded = oodbench.Detector.load(folder, encoder=spec)
    assert list(loaded.score_samples(images)) == list(scores)
    write(tmp_path, SMALL.replace("small-1", "small-2"))
    with pytest.raises(UserError, match="has other weights or preprocessing"):
        oodbench.Detector.load(folder, encoder=spec).score_samples(images)


@pytest.mark.slow
def test_a_ray_worker_is_sent_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker reads the driver's file if it exists there, else the sent file; another source is refused."""
    from oodbench.distributed import payload
    from oodbench.pipeline.plan import make_plan
    from oodbench.pipeline.request import request_from

    monkeypatch.chdir(tmp_path)
    plan = make_plan(request_from(methods="mcm", encoder=write(tmp_path), store=tmp_path / "store"))
    sent = payload.pack(plan)
    (tmp_path / "worker").mkdir()
    there = payload.unpack(sent, tmp_path / "worker")
    assert there.encoder == plan.encoder
    (tmp_path / "small.py").unlink()
    there = payload.unpack(sent, tmp_path / "worker")
    assert there.card == plan.card and there.encoder.path != plan.encoder.path
    load_encoder(there.encoder, "cpu", "fp32")
    write(tmp_path, SMALL + "\n# changed\n")
    with pytest.raises(UserError, match="differs from the driver's: its source or its identity"):
        payload.unpack(sent, tmp_path / "worker")


# The contract


def problems(spec: str) -> dict[str, str]:
    return {name: problem for name, problem in contract.run_checks(spec) if problem}


@pytest.mark.parametrize(
    ("change", "check", "told"),
    [
        (("@ W", "@ W - images.mean()"), "does not depend on the batch", "pixels() changes by"),
        (("@ W", "@ W + torch.rand(6)"), "is deterministic", "differ the second time"),
        (
            ("        return ((images", "        images += 1e-3\n        return ((images"),
            "leaves its input alone",
            "in place",
        ),
        (("@ W", "@ W.detach() * float('nan')"), "gives finite embeddings that differ", "pixels() returns NaN"),
        (("images - 0.5", "images.detach() - 0.5"), "is differentiable", "has no gradients"),
        (("float() / 255", "float()"), "can be created", "not torch.uint8 or numbers in [0, 1]"),
        (('image.convert("RGB")', "image"), "preprocesses every mode", "preprocess() returns [1, 8, 8]"),
    ],
)
def test_the_contract_finds_faults(
    change: tuple[str, str], check: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        contract, "CHECKS", [one for one in contract.CHECKS if "process" not in one.__name__.split("_")]
    )
    found = problems(write(tmp_path, SMALL.replace(*change)))
    assert told in found[check], found


def test_an_unstable_identity_is_detected(tmp_path: Path) -> None:
    changing = SMALL.replace('return "small-1"', "return str(time.perf_counter_ns())").replace(
        "import torch", "import time, torch", 1
    )
    assert "identity() differs between two objects" in problems(write(tmp_path, changing))["can be created"]


def test_contradictory_parts_are_detected(tmp_path: Path) -> None:
    made = contract.trial(write(tmp_path, SMALL + PARTS.replace("@ W", "@ W * 2")))
    assert "project(activations(x)) differs from pixels(x)" in contract.activations_and_project_match_pixels(made)
    tower = "\n    def text_tower(self):\n        return torch.nn.Identity()\n"
    made = contract.trial(write(tmp_path, SMALL + tower))
    assert contract.text_tower_matches_text(made) == "text_tower() returns [3, 3], text() [3, 6]"
    zeros = "\n\nclass Zeros(torch.nn.Module):\n    def forward(self, t):\n        return torch.zeros(len(t), 6)\n"
    made = contract.trial(write(tmp_path, SMALL + tower.replace("torch.nn.Identity", "Zeros") + zeros))
    assert "text_tower()(tokenize(prompts)) differs" in contract.text_tower_matches_text(made)


@pytest.mark.slow
def test_the_contract_from_the_command_line(tmp_path: Path, process: Any) -> None:
    """In a second process, an identity from an address and unseeded weights differ."""
    write(tmp_path)
    done = process("encoders", "check", "small.py", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "small.py: keeps the contract", done.stdout
    write(tmp_path, SMALL.replace('return "small-1"', "return str(hash('small'))"))
    done = process("encoders", "check", "small.py", cwd=tmp_path)
    assert done.returncode == 1 and "identity() differs in another process" in done.stdout
    write(tmp_path, SMALL.replace(").sin()\n\n\nclass", ").sin() + torch.rand(6)\n\n\nclass"))
    done = process("encoders", "check", "small.py", cwd=tmp_path)
    assert done.returncode == 1 and "embeddings differ in another process; seed" in done.stdout


def test_the_registry_and_plugins_do_not_share_modules(tmp_path: Path) -> None:
    """A file may define a method and an encoder: it is imported under two names."""
    module = registry.import_file("oodbench_plugin_x_1", Path(write(tmp_path).removeprefix("plugin:")))
    assert module is not registry.import_file("oodbench_encoder_x_1", tmp_path / "small.py")
