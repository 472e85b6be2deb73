"""The record's environment block (what ran, on what, in which state) and the fingerprint of comparable timings.

The block is plain JSON: a value that could not be known is ``{"reason": "..."}`` where it would stand. It names no
user, host, home or working folder and no GPU's serial numbers, so that a record can be published as it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.hardware import nvml
from bench.hardware.capability import KNOWN_INSTRUCTION_SETS
from bench.hardware.probe import cpu_instruction_sets, cpu_name, open_nvml, probe
from bench.units import Absent

DISTRIBUTION = "metagrad-bench"
_CHECKOUT = Path(__file__).resolve().parents[2]
_GIT_TIMEOUT_S = 20
_CPU0 = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_NO_CPUFREQ = "this system shows no CPU frequency settings (virtual machines usually do not)"
_GPU_ONLY = "the device is a CPU"
_NOT_ASKED = Absent("nothing of this environment runs training steps")
# Variables that change which CPU kernels run or where their threads sit; recorded by value.
_KERNEL_VARIABLES = (
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "OMP_WAIT_POLICY",
)
_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")

# What must be equal before two timings may be compared: (path in the block, words for a reader).
FINGERPRINT_FIELDS: tuple[tuple[str, str], ...] = (
    ("device.kind", "kind of device"),
    ("device.name", "device"),
    ("device.sm", "compute capability"),
    ("device.memory_bytes", "device memory"),
    ("device.power_limit_w", "power limit"),
    ("device.driver", "driver"),
    ("torch.version", "torch version"),
    ("torch.cuda_build", "CUDA version of torch"),
    ("torch.cpu_capability", "torch's CPU code path"),
    ("torch.threads", "number of threads"),
    ("cpu.model", "CPU model"),
    ("cpu.instruction_sets", "CPU instruction sets"),
    ("cpu.usable_cores", "usable cores"),
    ("cpu.governor", "CPU frequency governor"),
    ("kernel_variables", "variables that choose CPU kernels"),
    ("allocator", "memory allocator"),
    ("elementwise", "element-wise pieces"),
    ("python.version", "Python version"),
    ("os.system", "operating system"),
    ("os.machine", "machine type"),
)


def read_environment(device: torch.device, *, elementwise: str | Absent = _NOT_ASKED) -> dict[str, Any]:
    """Read the environment block for a device.

    Args:
        device: the device that a cell runs on; a GPU that NVML cannot name makes this start CUDA (``probe``).
        elementwise: what runs a step's element-wise work there, as ``bench.native.pieces`` says it.

    Returns:
        Plain JSON values only, ``{"reason": ...}`` for what could not be known; the top level is the parts ``package``,
        ``python``, ``os``, ``torch``, ``cpu``, ``device``, ``allocator``, ``elementwise`` and ``kernel_variables``.
    """
    block = {
        "package": _package(),
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "os": {
            "system": platform.system(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "distribution": _os_distribution(),
        },
        "torch": _torch_build(),
        "cpu": _cpu(),
        "device": _device(device),
        "allocator": memory_allocator(),
        "elementwise": elementwise,
        "kernel_variables": {name: os.environ[name] for name in _KERNEL_VARIABLES if name in os.environ},
    }
    plain: dict[str, Any] = to_plain(block)
    return plain


def to_plain(value: Any) -> Any:
    """Turn a nest of dicts, tuples and ``Absent`` into plain JSON values."""
    if isinstance(value, Absent):
        return {"reason": value.reason}
    if isinstance(value, dict):
        return {key: to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(part) for part in value]
    return value


def fingerprint(environment: dict[str, Any]) -> str:
    """Hash what makes timings comparable into ``<kind>-<12 hex digits>``, such as ``cpu-3f9a0c1b22de``."""
    relevant = {path: _look_up(environment, path) for path, _ in FINGERPRINT_FIELDS}
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
    return f"{environment['device']['kind']}-{digest[:12]}"


def describe_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, ...]:
    """Say in words in which fields two environments differ so that their timings cannot be compared.

    Args:
        ours: one environment block.
        theirs: the other.

    Returns:
        One phrase per differing field, such as ``number of threads: 2 against 4``; empty where the fingerprints agree.
    """
    pairs = ((words, _look_up(ours, path), _look_up(theirs, path)) for path, words in FINGERPRINT_FIELDS)
    return tuple(f"{words}: {_in_words(a)} against {_in_words(b)}" for words, a, b in pairs if a != b)


def usable_cores() -> int:
    """Count the cores that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> float | Absent:
    """CPU time a second that the container's quota allows, in cores."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return Absent("no CPU quota is visible")
    if quota in ("max", "-1"):
        return Absent("no CPU quota is set")
    return int(quota) / int(period)


def memory_allocator(maps: Path = Path("/proc/self/maps")) -> str | Absent:
    """Name the memory allocator of this process: ``system`` or one that was preloaded."""
    try:
        text = maps.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Absent("this system does not list a process's libraries")
    libraries = {line.rsplit("/", 1)[-1] for line in text.splitlines() if "/" in line}
    return next((name for name in _ALLOCATORS for library in libraries if library.startswith(f"lib{name}")), "system")


def cpu_governor(folder: Path = _CPU0) -> str | Absent:
    """Frequency governor of the first core, such as ``performance``."""
    return _read_text(folder / "scaling_governor", _NO_CPUFREQ)


def cpu_clock_mhz(folder: Path = _CPU0) -> float | Absent:
    """Current clock of the first core in MHz."""
    return _read_khz(folder / "scaling_cur_freq")


def cpu_max_clock_mhz(folder: Path = _CPU0) -> float | Absent:
    """Highest clock of the first core in MHz."""
    return _read_khz(folder / "cpuinfo_max_freq")


def _package() -> dict[str, Any]:
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no") if not isinstance(commit, Absent) else commit
    try:
        version: str | Absent = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = Absent("the package is not installed")
    return {
        "version": version,
        "git_commit": commit,
        "git_dirty": status if isinstance(status, Absent) else bool(status),
    }


def _git(*arguments: str) -> str | Absent:
    """Ask git about our own checkout; a package inside somebody else's repository is not one."""
    if not ((_CHECKOUT / ".git").exists() and (_CHECKOUT / "pyproject.toml").exists()):
        return Absent("the package does not run from a git checkout")
    command = ["git", "--no-optional-locks", "-C", str(_CHECKOUT), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Absent("git could not be run")
    return answer.stdout.strip() if answer.returncode == 0 else Absent("git could not read the checkout")


def _os_distribution() -> str | Absent:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return Absent("the system does not name its distribution")


def _torch_build() -> dict[str, Any]:
    config = torch.__config__.show()
    compiler = re.search(r"^\s*- ((?:GCC|clang|MSVC)\S* \S+)", config, re.MULTILINE)
    onednn = re.search(r"MKL-DNN (v[\d.]+)", config)
    mkl = re.search(r"Math Kernel Library Version (\S+)", config)
    return {
        "version": str(torch.__version__),
        "cuda_build": torch.version.cuda or Absent("this torch is built without CUDA"),
        "cudnn_build": _cudnn_build(),
        "mkldnn": onednn.group(1) if onednn else Absent("this torch is built without oneDNN"),
        "mkl": mkl.group(1) if mkl else Absent("this torch is built without MKL"),
        "compiler": compiler.group(1) if compiler else Absent("torch does not name its compiler"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _cudnn_build() -> int | Absent:
    version = torch.backends.cudnn.version() if torch.backends.cuda.is_built() else None
    return Absent("this torch is built without cuDNN") if version is None else version


def _cpu() -> dict[str, Any]:
    return {
        "model": cpu_name(),
        "instruction_sets": [flag for flag in KNOWN_INSTRUCTION_SETS if flag in cpu_instruction_sets()],
        "physical_cores": psutil.cpu_count(logical=False) or Absent("the system does not count physical cores"),
        "logical_cores": os.cpu_count() or Absent("the system does not count cores"),
        "usable_cores": usable_cores(),
        "cgroup_cores": cgroup_cores(),
        "governor": cpu_governor(),
        "clock_mhz": cpu_clock_mhz(),
        "max_clock_mhz": cpu_max_clock_mhz(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _device(device: torch.device) -> dict[str, Any]:
    capability = probe(device)
    facts: dict[str, Any] = {
        "kind": capability.kind,
        "name": capability.name,
        "sm": capability.sm,
        "int8_path": capability.int8_path,
        "int4_units": capability.int4_units,
    }
    return facts | _gpu_state(open_nvml(device) if device.type == "cuda" else Absent(_GPU_ONLY))


def _gpu_state(gpu: nvml.NvmlDevice | Absent) -> dict[str, Any]:
    names = (
        "driver",
        "driver_cuda",
        "mig",
        "memory_bytes",
        "power_limit_w",
        "clock_mhz",
        "max_clock_mhz",
        "memory_clock_mhz",
        "temperature_c",
        "clock_reasons",
    )
    if isinstance(gpu, Absent):
        return dict.fromkeys(names, gpu)
    values = (
        nvml.driver_version(),
        nvml.driver_cuda_version(),
        gpu.is_mig,
        gpu.memory_total_bytes(),
        gpu.power_limit_w(),
        gpu.clock_mhz(),
        gpu.max_clock_mhz(),
        gpu.memory_clock_mhz(),
        gpu.temperature_c(),
        gpu.clock_reasons(),
    )
    return dict(zip(names, values, strict=True))


def _read_text(path: Path, reason: str) -> str | Absent:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return Absent(reason)


def _read_khz(path: Path) -> float | Absent:
    text = _read_text(path, _NO_CPUFREQ)
    if isinstance(text, Absent):
        return text
    return int(text) / 1e3 if text.isdigit() else Absent("the system does not tell this clock")


def _look_up(environment: dict[str, Any], path: str) -> Any:
    """Follow ``a.b`` into a block; None where the value is unknown, whatever the reason, or was not recorded."""
    value: Any = environment
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return None if isinstance(value, dict) and set(value) == {"reason"} else value


def _in_words(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        return " ".join(f"{key}={part}" for key, part in value.items()) or "none set"
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
