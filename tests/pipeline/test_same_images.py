"""Copies of the same images share a table: rows have what they share, keys of embeddings what they do not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodbench.api import run
from oodbench.data import catalog
from oodbench.pipeline import extract
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import request_from
from oodbench.report.tables.grouping import group
from oodbench.results import Result

CLASSES = ("red", "blue")


def lay(data: Path, time: int, order: int) -> None:
    """The same images in each folder, written in another order and with other times."""
    paths = [f"mine/{CLASSES[i % 2]}/{i}.bmp" for i in range(6)] + [f"others/{i}.bmp" for i in range(6)]
    for number, name in enumerate(paths[::order]):
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shades = np.random.default_rng(len(paths) - 1 - number if order < 0 else number)
        Image.fromarray(shades.integers(0, 256, (32, 32, 3), np.uint8)).save(path)  # all of one size
        os.utime(path, ns=(time, time + number))


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    config = tmp_path / "config/datasets"
    config.mkdir(parents=True)
    (config / "mine.toml").write_text('title = "Mine"\nloader = "classes"\npath = "mine"\ncount = 6\n')
    (config / "others.toml").write_text('title = "Others"\nloader = "images"\npath = "others"\ncount = 6\n')
    monkeypatch.setenv("OODBENCH_CONFIG", str(tmp_path / "config"))
    catalog.datasets.cache_clear()
    lay(tmp_path / "one", 10**18, 1)
    lay(tmp_path / "two", 10**17, -1)
    yield tmp_path / "one", tmp_path / "two"
    catalog.datasets.cache_clear()


def scored(data: Path, method: str, **options: object) -> Result:
    where = {"data": data, "store": data / "store", "out": data / "results", "encoder": "glyphs", "bootstrap": 0}
    (row,) = run(make_plan(request_from(methods=method, id="mine", ood="others", **{**where, **options}))).results
    return row


@pytest.mark.slow
def test_copies_on_two_machines_are_in_one_table(labs: tuple[Path, Path]) -> None:
    one, two = labs
    rows = [scored(one, "mcm"), scored(two, "energy"), scored(two, "mcm")]
    (table,) = group(rows)
    assert len(table.results) == 3
    assert [s.auroc for s in rows[0].ood] == [s.auroc for s in rows[2].ood]
    strict = [scored(one, "mcm", strict=True), scored(two, "energy", strict=True)]
    assert len(group(strict)) == 1 and len(group([*rows, *strict])) == 2, "contents and sizes are not compared"
    assert [row.run["lists"] for row in (rows[0], strict[0])] == ["name, size", "content"]
    path = two / "others/3.bmp"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(group([rows[0], scored(two, "msp")])) == 1, "other content of the same size is not seen without --strict"
    assert len(group([strict[0], scored(two, "msp", strict=True)])) == 2


def test_a_changed_image_is_encoded_again(labs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = extract._encode

    def counted(work: extract.ExtractionJob, *rest: object) -> object:
        encoded.append(work.listing.dataset.name)
        return encode(work, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(extract, "_encode", counted)
    first = scored(labs[0], "mcm")
    assert encoded == ["mine", "others"]
    assert scored(labs[0], "mcm").digest == first.digest and len(encoded) == 2
    path = labs[0] / "others/3.bmp"
    Image.new("RGB", (32, 32), (255, 0, 0)).save(path)  # the same size, another time
    after = scored(labs[0], "mcm")
    assert encoded[2:] == ["others"] and after.ood[0].list_digest == first.ood[0].list_digest
    assert after.ood[0].auroc != first.ood[0].auroc
