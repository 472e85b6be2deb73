"""This process's memory as the system counts it: its peak, what of it is in RAM, and what can be given back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from bench.units import Absent

_T = TypeVar("_T")

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3)
_APART_BYTES = 16 * 1024
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): writing 5 sets the peak resident set size back to the current one


def read_process_peak(status: Path = _STATUS) -> int | Absent:
    """Most resident memory of this process in bytes: VmHWM.

    ``getrusage`` is no substitute: its ``ru_maxrss`` survives exec, so a fresh process starts with its parent's peak.
    """
    try:
        text = status.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Absent("only Linux keeps a process's own peak (getrusage would report its parent's)")
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return Absent("this kernel does not report VmHWM")


def reset_process_peak(clear_refs: Path = _CLEAR_REFS) -> Absent | None:
    """Set VmHWM back to the current resident memory.

    Returns:
        None where it worked, or why it did not: then the peak would be that of the whole life of the process.
    """
    if not clear_refs.exists():  # writing would create it where /proc is something else
        return Absent("this system cannot reset a process's peak")
    try:
        clear_refs.write_text(_RESET_PEAK, encoding="ascii")
    except OSError as error:
        return Absent(f"the system does not allow a reset of the process's peak ({os.strerror(error.errno or 0)})")
    return None


def resident_bytes(address: int, num_bytes: int) -> int | Absent:
    """How much of a stretch of this process's memory is in RAM, in whole pages.

    Source: mincore(2).
    """
    page = mmap.PAGESIZE
    start, end = address // page * page, -(-(address + num_bytes) // page) * page
    pages = (ctypes.c_ubyte * ((end - start) // page))()
    try:
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(end - start), pages)
    except (OSError, AttributeError):
        return Absent("this system does not tell which pages are in memory")
    return Absent("the system does not tell which pages are in memory") if failed else page * sum(p & 1 for p in pages)


def keep_large_blocks_apart() -> None:
    """Let glibc give blocks of 16 KiB and more back to the system as they are freed, from here to the process's end.

    Left to itself it takes only those of 128 KiB apart and raises that limit up to 32 MiB as blocks are freed. What
    then lies in its heap's gaps differs from run to run and stands in the process's peak: the smaller tensors of a few
    retained LSTM steps leave 7 MiB. Another C library is left as it is.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _APART_BYTES)


def load_libraries() -> None:
    """Do once, and tiny, what makes torch load code that belongs to no step, so that every process holds it.

    A backward from a given gradient, as a hypernetwork's is, imports some 40 MiB of modules; the first LSTM maps some
    4 MiB of oneDNN's code.
    """
    torch.autograd.backward(torch.ones(2, requires_grad=True) * 1, torch.ones(2))
    nn.LSTM(2, 4)(torch.ones(1, 1, 2))[0].sum().backward()


def in_fresh_heap(call: Callable[[], _T]) -> _T:
    """Answer of a call made in a thread of its own, which glibc gives a part of the heap that nothing has used.

    In a used one small blocks fill gaps that lie in RAM, gaps that do not, and new pages, in shares that the run's
    addresses decide: a megabyte of scatter in what the steps of a deep network make a process grow by. Another C
    library's heap is its own affair; under a low ``MALLOC_ARENA_MAX``, or after a thread that has ended, glibc gives a
    part that was used. Grad mode, current device and OpenMP's number of threads are a thread's own in torch: the call
    starts from their defaults, but for the last.
    """
    num_threads = torch.get_num_threads()

    def begin() -> _T:
        torch.set_num_threads(num_threads)
        return call()

    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(begin).result()


def give_back_memory() -> None:
    """Let go what is no longer used: unreachable objects, and what glibc or CUDA's allocator keeps of freed memory."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
