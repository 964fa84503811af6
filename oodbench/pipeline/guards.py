"""A method that is no stream scores each image on its own: what fit() returned stays as it was, and so do scores.

Both are looked at before and after every set, so that what a method keeps of the images it has seen is found wherever
it is kept: in what fit() returned or on the method itself, by comparing that; in a module, a closure or a class, by
scoring a few images again.
"""

from __future__ import annotations

import contextlib
import types
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from oodbench.method import Batch
    from oodbench.pipeline.batches import Given, Running

ROWS, PIXEL_ROWS = 32, 4  # images of each half of a sample; the second for methods that read pixels
EVERY = 256  # images after which a detector, which sees no whole sets, scores its sample again
CLOSE = 1e-3  # of the standard deviation of scores: what another batch size, or a GPU, may change
LOW_CLOSE = 0.05  # the same of a model that computes in half precision
ODD = 1 / 8  # of a sample may differ by more in another batch: where a method decides, a last digit can tip it

DIGIT = 1e-6  # of the largest score, besides: a float32 has a rounding error

Scores = npt.NDArray[np.float64]
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, type, types.ModuleType, types.BuiltinFunctionType)


@dataclass(frozen=True)
class Sample:
    """Some images of a set, in small batches; `rows` are their places among the set's scores, [batches][images]."""

    batches: tuple[Batch, ...]
    rows: tuple[npt.NDArray[np.int64], ...]

    def copies(self) -> list[Batch]:
        """The batches, which a method may spoil."""
        return [batch.copy() for batch in self.batches]

    def turned(self) -> list[Batch]:
        """The same in the opposite order."""
        return self.copies()[::-1]


def held(one: Running) -> dict[str, object]:
    """What a method has learnt and is set to, by place: `state['mean'][0]`, `self.scale`."""
    return {**contents(one.state, "state"), **{f"self{k}": v for k, v in contents(vars(one.method)).items()}}


def kept(one: Running, again: Given, close: float) -> str:
    """Why a method keeps something of the images that it has seen, or "".

    `again` is what it gives of the sample in the opposite order; `close` 0: scores are compared to the last digit.
    """
    if (place := difference(one.held, held(one))) is not None:
        return f"score() changes {place}: it may keep nothing of the images it sees; what is learnt belongs to fit()"
    if not one.first.scores:
        return ""
    before, after = np.concatenate(one.first.scores), np.concatenate(again.scores[::-1])
    apart = _apart(before, after, close)
    if apart.any():
        which = int(apart.argmax())
        return (
            f"score() keeps something of the images it has seen: one of them scores {before[which]:.9g} at first and "
            f"{after[which]:.9g} after a set; what is learnt belongs to fit(), and what is drawn must follow task.seed"
        )
    predictions = zip(one.first.predictions, again.predictions[::-1], strict=True)
    if not close and not all(np.array_equal(*both) for both in predictions):
        return "predict() keeps something of the images it has seen: it names other classes after a set than at first"
    return ""


def mixed(one: Running, whole: Given) -> str:
    """Why the scores of a set's first and last images are not theirs in a small batch, or ""."""
    if not one.sample or not one.first.scores:
        return ""
    rows = one.sample.rows
    among, alone = np.concatenate(whole.scores)[np.concatenate(rows)], np.concatenate(one.first.scores)
    apart = _apart(among, alone, CLOSE)
    if apart.mean() <= ODD:
        return ""
    which = int(apart.argmax())
    return (
        f"score() depends on the other images of the batch: one image scores {among[which]:.9g} in a batch of "
        f"{len(whole.scores[0])} and {alone[which]:.9g} in one of {len(rows[0])}; each must be scored on its own"
    )


def _apart(one: Scores, other: Scores, close: float) -> npt.NDArray[np.bool_]:
    if not close:
        return np.not_equal(one, other) & ~(np.isnan(one) & np.isnan(other))
    both = np.concatenate([one, other])
    both = both[np.isfinite(both)]
    allowed = close * both.std() + DIGIT * np.abs(both).max() if both.size else 0.0
    same: npt.NDArray[np.bool_] = np.isclose(one, other, rtol=0, atol=allowed, equal_nan=True)
    return ~same


def contents(value: object, name: str = "") -> dict[str, object]:
    """All that a value holds, by place (`name['mean'][0]`): plain values as they are written, arrays as checksums.

    Reads dicts, sequences, sets, closures and whatever can be pickled, by what pickle would store. What cannot be
    read, such as a lock or an iterator, counts by its type alone.
    """
    import torch

    from oodbench.method.bits import checksum

    found: dict[str, object] = {}
    places: dict[int, str] = {}
    alive: list[object] = []  # identities hold only as long as their objects
    todo: deque[tuple[str, object]] = deque([(name, value)])
    while todo:
        place, one = todo.popleft()
        if isinstance(one, _PLAIN):
            found[place] = repr(one)
        elif id(one) in places:
            found[place] = f"the same as {places[id(one)]}"
        elif isinstance(one, torch.Tensor) and one.layout is torch.strided:
            found[place] = (str(one.dtype), tuple(one.shape), checksum(one))
        elif isinstance(one, np.ndarray) and not one.dtype.hasobject:
            found[place] = (str(one.dtype), one.shape, checksum(_memory(one)))
        elif isinstance(one, (tuple, list)) and all(isinstance(part, _PLAIN) for part in one):
            found[place] = (len(one), blake2b(repr(one).encode("utf-8", "surrogatepass")).digest())
        else:
            places[id(one)] = place
            alive.append(one)
            found[place] = type(one).__qualname__
            with contextlib.suppress(Exception):  # of its own code: what cannot be read counts by its type
                todo.extend((place + name, part) for name, part in _parts(one))
    return found


def difference(before: Mapping[str, object], after: Mapping[str, object]) -> str | None:
    """The first place where contents differ; None when they are the same."""
    places = {**before, **after}
    return next((place for place in places if before.get(place) != after.get(place)), None)


def _memory(array: npt.NDArray[Any]) -> Any:
    import torch

    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return torch.from_numpy(flat if flat.flags.writeable else flat.copy())  # torch warns of what is read-only


def _parts(one: object) -> Iterator[tuple[str, object]]:
    if isinstance(one, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in list(one.items()))
    elif isinstance(one, (tuple, list, deque)):
        yield from ((f"[{number}]", part) for number, part in enumerate(one))
    elif isinstance(one, (set, frozenset)):
        yield from ((f"{{{number}}}", part) for number, part in enumerate(sorted(one, key=repr)))
    elif isinstance(one, np.ndarray):
        yield from ((f"[{number}]", part) for number, part in enumerate(one.ravel().tolist()))
    elif isinstance(one, types.FunctionType):
        names = one.__code__.co_freevars
        yield from ((f".{name}", _cell(cell)) for name, cell in zip(names, one.__closure__ or (), strict=True))
        yield from ((f".{name}", part) for name, part in vars(one).items())
        yield ".__defaults__", (one.__defaults__, one.__kwdefaults__)
    elif isinstance(one, types.MethodType):
        yield ".__self__", one.__self__
        yield ".__func__", one.__func__
    else:
        yield from _pickled(one)


def _cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _pickled(one: object) -> Iterator[tuple[str, object]]:
    """Attributes, and what else pickle would store of an object."""
    own = getattr(one, "__dict__", None)
    if isinstance(own, dict):
        yield from ((f".{name}", part) for name, part in list(own.items()))
    with warnings.catch_warnings(action="ignore"):  # of iterators, whose pickling Python gives up
        reduced = one.__reduce_ex__(4)
    if isinstance(reduced, str):
        return
    _, arguments, state, *rest = (*reduced, None, None)[:5]
    yield "(arguments)", arguments
    if state is not own:
        yield "(state)", state
    for iterator in rest:
        if iterator is not None:
            yield "(items)", list(iterator)
