"""Work done by threads a little ahead of whoever asks for it. Nothing here loads torch."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int,
    size: Callable[[Item], int] = lambda _: 1,
) -> Generator[Result, None, None]:
    """`work(item)` for each of `items`, in their order, done by `threads` for `ahead` items that nobody has asked for yet.

    An item counts as its `size`; the last one may go beyond `ahead`. Without threads it is done when it is asked for, in the
    calling one. What `work` raises is raised for its item, and ends all. Who closes this early waits for nothing: work that has
    begun ends by itself.
    """
    if not threads:
        yield from map(work, items)
        return
    waiting: deque[tuple[Future[Result], int]] = deque()
    held = 0
    with working(threads) as pool:
        for item in items:
            waiting.append((pool.submit(work, item), size(item)))
            held += waiting[-1][1]
            while waiting and held - waiting[0][1] >= ahead:
                held -= waiting[0][1]
                yield waiting.popleft()[0].result()
        while waiting:
            yield waiting.popleft()[0].result()


def both(items: Iterable[Item]) -> tuple[Iterator[Item], Iterator[Item]]:
    """`items` twice, taken by one thread. `itertools.tee` keeps up to 57 that both have had: batches of images among them."""
    source = iter(items)
    first: deque[Item] = deque()
    second: deque[Item] = deque()

    def taken(mine: deque[Item]) -> Iterator[Item]:
        while True:
            if not mine:
                try:
                    item = next(source)
                except StopIteration:
                    return
                first.append(item)
                second.append(item)
                del item
            yield mine.popleft()

    return taken(first), taken(second)


@contextmanager
def working(threads: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads; at the end what has not begun is left, and what has begun ends by itself."""
    finalizing = sys.is_finalizing
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        # A generator that nobody closed is closed at the interpreter's end: by then threads have ended, and modules are in pieces.
        if not finalizing():
            pool.shutdown(wait=False, cancel_futures=True)
