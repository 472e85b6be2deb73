from __future__ import annotations

from bench.hardware.cuda_allocator import CachingAllocator
from bench.units import MEBIBYTE


def serve(*sizes: int) -> CachingAllocator:
    allocator = CachingAllocator()
    for handle, size in enumerate(sizes):
        allocator.allocate(handle, size)
    return allocator


def test_requests_are_rounded_up_to_512_bytes() -> None:
    assert serve(1).allocated_bytes == 512
    assert serve(512, 513).allocated_bytes == 512 + 1024
    assert serve(0).allocated_bytes == 0


def test_segments_have_the_sizes_that_torch_documents() -> None:
    assert serve(1).reserved_bytes == 2 * MEBIBYTE
    assert serve(MEBIBYTE, MEBIBYTE).reserved_bytes == 2 * MEBIBYTE, "two small blocks share a segment"
    assert serve(MEBIBYTE, MEBIBYTE, 1).reserved_bytes == 4 * MEBIBYTE
    assert serve(MEBIBYTE + 1).reserved_bytes == 20 * MEBIBYTE
    assert serve(9 * MEBIBYTE, 9 * MEBIBYTE).reserved_bytes == 20 * MEBIBYTE
    assert serve(11 * MEBIBYTE).reserved_bytes == 12 * MEBIBYTE, "steps of two"
    assert serve(10 * MEBIBYTE).reserved_bytes == 10 * MEBIBYTE


def test_a_large_remainder_of_a_mebibyte_or_less_is_not_split_off() -> None:
    allocator = serve(11 * MEBIBYTE)
    assert allocator.allocated_bytes == 12 * MEBIBYTE


def test_freed_memory_is_used_again_and_stays_reserved() -> None:
    allocator = serve(16 * MEBIBYTE)
    allocator.free(0)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 16 * MEBIBYTE)
    allocator.allocate(1, 12 * MEBIBYTE)
    allocator.allocate(2, 4 * MEBIBYTE)
    assert allocator.reserved_bytes == 16 * MEBIBYTE
    assert allocator.peak_allocated_bytes == 16 * MEBIBYTE


def test_the_smallest_block_that_holds_a_request_serves_it() -> None:
    allocator = serve(32 * MEBIBYTE, 64 * MEBIBYTE)
    allocator.free(0)
    allocator.free(1)
    allocator.allocate(2, 30 * MEBIBYTE)
    allocator.allocate(3, 60 * MEBIBYTE)
    assert allocator.reserved_bytes == 96 * MEBIBYTE


def test_freed_neighbours_become_one_block_again() -> None:
    allocator = serve(4 * MEBIBYTE, 4 * MEBIBYTE, 4 * MEBIBYTE)
    for handle in (0, 2, 1):
        allocator.free(handle)
    allocator.allocate(3, 9 * MEBIBYTE + 512)
    assert allocator.reserved_bytes == 20 * MEBIBYTE
    allocator.allocate(4, 9 * MEBIBYTE)
    assert allocator.reserved_bytes == 20 * MEBIBYTE


def test_small_and_large_requests_never_share_a_segment() -> None:
    allocator = serve(5 * MEBIBYTE)
    allocator.free(0)
    allocator.allocate(1, 1000)
    assert allocator.reserved_bytes == 22 * MEBIBYTE
