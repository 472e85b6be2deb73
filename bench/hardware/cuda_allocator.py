"""CUDA's caching allocator of torch as a simulation: what a list of allocations and frees makes it reserve.

Sizes are rounded up to 512 bytes. Up to 1 MiB comes from segments of 2 MiB, up to 10 MiB from segments of 20 MiB, more
from segments of its own size, rounded up to 2 MiB. A request takes the smallest free block that holds it; what is left
of a block is split off where it is 512 bytes or more (small) or more than 1 MiB (large). Freed neighbours are merged;
segments are kept.

Source: torch's ``c10/cuda/CUDACachingAllocator.cpp`` with its default settings (no expandable segments).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from bench.units import MEBIBYTE

GRANULE = 512
SMALL = MEBIBYTE
SMALL_SEGMENT = 2 * MEBIBYTE
LARGE_SEGMENT = 20 * MEBIBYTE
OWN_SEGMENT = 10 * MEBIBYTE  # requests from here on get a segment of their own
SEGMENT_STEP = 2 * MEBIBYTE


@dataclass(slots=True, eq=False)
class _Block:
    size: int
    address: int
    is_small: bool
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None


class CachingAllocator:
    """Holds segments and never gives them back; ``peak_allocated_bytes`` counts rounded requests."""

    def __init__(self) -> None:
        """Start with nothing reserved."""
        self.allocated_bytes = 0
        self.peak_allocated_bytes = 0
        self.reserved_bytes = 0
        self._free: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}  # by size, then address
        self._live: dict[int, _Block] = {}
        self._next_address = 0

    def allocate(self, handle: int, num_bytes: int) -> None:
        """Serve a request; nothing for 0 bytes, as torch does."""
        assert handle not in self._live, f"block {handle} is alive already"
        if not num_bytes:
            return
        size = -(-num_bytes // GRANULE) * GRANULE
        is_small = size <= SMALL
        pool = self._free[is_small]
        index = bisect.bisect_left(pool, size, key=lambda entry: entry[0])
        block = pool.pop(index)[2] if index < len(pool) else self._reserve(size, is_small)
        left = block.size - size
        if (left >= GRANULE) if is_small else (left > SMALL):
            rest = _Block(left, block.address + size, is_small, before=block, after=block.after)
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            self._release(rest)
        block.free = False
        self._live[handle] = block
        self.allocated_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def free(self, handle: int) -> None:
        """Take a block back and merge it with free neighbours."""
        block = self._live.pop(handle, None)
        if block is None:
            return
        self.allocated_bytes -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is None or not neighbour.free:
                continue
            pool = self._free[block.is_small]
            del pool[bisect.bisect_left(pool, (neighbour.size, neighbour.address), key=lambda entry: entry[:2])]
            block.size += neighbour.size
            if neighbour is block.before:
                block.address, block.before = neighbour.address, neighbour.before
                if block.before is not None:
                    block.before.after = block
            else:
                block.after = neighbour.after
                if block.after is not None:
                    block.after.before = block
        self._release(block)

    def _release(self, block: _Block) -> None:
        block.free = True
        bisect.insort(self._free[block.is_small], (block.size, block.address, block), key=lambda entry: entry[:2])

    def _reserve(self, size: int, is_small: bool) -> _Block:
        if is_small:
            segment = SMALL_SEGMENT
        elif size < OWN_SEGMENT:
            segment = LARGE_SEGMENT
        else:
            segment = -(-size // SEGMENT_STEP) * SEGMENT_STEP
        self.reserved_bytes += segment
        block = _Block(segment, self._next_address, is_small)
        self._next_address += segment
        return block
