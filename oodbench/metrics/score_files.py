"""Score files of other programs: .npy, .npz, .csv, .tsv, .txt and .parquet, read in parts of any size.

A file holds one score per image: an array, or a column `score`. Columns may name the image, its class index, the
predicted class index and its image set. Pickled files are refused, because loading one can run any code.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics.detection import INTEGERS, Floats, exact
from oodbench.metrics.streaming import open_shard

ROWS = 1 << 20  # scores in a part
_LINES = 1 << 16  # lines in a part of a text file: cells take a hundred times the memory of their numbers
SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".txt", ".parquet")
_PICKLED = (".pkl", ".pickle", ".p", ".joblib", ".pt", ".pth", ".ckpt")
_LOAD = {
    "torch": "import numpy, torch; numpy.save({to}, torch.load({path}, weights_only=True).double().numpy())",
    "pickle": 'import numpy, pickle; numpy.save({to}, numpy.asarray(pickle.load(open({path}, "rb")), float))',
}
# Kind of a column -> its possible names in a file, in upper or lower case; `conf`, `pred` and `gt` are OpenOOD's.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "score": ("score", "scores", "conf", "confidence"),
    "name": (
        *("name", "names", "image", "images", "path", "paths", "file", "files", "filename", "filenames"),
        *("file_name", "filepath", "file_path", "fname", "image_name", "image_path", "image_id"),
        *("img", "img_name", "img_path", "impath"),
    ),
    "index": ("", "index", "unnamed: 0", "__index_level_0__"),  # of pandas: names of images, or numbers of rows
    "label": ("label", "labels", "gt"),
    "prediction": ("prediction", "predictions", "pred"),
    "dataset": ("dataset",),
}
_DECIMAL_COMMA = re.compile(r"(?:^|[;\t]|(?<!unnamed:) )[+-]?\d[\d.]*,\d+(?:e[+-]?\d+)?\s*(?:$|[;\t ])", re.IGNORECASE)
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ScorePart:
    """Finite scores [n] of a file or a part of it, and its other columns for the same images (None if absent).

    names        names of the images [n]
    labels       class indices [n]
    predictions  predicted class indices [n], -1 for none
    datasets     names of the image sets [n]
    lines        line numbers [n] in a text file
    """

    scores: Floats
    names: NDArray[np.object_] | None = None
    labels: Integers | None = None
    predictions: Integers | None = None
    datasets: NDArray[np.object_] | None = None
    lines: Integers | None = None

    def where(self, index: int) -> str:
        """Return the position of a score in its file: `line 7`, or `score 7` for an array."""
        return f"score {index + 1}" if self.lines is None else f"line {self.lines[index]}"

    def take(self, chosen: NDArray[Any]) -> ScorePart:
        """Return some of the images, by a mask or by positions."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        taken: dict[str, Any] = {k: None if column is None else column[chosen] for k, column in columns.items()}
        return ScorePart(**taken)

    def by_dataset(self) -> dict[str, ScorePart]:
        """Return the scores of each image set, in order of appearance; under "" if the file names no set."""
        if self.datasets is None:
            return {"": self}
        return {str(name): self.take(self.datasets == name) for name in dict.fromkeys(self.datasets.tolist())}


def read(path: Path) -> ScorePart:
    """Read all scores of a file. Raise UserError for a file that is not supported, and a score that is not finite."""
    found = list(parts(path))
    if not found:
        raise UserError(f"{path} holds no scores")
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(ScorePart)):
        read_parts = [getattr(part, name) for part in found]
        columns[name] = None if any(one is None for one in read_parts) else np.concatenate(read_parts)
    return ScorePart(**columns)


def parts(path: Path, rows: int = ROWS) -> Iterator[ScorePart]:
    """Read the scores of a file in parts of at most `rows`, except .npz, which is read at once.

    Raise UserError for scores that are missing, NaN, infinite or not numbers, with the line or the number of the first,
    for files that cannot be read, and for pickled files.
    """
    check_file(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        arrays = ({"score": part} for part in open_shard(path).parts(rows))
        yield from _checked(path, arrays)
    elif suffix == ".npz":
        yield from _checked(path, _npz(path))
    elif suffix == ".parquet":
        yield from _checked(path, _parquet(path, rows))
    else:
        yield from _text(path, rows)


def check_file(path: Path) -> None:
    """Raise UserError for a file that does not exist or has an unsupported suffix."""
    suffix = path.suffix.lower()
    if suffix in _PICKLED:
        code = _LOAD["torch" if suffix in (".pt", ".pth", ".ckpt") else "pickle"]
        made = code.format(path=json.dumps(str(path)), to=json.dumps(str(path.with_suffix(".npy"))))
        raise UserError(
            f"{path}: pickled files are not read, because loading one can run any code; if you wrote it yourself, "
            f"save its scores as an array\n  python -c {shlex.quote(made)}"
        )
    if not path.name:
        raise UserError("the name of a score file is empty")
    if suffix not in SUFFIXES and path.exists():
        raise UserError(f"{path}: scores are read from {', '.join(SUFFIXES)}, not from '{path.suffix or path.name}'")
    if not path.is_file():
        raise UserError(f"{path}: this score file does not exist")


def _checked(path: Path, columns: Iterator[Mapping[str, Any]]) -> Iterator[ScorePart]:
    """Build parts from the columns of binary files."""
    seen = 0
    for found in columns:
        scores = exact(np.asarray(found["score"]), str(path)).astype(np.float64)
        if (bad := np.flatnonzero(~np.isfinite(scores))).size:
            raise UserError(f"{path}: score {seen + int(bad[0]) + 1} is {_named(scores[bad[0]])}")
        texts = {k: _decoded(found[k]) for k in ("name", "dataset", "index") if k in found}
        numbers = {k: _indices(found[k], f"{path}: column '{k}'") for k in ("label", "prediction") if k in found}
        if other := next((k for k, v in (*texts.items(), *numbers.items()) if len(v) != len(scores)), None):
            raise UserError(f"{path}: {len(scores)} scores, but {len({**texts, **numbers}[other])} of '{other}'")
        seen += len(scores)
        if len(scores):
            yield _part(scores, texts, numbers)


def _part(scores: Floats, texts: Mapping[str, Any], numbers: Mapping[str, Any]) -> ScorePart:
    """Build a part from columns by kind; class indices are dropped if there are no predictions."""
    said = numbers if "prediction" in numbers else {}
    names = texts.get("name")
    if names is None and "index" in texts and not _counts_rows(texts["index"], texts.get("dataset")):
        names = texts["index"]
    return ScorePart(scores, names, said.get("label"), said.get("prediction"), texts.get("dataset"), texts.get("line"))


def _counts_rows(index: NDArray[np.object_], datasets: NDArray[np.object_] | None) -> bool:
    """Return whether an index has ascending row numbers for each image set; those of sorted scores name images."""
    if not all(re.fullmatch(r"0|[1-9]\d*", str(one)) for one in index):
        return False
    ascending = np.diff(index.astype(np.float64)) > 0
    return bool((ascending if datasets is None else ascending | (datasets[1:] != datasets[:-1])).all())


def _decoded(texts: Any) -> NDArray[np.object_]:
    """Return texts as an array [n] of str; bytes are decoded as UTF-8."""
    given = np.atleast_1d(np.asarray(texts)).tolist()
    return np.array([t.decode(errors="backslashreplace") if isinstance(t, bytes) else t for t in given], dtype=object)


def _named(score: float) -> str:
    return "NaN" if np.isnan(score) else "infinite"


def _indices(values: Any, what: str) -> Any:
    """Return class indices as integers; other labels become -1, and other predictions raise UserError."""
    given = np.atleast_1d(np.asarray(values))
    if given.dtype.kind in "iu" or (given.dtype.kind == "f" and np.array_equal(given, np.round(given))):
        return given.astype(np.int64)
    if what.endswith("'prediction'"):
        raise UserError(f"{what} holds class indices, such as 7 (-1: none), not {str(given[0])!r}")
    return np.full(len(given), -1, dtype=np.int64)


def _npz(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the columns of an .npz file; every array with another name has the scores of one set."""
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        hint = "; save numbers and texts, not objects" if "allow_pickle" in str(error) else ""
        raise UserError(f"{path}: cannot be read as .npz ({str(error).splitlines()[0]}){hint}") from error
    known = columns_of(tuple(arrays), str(path), sets=True)
    if "score" in known:
        yield {kind: arrays[name] for kind, name in known.items()}
        return
    if known:
        other = next(iter(known.values()))
        raise UserError(f"{path}: which set its array '{other}' belongs to is not clear; leave it out")
    for name, scores in arrays.items():
        yield {"score": scores, "dataset": np.full(len(np.atleast_1d(scores)), name, dtype=object)}


def _parquet(path: Path, rows: int) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            known = columns_of(file.schema_arrow.names, str(path))
            for batch in file.iter_batches(rows, columns=list(known.values())):
                numbers = {k: batch[n].to_numpy(zero_copy_only=False) for k, n in known.items() if k != "dataset"}
                texts = {k: batch[n].to_pylist() for k, n in known.items() if k == "dataset"}
                yield {**numbers, **texts}
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]})") from error


def columns_of(names: Sequence[str], what: str, *, sets: bool = False) -> dict[str, str]:
    """Return the kind of each column (see `COLUMNS`) and its name in the file.

    Without a column `score`, the only column with another name has the scores. With `sets`, each of several such
    columns has those of one image set. Raise UserError if it is not clear which column has the scores.
    """
    lower = {name.strip().lower(): name for name in reversed(names)}
    if "pair" in lower and "dataset" in lower:
        raise UserError(
            f"{what}: in a stream, the scores of ID images differ between OOD sets; such files are not read"
        )
    found = {kind: lower[one] for kind, known in COLUMNS.items() for one in reversed(known) if one in lower}
    several = [name for name in names if name.strip().lower() in COLUMNS["score"]]
    if len(several) > 1:
        raise UserError(f"{what}: {' and '.join(map(repr, several))} may both be the scores; keep one of them")
    others = [name for name in names if name.strip() and name not in found.values()]
    if "score" not in found and len(others) == 1:
        found["score"] = others[0]
    if "score" not in found and (not sets or not others):
        rename = "; rename one to score, and that of the images to name" if len(others) > 1 else ""
        raise UserError(f"{what}: no column 'score'; its columns are {', '.join(map(repr, names)) or 'none'}{rename}")
    return found


# Text


def _text(path: Path, rows: int) -> Iterator[ScorePart]:
    """Read a text file with one image per line: a score, a name and a score, or the columns of a header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _lines(file, path)
            _, first = head = next(lines, (0, []))
            if not first:
                raise UserError(f"{path} holds no scores")
            columns, is_head = _columns(first, path)
            pending = lines if is_head else _chain(head, lines)
            while block := list(islice(pending, min(rows, _LINES))):
                if first == ["0"] and any("." in cells[0] for _, cells in block):
                    raise UserError(
                        f"{path}: its first line, 0, looks like the header of pandas; write the file with "
                        "header=['score'], or the first score as 0.0"
                    )
                yield _parsed(block, columns, len(first), path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8; save it in UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}: {error}") from error


def _chain(first: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from rest


def _lines(file: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line that is neither empty nor a comment: # in .txt, else # and a blank.

    The first line determines the separator. If it is a blank, the last word is one cell and the rest another.
    """
    suffix = path.suffix.lower()
    comment = re.compile("#" if suffix == ".txt" else r"#(\s|$)")  # np.savetxt writes `# ` before a header
    start = file.tell()
    first = next((line for line in file if line.strip() and not comment.match(line)), "")
    file.seek(start)
    if re.search(r"[;\t ]", first.strip()) and _DECIMAL_COMMA.search(first):
        raise UserError(
            f"{path}: the scores have decimal commas; write 0.5, not 0,5 (if the comma separates two columns, name "
            "them in the first line: name,score)"
        )
    separators = ",\t;" if suffix == ".csv" else "\t,;"
    separator = next((one for one in separators if one in first), "")
    words = first.rsplit(None, 1)
    if suffix == ".txt" and len(words) == 2 and _is_number(words[1]) and words[0][-1] not in separators:
        separator = ""  # it is part of the name
    if separator:
        reader = csv.reader(file, delimiter=separator)
        numbered = ((reader.line_num, cells) for cells in reader)
    else:
        numbered = ((number, _words(line, f"{path}, line {number}")) for number, line in enumerate(file, 1))
    for number, cells in numbered:
        if cells and (cells[-1].strip() or any(map(str.strip, cells))) and not comment.match(cells[0]):
            yield number, cells


def _words(line: str, what: str) -> list[str]:
    """Return the last word of a line and the rest. Raise UserError for two numbers: which is the score is not clear."""
    words = line.rsplit(None, 2)
    if len(words) == 3 and all(map(_is_number, words[1:])) and not line.startswith("#"):
        raise UserError(f"{what}: several numbers; keep the scores, or write .csv with a header")
    return line.rsplit(None, 1)


def _columns(first: Sequence[str], path: Path) -> tuple[dict[str, int], bool]:
    """Return the positions of the columns by kind, and whether the first line is a header."""
    numeric = [_is_number(cell) for cell in first]
    if not any(numeric) or any(first[0].strip().lower() in known for known in COLUMNS.values()):  # pandas names one 0
        found = columns_of(first, str(path))
        return {kind: list(first).index(name) for kind, name in found.items()}, True
    if len(first) == 1:
        return {"score": 0}, False
    if len(first) == 2 and sum(numeric) == 1:
        return {"score": numeric.index(True), "name": numeric.index(False)}, False
    raise UserError(
        f"{path}: {len(first)} columns without names; name them in the first line, such as "
        f"{'score,prediction' if len(first) == 2 else 'name,score,' + ','.join('-' * (len(first) - 2))}"
        f"{' (and write decimals as 0.5, not 0,5)' if len(first) == 2 else ''}"
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parsed(block: Sequence[tuple[int, list[str]]], columns: Mapping[str, int], width: int, path: Path) -> ScorePart:
    """Parse lines. Raise UserError for the first line that differs from the others in form."""
    numbers = np.array([number for number, _ in block])
    if short := next(((number, cells) for number, cells in block if len(cells) != width), None):
        raise UserError(f"{path}, line {short[0]}: {_count(len(short[1]))}, but the first line has {_count(width)}")
    texts: dict[str, Any] = {
        kind: np.array([cells[i].strip() for _, cells in block], dtype=object) for kind, i in columns.items()
    }
    try:
        scores = np.array(list(map(float, texts["score"])))
    except ValueError:
        scores = np.array([np.nan])
    if not (np.abs(scores) < INTEGERS).all():  # also for NaN; the loop finds the first invalid line
        scores = np.array([_number(cell, path, number) for cell, number in zip(texts["score"], numbers, strict=True)])
    indices: dict[str, Any] = {}
    for kind in ("label", "prediction"):
        if kind in texts and all(map(_is_number, texts[kind])):
            indices[kind] = _indices(np.array([float(cell) for cell in texts[kind]]), f"{path}: column '{kind}'")
        elif kind in texts and kind == "prediction":
            _indices(texts[kind].astype(str), f"{path}: column '{kind}'")
    return replace(_part(scores, texts, indices), lines=numbers)


def _count(columns: int) -> str:
    return f"{columns} column{'' if columns == 1 else 's'}"


def _number(cell: str, path: Path, line: int) -> float:
    """Return a score. Raise UserError for a cell that is not a finite number or has more digits than float64 keeps."""
    try:
        value = float(cell)
    except ValueError:
        comma = f"; write {cell.replace(',', '.')}" if re.fullmatch(r"[+-]?\d+,\d+", cell) else ""
        raise UserError(f"{path}, line {line}: {f'{cell!r} is not a number{comma}' if cell else 'no score'}") from None
    if not np.isfinite(value):
        raise UserError(f"{path}, line {line}: the score is {_named(value)}")
    if abs(value) >= INTEGERS and cell.lstrip("+-").isdigit() and int(cell) != value:
        raise UserError(f"{path}, line {line}: the score {cell} has more digits than float64 keeps")
    return value
