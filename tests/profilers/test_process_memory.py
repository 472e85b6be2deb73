from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.profilers.process_memory import in_fresh_heap, read_process_peak, reset_process_peak, resident_bytes
from bench.units import MEBIBYTE, Absent

FRESH_PROCESS = """
import json, sys
from bench.profilers.process_memory import read_process_peak, reset_process_peak
from bench.units import Absent
start = read_process_peak()
block = bytearray(256 * 2**20); del block
high = read_process_peak()
reset = reset_process_peak()
print(json.dumps([start, high, read_process_peak(), reset is None]))
"""


def test_the_process_peak_holds_what_was_freed_and_can_be_reset() -> None:
    hog = bytearray(400 * MEBIBYTE)  # the parent's own peak, which a child must not inherit
    output = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS], capture_output=True, text=True, timeout=300, check=True
    ).stdout
    assert len(hog) == 400 * MEBIBYTE
    start, high, after, was_reset = json.loads(output)
    assert start < 400 * MEBIBYTE
    assert high - start > 250 * MEBIBYTE
    if was_reset:
        assert after < high - 250 * MEBIBYTE
    else:
        assert after == high


def test_a_process_peak_that_cannot_be_read_or_reset_has_a_reason(tmp_path: Path) -> None:
    assert isinstance(read_process_peak(tmp_path / "missing"), Absent)
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    assert read_process_peak(tmp_path / "status") == 2 * MEBIBYTE
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert read_process_peak(tmp_path / "status") == Absent("this kernel does not report VmHWM")
    assert isinstance(reset_process_peak(tmp_path / "clear_refs"), Absent)
    (tmp_path / "folder").mkdir()
    refused = reset_process_peak(tmp_path / "folder")
    assert isinstance(refused, Absent)
    assert refused.reason.startswith("the system does not allow")


def test_pages_that_are_written_are_resident() -> None:
    written = torch.ones(4 * MEBIBYTE, dtype=torch.uint8)
    found = resident_bytes(written.data_ptr(), written.nbytes)
    if isinstance(found, Absent):
        pytest.skip(found.reason)
    assert 4 * MEBIBYTE <= found <= 4 * MEBIBYTE + 8192
    assert isinstance(resident_bytes(0, 4096), Absent), "no memory lies there"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives a thread a part of the heap of its own")
@pytest.mark.skipif("MALLOC_ARENA_MAX" in os.environ, reason="the environment says how many parts the heap may have")
def test_a_fresh_heap_is_not_the_one_that_this_thread_has_used() -> None:
    (heap,) = (line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]"))
    start, end = (int(address, base=16) for address in heap.split("-"))
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p

    def malloced() -> int:
        address = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(1024)))
        libc.free(address)
        return address.value or 0

    assert start <= malloced() < end
    assert not start <= in_fresh_heap(malloced) < end


def test_a_call_in_a_fresh_heap_runs_on_as_many_threads_and_raises_what_it_raised() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert in_fresh_heap(torch.get_num_threads) == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ZeroDivisionError):
        in_fresh_heap(lambda: 1 // 0)
