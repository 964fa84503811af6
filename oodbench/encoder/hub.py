"""Files of the Hugging Face Hub: a cached one needs no network; without a network the error comes at once."""

from __future__ import annotations

import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained_from_hf

T = TypeVar("T")
_SECONDS = 5  # to wait for an answer of the Hub


def weights(repository: str, name: str = "") -> Path:
    """The checkpoint of a repository, safetensors where there are some; an OSError when out of reach."""
    names = [f"{name.rpartition('.')[0]}.safetensors", name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    return cached(repository, *names) or _download(repository, name or None)


def config(repository: str) -> Path:
    """open_clip's config of a repository."""
    return cached(repository, HF_CONFIG_NAME) or _download(repository, HF_CONFIG_NAME)


def cached(repository: str, *names: str) -> Path | None:
    """The first of these files that an earlier download left on this machine."""
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def require() -> None:
    """ConnectionError when the Hub does not answer: its own client retries for 23 seconds a file before it says so."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    if os.environ.get("ALL_PROXY") or os.environ.get("all_proxy"):
        return  # urllib does not read it, the client does
    address = huggingface_hub.constants.ENDPOINT
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # it answered
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # the client may trust other certificates
            raise ConnectionError(f"{address} cannot be reached ({reason})") from error


def _download(repository: str, name: str | None) -> Path:
    require()
    return Path(download_pretrained_from_hf(repository, filename=name))


def reason(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def quietly(call: Callable[[], T]) -> T:
    """Run without open_clip's and the hub's log lines: what went wrong becomes one error."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        return call()
    finally:
        logging.disable(previous)
