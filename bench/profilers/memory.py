"""Peak memory of a few training steps, in four meanings that are never mixed (``MemoryPeaks``)."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

import psutil
import torch

from bench.hardware.probe import open_nvml
from bench.profilers.allocation_tracker import AllocationTracker
from bench.profilers.process_memory import read_process_peak, reset_process_peak
from bench.units import Absent

_NOT_CUDA = "only CUDA's allocator reserves memory"
_NO_DEVICE = "the device is a CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPeaks:
    """Peaks of one window in bytes."""

    # Live tensors at once: by CUDA's allocator, or on a CPU by the dispatcher's tracking of storages (each once).
    peak_allocated_bytes: int | Absent
    # What CUDA's caching allocator held from the driver, free blocks included.
    peak_reserved_bytes: int | Absent
    # CPU: VmHWM, the most resident memory of the process since the window began. GPU: NVML's figure for this process at
    # the end of the window, CUDA's context included; the caching allocator has returned nothing by then.
    peak_process_bytes: int | Absent
    # Memory in use on the whole GPU at the end of the window, by all processes and the driver.
    peak_device_bytes: int | Absent


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


def process_bytes(device: torch.device) -> int | Absent:
    """What the system counts for this process now, in bytes: NVML's figure on CUDA, else resident memory."""
    if device.type != "cuda":
        return int(psutil.Process().memory_info().rss)
    gpu = open_nvml(device)
    return gpu if isinstance(gpu, Absent) else gpu.process_bytes()


def _cuda_peaks(device: torch.device) -> MemoryPeaks:
    torch.cuda.synchronize(device)
    gpu = open_nvml(device)
    return MemoryPeaks(
        peak_allocated_bytes=torch.cuda.max_memory_allocated(device),
        peak_reserved_bytes=torch.cuda.max_memory_reserved(device),
        peak_process_bytes=process_bytes(device),
        peak_device_bytes=gpu if isinstance(gpu, Absent) else gpu.memory_used_bytes(),
    )
