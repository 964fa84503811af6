"""Credentials in URLs are removed from messages, logs, events and tracebacks."""

from __future__ import annotations

import io
import json
import logging
import pickle
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from oodbench import errors
from oodbench.cli import main
from oodbench.cli.output import configure_logging
from oodbench.data.catalog import dataset
from oodbench.errors import UserError
from oodbench.pipeline.events import Event, log_to
from oodbench.storage.download import Download, download
from oodbench.training.captions_tar import check_shards

SECRETS = [
    "http://user:hunter2@example.org/x.tar",
    "http://hunter2@example.org/x.tar",
    "http://user:hunt/er2@example.org/x.tar",
    "http://user:hunt@er2@example.org/x.tar",
    "http://user:hunt#er2@example.org/x.tar",
    "http://user:%68unter2@example.org/x.tar",
    "s3://AKIA:hunter2@bucket/x.tar",
    "https://example.org/x.tar?password=hunter2",
    "https://example.org/x.tar?a=1&Auth=hunter2",
    "https://example.org/x.tar?token=hunter2",
    "https://example.org/x.tar?access_token=hunter2#x",
    "https://example.org/x.tar#access_token=hunter2",
    "https://example.org/x.tar?api_key=hunter2",
    "https://example.org/x.tar?pass%77ord=hunter2",
    "https://example.org/x.tar?a=1;secret=hunter2",
    "https://example.org/x.tar?X-Amz-Credential=AKIA%2F2&X-Amz-Signature=hunter2",
    "https://example.org/x.tar?AWSAccessKeyId=AKIA&Signature=hunter2&Expires=3",
    "https://example.org/x.tar?sv=2022&sig=hunter2",
    "https://example.org/x.tar?Policy=hunter2&Key-Pair-Id=K",
    "https://example.org/x.tar?GoogleAccessId=me&x-goog-signature=hunter2",
]
PLAIN = [
    "https://example.org/x.tar",
    "https://example.org:8443/a@2x/x.tar?version=3&raw=1",
    "http://127.0.0.1:5000/#/experiments/1",
    "s3://bucket/oodbench-{000..031}.tar",
    "http://[::1]:80/x.tar",
    "sqlite:////home/me/results/mlflow.db",
]


def is_clean(text: str) -> bool:
    return not any(part in text for part in ("hunter2", "er2", "%68unter2"))


@pytest.mark.parametrize("url", SECRETS)
def test_credentials_of_urls_are_redacted(url: str) -> None:
    assert errors.has_credentials(url)
    for text in (
        errors.redact_url(url),
        errors.redact(f"cannot fetch '{url}' ({url}), twice"),
        str(UserError(f"lost {url}")),
    ):
        assert is_clean(text) and "example.org/x.tar" in text.replace("bucket", "example.org")
    assert is_clean(repr(UserError(f"lost {url}"))) and is_clean(str(pickle.loads(pickle.dumps(UserError(url)))))


@pytest.mark.parametrize("url", PLAIN)
def test_other_urls_are_unchanged(url: str) -> None:
    assert not errors.has_credentials(url)
    assert errors.redact(f"see {url}.") == f"see {url}."


def test_other_texts_are_unchanged() -> None:
    for text in ("list:a.txt@images", "ViT-B-16/openai@weights.pt", "a?token=x", "user:pw@host", "x" * 5000):
        assert errors.redact(text) == text


def test_errors_that_quote_part_of_a_url_are_redacted() -> None:
    url = "http://user:hunter2@example.org/x?sig=s1gn"
    for said in ("nonnumeric port: 'hunter2@example.org'", f"at {url}", "bad query sig=s1gn", "user:hunter2"):
        found = errors.redact_error(url, ValueError(said))
        assert "hunter2" not in found and "s1gn" not in found and found


@pytest.mark.parametrize("url", [one for one in SECRETS if not one.startswith("s3")])
def test_sets_and_captions_reject_urls_with_credentials(url: str) -> None:
    """They would appear in rows, tables, MLflow and the headers of weights."""
    for ask in (lambda: dataset(f"tar:{url}"), lambda: check_shards(url)):
        with pytest.raises(UserError, match="leave out password and signature") as error:
            ask()
        assert is_clean(str(error.value))


@pytest.mark.parametrize(
    "url",
    ["http://user:hunter2@127.0.0.1:9/x", "http://[::1/x?token=hunter2", "http://127.0.0.1:x/x?token=hunter2"],
)
def test_downloads_show_no_credentials(url: str, tmp_path: Path) -> None:
    from oodbench.storage.download import RetryPolicy

    with pytest.raises(UserError, match="cannot fetch|gave up on") as error:
        download(Download(url), tmp_path / "x", RetryPolicy(timeout=0.3, tries=2, pause=0.01))
    assert is_clean(str(error.value)) and [one.name for one in tmp_path.iterdir()] == [".x.part.lock"]


def test_logs_tracebacks_and_events_show_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = logging.getLogger("oodbench").level
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    try:
        configure_logging(True)
        try:
            raise ValueError(SECRETS[0])
        except ValueError:
            logging.getLogger("oodbench").warning("lost %s", SECRETS[8], exc_info=True)
    finally:
        logging.getLogger("oodbench").setLevel(level)
        root.setLevel(logging.WARNING)
    assert "ValueError: http://example.org/x.tar" in stderr.getvalue() and is_clean(stderr.getvalue())
    with log_to(tmp_path / "events.jsonl") as told:
        told(Event("failed", "extract", "x", reason=f'lost "{SECRETS[0]}" and {SECRETS[7]}'))
    text = (tmp_path / "events.jsonl").read_text()
    assert json.loads(text)["reason"] == 'lost "http://example.org/x.tar" and https://example.org/x.tar?password=...'


def test_a_verbose_traceback_shows_no_credentials(tmp_path: Path) -> None:
    level = logging.getLogger("oodbench").level
    try:
        done = CliRunner().invoke(main, ["run", "-v", "--ood", f"tar:{SECRETS[0]}", "--results", str(tmp_path)])
    finally:
        logging.getLogger("oodbench").setLevel(level)
    assert done.exit_code == 2 and "Traceback" in done.output and is_clean(done.output)
