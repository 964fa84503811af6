"""One pass over the batches of a set with several methods, on one thread or several."""

from __future__ import annotations

import contextlib
import threading
import time
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from oodbench.errors import InputMutated

if TYPE_CHECKING:
    from oodbench.method import Batch, Method, MethodResources, Task
    from oodbench.pipeline.jobs import Job

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


def held(one: FittedMethod) -> dict[str, object]:
    """What a method has learnt and is set to, by place: `state['mean'][0]`, `self.scale`."""
    return {**contents(one.state, "state"), **{f"self{k}": v for k, v in contents(vars(one.method)).items()}}


def kept(one: FittedMethod, again: MethodOutput, close: float) -> str:
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


def mixed(one: FittedMethod, whole: MethodOutput) -> str:
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

    from oodbench.method.checksum import checksum

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


Item = TypeVar("Item")
Made = TypeVar("Made")


def in_order(call: Callable[[Item], Made], items: Iterable[Item], count: int) -> Iterator[Made]:
    """call(item) for all items, in their order, by `count` threads; one item more is held at once.

    torch uses one core in each of them: small operations do not wait for all cores, and digits do not depend on how
    many there are.
    """
    import torch

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    under_way: deque[Future[Made]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(call, item))
            if len(under_way) > count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # threads to come would take over what those had


@dataclass
class MethodOutput:
    """What a method gave, batch by batch; nothing more after its first error."""

    scores: list[npt.NDArray[np.float64]] = field(default_factory=list)
    predictions: list[npt.NDArray[np.int32]] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None

    def add(self, other: MethodOutput) -> None:
        """Append the next batch."""
        self.scores += other.scores
        self.predictions += other.predictions
        self.seconds += other.seconds
        self.error = other.error


@dataclass
class FittedMethod:
    """A job under way: its method, what it learnt, and why it failed if it did.

    held      what it has learnt and is set to, by place, when it had learnt it
    sample    a few images that it scores before its first set and after every set
    first     what it gave of them at first
    seen      images scored, and `looked` how many of them when it was last looked at whether it keeps anything of them
    stateful  whether it failed because it does
    """

    job: Job
    method: Method[Any]
    own: MethodResources | None = None
    state: Any = None
    fitted: bool = False
    fit_seconds: float = 0.0
    error: str = ""
    held: dict[str, object] = field(default_factory=dict)
    sample: Sample | None = None
    first: MethodOutput = field(default_factory=MethodOutput)
    seen: int = 0
    looked: int = 0
    stateful: bool = False


def over(
    batches: Callable[[], Iterable[Batch]], group: Sequence[FittedMethod], task: Task, threads: int | None
) -> list[MethodOutput]:
    """What each method gives for all batches. `threads`: by so many, each on one core; None: in this one, on all.

    Changed stands as the error of the method that did it, when one did; what the others gave is then worthless.
    """
    found = _passed(batches(), group, task, threads, each=False)
    if any(isinstance(one.error, InputMutated) for one in found):
        # Something was changed: again, in one thread, looking after every method, to find out by whom.
        task.intact()  # puts right what another thread wrote last
        found = _passed(batches(), group, task, threads and 1, each=True)
    return found


def _passed(
    batches: Iterable[Batch], group: Sequence[FittedMethod], task: Task, threads: int | None, *, each: bool
) -> list[MethodOutput]:
    """One pass; `each`: what was changed is looked for after each method, not after each batch."""
    mine = threading.local()
    found = [MethodOutput() for _ in group]

    def made(batch: Batch) -> list[MethodOutput]:
        if not hasattr(mine, "task"):
            mine.task = task if threads is None else task.apart()
        return _batch(group, batch, mine.task, found, each=each)

    if threads is None:
        return _joined(found, map(made, batches), 1)
    return _joined(found, in_order(made, batches, threads), threads)


def _joined(found: list[MethodOutput], made: Iterable[list[MethodOutput]], threads: int) -> list[MethodOutput]:
    """Batches added in their order, up to the one in which a method changed something."""
    batches = 0
    for parts in made:
        batches += 1
        for one, part in zip(found, parts, strict=False):
            if one.error is None or isinstance(part.error, InputMutated):
                one.add(part)
        if any(isinstance(one.error, InputMutated) for one in found):
            break
    for one in found:
        one.seconds /= max(1, min(threads, batches))  # side by side
    return found


def _batch(
    group: Sequence[FittedMethod], batch: Batch, task: Task, earlier: Sequence[MethodOutput], *, each: bool
) -> list[MethodOutput]:
    """One batch by every method that did not fail; the last one has Changed as its error if any changed something."""
    found: list[MethodOutput] = []
    for one, known in zip(group, earlier, strict=True):
        found.append(_scored(one, batch, task) if known.error is None else MethodOutput())
        if (each or len(found) == len(group)) and not (task.intact() and batch.intact()):
            found[-1].error = InputMutated("it changes in place what it was given; clone it first")
            break
    return found


def _scored(one: FittedMethod, batch: Batch, task: Task) -> MethodOutput:
    import torch

    from oodbench.method import Needs, check_predictions, check_scores

    began, found = time.perf_counter(), MethodOutput()
    try:
        # Not inference_mode: a method may need gradients with respect to the pixels.
        with torch.no_grad():
            needs, task = one.method.needs, task.seen_by(one.method.needs, one.own)
            scores = one.method.score(batch.seen_by(needs), task, one.state)
            predictions = one.method.predict(batch.seen_by(needs | Needs.FEATURES), task, one.state)
        found.scores.append(check_scores(scores, batch.size))
        if predictions is not None:
            check_predictions(predictions, batch.size, len(task.classes))
            found.predictions.append(predictions.cpu().numpy().astype(np.int32))
    except Exception as error:
        found.error = error
    found.seconds = time.perf_counter() - began
    return found
