"""Unusual environments: streams, disks, home folders, encodings, names and numbers."""

from __future__ import annotations

import codecs
import io
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from oodbench.cli import group, main, output
from oodbench.data import catalog as catalogue
from oodbench.data.paths import config_folder, config_folder_or_none, data_root
from oodbench.distributed import cluster as connection
from oodbench.distributed.cluster import WorkerFolder, remove_stale_folders
from oodbench.errors import ProblemList, UserError, raise_all
from oodbench.method.parameters import conform, parse_names
from oodbench.pipeline.request import RunRequest, check_options
from oodbench.storage.files import read_text, write_text
from oodbench.storage.store import default_root
from oodbench.training.plan import TrainRequest
from oodbench.training.plan import check_options as check_training

HOSTILE = "a\x1b[31m\u202e\x07[bold]b"
SEEN = r"a\x1b[31m\u202e\x07[bold]b"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def refused(*arguments: str | Path) -> str:
    """The only line of a command's error."""
    done = call(*arguments)
    assert isinstance(done.exception, SystemExit), done.exception
    lines = [line for line in done.stderr.split("\n")[:-1] if not line.startswith("  ")]
    assert done.exit_code == 2 and len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return done.stderr


# Errors in one form


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--nope"], "No such option"),
        (["run", "--limit", "x"], "Invalid value for '--limit': 'x' is not a valid integer; see main run --help"),
        (["score"], "Missing argument 'IMAGES...'; see main score --help"),
        (["rnu"], "no command 'rnu'; did you mean 'run'?"),
        (["store", "nope"], "no command 'nope'; known: gc, ls"),
        (["datasets", "check", "--format", "xml"], "'xml' is not one of 'text', 'json'"),
        (["run", "--id", "a\nb\x1b[2J"], r"no dataset 'a\nb\x1b[2J'"),
        (["run", "--limit", "a\nb\x1b[2J"], r"\x1b[2J"),
        (["run", "--ood", "folder:/nope/a\n  b"], r"/nope/a"),
        (["report", "--ood", "a\nb", "--results", "nowhere"], "nowhere"),
        (["store", "gc", "--max-size", "9" * 400], "cannot read the size '999"),
        (["explain", "x.png", "-o", "nowhere/x.txt"], "--output nowhere/x.txt: there is no folder "),
        (["datasets", "check", "glyphs", "-o", "nowhere/x.json"], "--output nowhere/x.json: there is no folder "),
        (["weights", "x.safetensors", "-o", "."], "--output . is a folder; name a file"),
        (["run", "--ood", '"folder:a'], "a quote is not closed"),
    ],
)
def test_click_errors_and_user_errors_have_the_same_form(arguments: Sequence[str], said: str) -> None:
    assert said in refused(*arguments)


def test_each_problem_is_on_a_separate_line() -> None:
    collected = ProblemList()

    def fails() -> None:
        raise_all(["one\nwith a line break", "two\n  which goes on", "one\nwith a line break"])

    collected.attempt(fails)
    assert collected.problems == ["one\nwith a line break", "two\n  which goes on"]

    @click.group(cls=group.CommandGroup)
    def outer() -> None:
        pass

    @outer.command()
    def inner() -> None:
        raise_all([*collected.problems, "three"])

    done = CliRunner().invoke(outer, ["inner"])
    assert done.exit_code == 2
    assert done.stderr == "error: one\\nwith a line break\nerror: two\n  which goes on\nerror: three\n"


# Streams


def failing(error: Exception) -> click.Group:
    @click.group(cls=group.CommandGroup)
    def outer() -> None:
        pass

    @outer.command()
    def run() -> None:
        raise error

    return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "results/x.json"), "results/x.json: No space left on device"),
        (OSError("4194304 requested and 1712 written"), "No space left on device"),
        (IsADirectoryError(21, "Is a directory", "x"), "x: Is a directory"),
    ],
)
def test_an_os_error_is_one_line(error: OSError, said: str) -> None:
    done = CliRunner().invoke(failing(error), ["run"])
    assert done.exit_code == 2
    assert done.stderr == f"error: {said}. Finished work is saved; rerun the same command to resume.\n"


def test_an_explanation_is_written_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodbench.detector.explain.explain", lambda request, images, top, watch: ["one", "two"])
    monkeypatch.setattr("oodbench.detector.explain.text", lambda image: f"{image} is known")
    done = call("explain", "x.png", "-o", tmp_path / "x.txt")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"wrote {tmp_path / 'x.txt'}\n")
    assert (tmp_path / "x.txt").read_text() == "one is known\n\ntwo is known\n"
    assert call("explain", "x.png").stdout == "one is known\n\ntwo is known\n"


def test_a_name_that_a_library_cannot_encode_is_one_line() -> None:
    error = UnicodeEncodeError("utf-8", "a\udcff\nb", 1, 2, "surrogates not allowed")
    done = CliRunner().invoke(failing(error), ["run"])
    assert done.exit_code == 2
    assert done.stderr == r"error: the name a\udcff\nb is not UTF-8, which a library needs here; rename it" + "\n"


def test_a_full_disk_names_the_file_and_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "row.json", "{}")
    assert caught.value.filename == str(tmp_path / "row.json")
    assert not list(tmp_path.iterdir())


COMMANDS: list[list[str]] = [
    ["methods"],
    ["methods", "mcm"],
    ["datasets"],
    ["datasets", "show", "mos"],
    ["--version"],
    ["-h"],
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_full_or_closed_stdout(command: list[str]) -> None:
    executable = [str(Path(sys.executable).with_name("oodbench")), *command]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(executable, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "error: " in done.stderr
    assert "No space left on device" in done.stderr
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(executable, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_characters_that_stdout_cannot_encode_are_replaced(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with output.any_encoding():
        print("† ± 数 \udcff")
        output.note("數 \udcff")
        out.flush()
        err.flush()
    assert (out.errors, err.errors) == ("strict", "strict")
    seen = {"ascii": r"~ \xb1 \u6570 \udcff", "latin-1": r"~ ± \u6570 \udcff", "cp1252": r"† ± \u6570 \udcff"}
    assert out.buffer.getvalue().decode(encoding) == seen.get(encoding, r"† ± 数 \udcff") + "\n"
    told = "數" if encoding == "utf-8" else r"\u6578"
    assert err.buffer.getvalue().decode(encoding) == told + " \\udcff\n"


# Names on a terminal


def test_control_characters_in_names_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(f"{HOSTILE}\n数")
    output.note(f"{HOSTILE}\nx")
    output.print_errors(f"{HOSTILE}\nx\n  more {HOSTILE}", "other")
    told = capsys.readouterr()
    assert told.out == f"{SEEN}\n数\n"
    assert told.err == f"{SEEN}\\nx\nerror: {SEEN}\\nx\n  more {SEEN}\nerror: other\n"


def test_logged_names_are_printable() -> None:
    record = logging.LogRecord("oodbench", logging.WARNING, "", 0, "left out: %s", (f"{HOSTILE}\nx",), None)
    assert output.Formatter("%(levelname)s: %(message)s").format(record) == f"WARNING: left out: {SEEN}\\nx"


def test_warnings_of_a_command_without_a_log_are_printable(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a\x1b[2Jb.json").write_text("{")
    code = f"import sys; from oodbench.cli import main; main(['report', '--results', {str(tmp_path)!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "\x1b" not in done.stderr
    assert done.stderr.startswith("skipped: ") and r"a\x1b[2Jb.json is not JSON" in done.stderr


def test_bars_show_names_as_they_are_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from oodbench.cli.progress import ProgressBars

    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=screen, force_terminal=True, width=200))
    for unit in ("images", "bytes"):
        with ProgressBars(unit) as bars:
            bars.add(HOSTILE, 3)(description=f"score {HOSTILE}", text=HOSTILE)
            bars.count(HOSTILE, 3)(1)
            bars._progress.refresh()
    text = screen.getvalue()
    assert SEEN in text and "\u202e" not in text and "\x1b[31m\u202e" not in text and "\x07" not in text


def test_lists_and_plans_keep_a_line_for_each_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a\n\x1b[2Jb"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "x.png")
    done = call(
        "run", "--dry-run", "--methods", "mcm", "--limit", "2", "--ood", f"folder:{folder}", "--tracking-uri", "none"
    )
    assert done.exit_code == 0 and "\x1b" not in done.stdout
    assert [line for line in done.stdout.split("\n") if r"a\n\x1b[2Jb: 1 images" in line]
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "odd.toml").write_text('title = "a\\n\\u001b[2Jb"\nloader = "images"\npath = "x"\n')
    monkeypatch.setenv("OODBENCH_CONFIG", str(tmp_path))
    catalogue.datasets.cache_clear()
    try:
        for command in (["datasets"], ["datasets", "show", "odd"]):
            assert r"a\n\x1b[2Jb" in call(*command).stdout
    finally:
        catalogue.datasets.cache_clear()


# A user without a home


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def none(*_: Any) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "OODBENCH_STORE", "OODBENCH_CONFIG", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", none)
    catalogue.datasets.cache_clear()
    yield
    catalogue.datasets.cache_clear()


def test_without_a_home_the_store_has_to_be_named(homeless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no home folder for the store; set \$OODBENCH_STORE, or give --store"):
        default_root()
    assert "--store" in refused("run", "--dry-run")
    monkeypatch.setenv("OODBENCH_STORE", "~nobody-of-that-name/x")
    assert "$OODBENCH_STORE ~nobody-of-that-name/x" in refused("store", "ls")
    monkeypatch.setenv("OODBENCH_STORE", "/somewhere")
    assert default_root() == Path("/somewhere")


def test_without_a_home_there_are_no_user_declarations(homeless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "imagenet1k" in catalogue.datasets() and config_folder_or_none() is None
    with pytest.raises(UserError, match=r"name a folder with \$OODBENCH_CONFIG"):
        config_folder()
    monkeypatch.setenv("OODBENCH_CONFIG", "~nobody-of-that-name/x")
    with pytest.raises(UserError, match=r"\$OODBENCH_CONFIG ~nobody-of-that-name/x cannot be read"):
        config_folder_or_none()
    monkeypatch.setenv("OODBENCH_DATA", "~nobody-of-that-name/x")
    with pytest.raises(UserError, match=r"\$OODBENCH_DATA ~nobody-of-that-name/x cannot be read"):
        data_root(None)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can be somebody else")
def test_a_user_without_passwd_entry_runs_and_records(tmp_path: Path) -> None:
    """uid 54321 has no home; that root may read all files is kept, for Python may lie below root's own home."""
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.is_dir() and not os.stat(folder).st_mode & 0o005 and "pytest" in folder.name:
            folder.chmod(0o755)
    capable = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    somebody = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *capable]
    command = [str(Path(sys.executable).with_name("oodbench")), "run", "--methods", "mcm", "--limit", "9"]
    environment = {"PATH": os.environ["PATH"], "OMP_WAIT_POLICY": "PASSIVE"}
    given = ["--store", str(tmp_path / "store"), "--results", str(tmp_path / "out")]
    done = subprocess.run([*somebody, *command, *given], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"results: {tmp_path / 'out' / 'runs'}" in done.stderr.splitlines()
    assert (tmp_path / "out" / "sent.jsonl").read_text().count("\n") == 1
    done = subprocess.run([*somebody, *command], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "give --store" in done.stderr


# Numbers


@pytest.mark.parametrize("value", ["-1", "99999999999999999999", "9" * 400, "nan", "inf", "1e400", "x", ""])
@pytest.mark.parametrize("flag", ["--seed", "--limit", "--batch-size", "--workers", "--bootstrap", "--actors"])
def test_numbers_of_a_run_out_of_range(flag: str, value: str) -> None:
    assert flag in refused("run", "--dry-run", "--methods", "mcm", flag, value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0"])
def test_gpus_per_actor_are_a_number(value: str) -> None:
    with pytest.raises(UserError, match="--gpus-per-actor must be a number above 0"):
        check_options(RunRequest(gpus_per_actor=float(value)))


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay", "seed", "steps", "workers"])
def test_numbers_of_a_training_out_of_range(name: str) -> None:
    for value in (float("nan"), float("inf"), -1, 10**30):
        if (name, value) in (("lr", 10**30), ("eps", 10**30), ("weight_decay", 10**30)):
            continue
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be"):
            check_training(TrainRequest(method="clipn", **{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**400])
def test_a_hyper_parameter_is_a_finite_number(value: float) -> None:
    with pytest.raises(ValueError, match="takes "):
        conform(value, "float | None")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b", ("a", "b")),
        (' a , "folder:x, y " ,b ', ("a", "folder:x, y ", "b")),
        ('"say ""hi""",z', ('say "hi"', "z")),
        ("folder:a\nb,c", ("folder:a\nb", "c")),
        ('"folder:a\nb "', ("folder:a\nb ",)),
        ('folder:5"x,b', ('folder:5"x', "b")),
        (",, ,", ()),
        ("", ()),
    ],
)
def test_names_keep_what_is_quoted(text: str, names: tuple[str, ...]) -> None:
    assert parse_names(text) == names


@pytest.mark.parametrize("text", ['"a', 'x,"a', '"a"b,c', '"a" "b"'])
def test_quotes_that_do_not_close(text: str) -> None:
    with pytest.raises(UserError, match="a quote is not closed, or a comma is missing"):
        parse_names(text)


def test_a_torchrun_variable_that_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from oodbench.training.processes import process_group

    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match=r"^\$WORLD_SIZE must be a number, not 'two'"), process_group("cpu"):
        pass


# Texts of the user


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_config_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_bytes('methods = "mcm"\r\nid = "nöpe"\r\n'.encode(encoding))
    assert "no dataset 'nöpe'" in refused("run", "--dry-run", "--config", file)


def test_a_config_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes('id = "nöpe"\n'.encode("latin-1"))
    assert "latin.toml is not text in UTF-8 (byte 8); save it in UTF-8" in refused(
        "run", "--config", tmp_path / "latin.toml"
    )
    (tmp_path / "wide.toml").write_bytes(codecs.BOM_UTF16_LE + b"a")
    assert "is not text in UTF-8" in refused("run", "--config", tmp_path / "wide.toml")
    assert f"--config {tmp_path} is not a file" in refused("run", "--config", tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "fifo is not a file" in refused("run", "--config", tmp_path / "fifo")
    assert "No such file" in refused("run", "--config", tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(Path("a\0b"), "--config")


def test_names_in_a_config_may_have_commas_and_quotes(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b", c '
    (tmp_path / "my.toml").write_text(f"ood = ['folder:{folder}', 'glyphs-letters']\n")
    assert f"{folder}" in refused("run", "--dry-run", "--methods", "mcm", "--config", tmp_path / "my.toml")


# Ray


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where something accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_address_where_no_ray_answers(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent}")
    began = time.monotonic()
    said = rf"^\$RAY_ADDRESS 127.0.0.1:{silent}: no Ray cluster answers there \(timed out\); .* unset RAY_ADDRESS"
    with pytest.raises(UserError, match=said + ".*--ray no"):
        connection._check_address("auto")
    assert time.monotonic() - began < 20
    with pytest.raises(UserError, match=rf"^--ray ray://127.0.0.1:{silent}: no Ray cluster answers there"):
        connection._check_address(f"ray://127.0.0.1:{silent}")
    with pytest.raises(UserError, match="no Ray cluster answers there"):
        connection._check_address("127.0.0.1:1")
    monkeypatch.delenv("RAY_ADDRESS")
    connection._check_address("auto")  # left to Ray


@pytest.mark.parametrize(
    ("answer", "fine"), [(b"\0\0\0\4\0\0\0\0\0", True), (b"HTTP/1.1 400 Bad", False), (b"", False)]
)
def test_only_grpc_is_taken_for_ray(answer: bytes, fine: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            other, _ = server.accept()
            with other:
                other.recv(100)
                other.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        where = f"127.0.0.1:{server.getsockname()[1]}"
        if fine:
            connection._check_address(where)
        else:
            with pytest.raises(UserError, match="does not speak gRPC, as Ray does"):
                connection._check_address(where)
        thread.join()


def test_ray_has_a_short_folder_for_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert connection._session_folder() == {}
    for folder in (f"/tmp/{'x' * 60}", "/tmp/é"):
        monkeypatch.setenv("TMPDIR", folder)
        assert connection._session_folder() == {"_temp_dir": "/tmp/ray"}
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"its path is too long; set \$RAY_TMPDIR to a short one"):
        connection._session_folder()


def test_folders_of_dead_workers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import os, tempfile\nfrom oodbench.distributed.cluster import WorkerFolder\n"
    code += f"tempfile.tempdir = {str(tmp_path)!r}\nfolder = WorkerFolder()\n"
    code += "print(folder.path, flush=True)\nos.kill(os.getpid(), 9)\n"
    own = WorkerFolder()
    (own.path / "plugin.py").write_text("")
    killed = Path(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    )
    assert killed.is_dir()
    remove_stale_folders()
    assert not killed.exists() and (own.path / "plugin.py").is_file()
    own.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group_name", ["", "get", "store"])
def test_a_group_without_a_command_shows_its_help(group_name: str) -> None:
    done = call(*group_name.split())
    assert done.exit_code == 2 and done.stderr.startswith(f"Usage: main {group_name}".rstrip())
    assert ("\nCommands:\n" if group_name else "\nCompare methods:\n") in done.stderr
