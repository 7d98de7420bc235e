import threading
from collections.abc import Iterator

import pytest
from reflectrt.runtime.prefetch import map_ahead, prefetch


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_items_come_in_order_and_the_thread_ends() -> None:
    assert list(prefetch(iter(range(100)), 3)) == list(range(100))
    assert threads() == 0


def test_nothing_comes_of_nothing() -> None:
    assert list(prefetch(iter(()), 1)) == []


def test_an_error_comes_through_after_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("decoder broke")

    items = prefetch(failing(), 1)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="decoder broke"):
        next(items)
    assert threads() == 0


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_no_more_than_the_lookahead_is_made_before_it_is_asked_for(ahead: int) -> None:
    made = 0
    blocked = threading.Semaphore(0)

    def counted() -> Iterator[int]:
        nonlocal made
        for i in range(50):
            made = i + 1
            blocked.release()
            yield i

    items = prefetch(counted(), ahead)
    assert next(items) == 0
    for _ in range(ahead + 2):  # taken, queued, and one in the producer's hands that waits for room
        assert blocked.acquire(timeout=10)
    assert not blocked.acquire(timeout=0.3)
    assert made == ahead + 2
    items.close()  # type: ignore[attr-defined]


def test_closing_stops_a_producer_that_would_never_end() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 0

    items = prefetch(endless(), 2)
    assert next(items) == 0
    assert threads() == 1
    items.close()  # type: ignore[attr-defined]
    assert threads() == 0


def test_items_are_made_on_another_thread() -> None:
    def names() -> Iterator[str]:
        yield threading.current_thread().name

    assert list(prefetch(names(), 1)) == ["prefetch"]


def test_work_on_several_threads_keeps_its_order() -> None:
    gate = threading.Barrier(3)

    def work(number: int) -> int:
        gate.wait(timeout=10)  # passed only by three at a time
        return -number

    assert list(map_ahead(work, iter(range(9)), 3)) == [-number for number in range(9)]


def test_no_more_items_are_taken_than_there_are_workers_ahead() -> None:
    taken = []

    def counted() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = map_ahead(abs, counted(), 4)
    assert next(results) == 0
    assert len(taken) == 5
    results.close()
    assert len(taken) == 5


def test_an_error_of_an_item_comes_through() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("decoder broke")

    with pytest.raises(ValueError, match="decoder broke"):
        list(map_ahead(abs, items(), 2))


def test_an_error_of_the_work_comes_through_after_the_results_before_it() -> None:
    results = map_ahead(lambda number: 1 // number, iter((1, 2, 0)), 2)
    assert [next(results), next(results)] == [1, 0]
    with pytest.raises(ZeroDivisionError):
        next(results)
