"""The store: entries are complete or absent, also with concurrent and killed writers."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oodbench.errors import UserError
from oodbench.storage.store import Entry, Store, default_root, digest

DAY = 86_400.0
INPUTS: dict[str, Any] = {"encoder": "abc", "batch": 128, "names": ["ä", "\udce4", "日本"]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(store: Store, number: int = 0, rows: int = 10) -> Entry:
    array = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + number
    return store.write("embeddings", {**INPUTS, "number": number}, {"x": array}, {"number": number, "skipped": ()})


def find(store: Store, number: int = 0) -> Entry | None:
    return store.find("embeddings", {**INPUTS, "number": number})


def leftovers(store: Store) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.name.endswith(".tmp")]


def test_written_entries_are_found(store: Store) -> None:
    assert find(store) is None
    written = write(store)
    found = find(store)
    assert found == written
    assert found is not None
    np.testing.assert_array_equal(found.array("x"), np.arange(40, dtype=np.float32).reshape(10, 4))
    assert found.facts == {"number": 0, "skipped": []}
    assert found.inputs == {**INPUTS, "number": 0}
    assert store.has("embeddings", found.inputs)
    assert not leftovers(store)


def test_empty_arrays_are_stored(store: Store) -> None:
    store.write("embeddings", {}, {"x": np.zeros((0, 512), np.float32), "y": np.zeros(0, np.int64)}, {})
    found = store.find("embeddings", {})
    assert found is not None
    assert found.array("x").shape == (0, 512)
    assert found.array("y").dtype == np.int64


def test_the_key_depends_on_kind_and_inputs_alone(store: Store, tmp_path: Path) -> None:
    assert store.key("a", {"x": 1, "y": [1.5, None]}) == Store(tmp_path).key("a", {"y": [1.5, None], "x": 1})
    others = [store.key("b", {"x": 1}), store.key("a", {"x": 2}), store.key("a", {"x": 1, "y": 0})]
    assert len({store.key("a", {"x": 1}), *others}) == 4
    first = store.write("a", {"x": 1}, {}, {"seconds": 1})
    assert store.write("a", {"x": 1}, {}, {"seconds": 2}) == first  # the first one stays


def test_the_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("OODBENCH_STORE")
    assert default_root() == tmp_path / ".cache" / "oodbench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "oodbench"
    monkeypatch.setenv("OODBENCH_STORE", "~/mine")
    assert default_root() == tmp_path / "mine"
    assert Store(Path("~/mine")).root == tmp_path / "mine"


def truncated(path: Path) -> None:
    (path / "x.npy").write_bytes((path / "x.npy").read_bytes()[:-8])


def flipped(path: Path) -> None:
    raw = bytearray((path / "x.npy").read_bytes())
    raw[-5] ^= 1
    (path / "x.npy").write_bytes(raw)


def without_array(path: Path) -> None:
    (path / "x.npy").unlink()


def without_head(path: Path) -> None:
    (path / "entry.json").unlink()


def empty_head(path: Path) -> None:
    (path / "entry.json").write_bytes(b"")


def half_head(path: Path) -> None:
    raw = (path / "entry.json").read_bytes()
    (path / "entry.json").write_bytes(raw[: len(raw) // 2])


def binary_head(path: Path) -> None:
    (path / "entry.json").write_bytes(b"\xff\xfe\x00")


def other_json(path: Path) -> None:
    (path / "entry.json").write_text("[1, 2]")


def changed_fact(path: Path) -> None:
    text = (path / "entry.json").read_text()
    assert '"number": 0, "skipped"' in text
    (path / "entry.json").write_text(text.replace('"number": 0, "skipped"', '"number": 7, "skipped"'))


def foreign_entry(path: Path) -> None:
    """A valid entry moved here from another key."""
    for file in write(Store(path.parents[3] / "other"), 1).path.iterdir():
        file.replace(path / file.name)


DAMAGES = [
    truncated,
    flipped,
    without_array,
    without_head,
    empty_head,
    half_head,
    binary_head,
    other_json,
    changed_fact,
    foreign_entry,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_entry_is_recomputed(store: Store, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    damage(write(store).path)
    with caplog.at_level(logging.WARNING):
        assert find(store) is None
    assert "damaged" in caplog.text and "computed again" in caplog.text
    list(store.entries())  # does not fail, either
    folder = store.path("embeddings", store.key("embeddings", {**INPUTS, "number": 0})).stat().st_ino
    write(store)
    found = find(store)
    assert found is not None
    assert found.path.stat().st_ino == folder  # repaired in place: another process may do the same
    np.testing.assert_array_equal(found.array("x"), np.arange(40, dtype=np.float32).reshape(10, 4))
    assert found.facts["number"] == 0
    assert not leftovers(store)


def as_folder(file: Path, outside: Path) -> None:
    file.mkdir()
    (file / "x").write_text("in the way")


def as_pipe(file: Path, outside: Path) -> None:
    os.mkfifo(file)


def as_link_to_a_file(file: Path, outside: Path) -> None:
    file.symlink_to(outside / "photo")


def as_link_to_a_folder(file: Path, outside: Path) -> None:
    file.symlink_to(outside)


def as_link_to_nothing(file: Path, outside: Path) -> None:
    file.symlink_to("nowhere")


def as_link_to_itself(file: Path, outside: Path) -> None:
    file.symlink_to(file)


def as_nested_json(file: Path, outside: Path) -> None:
    file.write_text('{"a":' * 100_000)


IN_THE_WAY = [
    as_folder,
    as_pipe,
    as_link_to_a_file,
    as_link_to_a_folder,
    as_link_to_nothing,
    as_link_to_itself,
    as_nested_json,
]


@pytest.mark.parametrize("name", ["", "x.npy", "entry.json"])
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_files_at_the_path_of_an_entry_are_replaced(
    store: Store, kind: Callable[[Path, Path], None], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    outside = store.root.parent / "outside"
    outside.mkdir()
    (outside / "photo").write_text("precious")
    file = write(store).path / name
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink()
    kind(file, outside)
    list(store.entries())  # neither fails nor waits
    assert find(store) is None and "is damaged" in caplog.text
    write(store)
    found = find(store)
    assert found is not None
    np.testing.assert_array_equal(found.array("x"), np.arange(40, dtype=np.float32).reshape(10, 4))
    assert not file.is_symlink() and not leftovers(store)
    assert [(one.name, one.read_text()) for one in outside.iterdir()] == [("photo", "precious")]


def test_an_entry_that_cannot_be_replaced_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder belongs to another user, so the advice must not be to free space."""
    entry = write(store)
    truncated(entry.path)

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError) as error:
        write(store)
    assert f"(Permission denied); check the permissions of {entry.path}" in str(error.value) and "gc" not in str(
        error.value
    )
    assert not leftovers(store)


def test_gc_removes_a_link_and_not_its_target(store: Store, tmp_path: Path) -> None:
    path = write(store).path
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert len(store.collect(max_bytes=0)) == 1
    assert not path.is_symlink() and (tmp_path / "elsewhere" / "entry.json").is_file()


def test_try_write_needs_no_writable_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert store.try_write("encoder", {"a": 1}, {"b": 2}) == {"b": 2}
    with pytest.raises(UserError, match="Read-only file system"):
        write(store)


def test_a_full_disk_is_a_one_line_error(store: Store) -> None:
    script = (
        "import resource, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from oodbench.storage.store import Store\n"
        "from oodbench.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # as a full disk: the write stops short
        "try:\n"
        "    Store(Path(sys.argv[1])).write('embeddings', {}, {'x': np.zeros(1_000_000)}, {})\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, store.root], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"the store {store.root} cannot be written (")
    assert done.stdout.count("\n") == 1 and not done.stderr
    assert store.find("embeddings", {}) is None
    assert not leftovers(store)


def test_a_file_at_the_root_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write(Store(tmp_path / "file"))


def test_an_entry_removed_while_in_use_is_a_user_error(store: Store) -> None:
    entry = write(store)
    assert len(store.collect(max_bytes=0)) == 1
    with pytest.raises(UserError, match="was removed while it was in use; run again"):
        entry.array("x")


def test_a_read_only_store_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)  # chmod does not stop root, who runs the tests in containers
    assert find(store) is not None
    assert [e.kind for e in store.entries()] == ["embeddings"]


WRITER = """
import sys, numpy as np
from pathlib import Path
from oodbench.storage.store import Store
store = Store(Path(sys.argv[1]))
for turn in range(20):
    number = turn if sys.argv[2] == "same" else turn * 1000 + int(sys.argv[3])
    inputs = {"number": number}
    entry = store.write("embeddings", inputs, {"x": np.full((500, 64), number)}, {})
    assert (entry.array("x") == number).all()
    found = store.find("embeddings", inputs)
    assert found is not None and (found.array("x") == number).all()
"""


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["same", "different"])
@pytest.mark.parametrize("damaged", [False, True], ids=["fresh", "over damage"])
def test_processes_share_a_store(store: Store, keys: str, damaged: bool) -> None:
    if damaged:
        for number in range(20):
            entry = store.write("embeddings", {"number": number}, {"x": np.zeros((500, 64))}, {})
            truncated(entry.path)
    command = [sys.executable, "-c", WRITER, str(store.root), keys]
    writers = [
        subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    errors = [writer.communicate(timeout=300)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], errors
    sound = [e for e in store.entries() if store.find(e.kind, e.inputs)]
    assert len(sound) >= (20 if keys == "same" else 60)
    assert not leftovers(store)


def test_a_killed_writer_leaves_no_entry(store: Store) -> None:
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from oodbench.storage.store import Store\n"
        "while True:\n"
        "    Store(Path(sys.argv[1])).write('embeddings', {}, {f'a{i}': np.zeros(50_000) for i in range(400)}, {})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(store.root)])
    until = time.time() + 120
    while not any(path.suffix == ".npy" for path in store.root.rglob("*")):
        assert time.time() < until and writer.poll() is None
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait(60)
    (stale,) = leftovers(store)
    assert store.find("embeddings", {}) is None
    assert list(store.entries()) == []
    assert store.collect(unused_days=30) == [] and stale.is_dir()  # it may still be at work
    os.utime(stale, (time.time() - 2 * DAY,) * 2)
    store.collect(unused_days=30)
    assert not stale.exists()


def test_gc_removes_old_damaged_entries_only(store: Store) -> None:
    young, old = write(store, 0), write(store, 1)
    for entry in (young, old):
        without_head(entry.path)
    foreign = store.root / "photos" / "ab" / "holiday"
    foreign.mkdir(parents=True)
    (foreign / "x.jpg").write_text("precious")
    for path in (old.path, foreign):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    store.collect(max_bytes=10**9)
    assert young.path.exists() and not old.path.exists() and (foreign / "x.jpg").exists()


def used(store: Store, entry: Entry, days_ago: float) -> None:
    os.utime(entry.path / "entry.json", (time.time() - days_ago * DAY,) * 2)


def test_gc_by_size_keeps_the_last_used(store: Store) -> None:
    entries = [write(store, number) for number in range(4)]
    for days, entry in zip((3.0, 1.0, 4.0, 2.0), entries, strict=True):
        used(store, entry, days)
    size = next(store.entries()).bytes
    find(store, 2)  # used right now
    gone = store.collect(max_bytes=2 * size + 20, dry=True)
    assert [e.inputs["number"] for e in gone] == [0, 3]
    assert len(list(store.entries())) == 4  # a dry run removes nothing
    assert store.collect(max_bytes=2 * size + 20) == gone
    assert {e.inputs["number"] for e in store.entries()} == {1, 2}
    assert store.collect(max_bytes=2 * size + 20) == []
    assert not leftovers(store)


def test_gc_by_age(store: Store) -> None:
    for number, days in enumerate((0.5, 40.0, 20.0)):
        used(store, write(store, number), days)
    assert [e.inputs["number"] for e in store.collect(unused_days=30)] == [1]
    assert [e.inputs["number"] for e in store.collect(max_bytes=0, unused_days=10)] == [2, 0]
    assert list(store.entries()) == []


def test_removed_entries_are_gone(store: Store) -> None:
    entry = write(store)
    store.remove("embeddings", entry.inputs)
    assert find(store) is None
    store.remove("embeddings", entry.inputs)  # a second time is not an error


def test_digests_are_stable() -> None:
    assert digest({"b": [1, 2.5], "a": "ü"}) == digest(json.loads('{"a": "\\u00fc", "b": [1, 2.5]}'))
    assert digest(["\udce4"]) != digest(["ä"])


@pytest.mark.slow
def test_the_command_line_lists_and_limits_the_store(store: Store, cli: Any) -> None:
    for number in range(3):
        used(store, write(store, number), number)
    store.write("text", {}, {"text": np.zeros((3, 4))}, {})
    shown = cli("store", "ls", "--store", store.root)
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["embeddings", "3"] in [row[:2] for row in rows] and ["text", "1"] in [row[:2] for row in rows]
    assert (
        "would remove 2 entries"
        in cli("store", "gc", "--unused-days", "0.5", "--dry-run", "--store", store.root).stdout
    )
    assert "removed 2 entries" in cli("store", "gc", "--unused-days", "0.5", "--store", store.root).stdout
    assert "removed 2 entries" in cli("store", "gc", "--max-size", "0", "--store", store.root).stdout
    assert list(store.entries()) == []
    assert cli("store", "ls", "--store", store.root).returncode == 0


@pytest.mark.slow
def test_a_run_with_a_read_only_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from click.testing import CliRunner

    import oodbench.pipeline.request
    from oodbench.cli import main

    store = default_root()
    options = ["run", "--limit", "5", "--results", str(tmp_path / "out"), "--tracking-uri", "none", "--methods"]
    first = CliRunner().invoke(main, [*options, "mcm"])
    assert first.exit_code == 0, first.output
    writable = oodbench.pipeline.request.is_writable
    monkeypatch.setattr(oodbench.pipeline.request, "is_writable", lambda folder: folder != store and writable(folder))

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    mkdir = Path.mkdir
    monkeypatch.setattr(
        Path, "mkdir", lambda self, *a, **k: (refuse if store in self.parents else mkdir)(self, *a, **k)
    )
    again = CliRunner().invoke(main, [*options, "mcm"])
    assert (again.exit_code, again.stdout) == (0, first.stdout), again.output
    lacking = CliRunner().invoke(main, [*options, "mcm,msp"])
    assert lacking.exit_code == 2 and lacking.stderr.count("error: ") == 1
    assert f"error: the store {store} cannot be written; name another" in lacking.stderr
