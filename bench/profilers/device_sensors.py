"""What reads a device's state: NVML for an NVIDIA GPU, RAPL and the kernel's counters for a CPU, or a reason.

On a CPU the energy counter is RAPL's, of the processor packages, where the system lets it be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import torch

from bench.hardware import nvml
from bench.hardware.environment import cpu_clock_mhz
from bench.hardware.probe import open_nvml
from bench.units import Absent

_MIN_POWER_S = 0.005  # RAPL counters tick every millisecond
_POWERCAP = Path("/sys/class/powercap")
_THROTTLE_COUNTS = "cpu*/thermal_throttle/package_throttle_count"
_CPUS = Path("/sys/devices/system/cpu")
_UNWATCHED = Absent("no process is watched yet")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSample:
    """The device's state at one moment."""

    time_s: float  # since the window began
    power_w: float | Absent
    clock_mhz: float | Absent
    temperature_c: float | Absent
    clock_reasons: tuple[str, ...] | Absent  # why the clock is what it is
    memory_clock_mhz: float | Absent
    utilisation_pct: float | Absent  # of the whole device
    process_bytes: float | Absent  # of the watched process: GPU memory, on a CPU resident memory
    energy_j: float | Absent  # since the window began

    @property
    def throttled(self) -> bool | Absent:
        """Whether the device ran slower than it was asked to."""
        if isinstance(self.clock_reasons, Absent):
            return self.clock_reasons
        return not nvml.THROTTLE_REASONS.isdisjoint(self.clock_reasons)


class Sensor(Protocol):
    """Reads a device's state and its energy counters."""

    def sample(self, time_s: float, *, pid: int | None, energy_j: float | Absent) -> StateSample:
        """Read the state now; ``time_s`` and ``energy_j`` are copied into the sample, ``pid`` is the one watched."""
        ...

    def energy_counters_j(self) -> tuple[float, ...] | Absent:
        """Read each energy counter in joules; only differences mean anything."""
        ...

    def energy_between_j(self, start: tuple[float, ...], end: tuple[float, ...]) -> float | Absent:
        """Joules between two readings of the counters, which may have wrapped."""
        ...


class GpuSensor:
    """An NVIDIA GPU through NVML."""

    def __init__(self, gpu: nvml.NvmlDevice) -> None:
        """Read from an opened device."""
        self._gpu = gpu

    def sample(self, time_s: float, *, pid: int | None, energy_j: float | Absent) -> StateSample:
        """Read the state now."""
        return StateSample(
            time_s=time_s,
            power_w=self._gpu.power_w(),
            clock_mhz=self._gpu.clock_mhz(),
            temperature_c=self._gpu.temperature_c(),
            clock_reasons=self._gpu.clock_reasons(),
            memory_clock_mhz=self._gpu.memory_clock_mhz(),
            utilisation_pct=self._gpu.utilisation_pct(),
            process_bytes=_UNWATCHED if pid is None else self._gpu.process_bytes(pid),
            energy_j=energy_j,
        )

    def energy_counters_j(self) -> tuple[float, ...] | Absent:
        """Read NVML's energy counter."""
        energy_j = self._gpu.energy_j()
        return energy_j if isinstance(energy_j, Absent) else (energy_j,)

    def energy_between_j(self, start: tuple[float, ...], end: tuple[float, ...]) -> float | Absent:
        """Difference of the counter; it starts anew when the driver is loaded again."""
        return end[0] - start[0] if end[0] >= start[0] else Absent("the driver's energy counter started anew")


class CpuSensor:
    """Processor packages through RAPL in sysfs (Linux "powercap" documentation); AMD's appear under the same names."""

    def __init__(self, powercap: Path = _POWERCAP, *, cpus: Path = _CPUS) -> None:
        """Find the packages; their sub-zones (core, uncore) are parts of them and not added.

        Args:
            powercap: folder of the powercap class.
            cpus: folder of the processors, whose counts of thermal throttling are read where the system has them.
        """
        zones = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
        self._packages = [zone for zone in zones if _read(zone / "name").startswith("package")]
        self._throttle_counts = sorted(cpus.glob(_THROTTLE_COUNTS))
        self._throttled: int | None = None  # events at the last reading
        self._times: tuple[float, float] | None = None
        self._last: tuple[float, float] | None = None

    def sample(self, time_s: float, *, pid: int | None, energy_j: float | Absent) -> StateSample:
        """Read the state now: clock and power where the system shows them, load and the process's resident memory."""
        return StateSample(
            time_s=time_s,
            power_w=self._power_w(time_s, energy_j),
            clock_mhz=cpu_clock_mhz(),
            temperature_c=Absent("CPU temperatures are not read"),
            clock_reasons=self._clock_reasons(),
            memory_clock_mhz=Absent("a CPU does not tell its memory's clock"),
            utilisation_pct=self._utilisation_pct(),
            process_bytes=_UNWATCHED if pid is None else _resident_bytes(pid),
            energy_j=energy_j,
        )

    def _clock_reasons(self) -> tuple[str, ...] | Absent:
        """Heat, where the packages counted thermal throttling since the sample before; a CPU tells no other reason."""
        counts = [_read(path) for path in self._throttle_counts]
        if not counts or not all(count.isdigit() for count in counts):
            return Absent("this system does not count thermal throttling (virtual machines usually do not)")
        last, self._throttled = self._throttled, sum(map(int, counts))
        if last is None:
            return Absent("throttling is counted since the sample before, and there is none yet")
        return ("hw_thermal_slowdown",) if self._throttled > last else ()

    def _power_w(self, time_s: float, energy_j: float | Absent) -> float | Absent:
        """Mean power since the sample before."""
        if isinstance(energy_j, Absent):
            return energy_j
        last, self._last = self._last, (time_s, energy_j)
        if last is None or time_s - last[0] < _MIN_POWER_S:
            return Absent("power is the energy since the sample before, and there is none yet")
        return (energy_j - last[1]) / (time_s - last[0])

    def _utilisation_pct(self) -> float | Absent:
        """Share of all cores' time since the sample before that was not idle."""
        times = psutil.cpu_times()
        busy_s, all_s = sum(times) - times.idle - getattr(times, "iowait", 0.0), sum(times)
        last, self._times = self._times, (busy_s, all_s)
        if last is None or all_s <= last[1]:
            return Absent("load is counted since the sample before, and there is none yet")
        return round(max(0.0, 100 * (busy_s - last[0]) / (all_s - last[1])), 1)

    def energy_counters_j(self) -> tuple[float, ...] | Absent:
        """Read each package's counter."""
        if not self._packages:
            return Absent("this system shows no RAPL energy counters (virtual machines usually do not)")
        try:
            return tuple(int((zone / "energy_uj").read_text(encoding="ascii")) / 1e6 for zone in self._packages)
        except PermissionError:
            return Absent("RAPL energy counters are readable by root only")
        except (OSError, ValueError):
            return Absent("the RAPL energy counters could not be read")

    def energy_between_j(self, start: tuple[float, ...], end: tuple[float, ...]) -> float | Absent:
        """Sum of the packages' differences, across one wrap of each."""
        total_j = 0.0
        for zone, before, after in zip(self._packages, start, end, strict=True):
            total_j += after - before
            if after < before:
                range_uj = _read(zone / "max_energy_range_uj")
                if not range_uj.isdigit():
                    return Absent("a RAPL energy counter wrapped and its range could not be read")
                total_j += int(range_uj) / 1e6
        return total_j


class AbsentSensor:
    """Stands where a device cannot be watched: every reading is the same reason."""

    def __init__(self, absent: Absent) -> None:
        """Keep the reason."""
        self._absent = absent

    def sample(self, time_s: float, *, pid: int | None, energy_j: float | Absent) -> StateSample:
        """Give the reason for every quantity."""
        absent = self._absent
        return StateSample(
            time_s=time_s, power_w=absent, clock_mhz=absent, temperature_c=absent, clock_reasons=absent,
            memory_clock_mhz=absent, utilisation_pct=absent, process_bytes=absent, energy_j=energy_j,
        )  # fmt: skip

    def energy_counters_j(self) -> tuple[float, ...] | Absent:
        """Give the reason."""
        return self._absent

    def energy_between_j(self, start: tuple[float, ...], end: tuple[float, ...]) -> float | Absent:
        """Give the reason."""
        return self._absent


def open_sensor(device: torch.device) -> Sensor:
    """Choose the sensor of a device; an unreadable GPU answers with its reason."""
    if device.type == "cpu":
        return CpuSensor()
    gpu = open_nvml(device)
    return AbsentSensor(gpu) if isinstance(gpu, Absent) else GpuSensor(gpu)


def _resident_bytes(pid: int) -> int | Absent:
    try:
        resident = int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        resident = 0
    return resident or Absent("the process has ended")  # one that was not waited for yet has nothing left


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
