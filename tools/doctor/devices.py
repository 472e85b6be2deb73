"""What ``doctor`` says of one device: integer paths, self-check, measured ceilings, clocks, limits, other processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bench.hardware.nvml import NvmlDevice
    from bench.hardware.peaks import GpuPeaks
    from bench.profilers.ceilings import Ceilings
    from bench.units import Absent

BIT_WIDTHS = (8, 7, 6, 5, 4, 3, 2, 1)
LOCK_WAIT_S = 5.0  # a run may hold the device for hours
_CEILING_BUDGET_S = 0.8  # for each of four figures a device: under 5 s in all on a machine with one device


def describe_device(device: torch.device, *, measure: bool) -> dict[str, Any]:
    """Everything about one device.

    Args:
        device: the CPU or a GPU.
        measure: whether to measure its ceilings.

    Returns:
        Values that ``bench.hardware.environment.to_plain`` makes plain; every key is there on every kind of device.
    """
    from bench.errors import HardwareError
    from bench.hardware.capability import integer_path
    from bench.hardware.environment import read_environment
    from bench.hardware.peaks import find_gpu
    from bench.hardware.probe import open_nvml, probe, read_peaks
    from bench.kernels.selfcheck import check_device
    from bench.native import notice, pieces
    from bench.units import Absent

    capability = probe(device)
    error, starts = "", True
    try:
        check_device(device)
    except HardwareError as failure:
        error = str(failure)
    except RuntimeError as failure:  # CUDA does not start: a driver too old for this torch, a GPU in a bad state
        error, starts = str(failure).splitlines()[0], False
    paths = {bits: integer_path(bits, capability, self_check_error=error) for bits in BIT_WIDTHS}
    gpu = open_nvml(device)
    # Before our own products, while what holds the clocks back is read right after them.
    state = _load_of(gpu) if device.type == "cuda" else _CpuState()
    ceilings = device_ceilings(device, measure=measure) if starts else Absent(error)
    peaks: GpuPeaks | Absent = Absent("published peaks are listed for GPUs only")
    if device.type == "cuda":
        peaks = read_peaks(device, capability.name) if starts else find_gpu(capability.name)
    environment = read_environment(device)
    return {
        "device": str(device),
        "name": capability.name,
        "sm": capability.sm,
        "instruction_sets": capability.instruction_sets,
        "int4_units": capability.int4_units,
        "limits": {"min_rows": capability.limits.min_rows, "multiple": capability.limits.multiple},
        "self_check": Absent(error) if error else "passed",
        "elementwise": pieces(device),
        "elementwise_notice": notice() if device.type == "cpu" else Absent("the pieces are compiled for CPUs"),
        "integer_paths": {str(bits): {"label": path.label, "reason": path.reason} for bits, path in paths.items()},
        "ceilings": ceilings,
        "published": peaks
        if isinstance(peaks, Absent)
        else {
            "fp32_tflops": peaks.fp32_tflops,
            "bf16_tflops": peaks.bf16_tflops,
            "int8_tops": peaks.int8_tops,
            "int4_tops": peaks.int4_tops,
            "bandwidth_gb_s": peaks.bandwidth_gb_s,
            "memory_gb": peaks.memory_gb,
            "source": peaks.source,
            "verified": peaks.verified,
        },
        "state": environment["device"] | (state.read(environment) if isinstance(state, _CpuState) else state),
        "energy_counter": _energy_counter(device),
        "other_processes": _other_processes(device, gpu, holds_context=starts),
    }


class _CpuState:
    """A CPU's part of what a GPU's driver tells: what the system counts between two readings, or why it is not told."""

    def __init__(self) -> None:
        import torch

        from bench.profilers.device_sensors import open_sensor

        self._sensor = open_sensor(torch.device("cpu"))
        self._sample()

    def _sample(self) -> Any:
        counters = self._sensor.energy_counters_j()
        energy_j = sum(counters) if isinstance(counters, tuple) else counters
        return self._sensor.sample(time.monotonic(), pid=None, energy_j=energy_j)

    def read(self, environment: dict[str, Any]) -> dict[str, Any]:
        """Everything since this was made, under the keys of a GPU's state.

        Args:
            environment: gives clocks and governor.
        """
        from bench.units import Absent

        now = self._sample()
        no_limit = Absent("power limits are read of GPUs only")
        own_memory = Absent("a CPU has no memory of its own: see memory")
        return {
            **{name: environment["cpu"][name] for name in ("governor", "clock_mhz", "max_clock_mhz")},
            "mig": Absent("only GPUs are divided into instances"),
            "power_w": now.power_w,
            "power_limit_w": no_limit,
            "default_power_limit_w": no_limit,
            "memory_clock_mhz": now.memory_clock_mhz,
            "temperature_c": now.temperature_c,
            "utilisation_pct": now.utilisation_pct,
            "memory_bytes": own_memory,
            "memory_used_bytes": own_memory,
            "clock_reasons": now.clock_reasons,
        }


def _other_processes(device: torch.device, gpu: NvmlDevice | Absent, *, holds_context: bool) -> Any:
    from bench.units import Absent

    if device.type == "cpu":
        return Absent("counted on GPUs only; the load average tells of others")
    return gpu if isinstance(gpu, Absent) else gpu.count_other_processes(holds_context=holds_context)


def _load_of(gpu: NvmlDevice | Absent) -> dict[str, Any]:
    """What a GPU is doing and how it is set, beyond what a record keeps."""
    names = ("utilisation_pct", "memory_used_bytes", "power_w", "default_power_limit_w")
    from bench.units import Absent

    return {name: gpu if isinstance(gpu, Absent) else getattr(gpu, name)() for name in names}


def _energy_counter(device: torch.device) -> Any:
    """Whether the energy of a step can be measured here."""
    from bench.profilers.device_sensors import open_sensor
    from bench.units import Absent

    counters = open_sensor(device).energy_counters_j()
    return counters if isinstance(counters, Absent) else "readable"


def device_ceilings(device: torch.device, *, measure: bool) -> Any:
    """Measured while no pass runs on the device; where one does for long, the reason."""
    from bench.errors import HardwareError
    from bench.locks import device_lock
    from bench.profilers.ceilings import measure_ceilings
    from bench.units import Absent

    if not measure:
        return Absent("not measured: --no-measure")
    try:
        with device_lock(str(device), wait_s=LOCK_WAIT_S):
            ceilings: Ceilings = measure_ceilings(device, budget_s=_CEILING_BUDGET_S)
    except HardwareError as error:
        return Absent(f"not measured: {str(error).rstrip('.')}")
    return {
        "int8_gops": ceilings.int8_gops,
        "fp32_gflops": ceilings.fp32_gflops,
        "bf16_gflops": ceilings.bf16_gflops,
        "copy_gb_s": ceilings.copy_gb_s,
    }
