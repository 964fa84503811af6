"""The shared store: entries are exchanged between machines, on a folder, an S3 server and Ray nodes."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oodbench.errors import UserError, has_credentials, redact_url
from oodbench.pipeline.plan import make_plan
from oodbench.results import rows
from oodbench.storage import remote as reaching
from oodbench.storage.shared import SharedStore, open_store
from oodbench.storage.store import Entry, Store

INPUTS = {"encoder": "abc", "names": ["ä", "日本"]}
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/common"


def write(store: Store, number: int = 0) -> Entry:
    array = np.arange(40, dtype=np.float32).reshape(10, 4) + number
    return store.write("embeddings", {**INPUTS, "number": number}, {"x": array, "y": array[:, 0]}, {"n": number})


def find(store: Store, number: int = 0) -> Entry | None:
    return store.find("embeddings", {**INPUTS, "number": number})


def there(tmp_path: Path, pattern: str) -> list[Path]:
    return sorted((tmp_path / "common").rglob(pattern))


def test_entries_are_found_by_another_machine(tmp_path: Path, url: str) -> None:
    one, other = SharedStore(tmp_path / "one", url), SharedStore(tmp_path / "other", url)
    assert find(other) is None and not other.has("embeddings", {**INPUTS, "number": 0})
    written = write(one)
    assert other.has("embeddings", written.inputs)
    found = find(other)
    assert found and found.path.is_relative_to(tmp_path / "other") and found.facts == {"n": 0}
    np.testing.assert_array_equal(found.array("x"), np.arange(40, dtype=np.float32).reshape(10, 4))
    assert not [path for path in (tmp_path / "other").rglob("*") if path.name.endswith(".tmp")]
    shutil.rmtree(tmp_path / "common")
    assert find(other) == found  # fetched once, then read here
    other.remove("embeddings", written.inputs)
    assert find(other) is None and find(one) == written


def test_older_local_entries_are_uploaded_when_read(tmp_path: Path, url: str) -> None:
    write(Store(tmp_path / "one"))
    shared, inputs = SharedStore(tmp_path / "one", url), {**INPUTS, "number": 0}
    assert not shared.has("embeddings", inputs)  # nobody else could read it
    assert find(shared) and shared.has("embeddings", inputs)
    assert find(SharedStore(tmp_path / "other", url))


@pytest.mark.parametrize("harm", ["array", "head", "gone"])
def test_a_damaged_remote_entry_is_recomputed(
    harm: str, tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(SharedStore(tmp_path / "one", url))
    victim = there(tmp_path, "entry.json" if harm == "head" else "*.npy")[0]
    if harm == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-3])
    other = SharedStore(tmp_path / "other", url)
    with caplog.at_level(logging.WARNING):
        assert find(other) is None
    assert "is damaged" in caplog.text and not list((tmp_path / "other").rglob("entry.json"))
    write(other)
    assert find(SharedStore(tmp_path / "third", url))


def test_two_writers_of_different_content_do_not_mix(tmp_path: Path, url: str) -> None:
    """Arrays are named by content, so arrays and entry.json come from one writer in any order of writes."""
    inputs = {"a": 1}
    for name, value in (("one", 1.0), ("other", 2.0)):
        SharedStore(tmp_path / name, url).write("scores", inputs, {"s": np.full(3, value), "t": np.full(2, value)}, {})
    heads = there(tmp_path, "entry.json")
    found = SharedStore(tmp_path / "third", url).find("scores", inputs)
    assert len(heads) == 1 and found
    assert {float(found.array(name)[0]) for name in ("s", "t")} == {2.0}


def test_bad_urls_are_reported_first(tmp_path: Path, cli: Cli) -> None:
    for url, said in (("s3", "is not a URL"), ("nowhere://bucket/x", "Protocol not known: nowhere")):
        with pytest.raises(UserError, match=said):
            open_store(tmp_path, url)
    done = cli("run", "--shared", "nowhere://x", "--store", tmp_path / "s", "--results", tmp_path / "o")
    assert done.returncode == 2 and "nowhere://x cannot be opened" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "s").exists()


def test_unreachable_stores_are_retried_and_reported(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("oodbench.storage.remote.PAUSE", 0.01)
    shared = SharedStore(tmp_path / "one", url)
    calls = []

    def fails(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) < 3 or broken:
            raise OSError("connection reset")

    broken = False
    monkeypatch.setattr(shared._system, "pipe_file", fails)
    with caplog.at_level(logging.WARNING):
        write(shared)
    assert len(calls) == 3 and caplog.text.count("trying again") == 2
    broken = True
    with pytest.raises(UserError, match="does not answer: connection reset.*are kept in"):
        write(shared, 1)
    assert find(Store(tmp_path / "one"), 1)  # nothing is lost


def test_a_remote_entry_stays_in_its_folder(tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture) -> None:
    write(SharedStore(tmp_path / "one", url))
    [head] = there(tmp_path, "entry.json")
    text = json.loads(head.read_text())
    text["arrays"]["../../../../evil"] = text["arrays"]["x"]
    head.write_text(json.dumps(text))
    with caplog.at_level(logging.WARNING):
        assert find(SharedStore(tmp_path / "other", url)) is None
    assert "is not the name of an array" in caplog.text and not list(tmp_path.rglob("evil*"))


def test_a_read_only_local_store_is_shared(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Store(tmp_path / "one"))

    def refused(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refused)
    assert find(SharedStore(tmp_path / "one", url))


def test_passwords_and_signatures_are_not_shown(tmp_path: Path, cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    done = cli("run", "--shared", "nowhere://me:s3cret@host/x", "--store", tmp_path / "s", "--results", tmp_path / "o")
    assert done.returncode == 2 and "nowhere://host/x" in done.stderr and "s3cret" not in done.stderr
    for text in ("https://me:s3cret@host/x.tar", "https://host/x.tar?X-Amz-Signature=s3cret"):
        done = cli("run", "--ood", f"tar:{text}", "--store", tmp_path / "s", "--results", tmp_path / "o")
        assert done.returncode == 2 and "leave out password and signature" in done.stderr
        assert "s3cret" not in done.stderr and "https://host/x.tar" in done.stderr
    with pytest.raises(UserError, match=r"github://x cannot be opened: "):
        reaching.open_filesystem("github://x")
    assert redact_url("https://host/a?download=1") == "https://host/a" and not has_credentials(
        "https://host/a?download=1"
    )


def test_two_downloads_of_one_file_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    content = os.urandom(4096)
    (tmp_path / "x.tar").write_bytes(content)

    def slowly(system: Any, source: str, goal: str, **_: Any) -> None:
        with open(goal, "wb") as file:
            for start in range(0, len(content), 256):
                file.write(content[start : start + 256])
                file.flush()
                time.sleep(0.005)

    monkeypatch.setattr(LocalFileSystem, "get_file", slowly)
    with ThreadPoolExecutor(3) as several:
        waiting = []
        for _ in range(3):
            waiting.append(several.submit(reaching.fetch, f"file://{tmp_path}/x.tar", tmp_path / "cache/x.tar"))
            time.sleep(0.03)
        assert [one.result().read_bytes() == content for one in waiting] == [True] * 3
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["x.tar"]


@pytest.mark.slow
def test_shards_at_a_url_are_the_same_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images on another machine, after fetching the shards there: equal list digest, images can be read."""
    from PIL import Image

    from oodbench.distributed.payload import portable
    from oodbench.pipeline.request import request_from

    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        for i in range(4):
            Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
            shard.add(tmp_path / f"{i}.png", f"c/{i}.png")
    found = []
    for name in ("here", "there"):
        monkeypatch.setenv("OODBENCH_STORE", str(tmp_path / name))
        asked = request_from(methods="mcm", ood=f"tar:file://{tmp_path}/x.tar", limit=4, out=tmp_path / "out")
        found.append(make_plan(asked).ood[0].listing)
    assert found[0].digest == found[1].digest
    sent = pickle.dumps(portable(found[0], tmp_path, Store(tmp_path / "here")))
    shutil.rmtree(tmp_path / "here")
    assert pickle.loads(sent).source.read("c/3.png").image().getpixel((0, 0))[0] == 180


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """s3://oodbench on a server of this test, which processes started from here can also reach."""
    pytest.importorskip("s3fs", reason="S3 needs the extra s3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "s3.log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(120):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.25)
        subprocess.run(
            [sys.executable, "-c", "import s3fs; s3fs.S3FileSystem().mkdir('oodbench')"], check=True, timeout=120
        )
        yield "s3://oodbench/team/store"
    finally:
        server.kill()
        server.wait()


RUN = ("run", "--methods", "msp,react", "--limit", "60", "--tracking-uri", "none")


@pytest.mark.slow
def test_a_second_machine_computes_nothing(bucket: str, cli: Cli, tmp_path: Path) -> None:
    one = cli(*RUN, "--shared", bucket, "--store", tmp_path / "one", "--results", tmp_path / "a")
    assert one.returncode == 0, one.stderr
    other = (*RUN, "--store", tmp_path / "other", "--results", tmp_path / "b")
    plan = cli(*other, "--shared", bucket, "--dry-run")
    assert "0 images to encode" in plan.stdout, plan.stdout + plan.stderr
    done = cli(*other, OODBENCH_SHARED=bucket)
    assert done.returncode == 0, done.stderr
    assert {row.digest for _, row in rows(tmp_path / "a")} == {row.digest for _, row in rows(tmp_path / "b")}
    kinds = {path.relative_to(tmp_path / "other").parts[0] for path in (tmp_path / "other").rglob("entry.json")}
    assert "scores" in kinds and "embeddings" not in kinds  # only what was needed was fetched
    gone = cli(*RUN, "--shared", "s3://elsewhere/x", "--store", tmp_path / "c", "--results", tmp_path / "c")
    assert gone.returncode == 2 and "the shared store s3://elsewhere/x" in gone.stderr, gone.stderr
    assert "Traceback" not in gone.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_nodes_without_a_common_folder_share_the_bucket(bucket: str, tmp_path: Path, cli: Cli, process: Cli) -> None:
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    script = (
        "import sys, json, ray\n"
        "from ray.cluster_utils import Cluster\n"
        "made = Cluster(initialize_head=True, head_node_args={'num_cpus': 0, 'include_dashboard': False})\n"
        "for name in ('n1', 'n2'):\n"
        "    made.add_node(num_cpus=1, env_vars={'OODBENCH_STORE': sys.argv[1] + '/' + name})\n"
        "print(made.address, flush=True)\n"
        "sys.stdin.read()\n"
        "made.shutdown()\n"
    )
    cluster = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        assert cluster.stdout
        address = cluster.stdout.readline().strip()
        options = ("--shared", bucket, "--ray", address, "--device", "cpu", "--store", tmp_path / "driver")
        done = process(
            *RUN, *options, "--results", tmp_path / "there", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0"
        )
        assert done.returncode == 0, done.stderr
    finally:
        cluster.communicate(timeout=60)
    here = cli(*RUN, "--store", tmp_path / "here-store", "--results", tmp_path / "here", "--device", "cpu")
    assert here.returncode == 0
    found, plain = ({row.label: row.digest for _, row in rows(tmp_path / out)} for out in ("there", "here"))
    assert found == plain and set(found) == {"msp", "react"}
    made = [json.loads(line) for line in (tmp_path / "there" / "events.jsonl").read_text().splitlines()]
    assert len({one["worker"] for one in made if one["what"] == "joined"}) == 2
    assert any((tmp_path / "n1").rglob("entry.json")) and any((tmp_path / "n2").rglob("entry.json"))
    assert not any((tmp_path / "driver").glob("embeddings/*"))  # only scores came to the driver


@pytest.mark.slow
def test_images_are_read_from_shards_in_a_bucket(bucket: str, tmp_path: Path, process: Cli) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, count in (("id/red", 12), ("id/blue", 12), ("ood", 16)):
        (tmp_path / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / name / f"{i:02}.png")
    for part in range(2):
        with tarfile.open(tmp_path / f"x-{part}.tar", "w") as shard:
            for i in range(8 * part, 8 * part + 8):
                shard.add(tmp_path / f"ood/{i:02}.png", f"ood/{i:02}.png")
    put = "import s3fs, sys; s3fs.S3FileSystem().put(sys.argv[1:], 'oodbench/data/')"
    subprocess.run([sys.executable, "-c", put, *map(str, sorted(tmp_path.glob("*.tar")))], check=True, timeout=120)
    command = ("run", "--methods", "mcm", "--id", f"folder:{tmp_path}/id", "--encoder", "glyphs")
    options = ("--tracking-uri", "none", "--store", tmp_path / "s")
    done = process(*command, "--ood", "tar:s3://oodbench/data/x-{0..1}.tar", *options, "--results", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    plain = process(*command, "--ood", f"folder:{tmp_path}/ood", *options, "--results", tmp_path / "b")
    assert plain.returncode == 0, plain.stderr
    there, here = (next(row for _, row in rows(tmp_path / out)).ood[0] for out in ("a", "b"))
    assert (there.n, there.auroc, there.fpr95) == (16, here.auroc, here.fpr95)
    lost = process(*command, "--ood", "tar:s3://oodbench/data/none.tar", *options, "--results", tmp_path / "c")
    assert lost.returncode == 2 and "cannot fetch s3://oodbench/data/none.tar: it does not exist" in lost.stderr
