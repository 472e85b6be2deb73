"""Thin driver over nvidia-ml-py: one error map, units converted once, every answer a value or ``Absent(reason)``.

Nothing here raises because a driver, a permission or a counter is missing, and nothing here starts CUDA. NVML numbers
GPUs by PCI address while CUDA numbers those that CUDA_VISIBLE_DEVICES leaves, fastest first by default; ``open_device``
joins the two and says so where it cannot. UUIDs and bus addresses are used to find a GPU and never returned.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

from bench.units import Absent

# One reason per NVML return code; a code that is not here is given by NVML's own wording.
_REASONS: dict[int, str] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver library on this machine",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "NVIDIA driver and library versions differ",
    pynvml.NVML_ERROR_NO_PERMISSION: "the driver does not let this user read it",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "this GPU does not report it",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "this NVIDIA driver is too old to report it",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU is lost: it or its driver vanished",
    pynvml.NVML_ERROR_UNINITIALIZED: "the NVIDIA driver vanished",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU needs a reset",
    pynvml.NVML_ERROR_NOT_FOUND: "the driver does not know this GPU",
    pynvml.NVML_ERROR_INVALID_ARGUMENT: "the driver does not know this GPU or counter",
    pynvml.NVML_ERROR_TIMEOUT: "the NVIDIA driver did not answer in time",
    pynvml.NVML_ERROR_OPERATING_SYSTEM: "the operating system blocked the request (no access to the GPU's device file)",
}

# Bits of nvmlDeviceGetCurrentClocksEventReasons (NVML API reference, "nvmlClocksEventReasons").
CLOCK_REASONS: dict[int, str] = {
    0x001: "idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake",
    0x100: "display_clock_setting",
}
# Those that mean the GPU ran slower than it was asked to; an idle or a pinned clock is no throttling.
THROTTLE_REASONS = frozenset(
    {"sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake"}
)
MIG_SHARED = "a MIG instance has no such counter of its own; the whole GPU's would mix in its neighbours"
# Inode of the first process id namespace, fixed by the kernel (PROC_PID_INIT_INO): host process ids hold only there.
_INIT_PID_NAMESPACE = "pid:[4026531836]"

_lock = threading.Lock()
_initialised_in: int | None = None  # process id: a forked child starts NVML anew


def reason_of(error: pynvml.NVMLError) -> str:
    """Give the reason a reader sees for an NVML error."""
    return _REASONS.get(error.value, f"NVML says: {error}")


def driver_version() -> str | Absent:
    """Version of the NVIDIA driver, such as ``570.86.10``."""
    return _ask(lambda: str(pynvml.nvmlSystemGetDriverVersion()))


def driver_cuda_version() -> str | Absent:
    """Newest CUDA version that the driver supports, such as ``12.8``."""

    def read() -> str:
        version = pynvml.nvmlSystemGetCudaDriverVersion()
        return f"{version // 1000}.{version % 1000 // 10}"

    return _ask(read)


def count_gpus() -> int | Absent:
    """Count the GPUs that NVML sees, whatever CUDA_VISIBLE_DEVICES says."""
    return _ask(lambda: int(pynvml.nvmlDeviceGetCount()))


class NvmlDevice:
    """One GPU or MIG instance; each method reads a counter now and returns its value or why there is none."""

    def __init__(self, handle: Any, *, is_mig: bool) -> None:
        """Wrap an NVML handle; use ``open_device``."""
        self._handle = handle
        self.is_mig = is_mig

    def name(self) -> str | Absent:
        """Product name; of a MIG instance with its profile."""
        return self._read(lambda handle: str(pynvml.nvmlDeviceGetName(handle)))

    def digest(self) -> str | Absent:
        """Twelve hex digits that tell this GPU (or MIG instance) from every other, made from its UUID."""

        def read(handle: Any) -> str:
            return hashlib.sha256(str(pynvml.nvmlDeviceGetUUID(handle)).encode()).hexdigest()[:12]

        return self._read(read)

    def sm(self) -> int | Absent:
        """Compute capability without the point, 90 for 9.0."""

        def read(handle: Any) -> int:
            if self.is_mig:
                handle = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            return 10 * int(major) + int(minor)

        return self._read(read)

    def power_w(self) -> float | Absent:
        """Power draw in watts; NVML averages it over up to a second."""
        return self._read_whole(lambda handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3)

    def power_limit_w(self) -> float | Absent:
        """Power limit in force, in watts."""
        return self._read_whole(lambda handle: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3)

    def energy_j(self) -> float | Absent:
        """Energy since the driver was loaded, in joules; the counter ticks every 10 to 100 ms."""
        return self._read_whole(lambda handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)

    def temperature_c(self) -> int | Absent:
        """Temperature of the chip in degrees Celsius."""
        return self._read_whole(
            lambda handle: int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
        )

    def clock_mhz(self) -> int | Absent:
        """Clock of the multiprocessors in MHz."""
        return self._read_whole(lambda handle: int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)))

    def max_clock_mhz(self) -> int | Absent:
        """Highest clock of the multiprocessors in MHz."""
        return self._read_whole(lambda handle: int(pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)))

    def memory_clock_mhz(self) -> int | Absent:
        """Clock of the memory in MHz."""
        return self._read_whole(lambda handle: int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)))

    def max_memory_clock_mhz(self) -> int | Absent:
        """Highest clock of the memory in MHz."""
        return self._read_whole(lambda handle: int(pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)))

    def default_power_limit_w(self) -> float | Absent:
        """Power limit that the GPU starts with, in watts."""
        return self._read_whole(lambda handle: pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3)

    def utilisation_pct(self) -> int | Absent:
        """Share of the last sampling period in which some kernel ran, in percent."""
        return self._read_whole(lambda handle: int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))

    def clock_reasons(self) -> tuple[str, ...] | Absent:
        """Why the clock is what it is; names of ``CLOCK_REASONS``, empty when nothing holds it back."""

        def read(handle: Any) -> tuple[str, ...]:
            try:
                bits = int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
            except pynvml.NVMLError_FunctionNotFound:  # drivers before 535 know the older name only
                bits = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
            return tuple(name for bit, name in CLOCK_REASONS.items() if bits & bit)

        return self._read_whole(read)

    def memory_total_bytes(self) -> int | Absent:
        """Memory of the GPU or MIG instance in bytes."""
        return self._read(lambda handle: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total))

    def memory_used_bytes(self) -> int | Absent:
        """Memory in use by everybody on the GPU or MIG instance, the driver's own share included, in bytes."""
        return self._read(lambda handle: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used))

    def process_bytes(self, pid: int | None = None) -> int | Absent:
        """GPU memory of one process in bytes, context included.

        Only NVML's list of compute processes is read: adding the graphics list would count a process twice.

        Args:
            pid: process id, by default this process.
        """
        pid = os.getpid() if pid is None else pid
        listed = self._read(_compute_processes)
        if isinstance(listed, Absent):
            return listed
        own = [process for process in listed if process.pid == pid]
        if not own and _pid_namespace_is_foreign():
            return Absent("NVML lists the host's process ids, which this container cannot match with its own")
        if not own:
            return Absent("NVML lists no GPU memory for this process")
        if own[0].usedGpuMemory is None:
            return Absent("NVML does not report memory per process on this system")
        return int(own[0].usedGpuMemory)

    def count_other_processes(self, *, holds_context: bool) -> int | Absent:
        """Count the processes on the GPU besides one's own; a count only, never their ids or names.

        Args:
            holds_context: whether one's own process has started CUDA on this GPU, so that one entry is its own even
                where a container shows it under another id.
        """
        compute = self._read(_compute_processes)
        if isinstance(compute, Absent):
            return compute
        graphics = self._read(_graphics_processes)
        pids = {process.pid for process in compute}
        pids |= set() if isinstance(graphics, Absent) else {process.pid for process in graphics}
        if os.getpid() in pids:
            return len(pids) - 1
        if not pids and _pid_namespace_is_foreign():
            return Absent("NVML shows no process list to this container")
        return max(0, len(pids) - 1) if holds_context and _pid_namespace_is_foreign() else len(pids)

    def _read(self, read: Callable[[Any], Any]) -> Any:
        return _ask(lambda: read(self._handle))

    def _read_whole(self, read: Callable[[Any], Any]) -> Any:
        """Read a counter that only a whole GPU has."""
        return Absent(MIG_SHARED) if self.is_mig else self._read(read)


def open_device(cuda_index: int = 0, *, pci_bus_id: str | None = None) -> NvmlDevice | Absent:
    """Find the GPU that torch calls ``cuda:<cuda_index>``.

    Args:
        cuda_index: index among the GPUs that CUDA_VISIBLE_DEVICES leaves.
        pci_bus_id: address such as ``00000000:3B:00.0`` where CUDA has started and told it; the only sure way on a
            machine whose GPUs differ, because CUDA's default order is fastest first and NVML's is by address.

    Returns:
        The device (a MIG instance where the process would get one), or why it was not found.
    """
    if pci_bus_id is not None:
        found = _ask(lambda: pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id))
        return found if isinstance(found, Absent) else _whole_or_mig(found)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        wanted: str | int = cuda_index
    else:
        entries = [entry.strip() for entry in visible.split(",") if entry.strip()]
        if cuda_index >= len(entries):
            return Absent(f"CUDA_VISIBLE_DEVICES leaves {len(entries)} GPU(s), so there is no cuda:{cuda_index}")
        entry = entries[cuda_index]
        wanted = int(entry) if entry.isdigit() else entry
    if isinstance(wanted, str):
        return _open_by_uuid(wanted)
    if _order_is_ambiguous():
        return Absent(
            "the GPUs of this machine differ and CUDA orders them fastest first; set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    handle = _ask(lambda: pynvml.nvmlDeviceGetHandleByIndex(wanted))
    return handle if isinstance(handle, Absent) else _whole_or_mig(handle)


def _open_by_uuid(uuid: str) -> NvmlDevice | Absent:
    """Open by the UUID, or its unique beginning, that CUDA_VISIBLE_DEVICES names."""
    exact = _ask(lambda: pynvml.nvmlDeviceGetHandleByUUID(uuid))
    if not isinstance(exact, Absent):
        return NvmlDevice(exact, is_mig=True) if uuid.startswith("MIG") else _whole_or_mig(exact)

    def search() -> list[Any]:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [handle for handle in handles if str(pynvml.nvmlDeviceGetUUID(handle)).startswith(uuid)]

    matches = _ask(search)
    if isinstance(matches, Absent):
        return matches
    if len(matches) != 1:
        return Absent("CUDA_VISIBLE_DEVICES names a GPU that NVML does not know")
    return _whole_or_mig(matches[0])


def _whole_or_mig(handle: Any) -> NvmlDevice | Absent:
    """Step from a GPU in MIG mode to its first instance: the one that CUDA uses when none is named."""

    def first_instance() -> Any:
        try:
            enabled, _ = pynvml.nvmlDeviceGetMigMode(handle)
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
            return None
        if not enabled:
            return None
        for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                return pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            except pynvml.NVMLError_NotFound:
                continue
        return Absent("the GPU is in MIG mode and has no instance")

    instance = _ask(first_instance)
    if isinstance(instance, Absent):
        return instance
    return NvmlDevice(handle, is_mig=False) if instance is None else NvmlDevice(instance, is_mig=True)


def _order_is_ambiguous() -> bool:
    """Whether NVML's and CUDA's numbers may mean different GPUs."""
    if os.environ.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST") == "PCI_BUS_ID":
        return False

    def names() -> set[str]:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return {str(pynvml.nvmlDeviceGetName(handle)) for handle in handles}

    found = _ask(names)
    return not isinstance(found, Absent) and len(found) > 1


def _compute_processes(handle: Any) -> list[Any]:
    """List the processes with a CUDA context; drivers before 510 know the second version of the call only."""
    try:
        return list(pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle))
    except pynvml.NVMLError_FunctionNotFound:
        return list(pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle))


def _graphics_processes(handle: Any) -> list[Any]:
    """List the processes with a graphics context; see ``_compute_processes``."""
    try:
        return list(pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3(handle))
    except pynvml.NVMLError_FunctionNotFound:
        return list(pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2(handle))


def _pid_namespace_is_foreign() -> bool:
    """Whether process ids here are a container's own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) != _INIT_PID_NAMESPACE
    except OSError:
        return False


def _ask(read: Callable[[], Any]) -> Any:
    """Run an NVML call; a failure becomes its reason."""
    global _initialised_in
    try:
        with _lock:
            if _initialised_in != os.getpid():
                pynvml.nvmlInit()
                _initialised_in = os.getpid()
        return read()
    except pynvml.NVMLError as error:
        return Absent(reason_of(error))
