import gc

import pytest
from reflectrt.runtime.engines.cuda import DeviceMemoryError
from reflectrt.runtime.engines.device_memory import GRAIN, DeviceBuffer, Pool
from reflectrt.runtime.errors import ResourceError


class FakeMemory:
    """A device with so many bytes."""

    def __init__(self, total: int) -> None:
        self.total, self.held, self.next = total, {}, 2**20

    def allocate(self, size: int) -> int:
        if size > self.free_bytes():
            raise DeviceMemoryError("full")
        self.next += size
        self.held[self.next] = size
        return self.next

    def free(self, address: int) -> None:
        del self.held[address]

    def free_bytes(self) -> int:
        return self.total - sum(self.held.values())


def test_a_block_that_nobody_holds_is_given_out_again() -> None:
    pool = Pool(FakeMemory(2**30))
    first = pool.take(1000).address
    gc.collect()
    second = pool.take(900)
    assert (second.address, pool.allocations) == (first, 1)
    assert pool.take(1000).address != first
    assert pool.allocations == 2


def test_a_view_keeps_its_block() -> None:
    pool = Pool(FakeMemory(2**30))
    whole = DeviceBuffer(pool.take(4000), 0, (10, 100), "bfloat16")
    part = whole.view((1, 100), offset=300)
    assert part.address == whole.address + 600
    assert (part.nbytes, part.shape) == (200, (1, 100))
    address = whole.block.address
    del whole
    gc.collect()
    assert pool.take(4000).address != address


def test_large_sizes_fit_one_another() -> None:
    pool = Pool(FakeMemory(2**30))
    pool.take(5 * GRAIN - 7)
    gc.collect()
    pool.take(5 * GRAIN)
    assert pool.allocations == 1


def test_a_pool_s_memory_goes_back_with_it_and_a_block_that_outlives_it_later() -> None:
    memory = FakeMemory(2**30)
    pool = Pool(memory)
    pool.take(5000)
    kept = pool.take(9000)
    del pool
    gc.collect()
    assert list(memory.held) == [kept.address]
    del kept
    gc.collect()
    assert not memory.held


def test_what_waits_goes_back_to_the_device_before_anything_is_refused() -> None:
    memory = FakeMemory(6 * GRAIN)
    pool = Pool(memory)
    pool.take(4 * GRAIN)
    gc.collect()
    assert pool.free_bytes() == 6 * GRAIN
    held = pool.take(5 * GRAIN)
    assert list(memory.held.values()) == [5 * GRAIN]
    with pytest.raises(ResourceError, match=r"4 MB more are needed on the GPU, 2 MB are free; use a smaller"):
        pool.take(2 * GRAIN)
    assert held.size == 5 * GRAIN
