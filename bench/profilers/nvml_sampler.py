"""Power, clocks, temperature, load and throttling of a device while something runs, sampled in a thread that sleeps.

A sample takes NVML well under a millisecond; between samples the thread waits on a condition, so no core is burnt.
Energy is the difference of the device's own counter, which ticks every 10 to 100 ms: windows under ``MIN_ENERGY_S``
have none. The counter is read with every sample, so that one that wraps within minutes is followed through. One that
stops answering in mid-run (a driver that vanishes) leaves a reason in that sample and never ends the run. Moments are
those of ``time.perf_counter``, which all processes of a machine share on Linux, macOS and Windows: another process's
windows can be laid over the samples.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from bench.hardware import nvml
from bench.profilers.device_sensors import Sensor, StateSample, open_sensor
from bench.records.schema import DeviceSeries
from bench.units import Absent

DEFAULT_INTERVAL_S = 0.1
MIN_ENERGY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """What was seen in one window."""

    samples: tuple[StateSample, ...]
    energy_j: float | Absent
    num_throttled: int | Absent  # samples; absent if no sample could tell
    start_s: float = 0.0  # on ``time.perf_counter``

    @property
    def throttled(self) -> bool | Absent:
        """Whether any sample was throttled."""
        return self.num_throttled if isinstance(self.num_throttled, Absent) else self.num_throttled > 0

    def energy_between_j(self, start_s: float, end_s: float) -> float | Absent:
        """Energy between two moments of ``time.perf_counter``, interpolated between the samples around each.

        Absent for less than ``MIN_ENERGY_S``, outside the window, and where the counter was silent.
        """
        if isinstance(self.energy_j, Absent):
            return self.energy_j
        if end_s - start_s < MIN_ENERGY_S:
            return _too_short()
        known = [(s.time_s, s.energy_j) for s in self.samples if not isinstance(s.energy_j, Absent)]
        start, end = start_s - self.start_s, end_s - self.start_s
        if not known or start < known[0][0] or end > known[-1][0]:
            return Absent("the energy counter was not read around this window")
        return _interpolate(known, end) - _interpolate(known, start)

    def throttled_between(self, start_s: float, end_s: float) -> bool | Absent:
        """Whether the device was throttled between two moments: in a sample between them, or in the ones around."""
        start, end = start_s - self.start_s, end_s - self.start_s
        inside = [s for s in self.samples if start <= s.time_s <= end]
        before = [s for s in self.samples if s.time_s < start][-1:]
        after = [s for s in self.samples if s.time_s > end][:1]
        flags = [sample.throttled for sample in (*before, *inside, *after)]
        known = [flag for flag in flags if not isinstance(flag, Absent)]
        if not known:
            return _first_reason(flags) if flags else Absent("the device was not sampled around this window")
        return any(known)

    def series(self) -> DeviceSeries:
        """The samples column by column, as a record keeps them."""

        def column(name: str) -> Any:
            values = tuple(getattr(sample, name) for sample in self.samples)
            # The last reason: the first sample's may be that there is none before it.
            return values[-1] if all(isinstance(value, Absent) for value in values) else values

        reasons = [s.clock_reasons for s in self.samples if not isinstance(s.clock_reasons, Absent)]
        return DeviceSeries(
            time_s=tuple(round(sample.time_s, 4) for sample in self.samples),
            power_w=column("power_w"),
            clock_mhz=column("clock_mhz"),
            memory_clock_mhz=column("memory_clock_mhz"),
            temperature_c=column("temperature_c"),
            utilisation_pct=column("utilisation_pct"),
            process_bytes=column("process_bytes"),
            throttled=column("throttled"),
            throttle_reasons=tuple(sorted({name for seen in reasons for name in seen} & nvml.THROTTLE_REASONS)),
            num_throttled=self.num_throttled,
            energy_j=self.energy_j,
        )


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
        self._counters_j: tuple[float, ...] | Absent = Absent("the window has not begun")  # at the last good reading
        self._energy_j: float | Absent = 0.0  # since the window began
        self._pid: int | None = None
        self._state: DeviceState | None = None

    def counts_energy(self) -> bool:
        """Whether the device has an energy counter that can be read."""
        return not isinstance(self._sensor.energy_counters_j(), Absent)

    def watch_process(self, pid: int) -> None:
        """Sample this process's memory from now on."""
        self._pid = pid

    def __enter__(self) -> NvmlSampler:
        """Take the first sample and start the thread."""
        assert self._thread is None, "a sampler watches one window at a time"
        self._samples, self._state, self._pid = [], None, None
        self._stop.clear()
        self._start_s = time.perf_counter()
        self._counters_j = self._sensor.energy_counters_j()
        self._energy_j = self._counters_j if isinstance(self._counters_j, Absent) else 0.0
        self._sample(self._energy_j)
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
        energy_j = self._read_energy()
        self._sample(energy_j)
        if not isinstance(energy_j, Absent) and time.perf_counter() - self._start_s < MIN_ENERGY_S:
            energy_j = _too_short()
        self._state = summarise(tuple(self._samples), energy_j, start_s=self._start_s)

    def state(self) -> DeviceState:
        """Return what was seen in the finished window."""
        assert self._state is not None, "state() belongs after the window"
        return self._state

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample(self._read_energy())

    def _sample(self, energy_j: float | Absent) -> None:
        now_s = time.perf_counter() - self._start_s
        self._samples.append(self._sensor.sample(now_s, pid=self._pid, energy_j=energy_j))

    def _read_energy(self) -> float | Absent:
        """Energy since the window began; a reading that fails is a gap, and the next one reaches back over it."""
        if isinstance(self._energy_j, Absent) or isinstance(self._counters_j, Absent):
            return self._energy_j  # it never began, or started anew in mid-run
        now = self._sensor.energy_counters_j()
        if isinstance(now, Absent):
            return now
        added = self._sensor.energy_between_j(self._counters_j, now)
        self._counters_j = now
        self._energy_j = added if isinstance(added, Absent) else self._energy_j + added
        return self._energy_j


def summarise(samples: tuple[StateSample, ...], energy_j: float | Absent, *, start_s: float = 0.0) -> DeviceState:
    """Count a window's throttled samples; a gap in the samples is left out."""
    assert samples, "a window has at least its first and its last sample"
    throttled = [sample.throttled for sample in samples]
    known = [flag for flag in throttled if not isinstance(flag, Absent)]
    return DeviceState(
        samples=samples,
        energy_j=energy_j,
        num_throttled=sum(known) if known else _first_reason(throttled),
        start_s=start_s,
    )


def _interpolate(points: list[tuple[float, float]], moment: float) -> float:
    """Value at a moment on the lines between points that rise in time and reach around it."""
    for (before, low), (after, high) in itertools.pairwise(points):
        if before <= moment <= after:
            return low + (high - low) * (moment - before) / (after - before)
    return points[-1][1]


def _too_short() -> Absent:
    return Absent(f"the window is shorter than {MIN_ENERGY_S * 1e3:.0f} ms, the counter's own tick")


def _first_reason(values: Sequence[object]) -> Absent:
    return next(value for value in values if isinstance(value, Absent))
