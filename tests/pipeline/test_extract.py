"""Extraction: the same digits as open_clip's loop, for any number of workers, after kills and next to other runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from oodbench.data import catalog as catalogue
from oodbench.data.decode import DecodeConfig
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip, transform
from oodbench.encoder.resolve import resolve
from oodbench.errors import UserError
from oodbench.pipeline.extract import EmbeddedSet, EmbeddingConfig, ExtractionJob, decoded_batches, extract
from oodbench.storage.store import Store
from tests.processes import Command

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class Tiny:
    """A random CLIP as files and as a model."""

    spec: str
    model: Any
    encoder: OpenClip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG).eval()
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "tiny.safetensors")
    spec = f"{folder / 'tiny.json'}@{folder / 'tiny.safetensors'}"
    return Tiny(spec, model, OpenClip(resolve(parse_encoder(spec), None, Store(folder / "store")), "cpu", "fp32"))


def fill(folder: Path, n: int, classes: int, size: int = 8) -> Path:
    """Random images, each class of a colour of its own, as PPM: quick to write."""
    rng = np.random.default_rng(n)
    for i in range(n):
        label = i % classes
        (folder / f"class {label}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 200, (size, size, 3)) + np.array([label % 2, label // 2 % 2, 0]) * 50
        body = f"P6 {size} {size} 255\n".encode() + pixels.astype(np.uint8).tobytes()
        (folder / f"class {label}" / f"{i:05}.ppm").write_bytes(body)
    return folder


def work(
    folder: Path, store: Path, tiny: Tiny, batch: int = 32, workers: int = 2, on_error: str = "stop"
) -> ExtractionJob:
    dataset = catalogue.dataset(f"folder:{folder}")
    listed = load_images(dataset, LoadOptions(Path(), Store(store)), labelled=True)
    config = EmbeddingConfig(tiny.encoder.card.identity, "fp32", batch)
    return ExtractionJob(listed, config, DecodeConfig(workers, on_error), Store(store))


def embeddings(embedded: EmbeddedSet) -> npt.NDArray[np.float32]:
    return np.concatenate([shard.array("embeddings") for shard in embedded.shards])


def refuse() -> OpenClip:
    raise AssertionError("the encoder was asked for")


def test_embeddings_are_those_of_open_clip(tiny: Tiny, tmp_path: Path) -> None:
    task = work(fill(tmp_path / "photos", 50, 4, size=40), tmp_path / "store", tiny)
    ready: list[int] = []
    embedded = extract(task, lambda: tiny.encoder, ready.append)
    assert ready == [32, 18] and embedded.skipped == ()
    assert embedded.positions.tolist() == list(range(50))
    preprocess = open_clip.transform.image_transform(32, is_train=False)
    images = [preprocess(Image.open(task.listing.folder / name)) for name in task.listing.names]
    with torch.no_grad():
        expected = torch.cat([tiny.model.encode_image(torch.stack(images[i : i + 32])) for i in (0, 32)]).numpy()
        shard = embedded.shards[0]
        activations = torch.from_numpy(np.array(shard.array("activations")))
        np.testing.assert_allclose((activations @ tiny.model.visual.proj).numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(embeddings(embedded), expected, rtol=1e-4, atol=1e-6)


def test_a_second_extraction_needs_no_encoder(tiny: Tiny, tmp_path: Path) -> None:
    task = work(fill(tmp_path / "photos", 40, 4), tmp_path / "store", tiny)
    assert task.missing() == 40
    first = extract(task, lambda: tiny.encoder)
    assert task.missing() == 0
    np.testing.assert_array_equal(embeddings(extract(task, refuse)), embeddings(first))
    with pytest.raises(AssertionError, match="asked for"):
        extract(replace(task, config=replace(task.config, batch_size=16)), refuse)
    os.utime(task.listing.folder / task.listing.names[7])
    with pytest.raises(AssertionError, match="asked for"):
        extract(work(tmp_path / "photos", tmp_path / "store", tiny), refuse)


def test_the_digits_do_not_depend_on_the_workers(tiny: Tiny, tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 70, 4)
    one, many = (extract(work(folder, tmp_path / f"store{n}", tiny, workers=n), lambda: tiny.encoder) for n in (1, 8))
    assert embeddings(one).tobytes() == embeddings(many).tobytes()


@pytest.mark.slow
def test_shards_are_whole_batches_with_independent_digits(tiny: Tiny, tmp_path: Path) -> None:
    task = work(fill(tmp_path / "photos", 2250, 3), tmp_path / "store", tiny, batch=100)
    assert task.shards() == [(0, 2100), (2100, 2250)]
    embedded = extract(task, lambda: tiny.encoder)
    whole = embeddings(embedded)
    assert whole.shape == (2250, 16)
    assert embedded.positions.tolist() == list(range(2250))
    task.store.remove("embeddings", task.inputs(2100, 2250))
    assert task.missing() == 150
    assert embeddings(extract(task, lambda: tiny.encoder)).tobytes() == whole.tobytes()


def break_image(folder: Path) -> Path:
    """Cut one image of the second class in half."""
    chosen = sorted((folder / "class 1").iterdir())[0]
    chosen.write_bytes(chosen.read_bytes()[:60])
    return chosen


def test_a_broken_image_stops_and_is_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 40, 4)
    broken = break_image(folder)
    with pytest.raises(UserError, match=r"cannot be read .*--on-error skip") as caught:
        extract(work(folder, tmp_path / "store", tiny), lambda: tiny.encoder)
    assert str(broken) in str(caught.value) and "\n" not in str(caught.value)
    broken.write_text("<html>not found</html>")
    with pytest.raises(UserError, match="not an image format that Pillow supports"):
        extract(work(folder, tmp_path / "store", tiny), lambda: tiny.encoder)


def test_a_broken_image_is_skipped_and_counted(tiny: Tiny, tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 40, 4)
    whole = embeddings(extract(work(folder, tmp_path / "store", tiny), lambda: tiny.encoder))
    broken = break_image(folder)
    task = work(folder, tmp_path / "store", tiny, on_error="skip")
    embedded = extract(task, lambda: tiny.encoder)
    index = task.listing.names.index(f"class 1/{broken.name}")
    assert embedded.positions.tolist() == [i for i in range(40) if i != index]
    assert len(embedded.skipped) == 1 and embedded.skipped[0].startswith(f"class 1/{broken.name}: ")
    np.testing.assert_allclose(embeddings(embedded), np.delete(whole, index, 0), rtol=1e-4, atol=1e-6)
    assert extract(task, refuse).skipped == embedded.skipped
    with pytest.raises(UserError, match=broken.name):  # stored, but not what this run asked for
        extract(work(folder, tmp_path / "store", tiny), refuse)


def test_no_readable_image_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 5, 1)
    for file in (folder / "class 0").iterdir():
        file.write_text("")
    with pytest.raises(UserError, match="none of its 5 images can be read"):
        extract(work(folder, tmp_path / "store", tiny, on_error="skip"), lambda: tiny.encoder)


def test_a_file_without_permission_is_never_skipped(tiny: Tiny, tmp_path: Path) -> None:
    task = work(fill(tmp_path / "photos", 40, 4), tmp_path / "store", tiny, on_error="skip")
    (task.listing.folder / task.listing.names[3]).unlink()  # after it was listed
    with pytest.raises(UserError, match=r"the system refused to read image .* \(FileNotFoundError: No such file"):
        extract(task, lambda: tiny.encoder)
    assert task.missing() == 40


def test_embeddings_that_are_not_finite_are_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = work(fill(tmp_path / "photos", 40, 4), tmp_path / "store", tiny)
    monkeypatch.setattr(tiny.encoder, "project", lambda activations: torch.full((len(activations), 16), torch.nan))
    with pytest.raises(UserError, match=r"NaN or infinity for 40 images, 'class 0/00000\.ppm' first"):
        extract(task, lambda: tiny.encoder)
    assert task.missing() == 40


def test_few_images_are_decoded_ahead(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = work(fill(tmp_path / "photos", 300, 1), tmp_path / "store", tiny, batch=10)
    read: list[int] = []
    original = ImageSet.read

    def counted(self: ImageSet, index: int) -> Image.Image:
        read.append(index)
        time.sleep(0.2 if index >= 12 else 0)
        return original(self, index)

    monkeypatch.setattr(ImageSet, "read", counted)
    parts = decoded_batches(task, (0, 300), lambda image: torch.zeros(3, 1, 1, dtype=torch.uint8))
    next(parts)
    assert len(read) <= 10 + 10 + 4 * 2
    parts.close()  # also stops the threads
    assert len(read) < 20


def test_batches_are_channels_last(tiny: Tiny, tmp_path: Path) -> None:
    task = work(fill(tmp_path / "photos", 5, 1), tmp_path / "store", tiny, batch=5)
    (batch,) = decoded_batches(task, (0, 5), transform(tiny.encoder.card))
    assert batch.images is not None and batch.images.is_contiguous(memory_format=torch.channels_last)
    one_by_one = [transform(tiny.encoder.card)(task.listing.read(index)) for index in range(5)]
    assert torch.equal(batch.images, torch.stack(one_by_one))


# ---------------------------------------------------------------- whole runs, as processes

Run = Callable[..., Command]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    fill(folder / "id", 4200, 4)
    fill(folder / "ood", 150, 3)
    return folder


@pytest.fixture(scope="module")
def start(tiny: Tiny) -> Run:
    def run(place: Path, sets: Path, *more: str, store: Path | None = None) -> Command:
        words = ["run", "--methods", "mcm,energy", "--encoder", tiny.spec, "--tracking-uri", "none", *more]
        words += ["--id", f"folder:{sets / 'id'}", "--ood", f"folder:{sets / 'ood'}"]
        return Command(*words, "--results", place / "out", "--store", store or place / "store")

    return run


def finish(process: Command) -> str:
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return errors


def rows(place: Path) -> dict[str, dict[str, Any]]:
    """Rows without times, by method."""
    found = {}
    for path in sorted((place / "out" / "runs").rglob("*.json")):
        row = json.loads(path.read_text())
        found[row["method"]] = {k: v for k, v in row.items() if k not in ("created", "seconds")}
    assert sorted(found) == ["energy", "mcm"]
    assert all(row["status"] == "ok" for row in found.values())
    return found


def shards(store: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of every stored embedding, which change when it is computed again."""
    found = {}
    for path in (store / "embeddings").rglob("embeddings.npy"):
        if (path.parent / "entry.json").is_file() and not path.parent.name.startswith("."):
            found[path.parent.name] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def uninterrupted(start: Run, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("uninterrupted")
    finish(start(place, sets))
    assert len(shards(place / "store")) == 4
    return place


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_digits(start: Run, sets: Path, uninterrupted: Path, tmp_path: Path) -> None:
    killed = start(tmp_path, sets)
    until = time.time() + 300
    while not (kept := shards(tmp_path / "store")):
        assert time.time() < until and killed.poll() is None
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    kept = shards(tmp_path / "store")
    assert 1 <= len(kept) < 4
    assert not (tmp_path / "out" / "runs").exists()
    finish(start(tmp_path, sets))
    after = shards(tmp_path / "store")
    assert len(after) == 4 and kept.items() <= after.items()  # only missing shards were computed
    assert rows(tmp_path) == rows(uninterrupted)


@pytest.mark.slow
def test_two_runs_at_once_share_a_store(start: Run, sets: Path, uninterrupted: Path, tmp_path: Path) -> None:
    both = [start(tmp_path / name, sets, store=tmp_path / "store") for name in ("one", "two")]
    for process in both:
        finish(process)
    assert rows(tmp_path / "one") == rows(tmp_path / "two") == rows(uninterrupted)


@pytest.mark.slow
def test_a_flipped_byte_is_detected_and_the_shard_computed_again(start: Run, sets: Path, uninterrupted: Path) -> None:
    """Last of those that use the uninterrupted run."""
    store, before = uninterrupted / "store", rows(uninterrupted)
    made = shards(store)
    path = next((store / "embeddings").rglob("embeddings.npy"))
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 64]) + content[-2:])
    made[path.parent.name] = (path.stat().st_ino, path.stat().st_mtime_ns)
    for entry in Store(store).entries():
        if entry.kind == "scores":
            Store(store).remove("scores", entry.inputs)
    errors = finish(start(uninterrupted, sets))
    assert f"store entry embeddings/{path.parent.name[:12]} is damaged" in errors
    assert path.read_bytes() == content
    assert [key for key, stamp in shards(store).items() if stamp != made[key]] == [path.parent.name]
    assert rows(uninterrupted) == before


@pytest.mark.slow
def test_a_run_skips_a_broken_jpeg_and_reports_it(start: Run, tmp_path: Path) -> None:
    fill(tmp_path / "id", 40, 4, size=32)
    fill(tmp_path / "ood", 30, 3, size=32)
    for file in sorted((tmp_path / "id").rglob("*.ppm")):
        Image.open(file).save(file.with_suffix(".jpg"))
        file.unlink()
    whole, stopped, skipped, again = (tmp_path / name for name in ("whole", "stopped", "skipped", "again"))
    finish(start(whole, tmp_path, store=tmp_path / "store"))
    broken = sorted((tmp_path / "id" / "class 1").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:300])
    process = start(stopped, tmp_path, store=tmp_path / "store")
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 2 and str(broken) in errors and "Traceback" not in errors
    finish(start(skipped, tmp_path, "--on-error", "skip", store=tmp_path / "store"))
    row = rows(skipped)["mcm"]
    assert (row["id"]["skipped"], row["id"]["n"], row["ood"][0]["skipped"]) == (1, 39, 0)
    process = start(again, tmp_path, store=tmp_path / "store")
    assert str(broken) in process.communicate(timeout=500)[1] and process.returncode == 2
    kept, everything = scores(skipped), scores(whole)
    assert f"class 1/{broken.name}" not in kept and len(kept) == len(everything) - 1
    for name, (label, score) in kept.items():  # each score and label still belongs to its image
        assert label == everything[name][0] and score == pytest.approx(everything[name][1], rel=1e-4)


def scores(place: Path) -> dict[str, tuple[int, float]]:
    from pyarrow import parquet

    (path,) = (place / "out" / "runs").rglob("mcm*.parquet")
    table = parquet.read_table(path).to_pylist()
    keys = [row["name"] if row["label"] >= 0 else f"ood/{row['name']}" for row in table]
    return {key: (row["label"], row["score"]) for key, row in zip(keys, table, strict=True)}


MEASURE = """
import resource, sys
from pathlib import Path
from oodbench.data import catalog as catalogue
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip, transform
from oodbench.encoder.resolve import resolve
from oodbench.pipeline.extract import EmbeddingConfig, ExtractionJob, extract
from oodbench.data.decode import DecodeConfig
from oodbench.data.load import LoadOptions, load_images
from oodbench.storage.store import Store
store = Store(Path(sys.argv[3]))
listed = load_images(catalogue.dataset("folder:" + sys.argv[1]), LoadOptions(Path(), store), labelled=True)
encoder = OpenClip(resolve(parse_encoder(sys.argv[2]), None, store), "cpu", "fp32")
how = EmbeddingConfig(encoder.card.identity, "fp32", 128), DecodeConfig(2, "stop")
work = ExtractionJob(listed.limit(int(sys.argv[4])), *how, store)
extract(work, lambda: encoder)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_images(tiny: Tiny, sets: Path, tmp_path: Path) -> None:
    peaks = []
    for n in (500, 4000):
        command = [sys.executable, "-c", MEASURE, str(sets / "id"), tiny.spec, str(tmp_path / str(n)), str(n)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 60  # MB


@pytest.mark.parametrize("strict", [False, True])
def test_embeddings_of_other_images_are_never_stored(tiny: Tiny, tmp_path: Path, strict: bool) -> None:
    """The set is exchanged between listing and decoding, and put back: the next run must see its own images."""
    right, other = fill(tmp_path / "photos", 20, 2), fill(tmp_path / "other", 20, 2, size=9)
    task = work(right, tmp_path / "store", tiny)
    task = replace(task, listing=task.listing.by_content() if strict else task.listing)
    (other / "class 0/00000.ppm").write_bytes((right / "class 0/00000.ppm").read_bytes())
    right.rename(tmp_path / "aside")
    other.rename(right)
    with pytest.raises(UserError, match=r"photos/class 0/\d+\.ppm changed after it was listed; run again"):
        extract(task, lambda: tiny.encoder)
    assert not [one for one in task.store.entries() if one.kind == "embeddings"]
    right.rename(other)
    (tmp_path / "aside").rename(right)
    np.testing.assert_array_equal(
        embeddings(extract(task, lambda: tiny.encoder)),
        embeddings(extract(replace(task, store=Store(tmp_path / "fresh")), lambda: tiny.encoder)),
    )
