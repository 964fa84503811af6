"""ImageNet-1k's validation images from the parquet files of a gated dataset on the Hugging Face Hub."""

from __future__ import annotations

import fnmatch
import os
import shutil
from pathlib import Path

from oodbench.data import imagenet
from oodbench.data.catalog import Dataset
from oodbench.data.install import DOWNLOADS, GetOptions, move_to
from oodbench.errors import UserError
from oodbench.storage.files import locked


def has_token() -> bool:
    """Return whether the user has a token for the Hub: $HF_TOKEN, or the one stored by `hf auth login`."""
    from huggingface_hub import get_token

    return bool(get_token())


def install_from_hub(dataset: Dataset, data_root: Path, options: GetOptions) -> str:
    """Download the parquet files that `dataset.hub` names, and write their images into class folders atomically.

    `dataset.hub` is a repository and a pattern, `owner/name:data/validation-*.parquet`. Downloads stay in the data
    folder until all are complete. Raises UserError if the Hub refuses the token, or if the image or class of a row
    differs from the index.
    """
    repository, _, pattern = dataset.hub.partition(":")
    folder, target = data_root / DOWNLOADS / dataset.name, dataset.folder(data_root)
    made = folder / "made-of-parquet"
    try:
        with locked(folder / ".lock", f"another process is downloading {dataset.name}; wait for it"):
            files = _download(repository, pattern, folder / "hub", options)
            advance = options.watch(f"unpack {dataset.name}", sum(file.stat().st_size for file in files))
            seen: set[int] = set()
            for file in files:
                seen |= _write_images(file, made)
                advance(file.stat().st_size)
            if len(seen) != imagenet.IMAGES:
                number = f"{len(seen):,} of {imagenet.IMAGES:,}"
                raise UserError(f"{repository} has {number} validation images; none was moved")
            target.parent.mkdir(parents=True, exist_ok=True)
            move_to(made, target)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    return f"fetched from {repository} on the Hugging Face Hub, which declares the digests of its files"


def _download(repository: str, pattern: str, folder: Path, options: GetOptions) -> list[Path]:
    """Return the parquet files of a repository; the Hub's client resumes and verifies downloads."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    page = f"https://huggingface.co/datasets/{repository}"
    shown = not are_progress_bars_disabled()
    disable_progress_bars()  # they would disrupt the progress bars of the command
    try:
        names = fnmatch.filter(huggingface_hub.list_repo_files(repository, repo_type="dataset"), pattern)
        advance = options.watch(f"fetch {repository}", 0)
        files = []
        for name in sorted(names):
            file = Path(huggingface_hub.hf_hub_download(repository, name, repo_type="dataset", local_dir=folder))
            advance(file.stat().st_size)
            files.append(file)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"the Hub refuses {repository} to this token: accept its terms at {page}, and set HF_TOKEN to a token with "
            "read access (https://huggingface.co/settings/tokens)"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot fetch {page}: {reason}; rerun the same command to resume") from error
    finally:
        if shown:
            enable_progress_bars()
    if not files:
        raise UserError(f"{page} has no file {pattern}")
    return files


def _write_images(file: Path, made: Path) -> set[int]:
    """Write the images of a parquet file, and return their numbers."""
    import pyarrow
    import pyarrow.parquet

    classes, folders = imagenet.validation_classes(), imagenet.wnids()
    seen = set()
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(64, columns=["image", "label"]):
                for row in batch.to_pylist():
                    number = imagenet.image_number(row["image"]["path"] or "")
                    if number is None or row["label"] != classes[number - 1]:
                        raise UserError(
                            f"{file.name} has an image '{row['image']['path']}' of class {row['label']}, unlike "
                            "ILSVRC2012; it is another dataset"
                        )
                    path = made / folders[row["label"]] / imagenet.image_name(number)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(row["image"]["bytes"])
                    seen.add(number)
    except (pyarrow.ArrowException, KeyError, TypeError) as error:
        os.unlink(file)
        raise UserError(f"{file.name} cannot be read: {error}; it was deleted; rerun to fetch it again") from error
    return seen
