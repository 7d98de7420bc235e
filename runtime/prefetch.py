"""Run an iterator on a thread of its own, a few items ahead: reading a video overlaps with encoding it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

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
