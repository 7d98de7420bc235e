"""Device memory that is kept and used again: after the first question nothing is allocated any more."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

from ..engine import Array, Buffer
from ..errors import ResourceError
from ..manifest import ITEMSIZES as WEIGHT_SIZES
from .cuda import DeviceMemoryError

SMALL, GRAIN = 2**20, 2**21
"""Bytes: below SMALL sizes are rounded up to a power of two, from there on to whole GRAINs, to fit one another."""

ITEMSIZES = WEIGHT_SIZES | {"int64": 8, "int32": 4, "int8": 1, "bool": 1}


class Memory(Protocol):
    """What a pool needs of a GPU."""

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes; DeviceMemoryError where there is no room."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def free_bytes(self) -> int:
        """Memory that is free on the GPU now."""


class Block:
    """Bytes on the device; back in the pool once nothing refers to them."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size


class HeldBlock(Block):
    """A small array that is on the host still; it goes to the device where its address is asked for."""

    def __init__(self, array: Array, send: Callable[[Array], Block]) -> None:
        self.array, self.size, self._send = array, array.nbytes, send

    @cached_property
    def _sent(self) -> Block:
        return self._send(self.array)

    @property
    def address(self) -> int:  # type: ignore[override]  # a property where Block has an attribute
        """Where it is on the device."""
        return self._sent.address


@dataclass(frozen=True)
class DeviceBuffer:
    """Part of a block, seen as an array; `offset` in bytes, `dtype` by name ("bfloat16" too)."""

    block: Block
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def address(self) -> int:
        """Where its first element is."""
        return self.block.address + self.offset

    @property
    def nbytes(self) -> int:
        """Its size."""
        return prod(self.shape) * itemsize(self.dtype)

    def view(self, shape: Sequence[int], offset: int = 0) -> DeviceBuffer:
        """The same memory from element `offset` on, seen as `shape`; no copy."""
        return DeviceBuffer(self.block, self.offset + offset * itemsize(self.dtype), tuple(shape), self.dtype)


class _Waiting:
    """Addresses that no block uses, by size. Once closed, what comes back goes on to the device."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.closed = memory, False
        self.by_size: defaultdict[int, list[int]] = defaultdict(list)

    def give(self, size: int, address: int) -> None:
        """A block is gone."""
        if self.closed:
            self.memory.free(address)
        else:
            self.by_size[size].append(address)

    def release(self) -> None:
        """Give all that waits back to the device."""
        for addresses in self.by_size.values():
            while addresses:
                self.memory.free(addresses.pop())

    def close(self) -> None:
        """The pool is gone."""
        self.closed = True
        self.release()


def device_buffer(buffer: Buffer) -> DeviceBuffer:
    """A buffer of this engine; TypeError for another's."""
    if not isinstance(buffer, DeviceBuffer):
        raise TypeError(f"a {type(buffer).__name__} is not this engine's")
    return buffer


class Pool:
    """Blocks by size. Work runs in the order it is queued in, so a block may be given out as soon as it is free.

    With the pool its memory goes back to the device, and with blocks that outlive it theirs.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory, self._waiting = memory, _Waiting(memory)
        weakref.finalize(self, self._waiting.close).atexit = False  # the process's end frees everything anyway
        self.allocations = 0
        """How often the device was asked for memory so far."""

    def take(self, size: int) -> Block:
        """A block of at least `size` bytes. Raises ResourceError with need and free."""
        rounded = _rounded(size)
        waiting = self._waiting.by_size[rounded]
        block = Block(waiting.pop() if waiting else self._allocate(rounded), rounded)
        weakref.finalize(block, self._waiting.give, rounded, block.address).atexit = False
        return block

    def buffer(self, shape: Sequence[int], dtype: str) -> DeviceBuffer:
        """An uninitialised buffer of any type. Raises ResourceError."""
        return DeviceBuffer(self.take(prod(shape) * itemsize(dtype)), 0, tuple(shape), dtype)

    def free_bytes(self) -> int:
        """Memory that can be had: the device's free, and what waits here."""
        waiting = sum(size * len(addresses) for size, addresses in self._waiting.by_size.items())
        return self._memory.free_bytes() + waiting

    def _allocate(self, size: int) -> int:
        try:
            address = self._memory.allocate(size)
        except DeviceMemoryError:
            self.release()
            address = self._allocate_or_refuse(size)
        self.allocations += 1
        return address

    def _allocate_or_refuse(self, size: int) -> int:
        try:
            return self._memory.allocate(size)
        except DeviceMemoryError:
            free = self._memory.free_bytes()
            raise ResourceError(
                f"{size / 1e6:.0f} MB more are needed on the GPU, {free / 1e6:.0f} MB are free; "
                "use a smaller --max-frames or --max-pixels"
            ) from None

    def release(self) -> None:
        """Give all that waits back to the device."""
        self._waiting.release()


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return ITEMSIZES[dtype]


def _rounded(size: int) -> int:
    if size < SMALL:
        return max(256, 1 << (size - 1).bit_length())
    return -(-size // GRAIN) * GRAIN
