"""Peak memory of a few training steps, in four meanings that are never mixed (``DEFINITIONS``).

On a CPU torch keeps no peak, so ``AllocationTracker`` counts live storages as the dispatcher hands them out: exact and
the same in every run. It sees what every operator returns, forward and backward, autograd's saved tensors among them,
and storages that an operator resizes. It does not see memory inside one operator (workspaces of oneDNN, im2col buffers
of a library), storages that are resized without an operator (``UntypedStorage.resize_``) until an operator next touches
them, or tensors without a plain storage (sparse, mkldnn layout), which are counted in ``num_unseen``. A storage that an
operator receives but none returned is taken to have been there from the beginning. While a tracker is active torch runs
``torch.compile``d functions eagerly, whose intermediate tensors then count.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bench.hardware.probe import open_nvml
from bench.units import Absent

DEFINITIONS: dict[str, str] = {
    "peak_allocated_bytes": "most bytes of live tensors at once: by CUDA's allocator, or on a CPU by the dispatcher's "
    "tracking of storages (each once; memory inside a single operator is not seen)",
    "peak_reserved_bytes": "most bytes that CUDA's caching allocator held from the driver, free blocks included",
    "peak_process_bytes": "CPU: VmHWM, the most resident memory of the process since the window began; GPU: NVML's "
    "figure for this process at the end of the window, CUDA's context included (the caching allocator has returned "
    "nothing by then)",
    "peak_device_bytes": "memory in use on the whole GPU at the end of the window, by all processes and the driver",
}

# What tensors without data are asked through the dispatcher, thousands of times a step; no memory is touched.
ASKING = (torch.ops.prim.device.default,)
_NOT_CUDA = "only CUDA's allocator reserves memory"
_NO_DEVICE = "the device is a CPU"
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3)
_APART_BYTES = 16 * 1024
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): writing 5 sets the peak resident set size back to the current one


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPeaks:
    """Peaks of one window in bytes; each field is defined in one line of ``DEFINITIONS``."""

    peak_allocated_bytes: int | Absent
    peak_reserved_bytes: int | Absent
    peak_process_bytes: int | Absent
    peak_device_bytes: int | Absent


def device_type_of(tensor: torch.Tensor) -> str:
    """``tensor.device.type``, which for a tensor without data would go through the dispatcher and all its modes."""
    fake: torch.device | None = getattr(tensor, "fake_device", None)
    return tensor.device.type if fake is None else fake.type


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of live storages on one device; a storage counts once however many views it has.

    Use as a context around the steps to watch; afterwards ``peak_allocated_bytes`` holds the peak.
    """

    def __init__(self, existing: Iterable[torch.Tensor] = (), *, device: torch.device | None = None) -> None:
        """Start from tensors that are alive already.

        Args:
            existing: parameters, buffers, optimizer state, data: counted from the beginning, shared storages once.
                Existing tensors that are not named here count from the beginning as well once an operator reads them.
            device: the kind of device whose storages count, by default the CPU.
        """
        super().__init__()
        self._device_type = (device or torch.device("cpu")).type
        self._sizes: dict[int, int] = {}
        self._watchers: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._baseline_bytes = 0
        self._delta_bytes = 0
        self._peak_delta_bytes = 0
        self._num_unseen = 0
        self.observe_existing(existing)

    def observe_existing(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were alive from the beginning; those that are counted already stay as they are."""
        for tensor in tensors:
            self._observe(tensor, returned=False)

    @property
    def baseline_bytes(self) -> int:
        """Bytes that were alive at the beginning."""
        return self._baseline_bytes

    @property
    def live_bytes(self) -> int:
        """Bytes alive now."""
        return self._baseline_bytes + self._delta_bytes

    @property
    def peak_allocated_bytes(self) -> int:
        """Most bytes alive after any operator, before its unused inputs were freed."""
        return self._baseline_bytes + self._peak_delta_bytes

    @property
    def num_unseen(self) -> int:
        """Operator results that have no plain storage and were not counted."""
        return self._num_unseen

    def __enter__(self) -> Self:
        """Begin to watch; garbage of earlier work is collected first so that it cannot be freed inside."""
        gc.collect()
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then count what it read, returned and resized."""
        if func in ASKING:
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in inputs:
            self._observe(tensor, returned=False)
        result = func(*args, **kwargs)
        self._ran(inputs, result)
        return result

    def _ran(self, inputs: list[torch.Tensor], result: Any) -> None:
        """Count what an operator that has run returned and resized."""
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._observe(leaf, returned=True)
        for tensor in inputs:  # an in-place operator may have grown what it was given
            self._observe(tensor, returned=True)
        self._peak_delta_bytes = max(self._peak_delta_bytes, self._delta_bytes)
        self._finished_operator()

    def _observe(self, tensor: torch.Tensor, *, returned: bool) -> None:
        """Count a tensor's storage if it is new, or the change of its size."""
        if device_type_of(tensor) != self._device_type:
            return
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # torch refuses both ways where there is no plain storage
            self._num_unseen += returned
            return
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is None:
            self._watchers[key] = weakref.ref(storage, self._forgetter(key))
            if returned:
                self._delta_bytes += size
            else:
                self._baseline_bytes += size
            self._born(key, size, tensor, returned=returned)
        elif size != known:
            self._delta_bytes += size - known
            self._resized(key, size)
        self._sizes[key] = size

    def _forgetter(self, key: int) -> Callable[[weakref.ref[torch.UntypedStorage]], None]:
        """Build the callback that takes a dead storage off the count."""

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            self._delta_bytes -= self._sizes.pop(key)
            del self._watchers[key]
            self._died(key)

        return forget

    # What a tracker that tells storages apart hears of; this one only sums.

    def _born(self, key: int, size: int, tensor: torch.Tensor, *, returned: bool) -> None:
        """A storage of ``size`` bytes was seen first; ``returned``: an operator made it, else it was there before."""

    def _resized(self, key: int, size: int) -> None:
        """A storage has ``size`` bytes from now on."""

    def _died(self, key: int) -> None:
        """A storage was freed."""

    def _finished_operator(self) -> None:
        """An operator has run; its inputs and results are alive."""


class UntouchedWorkspaces(AllocationTracker):
    """How far the peak of a window shrinks if oneDNN's LSTM counts with the memory that it touches.

    It hands autograd a workspace of 1 KiB a row and more, of which one time step writes a part. The rest stays as the
    system gave it: tensors hold it, the process does not. What an LSTM takes inside its operators, which no tensor
    holds, counts against it.
    """

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self._workspaces: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._scratch_bytes = 0
        self._peak_touched_delta_bytes = 0
        self._reason: Absent | None = None

    @property
    def untouched_bytes(self) -> int | Absent:
        """The peak of what tensors held, less the peak of what of it was in memory."""
        return self._peak_delta_bytes - self._peak_touched_delta_bytes if self._reason is None else self._reason

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator; look at an LSTM's workspace and at what the process held while it ran."""
        forward = func is torch.ops.aten.mkldnn_rnn_layer.default
        if not forward and func is not torch.ops.aten.mkldnn_rnn_layer_backward.default:
            return super().__torch_dispatch__(func, types, args, kwargs)
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in inputs:
            self._observe(tensor, returned=False)
        before = psutil.Process().memory_info().rss
        unknown = reset_process_peak()
        result = func(*args, **(kwargs or {}))
        highest = unknown or read_process_peak()
        if isinstance(highest, Absent):
            self._reason = highest
        else:
            self._scratch_bytes = max(0, highest - max(before, psutil.Process().memory_info().rss))
        self._look(result[-1] if forward else inputs[-1])
        self._ran(inputs, result)
        self._scratch_bytes = 0
        return result

    def _look(self, workspace: torch.Tensor | None) -> None:
        if workspace is None:  # evaluated without a graph
            return
        storage = workspace.untyped_storage()
        resident = resident_bytes(storage.data_ptr(), storage.nbytes())
        if isinstance(resident, Absent):
            self._reason = resident
            return
        self._workspaces[storage.data_ptr()] = weakref.ref(storage), max(0, storage.nbytes() - resident)

    def _finished_operator(self) -> None:
        untouched = sum(size for ref, size in self._workspaces.values() if ref() is not None)
        touched = self._delta_bytes - untouched + self._scratch_bytes
        self._peak_touched_delta_bytes = max(self._peak_touched_delta_bytes, touched)


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


def give_back_memory() -> None:
    """Let go what is no longer used: unreachable objects, and what glibc or CUDA's allocator keeps of freed memory."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class MemoryMeter:
    """Measures the four peaks of the block it surrounds; call ``peaks`` after it.

    A pass of its own in a fresh process: tracking slows every operator, and a process's peak cannot be told apart from
    what it did before.
    """

    def __init__(self, device: torch.device, existing: Iterable[torch.Tensor] = (), *, track: bool = True) -> None:
        """Prepare to watch a device.

        Args:
            device: where the steps run.
            existing: on a CPU, the tensors that are alive already (see ``AllocationTracker``).
            track: on a CPU, whether to count live storages; without it compiled functions run compiled, so that the
                process's peak is that of an untracked step.
        """
        self._device = device
        self._tracker = AllocationTracker(existing) if track and device.type == "cpu" else None
        self._no_process_peak: Absent | None = None
        self._peaks: MemoryPeaks | None = None

    def __enter__(self) -> MemoryMeter:
        """Reset the counters and begin."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return self
        gc.collect()
        self._no_process_peak = reset_process_peak()
        if self._tracker is not None:
            self._tracker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read the counters."""
        if self._device.type == "cuda":
            self._peaks = _cuda_peaks(self._device)
            return
        if self._tracker is not None:
            self._tracker.__exit__(kind, error, trace)
        allocated = (
            Absent("live tensors were not tracked") if self._tracker is None else self._tracker.peak_allocated_bytes
        )
        self._peaks = MemoryPeaks(
            peak_allocated_bytes=allocated,
            peak_reserved_bytes=Absent(_NOT_CUDA),
            peak_process_bytes=self._no_process_peak or read_process_peak(),
            peak_device_bytes=Absent(_NO_DEVICE),
        )

    def peaks(self) -> MemoryPeaks:
        """Return the peaks of the finished block."""
        assert self._peaks is not None, "peaks() belongs after the block"
        return self._peaks


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


def _cuda_peaks(device: torch.device) -> MemoryPeaks:
    torch.cuda.synchronize(device)
    gpu = open_nvml(device)
    return MemoryPeaks(
        peak_allocated_bytes=torch.cuda.max_memory_allocated(device),
        peak_reserved_bytes=torch.cuda.max_memory_reserved(device),
        peak_process_bytes=gpu if isinstance(gpu, Absent) else gpu.process_bytes(),
        peak_device_bytes=gpu if isinstance(gpu, Absent) else gpu.memory_used_bytes(),
    )
