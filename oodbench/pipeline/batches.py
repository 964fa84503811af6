"""Score the batches of an image set with several methods, on one thread or several, and check that they keep no state.

A method must not keep state from one image to the next: scores would depend on the images before, and AUROC on the
order of the sets. Before its first set a method therefore scores a sample of a few images in small batches
(`FittedMethod.first_output`). After every set it scores the same images again, in the opposite order: the scores must
be equal up to rounding, and its state and its attributes (`contents`) exactly equal. The sample also shows whether a
score depends on the other images of the batch.
"""

from __future__ import annotations

import contextlib
import functools
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
    from torch import Tensor

    from oodbench.method import Batch, Method, MethodResources, Task
    from oodbench.pipeline.jobs import Job

SAMPLE_IMAGES, SAMPLE_PIXEL_IMAGES = 32, 4  # in each half of a sample; the latter for methods that read pixels
CHECK_EVERY = 256  # images after which a detector, which has no sets, checks its method
TOLERANCE = 1e-3  # of the standard deviation of the scores: another batch size or a GPU may change a score by this much
# The same for equal batches on a CPU, where the number of threads that share a matrix product may still differ.
CPU_TOLERANCE = 1e-4
HALF_PRECISION_TOLERANCE = 0.05  # the same if the model computes in half precision
MAX_CHANGED_FRACTION = 1 / 8  # of a sample that may differ by more in another batch: rounding can change a decision
ROUNDING = 1e-6  # of the largest score, added to the tolerance: a rounding error of float32
STREAM_ADVICE = "write a StreamMethod if it is meant to learn from the test images"  # for methods that are refused

Scores = npt.NDArray[np.float64]
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, type, types.ModuleType, types.BuiltinFunctionType)


@dataclass(frozen=True)
class Sample:
    """Some images of a set in small batches; `rows` [batches][images] are their positions among the set's scores."""

    batches: tuple[Batch, ...]
    rows: tuple[npt.NDArray[np.int64], ...]

    def copies(self) -> list[Batch]:
        """Return copies of the batches, which a method may write into."""
        return [batch.copy() for batch in self.batches]

    def reversed_copies(self) -> list[Batch]:
        """Return copies of the batches in the opposite order."""
        return self.copies()[::-1]


@dataclass
class MethodOutput:
    """The scores and predictions of a method by batch, up to its first error."""

    scores: list[npt.NDArray[np.float64]] = field(default_factory=list)
    predictions: list[npt.NDArray[np.int32]] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None

    def add(self, other: MethodOutput) -> None:
        """Append the output of the next batch."""
        self.scores += other.scores
        self.predictions += other.predictions
        self.seconds += other.seconds
        self.error = other.error


@dataclass
class FittedMethod:
    """A method of a plan with its state, and the reason why it failed if it did.

    state             what fit() returned, if `fitted`
    contents          everything that the state and the method's attributes held after fit(), by place
    sample            a few images that are scored before the first set and after every set
    first_output      output of the method for the sample before the first set
    images_scored     number of images that it has scored
    images_checked    value of `images_scored` at its last check
    stateful          whether it failed because it keeps state from one image to the next
    """

    job: Job
    method: Method[Any]
    resources: MethodResources | None = None
    state: Any = None
    fitted: bool = False
    fit_seconds: float = 0.0
    error: str = ""
    contents: dict[str, object] = field(default_factory=dict)
    sample: Sample | None = None
    first_output: MethodOutput = field(default_factory=MethodOutput)
    images_scored: int = 0
    images_checked: int = 0
    stateful: bool = False


def method_contents(method: FittedMethod) -> dict[str, object]:
    """Return the contents of a method's state and attributes, by place: `state['mean'][0]`, `self.scale`."""
    attributes = contents(vars(method.method))
    return {**contents(method.state, "state"), **{f"self{place}": value for place, value in attributes.items()}}


def retention_error(method: FittedMethod, output: MethodOutput, tolerance: float) -> str:
    """Return how a method's output shows that it keeps state from one image to the next, or "".

    `output` is its output for the sample in the opposite order. `tolerance` is the allowed rounding error, as a
    fraction of the standard deviation of the scores; rounding may also change a few predictions.
    """
    if (place := difference(method.contents, method_contents(method))) is not None:
        return f"score() changes {place}: it must keep no state of the images; learning belongs to fit()"
    first = method.first_output
    if not first.scores:
        return ""
    before, after = np.concatenate(first.scores), np.concatenate(output.scores[::-1])
    changed = differing(before, after, tolerance)
    if changed.any():
        index = int(changed.argmax())
        return (
            f"score() keeps state from one image to the next: an image scores {before[index]:.9g} at first and "
            f"{after[index]:.9g} after a set; learning belongs to fit(), and random numbers must follow from task.seed"
        )
    if first.predictions:
        named, again = np.concatenate(first.predictions), np.concatenate(output.predictions[::-1])
        if np.mean(named != again) > MAX_CHANGED_FRACTION:
            return (
                "predict() keeps state from one image to the next: it returns other classes after a set than at first"
            )
    return ""


def batch_error(method: FittedMethod, output: MethodOutput) -> str:
    """Return why the scores of a set differ from the scores of the same images in small batches, or ""."""
    if not method.sample or not method.first_output.scores:
        return ""
    rows = method.sample.rows
    in_set = np.concatenate(output.scores)[np.concatenate(rows)]
    in_sample = np.concatenate(method.first_output.scores)
    changed = differing(in_set, in_sample, TOLERANCE)
    if changed.mean() <= MAX_CHANGED_FRACTION:
        return ""
    index = int(changed.argmax())
    return (
        f"score() depends on the other images of the batch: one image scores {in_set[index]:.9g} in a batch of "
        f"{len(output.scores[0])} and {in_sample[index]:.9g} in one of {len(rows[0])}; scores must be independent"
    )


def rounding_tolerance(device: str) -> float:
    """Return the allowed rounding error of scores of equal batches, as a fraction of their standard deviation."""
    return CPU_TOLERANCE if device == "cpu" else TOLERANCE


def differing(first: Scores, second: Scores, tolerance: float) -> npt.NDArray[np.bool_]:
    """Return [n] whether two scores of an image differ by more than the tolerance; NaN equals NaN."""
    both = np.concatenate([first, second])
    both = both[np.isfinite(both)]
    allowed = tolerance * both.std() + ROUNDING * np.abs(both).max() if both.size else 0.0
    same: npt.NDArray[np.bool_] = np.isclose(first, second, rtol=0, atol=allowed, equal_nan=True)
    return ~same


def contents(value: object, name: str = "") -> dict[str, object]:
    """Return everything that an object holds by place (`name['mean'][0]`): plain values by repr, arrays by checksum.

    It reads dicts, sequences, sets and closures, and the attributes and the pickled state of any other object. An
    object that cannot be read, such as a lock or an iterator, is represented by its type.
    """
    import torch

    from oodbench.method.checksum import checksum

    found: dict[str, object] = {}
    places: dict[int, str] = {}
    alive: list[object] = []  # id() is unique only among objects that are alive
    queue: deque[tuple[str, object]] = deque([(name, value)])
    while queue:
        place, item = queue.popleft()
        if isinstance(item, _PLAIN):
            found[place] = repr(item)
        elif id(item) in places:
            found[place] = f"the same as {places[id(item)]}"
        elif isinstance(item, torch.Tensor) and item.layout is torch.strided:
            found[place] = (str(item.dtype), tuple(item.shape), checksum(item))
        elif isinstance(item, np.ndarray) and not item.dtype.hasobject:
            found[place] = (str(item.dtype), item.shape, checksum(_as_bytes(item)))
        elif isinstance(item, (tuple, list)) and all(isinstance(part, _PLAIN) for part in item):
            found[place] = (len(item), blake2b(repr(item).encode("utf-8", "surrogatepass")).digest())
        else:
            places[id(item)] = place
            alive.append(item)
            found[place] = type(item).__qualname__
            with contextlib.suppress(Exception):  # the object's own code may raise anything
                queue.extend((place + name, part) for name, part in _parts(item))
    return found


def difference(before: Mapping[str, object], after: Mapping[str, object]) -> str | None:
    """Return the first place where two results of contents() differ; None if they are equal."""
    places = {**before, **after}
    return next((place for place in places if before.get(place) != after.get(place)), None)


def _as_bytes(array: npt.NDArray[Any]) -> Tensor:
    """Return the memory of an array as a tensor of bytes."""
    import torch

    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return torch.from_numpy(flat if flat.flags.writeable else flat.copy())  # torch warns about read-only arrays


def _parts(item: object) -> Iterator[tuple[str, object]]:
    """Yield (place, value) for everything that an object holds directly."""
    if isinstance(item, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in list(item.items()))
    elif isinstance(item, (tuple, list, deque)):
        yield from ((f"[{number}]", part) for number, part in enumerate(item))
    elif isinstance(item, (set, frozenset)):
        yield from ((f"{{{number}}}", part) for number, part in enumerate(sorted(item, key=repr)))
    elif isinstance(item, np.ndarray):
        yield from ((f"[{number}]", part) for number, part in enumerate(item.ravel().tolist()))
    elif isinstance(item, types.FunctionType):
        names = item.__code__.co_freevars
        yield from (
            (f".{name}", _cell_contents(cell)) for name, cell in zip(names, item.__closure__ or (), strict=True)
        )
        yield from ((f".{name}", part) for name, part in vars(item).items())
        yield ".__defaults__", (item.__defaults__, item.__kwdefaults__)
    elif isinstance(item, types.MethodType):
        yield ".__self__", item.__self__
        yield ".__func__", item.__func__
    else:
        yield from _pickled_parts(item)


def _cell_contents(cell: types.CellType) -> object:
    """Return the value of a variable that a closure holds; None if it has none yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _pickled_parts(item: object) -> Iterator[tuple[str, object]]:
    """Yield the attributes of an object, and everything else that pickle would store."""
    attributes = getattr(item, "__dict__", None)
    if isinstance(attributes, dict):
        yield from ((f".{name}", part) for name, part in list(attributes.items()))
    with warnings.catch_warnings(action="ignore"):  # Python deprecates the pickling of iterators
        reduced = item.__reduce_ex__(4)
    if isinstance(reduced, str):
        return
    _, arguments, state, *rest = (*reduced, None, None)[:5]
    yield "(arguments)", arguments
    if state is not attributes:
        yield "(state)", state
    for iterator in rest:
        if iterator is not None:
            yield "(items)", list(iterator)


Item = TypeVar("Item")
Output = TypeVar("Output")


def map_in_order(call: Callable[[Item], Output], items: Iterable[Item], threads: int) -> Iterator[Output]:
    """Yield call(item) for all items in their order, computed by several threads; `threads` + 1 items are held at once.

    torch uses one core in each thread: small operations do not wait for all cores, and the digits do not depend on the
    number of cores.
    """
    import torch

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    pending: deque[Future[Output]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(call, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # later threads would start with the number of the pool's threads


class _ThreadTask(threading.local):
    """The task of the current thread; with several threads each has its own, and they share the text vectors."""

    def __init__(self, task: Task, several: bool) -> None:
        self.task = task.for_thread() if several else task


def score_batches(
    batches: Callable[[], Iterable[Batch]],
    methods: Sequence[FittedMethod],
    task: Task,
    threads: int | None,
    done: Callable[[int], None] = lambda n: None,
) -> list[MethodOutput]:
    """Return the output of each method for all batches.

    `threads` is how many threads score, each on one core; None scores in this thread, on all cores. `done` is called
    with the number of images of every batch that was scored. If a method wrote into its input, its error is
    InputMutated, and the outputs of the other methods are worthless.
    """
    outputs: list[MethodOutput] = []
    for find_writer in (False, True):  # if a method wrote: again in one thread, with a check after every method
        outputs = [MethodOutput() for _ in methods]
        count = threads and (1 if find_writer else threads)
        score = functools.partial(
            score_batch, methods, outputs, _ThreadTask(task, threads is not None), check_each=find_writer
        )
        sizes: deque[int] = deque()  # of the batches that are being scored
        items = _with_sizes(batches(), sizes)
        scored = map(score, items) if count is None else map_in_order(score, items, count)
        total, mutated = 0, False
        for parts in scored:
            total += 1
            done(sizes.popleft())
            for output, part in zip(outputs, parts, strict=False):
                if output.error is None or isinstance(part.error, InputMutated):
                    output.add(part)
            mutated = any(isinstance(output.error, InputMutated) for output in outputs)
            if mutated:
                break
        del scored  # waits for the threads, which may still score the next batches
        for output in outputs:
            output.seconds /= max(1, min(count or 1, total))  # the threads work in parallel
        if not mutated:
            break
        if not find_writer:
            task.intact()  # restores what another thread wrote last
    return outputs


def _with_sizes(batches: Iterable[Batch], sizes: deque[int]) -> Iterator[Batch]:
    """Yield batches, and append the size of each to `sizes`."""
    for batch in batches:
        sizes.append(batch.size)
        yield batch


def score_batch(
    methods: Sequence[FittedMethod],
    earlier: Sequence[MethodOutput],
    tasks: _ThreadTask,
    batch: Batch,
    *,
    check_each: bool,
) -> list[MethodOutput]:
    """Score one batch with every method that has no error in `earlier`.

    Writes into the input are detected after each method (`check_each`), or after the last one. If there is one, the
    last output in the list is that of the method before the check, with InputMutated as its error.
    """
    import torch

    from oodbench.method import Needs, check_predictions, check_scores

    outputs: list[MethodOutput] = []
    for method, known in zip(methods, earlier, strict=True):
        began, output, needs = time.perf_counter(), MethodOutput(), method.method.needs
        outputs.append(output)
        if known.error is None:
            try:
                task = tasks.task.for_method(needs, method.resources)
                with torch.no_grad():  # not inference_mode: a method may need gradients with respect to the pixels
                    scores = method.method.score(batch.for_method(needs), task, method.state)
                    predictions = method.method.predict(batch.for_method(needs | Needs.FEATURES), task, method.state)
                output.scores.append(check_scores(scores, batch.size))
                if predictions is not None:
                    check_predictions(predictions, batch.size, len(task.classes))
                    output.predictions.append(predictions.cpu().numpy().astype(np.int32))
            except Exception as error:
                output.error = error
            output.seconds = time.perf_counter() - began
        last = len(outputs) == len(methods)
        if (check_each or last) and not (tasks.task.intact() and batch.intact()):
            output.error = InputMutated("it changes its inputs in place; clone them first")
            break
    return outputs
