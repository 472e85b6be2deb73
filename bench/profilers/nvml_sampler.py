"""Power, clock, temperature and throttling of a device while something runs, sampled in a thread that sleeps.

A sample takes NVML well under a millisecond; between samples the thread waits on a condition, so no core is burnt.
Energy is the difference of the device's own counter, which ticks every 10 to 100 ms: windows under ``MIN_ENERGY_S``
have none. On a CPU the counter is RAPL's, of the processor packages, where the system lets it be read. A counter that
stops answering in mid-run (a driver that vanishes) leaves a reason in that sample and never ends the run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch

from bench.hardware import nvml
from bench.hardware.environment import cpu_clock_mhz
from bench.hardware.probe import open_nvml
from bench.units import Absent

DEFAULT_INTERVAL_S = 0.1
MIN_ENERGY_S = 0.1
_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSample:
    """The device's state at one moment."""

    time_s: float  # since the window began
    power_w: float | Absent
    clock_mhz: float | Absent
    temperature_c: float | Absent
    clock_reasons: tuple[str, ...] | Absent  # why the clock is what it is

    @property
    def throttled(self) -> bool | Absent:
        """Whether the device ran slower than it was asked to."""
        if isinstance(self.clock_reasons, Absent):
            return self.clock_reasons
        return not nvml.THROTTLE_REASONS.isdisjoint(self.clock_reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """What was seen in one window."""

    window_s: float
    samples: tuple[StateSample, ...]
    energy_j: float | Absent
    num_throttled: int | Absent  # samples; absent if no sample could tell
    max_power_w: float | Absent
    max_temperature_c: float | Absent
    min_clock_mhz: float | Absent

    @property
    def throttled(self) -> bool | Absent:
        """Whether any sample was throttled."""
        return self.num_throttled if isinstance(self.num_throttled, Absent) else self.num_throttled > 0


class Sensor(Protocol):
    """Reads a device's state and its energy counters."""

    def sample(self, time_s: float) -> StateSample:
        """Read the state now; ``time_s`` is copied into the sample."""
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

    def sample(self, time_s: float) -> StateSample:
        """Read the state now."""
        return StateSample(
            time_s=time_s,
            power_w=self._gpu.power_w(),
            clock_mhz=self._gpu.clock_mhz(),
            temperature_c=self._gpu.temperature_c(),
            clock_reasons=self._gpu.clock_reasons(),
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

    def __init__(self, powercap: Path = _POWERCAP) -> None:
        """Find the packages; their sub-zones (core, uncore) are parts of them and not added.

        Args:
            powercap: folder of the powercap class.
        """
        zones = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
        self._packages = [zone for zone in zones if _read(zone / "name").startswith("package")]

    def sample(self, time_s: float) -> StateSample:
        """Read the state now: of a CPU only the clock, where the system shows it."""
        return StateSample(
            time_s=time_s,
            power_w=Absent("a CPU's power is known as energy over the window only"),
            clock_mhz=cpu_clock_mhz(),
            temperature_c=Absent("CPU temperatures are not read"),
            clock_reasons=Absent("a CPU does not tell why its clock is what it is"),
        )

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

    def sample(self, time_s: float) -> StateSample:
        """Give the reason for every quantity."""
        absent = self._absent
        return StateSample(time_s=time_s, power_w=absent, clock_mhz=absent, temperature_c=absent, clock_reasons=absent)

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


class NvmlSampler:
    """Watches a device around a block; ``state`` gives the result afterwards."""

    def __init__(
        self, device: torch.device, *, interval_s: float = DEFAULT_INTERVAL_S, sensor: Sensor | None = None
    ) -> None:
        """Open the device's sensor.

        Args:
            device: the device to watch.
            interval_s: seconds between samples.
            sensor: another source of readings.
        """
        assert interval_s > 0, f"an interval of {interval_s} s would burn a core"
        self._sensor = sensor or open_sensor(device)
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._samples: list[StateSample] = []
        self._start_s = 0.0
        self._start_energy_j: tuple[float, ...] | Absent = Absent("the window has not begun")
        self._state: DeviceState | None = None

    def __enter__(self) -> NvmlSampler:
        """Take the first sample and start the thread."""
        assert self._thread is None, "a sampler watches one window at a time"
        self._samples, self._state = [], None
        self._stop.clear()
        self._start_s = time.perf_counter()
        self._start_energy_j = self._sensor.energy_counters_j()
        self._sample()
        self._thread = threading.Thread(target=self._run, name="device-sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread, take the last sample and close the window."""
        assert self._thread is not None, "the window has not begun"
        self._stop.set()
        self._thread.join()
        self._thread = None
        self._sample()
        end_energy_j = self._sensor.energy_counters_j()
        window_s = time.perf_counter() - self._start_s
        self._state = summarise(tuple(self._samples), window_s, self._energy_of_window(end_energy_j, window_s))

    def state(self) -> DeviceState:
        """Return what was seen in the finished window."""
        assert self._state is not None, "state() belongs after the window"
        return self._state

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        self._samples.append(self._sensor.sample(time.perf_counter() - self._start_s))

    def _energy_of_window(self, end_j: tuple[float, ...] | Absent, window_s: float) -> float | Absent:
        if isinstance(self._start_energy_j, Absent):
            return self._start_energy_j
        if isinstance(end_j, Absent):
            return end_j
        if window_s < MIN_ENERGY_S:
            return Absent(f"the window is shorter than {MIN_ENERGY_S * 1e3:.0f} ms, the counter's own tick")
        return self._sensor.energy_between_j(self._start_energy_j, end_j)


def summarise(samples: tuple[StateSample, ...], window_s: float, energy_j: float | Absent) -> DeviceState:
    """Reduce a window's samples to its extremes and the number of throttled ones; a gap in the samples is left out."""
    assert samples, "a window has at least its first and its last sample"
    throttled = [sample.throttled for sample in samples]
    known = [flag for flag in throttled if not isinstance(flag, Absent)]
    return DeviceState(
        window_s=window_s,
        samples=samples,
        energy_j=energy_j,
        num_throttled=sum(known) if known else _first_reason(throttled),
        max_power_w=_extreme([sample.power_w for sample in samples], max),
        max_temperature_c=_extreme([sample.temperature_c for sample in samples], max),
        min_clock_mhz=_extreme([sample.clock_mhz for sample in samples], min),
    )


def _extreme(values: list[float | Absent], choose: Callable[[list[float]], float]) -> float | Absent:
    known = [value for value in values if not isinstance(value, Absent)]
    return choose(known) if known else _first_reason(values)


def _first_reason(values: Sequence[object]) -> Absent:
    return next(value for value in values if isinstance(value, Absent))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
