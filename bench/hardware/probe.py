"""Reads the machine into a ``Capability``: the only place that asks torch.cuda and the CPU's flags.

Counting GPUs never starts CUDA in this process, since a parent that has touched CUDA cannot fork workers that use it:
torch is asked through NVML; where a driver exists that NVML cannot speak for, a short child process is asked instead.
So an answer here means "the driver shows a GPU", not "a kernel ran": the first pass of a cell shows that. Answers are
cached for the life of the process.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.errors import HardwareError
from bench.hardware import nvml
from bench.hardware.capability import Capability, cpu_capability, cuda_capability
from bench.hardware.peaks import GpuPeaks, find_gpu, peaks_from_properties
from bench.units import Absent

_CUDA_DEVICE = re.compile(r"cuda:(\d+)")
_COUNT_IN_CHILD = "import torch; print(torch.cuda.device_count())"
_NAMES_IN_CHILD = (
    "import json, torch; "
    "print(json.dumps([torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]))"
)
_CHILD_TIMEOUT_S = 60


@functools.cache
def count_cuda_devices() -> int:
    """Count the GPUs that torch can address here, without starting CUDA in this process."""
    if not torch.backends.cuda.is_built() or not _driver_library_loads():
        return 0
    named_instance = os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG-")
    if not named_instance and not isinstance(nvml.count_gpus(), Absent):
        return torch.cuda.device_count()  # through NVML, so without starting CUDA
    answer = _ask_child(_COUNT_IN_CHILD)
    return int(answer) if answer.isdigit() else 0


def device_kinds() -> tuple[str, ...]:
    """One device of each kind that this machine has: ``cpu``, then the first GPU of every model.

    GPUs that cannot be named count as one kind each: none is left out.
    """
    indices = range(count_cuda_devices())
    if len(indices) < 2:
        return ("cpu", *(f"cuda:{index}" for index in indices))
    models = read_gpu_names()
    firsts = {models[index] if len(models) == len(indices) else str(index): index for index in reversed(indices)}
    return ("cpu", *(f"cuda:{index}" for index in sorted(firsts.values())))


def read_gpu_names() -> list[str]:
    """Names of the GPUs in torch's order, asked in a child process; empty where it fails."""
    answer = _ask_child(_NAMES_IN_CHILD)
    return [str(name) for name in json.loads(answer)] if answer.startswith("[") else []


def _ask_child(script: str) -> str:
    """What a short Python process, in which CUDA may start, prints; empty where it fails."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=_CHILD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return child.stdout.strip() if child.returncode == 0 else ""


def resolve_device(name: str) -> torch.device:
    """Turn the setting ``device`` into a torch device, without starting CUDA.

    Args:
        name: ``auto`` (the first GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        ``cpu`` or ``cuda:N``, always with its index.

    Raises:
        HardwareError: if the name is unknown or the machine has no such device.
    """
    if name == "cpu":
        return torch.device("cpu")
    if name == "auto":
        return torch.device("cuda", 0) if count_cuda_devices() else torch.device("cpu")
    match = _CUDA_DEVICE.fullmatch(name)
    if name == "all":
        raise HardwareError("device=all belongs on the command line of `metagrad-bench run`, alone.")
    if name != "cuda" and match is None:
        raise HardwareError(f"device={name} is not a device: use auto, cpu, cuda or cuda:N.")
    if not count_cuda_devices():
        raise HardwareError(f"device={name} needs an NVIDIA GPU, but {_why_no_gpu()}; use device=cpu or device=auto.")
    index = int(match.group(1)) if match else 0
    if index >= count_cuda_devices():
        raise HardwareError(f"device={name} does not exist: {_existing_devices()}.")
    return torch.device("cuda", index)


def open_nvml(device: torch.device) -> nvml.NvmlDevice | Absent:
    """Open NVML's view of a torch device; once CUDA has started, by its bus address, which is exact."""
    if device.type != "cuda":
        return Absent("the device is a CPU")
    if not torch.cuda.is_initialized():
        return nvml.open_device(device.index or 0)
    properties: Any = torch.cuda.get_device_properties(device)
    address = f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}:{properties.pci_device_id:02X}.0"
    return nvml.open_device(device.index or 0, pci_bus_id=address)


def probe(device: torch.device) -> Capability:
    """Read what a device can do.

    A GPU is described by NVML where possible; only where NVML cannot name it does this start CUDA in this process.
    """
    if device.type == "cpu":
        return cpu_capability(
            cpu_name(), cpu_instruction_sets(), onednn_max_isa=os.environ.get("ONEDNN_MAX_CPU_ISA", "")
        )
    gpu = open_nvml(device)
    name = gpu if isinstance(gpu, Absent) else gpu.name()
    sm = gpu if isinstance(gpu, Absent) else gpu.sm()
    if isinstance(name, Absent) or isinstance(sm, Absent):
        properties = torch.cuda.get_device_properties(device)
        name, sm = properties.name, 10 * properties.major + properties.minor
    return cuda_capability(name, sm)


def read_peaks(device: torch.device, name: str) -> GpuPeaks | Absent:
    """Peaks of a GPU: its row of the table, else what its properties give; reading these starts CUDA.

    Args:
        device: a CUDA device that starts.
        name: as the driver reports it.
    """
    listed = find_gpu(name)
    if not isinstance(listed, Absent):
        return listed
    try:
        properties: Any = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError):
        return listed
    gpu = open_nvml(device)
    untold = Absent("neither torch nor the driver reports it")

    def rate_mhz(name: str, driver: float | Absent) -> float | Absent:
        khz = getattr(properties, name, None)  # torch 2.13 has them; CUDA 13 dropped them from its own structure
        return khz / 1e3 if khz else driver

    return peaks_from_properties(
        name=name,
        sm=10 * properties.major + properties.minor,
        num_multiprocessors=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        clock_mhz=rate_mhz("clock_rate", untold if isinstance(gpu, Absent) else gpu.max_clock_mhz()),
        memory_clock_mhz=rate_mhz(
            "memory_clock_rate", untold if isinstance(gpu, Absent) else gpu.max_memory_clock_mhz()
        ),
        memory_bus_bits=getattr(properties, "memory_bus_width", None) or untold,
    )


@functools.cache
def cpu_name() -> str:
    """Model name of the processor."""
    fields = _read_cpuinfo(Path("/proc/cpuinfo"))
    return fields.get("model name") or _py_cpuinfo_name()


@functools.cache
def cpu_instruction_sets() -> tuple[str, ...]:
    """All flags of the processor, as /proc/cpuinfo spells them (or py-cpuinfo where there is no such file)."""
    fields = _read_cpuinfo(Path("/proc/cpuinfo"))
    flags = fields.get("flags") or fields.get("Features")
    return tuple(flags.split()) if flags else _py_cpuinfo_flags()


def _read_cpuinfo(path: Path) -> dict[str, str]:
    """Read the first processor of /proc/cpuinfo; empty where there is none (macOS, Windows)."""
    try:
        first = path.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


@functools.cache
def _py_cpuinfo() -> dict[str, object]:
    """Ask py-cpuinfo, which takes seconds: only where the system has no readable /proc/cpuinfo field."""
    import cpuinfo

    return dict(cpuinfo.get_cpu_info())


def _py_cpuinfo_name() -> str:
    return str(_py_cpuinfo().get("brand_raw") or platform.machine())


def _py_cpuinfo_flags() -> tuple[str, ...]:
    flags = _py_cpuinfo().get("flags")
    return tuple(str(flag) for flag in flags) if isinstance(flags, list) else ()


def _driver_library_loads() -> bool:
    """Whether the driver's library is there; loading it starts nothing."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _why_no_gpu() -> str:
    if not torch.backends.cuda.is_built():
        return f"this torch ({torch.__version__}) is built without CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    seen = nvml.count_gpus()
    return seen.reason if isinstance(seen, Absent) else "torch sees none"


def _existing_devices() -> str:
    count = count_cuda_devices()
    return "there is only cuda:0" if count == 1 else f"there are cuda:0 to cuda:{count - 1}"
