"""Score files of other programs: all formats return the same scores, and errors name the first invalid score."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from oodbench.errors import UserError
from oodbench.metrics import score_files

SCORES = np.random.default_rng(0).normal(size=7)
NAMES = [f"class {i % 2}/image, {i}.png" for i in range(7)]
PLAIN = pd.DataFrame({"image": NAMES, "mine": SCORES})
FULL = pd.DataFrame({"gt": [0, 1, 0, 1, 0, 1, 0], "Scores": SCORES, "pred": [0, 0, 0, 1, 1, 1, -1], "path": NAMES})


def lines(path: Path, *texts: str) -> None:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


WRITTEN: dict[str, Callable[[Path], Any]] = {
    "a.npy": lambda p: np.save(p, SCORES),
    "one.npz": lambda p: np.savez(p, anything=SCORES),
    "openood.npz": lambda p: np.savez(p, pred=FULL["pred"], conf=SCORES, label=FULL["gt"], names=np.array(NAMES)),
    "savetxt.txt": lambda p: np.savetxt(p, SCORES, header="the scores", fmt="%.17g"),
    "named.txt": lambda p: lines(p, *(f"{n} {s!r}" for n, s in zip(NAMES, SCORES.tolist(), strict=True))),
    "bare.csv": lambda p: lines(p, "", *map(repr, SCORES.tolist()), ""),
    "pandas.csv": lambda p: PLAIN.to_csv(p),
    "series.csv": lambda p: pd.Series(SCORES).to_csv(p, encoding="utf-8-sig"),
    "headless.csv": lambda p: PLAIN.to_csv(p, header=False, index=False),
    "swapped.tsv": lambda p: PLAIN[["mine", "image"]].to_csv(p, sep="\t", header=False, index=False),
    "semicolons.csv": lambda p: PLAIN.to_csv(p, sep=";", index=False, lineterminator="\r\n"),
    "full.csv": lambda p: FULL.to_csv(p, index=False),
    "full.parquet": lambda p: FULL.to_parquet(p),
    "indexed.csv": lambda p: pd.Series(SCORES, NAMES).to_csv(p),
    "unnamed.csv": lambda p: pd.DataFrame({"Unnamed: 0": NAMES, "0": SCORES}).to_csv(p, index=False),
    "column0.csv": lambda p: pd.DataFrame({"img_path": NAMES, "0": SCORES}).to_csv(p, index=False),
    "indexed.parquet": lambda p: pd.DataFrame({"Score": SCORES}, NAMES).to_parquet(p),
    "bytes.npz": lambda p: np.savez(p, scores=SCORES, filepath=np.array(NAMES, dtype="S")),
    "rows.csv": lambda p: pd.DataFrame({"score": SCORES}, range(3, 10)).to_csv(p),
    "comment.csv": lambda p: np.savetxt(p, SCORES, header="score", fmt="%.17g"),
}
NAMED = {
    *("openood.npz", "named.txt", "pandas.csv", "headless.csv", "swapped.tsv", "semicolons.csv", "indexed.csv"),
    *("unnamed.csv", "column0.csv", "indexed.parquet", "bytes.npz"),
}


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("name", WRITTEN)
def test_every_format_gives_the_same_scores(name: str, rows: int, tmp_path: Path) -> None:
    WRITTEN[name](tmp_path / name)
    found = list(score_files.parts(tmp_path / name, rows))
    assert np.array_equal(np.concatenate([part.scores for part in found]), SCORES)
    assert len(found) == (1 if name.endswith(".npz") or rows > 7 else 3)
    if name in NAMED | {"full.csv", "full.parquet"}:
        assert [n for part in found for n in part.names.tolist()] == NAMES  # type: ignore[union-attr]
    read = score_files.read(tmp_path / name)
    if name in ("full.csv", "full.parquet", "openood.npz"):
        assert (read.labels == FULL["gt"]).all() and (read.predictions == FULL["pred"]).all()
    else:
        assert read.labels is read.predictions is None
        assert (read.names is None) == (name not in NAMED)


def test_sets_in_one_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "sets.npz", id=SCORES, sun=SCORES[:3])
    pd.DataFrame({"dataset": ["b"] * 2 + ["a"] * 5, "score": SCORES}).to_csv(tmp_path / "sets.csv", index=False)
    found = score_files.read(tmp_path / "sets.npz").by_dataset()
    assert {name: part.scores.tolist() for name, part in found.items()} == {
        "id": SCORES.tolist(),
        "sun": SCORES[:3].tolist(),
    }
    found = score_files.read(tmp_path / "sets.csv").by_dataset()
    assert list(found) == ["b", "a"] and found["a"].scores.tolist() == SCORES[2:].tolist()
    assert found["a"].where(0) == "line 4"


@pytest.mark.parametrize(
    ("index", "names"),
    [
        ([0, 1, 2], None),
        ([10, 20, 30], None),  # rows that were filtered
        ([2, 0, 1], ["2", "0", "1"]),  # rows that were sorted: their order is not that of the list
        (["007", "008", "009"], ["007", "008", "009"]),
    ],
)
def test_an_index_of_pandas_names_images_unless_it_counts_rows(index: Any, names: Any, tmp_path: Path) -> None:
    pd.DataFrame({"score": SCORES[:3]}, index).to_csv(tmp_path / "a.csv")
    found = score_files.read(tmp_path / "a.csv").names
    assert found is None if names is None else found is not None and found.tolist() == names
    both = pd.concat([pd.DataFrame({"dataset": name, "score": SCORES[:3]}, index) for name in ("a", "b")])
    both.to_csv(tmp_path / "b.csv")
    found = score_files.read(tmp_path / "b.csv").names
    assert found is None if names is None else found is not None and found.tolist() == 2 * names


BAD: list[tuple[str, Any, str]] = [
    ("a.csv", "score\n1\n\nnan\n", "line 4: the score is NaN"),
    ("a.csv", "score\n1\n-inf\n", "line 3: the score is infinite"),
    ("a.csv", "name,score\nx,1\ny,1e\n", "line 3: '1e' is not a number"),
    ("a.csv", "name,score\nx,1\ny,\n", "line 3: no score"),
    ("a.csv", "name,score\nx,1\ny,1,2\n", "line 3: 3 columns, but the first line has 2 columns"),
    ("a.csv", "score\n9007199254740993\n", "line 2: the score 9007199254740993 has more digits"),
    ("a.csv", "name,conf,score\nx,-1,1\n", "'conf' and 'score' may both be the scores"),
    ("a.csv", "a,b\nx,1\n", "no column 'score'; its columns are 'a', 'b'"),
    ("a.csv", "1,2\n3,4\n", "2 columns without names; name them in the first line"),
    ("a.csv", "score,pred\n1,cat\n", "column 'prediction' holds class indices, such as 7 (-1: none), not 'cat'"),
    ("a.csv", "img0.jpg;2,1257\n", "decimal commas; write 0.5, not 0,5"),
    ("a.csv", "2,1257;img0.jpg\n", "decimal commas; write 0.5, not 0,5"),
    ("a.csv", "img0.jpg;2,1e-05;7\n", "decimal commas; write 0.5, not 0,5"),
    ("a.csv", "img0.jpg;1.234,5\n", "decimal commas; write 0.5, not 0,5"),
    ("a.tsv", "img0.jpg\t-2,1257\n", "decimal commas; write 0.5, not 0,5"),
    ("a.txt", "img0.jpg 2,1257\n", "decimal commas; write 0.5, not 0,5"),
    ("a.txt", "2,1257\n3,5\n", "2 columns without names"),
    ("a.csv", "name;score\nimg0.jpg;2,1257\n", "line 2: '2,1257' is not a number; write 2.1257"),
    ("a.csv", "score\n0,5\n", "line 2: '0,5' is not a number; write 0.5"),
    ("a.txt", "0.1 0.2 0.3 0.4\n", "line 1: several numbers"),
    ("a.txt", "# score label pred\n0.1 3 3\n", "line 2: several numbers"),
    ("a.txt", "name score pred\nimg0.jpg 0.1 3\n", "line 2: several numbers"),
    ("a.txt", "0.1 3\n", "2 columns without names; name them in the first line"),
    ("a.csv", "0\n0.5\n0.25\n", "its first line, 0, looks like the header of pandas"),
    ("a.csv", "Image Name,MCM Score\nx,1\n", "rename one to score, and that of the images to name"),
    ("a.csv", "", "holds no scores"),
    ("a.csv", "score\n", "holds no scores"),
    ("a.txt", b"\xff\xfe\xfd", "not text in UTF-8"),
    ("a.csv", "pair,dataset,score\nx,y,1\n", "in a stream, the scores"),
    ("a.npy", np.array([1.0, np.nan]), "score 2 is NaN"),
    ("a.npy", np.array([[1.0], [2.0]]), "not float64 of shape (2, 1); flatten it with .ravel()"),
    ("a.npz", {"score": SCORES[:, None]}, "not float64 of shape (7, 1); flatten it with .ravel()"),
    ("a.npy", np.ones((2, 2)), "one real number per image is needed, not float64 of shape (2, 2)"),
    ("a.npz", {"id": SCORES, "sun": SCORES, "labels": np.ones(7, int)}, "its array 'labels' belongs to is not clear"),
    ("a.npy", np.array([1.0, None]), "Python objects are pickled"),
    ("a.npz", {"score": np.array([1.0, None])}, "save numbers and texts, not objects"),
    ("a.npz", {"score": SCORES, "names": np.array(NAMES[:3])}, "7 scores, but 3 of 'name'"),
    ("a.npz", {"score": SCORES, "names": np.array("mine")}, "7 scores, but 1 of 'name'"),
    ("a.npz", {"score": SCORES, "pred": np.array(3)}, "7 scores, but 1 of 'prediction'"),
    ("a.npz", "no archive", "cannot be read as .npz"),
    ("a.parquet", pd.DataFrame({"score": [1.0, None]}), "score 2 is NaN"),
    ("a.parquet", pd.DataFrame({"x": [1.0], "y": [1.0]}), "no column 'score'; its columns are 'x', 'y'"),
    ("a.parquet", "no parquet", "cannot be read as parquet"),
    ("a.pkl", "", "python -c 'import numpy, pickle; numpy.save("),
    ("a.PT", "", "loading one can run any code"),
    ("a.mat", "", "scores are read from .npy, .npz, .csv, .tsv, .txt, .parquet, not from '.mat'"),
    ("none.npy", None, "this score file does not exist"),
    ("none", None, "this score file does not exist"),
    ("spaces.csv", "score\n  \n1\nx\n", "line 4: 'x' is not a number"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[f"{b[0]}-{b[2][:20]}" for b in BAD])
def test_invalid_scores_are_named(name: str, content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes | str):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        content.to_parquet(path)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        score_files.read(path)
    assert str(path) in str(caught.value) or "column" in message
