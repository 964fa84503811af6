"""Files of trained weights: their digest is that of their present content, and a damaged header gives one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from oodbench.errors import UserError
from oodbench.pipeline import weights
from oodbench.storage.store import Store

RECIPE = {"method": "clipn", "parameters": {}, "encoder": {"name": "glyphs", "weights": "ab", "config": {}}}


def write(path: Path, recipe: dict[str, Any] = RECIPE, value: float = 0.0) -> Path:
    weights.write(path, {"x": torch.full((3,), value)}, recipe)
    return path


def test_weights_overwritten_with_the_same_size_and_time_have_another_digest(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    path = write(tmp_path / "w.safetensors")
    before, first = path.stat(), weights.examine(path, store)
    assert weights.examine(path, store) == first
    content = write(tmp_path / "other.safetensors", value=1.0).read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert weights.examine(path, store).digest != first.digest
    with pytest.raises(UserError, match="changed while they were in use"):
        first.check()


def test_strict_ignores_stored_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "file_identity", lambda path: {"file": str(path)})
    store = Store(tmp_path / "store")
    path = write(tmp_path / "w.safetensors")
    first = weights.examine(path, store)
    write(path, value=1.0)
    assert weights.examine(path, store).digest == first.digest
    assert weights.examine(path, store, strict=True).digest != first.digest


def header(path: Path, text: bytes) -> Path:
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


def stated(recipe: str) -> bytes:
    return json.dumps({"__metadata__": {"oodbench": recipe}}).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"x": ', "header is damaged"),
        (b"{\xff}", "header is damaged"),
        (b'{"__metadata__": 3}', "header is damaged"),
        (b'{"__metadata__": {"oodbench": 3}}', "header is damaged"),
        (stated("{"), "header is damaged"),
        (stated("[" * 100_000), "header is damaged"),
        (b'{"a":' * 100_000, "header is damaged"),
        (stated("[1]"), "are of format \\[1\\];"),
        (stated("3"), "are of format 3;"),
        (stated('{"format": 2}'), "are of format 2;"),
        (stated('{"format": 1}'), "lacks method, parameters, encoder"),
        (stated('{"format": 1, "method": 1, "parameters": {}, "encoder": {"name": 1}}'), "lacks method, encoder.name"),
    ],
)
def test_a_damaged_header_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        weights.examine(header(tmp_path / "w.safetensors", content), Store(tmp_path / "store"))
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_our_weights_are_recognised_under_any_name(tmp_path: Path) -> None:
    assert weights.recipe_of(write(tmp_path / "w.pt"))["method"] == "clipn"
    torch.save({"x": torch.zeros(3)}, tmp_path / "w.safetensors")
    assert weights.recipe_of(tmp_path / "w.safetensors") == {}


def test_truncated_tensors_are_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        weights.read(path)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from oodbench.pipeline import weights\n"
        "from oodbench.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # as a full disk: the write stops short
        "try:\n"
        "    weights.write(Path(sys.argv[1]), {'x': torch.zeros(1_000_000)}, {})\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    path = tmp_path / "w.safetensors"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"weights {path} cannot be written: ") and done.stdout.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())
