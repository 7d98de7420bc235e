"""Work ahead on other threads: reading a video overlaps with encoding it, resizing its frames with decoding them."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

WAIT_S = 0.1  # how often a blocked producer looks whether its consumer is gone


class _End:
    """The producer's last item: it ended, or failed with an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def prefetch(items: Iterator[T], ahead: int) -> Generator[T, None, None]:
    """The same items in the same order, made up to `ahead` before they are asked for; errors come through.

    Closing the returned iterator stops the thread.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, ready, stopped), name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        thread.join()


def _produce(items: Iterator[T], ready: queue.Queue[T | _End], stopped: threading.Event) -> None:
    try:
        for item in items:
            if not _put(ready, item, stopped):
                return
        _put(ready, _End(), stopped)
    except BaseException as error:  # carried over to the consumer, whatever it is
        _put(ready, _End(error), stopped)


def _put(ready: queue.Queue[T | _End], item: T | _End, stopped: threading.Event) -> bool:
    """Queue an item once there is room; False where the consumer is gone."""
    while not stopped.is_set():
        try:
            ready.put(item, timeout=WAIT_S)
            return True
        except queue.Full:
            continue
    return False


def map_ahead(work: Callable[[S], T], items: Iterator[S], workers: int) -> Generator[T, None, None]:
    """`work` of each item in order, on as many threads, and so many items ahead; errors come through."""
    with ThreadPoolExecutor(workers, "map-ahead") as pool:
        begun: deque[Future[T]] = deque()
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
