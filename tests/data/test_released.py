"""Released weights and words: their declarations, `oodbench get`, a local server and a stand-in for Google Drive.

Google Drive and gdown are not called: the stand-in has gdown's functions and serves files of the test.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oodbench.data import released
from oodbench.data.released import KINDS, Release, fetch_release, releases
from oodbench.encoder.card import parse_encoder
from oodbench.errors import Missing, UserError
from oodbench.method import registry
from oodbench.storage.download import RetryPolicy
from tests.conftest import Cli

HASTE = RetryPolicy(timeout=2, tries=2, pause=0.01)
CHECKPOINT = b"PK\x03\x04" + bytes(range(256)) * 40


def test_declarations_are_complete_and_name_what_exists() -> None:
    known = registry.methods()
    everything = [one for kind in KINDS for one in releases(kind).values()]
    assert len(everything) == 11
    for one in everything:
        assert one.title and one.page.startswith("https://") and one.source and one.licence
        assert bool(one.drive) != bool(one.files) and bool(one.files) == bool(one.address)
        assert one.unread or one.method in known
        for facts in one.files.values():
            assert facts.keys() == {"size", "sha256"} and re.fullmatch("[0-9a-f]{64}", facts["sha256"])
        if one.drive:
            assert re.fullmatch(r"https://drive\.google\.com/(drive/folders|file/d)/[\w-]+(/view)?", one.drive)
        if one.kind == "weights":
            assert parse_encoder(one.encoder).tag and "WEIGHTS" in known[one.method].needs
            assert set(one.parameters) <= set(known[one.method].defaults())
    assert [one.repeat for one in releases("weights").values() if one.method == "clipn"] == [1, 2, 3]
    assert len({one.drive for one in releases("weights").values()}) == 4


def test_neglabels_word_files_are_those_that_the_method_reads() -> None:
    read = importlib.import_module("oodbench_methods._wordnet").FILES
    assert set(releases("words")["neglabel"].files) == {f"{name}.txt" for name in read}


def test_a_name_is_a_release_or_the_first_of_a_method(tmp_path: Path) -> None:
    first = released.release("weights", "clipn")
    assert first.name == "clipn-1" and released.release("weights", "clipn-2").repeat == 2
    assert first.command(Path("data")) == "oodbench get weights clipn"
    assert releases("weights")["clipn-3"].command(tmp_path) == f"oodbench get weights clipn-3 --data {tmp_path}"
    with pytest.raises(UserError, match="no released words 'neglable'; did you mean 'neglabel'"):
        released.release("words", "neglable")


# A checkpoint that the user has, and without gdown


def test_without_gdown_manual_steps_are_printed(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)  # importing it raises ImportError
    done = cli("get", "weights", "clipn", "clipn-2", "--data", tmp_path)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    for one in ("clipn-1", "clipn-2"):
        assert f"{one}: it is in Google Drive" in done.stderr and releases("weights")[one].drive in done.stderr
        assert f"and put it in {tmp_path}/weights/{one}, or: oodbench get weights" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_user_got_is_checked_copied_and_recorded(tmp_path: Path, cli: Cli) -> None:
    file, page = tmp_path / "CLIPN_ATD_Repeat1_epoch_10.pt", tmp_path / "page.pt"
    file.write_bytes(CHECKPOINT)
    page.write_bytes(b"\n<!DOCTYPE html><title>Google Drive - Quota exceeded</title>")
    data = tmp_path / "data"
    for given, said in (
        (page, "is a web page"),
        (tmp_path / "gone.pt", "does not exist"),
        (tmp_path, "name the checkpoint"),
    ):
        done = cli("get", "weights", "clipn", "--from", given, "--data", data)
        assert done.returncode == 1 and said in done.stderr and not data.exists()
    done = cli("get", "weights", "clipn", "--from", file, "--data", data)
    assert done.returncode == 0, done.stderr
    assert f"oodbench run --id imagenet1k --data {data} --methods clipn,mcm" in done.stdout
    copy = data / "weights/clipn-1" / file.name
    assert copy.read_bytes() == CHECKPOINT
    assert (copy.parent / "SHA256SUMS").read_text() == f"{hashlib.sha256(CHECKPOINT).hexdigest()}  {file.name}\n"
    assert cli("get", "weights", "clipn", "--data", data).returncode == 0  # exists already
    assert str(copy) in cli("get", "weights", "--data", data).stdout
    copy.write_bytes(CHECKPOINT[:-1])
    done = cli("get", "weights", "clipn", "--data", data)
    assert (
        done.returncode == 1 and "as at the first download; remove it, then: oodbench get weights clipn" in done.stderr
    )


def test_a_manually_placed_file_is_used(tmp_path: Path) -> None:
    wanted = releases("weights")["clipn-2"]
    file = wanted.folder(tmp_path) / "renamed.PT"
    file.parent.mkdir(parents=True)
    file.write_bytes(CHECKPOINT)
    assert fetch_release(wanted, tmp_path) == file and (file.parent / "SHA256SUMS").is_file()


def test_invalid_arguments_are_refused(cli: Cli) -> None:
    done = cli("get", "weights", "clipm", "zok")
    assert done.returncode == 2 and done.stderr.count("error: no released weights") == 2
    done = cli("get", "weights", "clipn", "zoc", "--from", "x.pt")
    assert done.returncode == 2 and "is one release, not clipn, zoc; name one" in done.stderr
    assert "did you mean 'weights'" in cli("get", "weigths").stderr
    for name, kind in (("clipn-2", "weights"), ("neglabel", "words"), ("mos", "datasets"), ("sun", "datasets")):
        done = cli("get", name)
        assert (done.returncode, f"oodbench get {kind} {name}" in done.stderr) == (2, True)
    assert "selected prompts" in cli("get", "words").stdout


def test_get_datasets_is_datasets_get(tmp_path: Path, cli: Cli) -> None:
    one, other = (cli(*words, "glyphs", "--data", tmp_path) for words in (("get", "datasets"), ("datasets", "get")))
    assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)


# Google Drive, through gdown


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for gdown: it serves `content`, and raises a failure after a block; `listing` is the folder."""
    control = SimpleNamespace(content=CHECKPOINT, failures=[], listing=["log.txt", "CLIPN_ATD_Repeat1_epoch_10.pt"])

    def download_folder(*, id: str, skip_download: bool, quiet: bool, use_cookies: bool) -> list[Any]:
        assert skip_download and id == "1CRIKr0vwrvK4Mc63zfhg2o8cbEGct4oF"
        return [SimpleNamespace(id=f"id of {name}", path=name, local_path="") for name in control.listing]

    def download(
        *, id: str, output: str, quiet: bool, use_cookies: bool, resume: bool, timeout: float,
        progress: Callable[[int, int | None], None],
    ) -> str:  # fmt: skip
        path = Path(output)
        if path.is_dir():
            path = path / "model.pt"
        else:
            assert id == f"id of {path.name}"
        part = path.with_name("gdown.part")
        have = part.stat().st_size if resume and part.is_file() else 0
        control.resumed = have
        with part.open("ab") as file:
            for start in range(have, len(control.content), 4000):
                block = control.content[start : start + 4000]
                file.write(block)
                file.flush()
                progress(start + len(block), len(control.content))
                if control.failures:
                    raise control.failures.pop(0)
        part.rename(path)
        return str(path)

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download, download_folder=download_folder))
    return control


def test_the_checkpoint_of_a_drive_folder_is_fetched_with_progress(drive: SimpleNamespace, tmp_path: Path) -> None:
    seen: list[Any] = []
    wanted = releases("weights")["clipn-1"]

    def watch(what: str, total: int) -> Callable[[int], None]:
        seen.append((what, total))
        return seen.append

    path = fetch_release(wanted, tmp_path, watch=watch)
    assert path == tmp_path / "weights/clipn-1/CLIPN_ATD_Repeat1_epoch_10.pt" and path.read_bytes() == CHECKPOINT
    assert seen[0] == ("fetch clipn-1", len(CHECKPOINT)) and sum(seen[1:]) == len(CHECKPOINT)
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name, "SHA256SUMS"]


def test_a_file_of_drive_keeps_the_name_that_drive_gives(drive: SimpleNamespace, tmp_path: Path) -> None:
    assert fetch_release(releases("weights")["zoc"], tmp_path) == tmp_path / "weights/zoc/model.pt"


def test_an_interrupted_fetch_resumes(drive: SimpleNamespace, tmp_path: Path) -> None:
    wanted = releases("weights")["clipn-1"]
    for failure, raised in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("quota exceeded\nmore"), UserError),
    ):
        drive.failures.append(failure)
        with pytest.raises(raised) as told:
            fetch_release(wanted, tmp_path)
        assert wanted.path(tmp_path) is None
    assert "Google Drive refused it: quota exceeded\n  rerun the same command to resume, or open" in str(told.value)
    fetched = fetch_release(wanted, tmp_path)
    assert drive.resumed == 8000 and fetched.read_bytes() == CHECKPOINT


def test_files_other_than_checkpoints_are_refused(drive: SimpleNamespace, tmp_path: Path) -> None:
    wanted = releases("weights")["clipn-1"]
    drive.content = b"<html>confirm</html>"
    with pytest.raises(UserError, match="is a web page, not a checkpoint"):
        fetch_release(wanted, tmp_path)
    assert not list(wanted.folder(tmp_path).iterdir())  # a rerun starts again
    drive.listing = ["a.pt", "b.pt"]
    with pytest.raises(Missing, match=r"should hold one checkpoint \(a.pt, b.pt\)"):
        fetch_release(wanted, tmp_path)


def test_gdown_takes_these_arguments() -> None:
    import inspect

    gdown = pytest.importorskip("gdown")
    inspect.signature(gdown.download_folder).bind(id="x", skip_download=True, quiet=True, use_cookies=False)
    options = {"quiet": True, "use_cookies": False, "resume": True, "timeout": 60, "progress": print}
    inspect.signature(gdown.download).bind(id="x", output="x", **options)


def test_another_checkpoint_does_not_replace_the_fetched_one(drive: SimpleNamespace, tmp_path: Path) -> None:
    wanted, other = releases("weights")["clipn-1"], tmp_path / "other/CLIPN_ATD_Repeat1_epoch_10.pt"
    path = fetch_release(wanted, tmp_path)
    other.parent.mkdir()
    other.write_bytes(CHECKPOINT[::-1])
    record = path.with_name("SHA256SUMS")
    with pytest.raises(UserError, match=f"as at the first download; to accept this file: rm {record}, and rerun"):
        fetch_release(wanted, tmp_path, other)
    renamed = other.with_name("last.pt")
    renamed.write_bytes(CHECKPOINT)
    with pytest.raises(UserError, match=f"{path} exists and is another file; remove it first"):
        fetch_release(wanted, tmp_path, renamed)
    assert path.read_bytes() == CHECKPOINT and fetch_release(wanted, tmp_path) == path
    path.unlink()
    record.unlink()
    assert fetch_release(wanted, tmp_path, other).read_bytes() == CHECKPOINT[::-1]


# A plain URL


@pytest.fixture
def words(tmp_path: Path) -> Iterator[Release]:
    """A release of two files on a local server that serves tmp_path/served."""
    served = tmp_path / "served"
    served.mkdir()
    contents = {"noun.act.txt": b"running\njumping\n" * 50, "adj.all.txt": b"blue\n" * 70}
    for name, content in contents.items():
        (served / name).write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        facts = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}
        address = f"http://127.0.0.1:{server.server_port}"
        yield dataclasses.replace(releases("words")["neglabel"], address=address, files=facts)
        server.shutdown()


@pytest.mark.slow
def test_files_are_fetched_and_checked_and_a_rerun_fetches_what_is_missing(words: Release, tmp_path: Path) -> None:
    served, folder = tmp_path / "served", words.folder(tmp_path)
    (served / "adj.all.txt").write_bytes(b"red\n")
    with pytest.raises(UserError, match=r"adj.all.txt is not what was expected: sha256"):
        fetch_release(words, tmp_path, retry=HASTE)
    assert words.path(tmp_path) is None and (folder / "noun.act.txt").is_file()
    (served / "adj.all.txt").write_bytes(b"blue\n" * 70)
    (served / "noun.act.txt").unlink()  # need not be fetched again
    assert fetch_release(words, tmp_path, retry=HASTE) == folder
    assert {path.name for path in folder.iterdir() if path.suffix == ".txt"} == set(words.files)
    (folder / "adj.all.txt").write_bytes(b"green\n")
    with pytest.raises(UserError, match="as at the first download; remove it, then: oodbench get words neglabel"):
        fetch_release(words, tmp_path, retry=HASTE)


@pytest.mark.slow
def test_words_that_the_user_has_are_checked(words: Release, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(tmp_path / "served", own)
    with pytest.raises(UserError, match="name the folder that holds noun.act.txt, adj.all.txt"):
        fetch_release(words, tmp_path, given=own / "adj.all.txt")
    (own / "noun.act.txt").write_bytes(b"other\n")
    with pytest.raises(UserError, match=r"is not noun.act.txt of NegLabel's corpus"):
        fetch_release(words, tmp_path, given=own)
    assert words.path(tmp_path) is None
    shutil.copy(tmp_path / "served/noun.act.txt", own)
    assert fetch_release(words, tmp_path, given=own) == words.folder(tmp_path)
