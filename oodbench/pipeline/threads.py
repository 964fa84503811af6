"""Several threads of one process, each of which computes on one core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
