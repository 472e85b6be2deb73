from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.profilers.device_sensors import CpuSensor, StateSample
from bench.profilers.nvml_sampler import NvmlSampler, summarise
from bench.units import Absent

CPU = torch.device("cpu")

WATCH = """
import json, time, torch
from bench.profilers.nvml_sampler import NvmlSampler
from bench.units import Absent

def plain(value):
    return {"reason": value.reason} if isinstance(value, Absent) else value

def watch(index, seconds, interval=0.02):
    with NvmlSampler(torch.device("cuda", index), interval_s=interval) as sampler:
        time.sleep(seconds)
    state = sampler.state()
    names = ("power_w", "temperature_c", "clock_mhz")
    seen = {name: [plain(getattr(sample, name)) for sample in state.samples] for name in names}
    told = {name: plain(getattr(state, name)) for name in ("energy_j", "num_throttled", "throttled")}
    return {"num_samples": len(state.samples), **seen, **told}

print(json.dumps({calls}))
"""


def test_a_window_has_its_samples_its_energy_and_its_throttled_ones(under_driver: Callable[..., Any]) -> None:
    steady, hot = under_driver(WATCH.replace("{calls}", "[watch(0, 0.15), watch(1, 0.15)]"))
    # the fake counter moves by 35 J between two readings, and is read with each sample
    assert steady["energy_j"] == 35.0 * (steady["num_samples"] - 1)
    assert (steady["num_throttled"], steady["throttled"]) == (0, False)
    assert [set(steady[name]) for name in ("power_w", "temperature_c", "clock_mhz")] == [{350.5}, {41}, {1980}]
    assert hot["num_throttled"] == hot["num_samples"] >= 2
    assert hot["throttled"] is True
    assert [set(hot[name]) for name in ("power_w", "temperature_c", "clock_mhz")] == [{699.0}, {86}, {1200}]


def test_a_short_window_has_no_energy(under_driver: Callable[..., Any]) -> None:
    still = (
        "from types import SimpleNamespace\nfrom bench.profilers import nvml_sampler\n"
        "nvml_sampler.time = SimpleNamespace(perf_counter=lambda: 1.0)\n"  # however long the machine takes over it
    )
    state = under_driver(WATCH.replace("print(", still + "print(").replace("{calls}", "watch(0, 0.0)"))
    assert state["energy_j"] == {"reason": "the window is shorter than 100 ms, the counter's own tick"}
    assert set(state["power_w"]) == {350.5}


def test_a_driver_that_vanishes_in_mid_run_leaves_gaps_and_ends_nothing(under_driver: Callable[..., Any]) -> None:
    # one reading of energy, then six of the first sample: the second sample is the first to fail
    state = under_driver(WATCH.replace("{calls}", "watch(0, 0.15)"), "lost", FAKE_NVML_CALLS="7")
    lost = {"reason": "the GPU is lost: it or its driver vanished"}
    assert state["power_w"][0] == 350.5
    assert len(state["power_w"]) >= 2
    assert all(power == lost for power in state["power_w"][1:])
    assert state["energy_j"] == lost


def test_an_unreadable_gpu_gives_its_reason_for_everything(under_driver: Callable[..., Any]) -> None:
    reasons = {
        "no_permission": "the driver does not let this user read it",
        "no_driver": "the NVIDIA driver is not loaded",
        "mig": "a MIG instance has no such counter",
    }
    each_mode = (
        "import os\nfrom bench.hardware import nvml\n\n"
        "def watch_as(mode):\n"
        "    os.environ['FAKE_NVML'], nvml._initialised_in = mode, None\n"
        "    return watch(0, 0.12)\n"
    )
    script = WATCH.replace("print(", each_mode + "print(").replace(
        "{calls}", f"{{mode: watch_as(mode) for mode in {list(reasons)}}}"
    )
    states = under_driver(script)
    for mode, reason in reasons.items():
        seen = [value for name in ("power_w", "temperature_c", "clock_mhz") for value in states[mode][name]]
        for value in (*seen, *(states[mode][name] for name in ("energy_j", "num_throttled", "throttled"))):
            assert value["reason"].startswith(reason)


SERIES = """
import json, os, time, torch
from bench.hardware import nvml
from bench.hardware.environment import to_plain
from bench.profilers.nvml_sampler import NvmlSampler

nvml._INIT_PID_NAMESPACE = os.readlink("/proc/self/ns/pid")
with NvmlSampler(torch.device("cuda", INDEX), interval_s=600) as sampler:
    sampler.watch_process(os.getpid())
    sampler._sample(sampler._read_energy())
series = sampler.state().series()
print(json.dumps({name: to_plain(getattr(series, name)) for name in series.__dataclass_fields__}))
"""


def test_a_gpus_series_hold_every_quantity_sample_by_sample(under_driver: Callable[..., Any]) -> None:
    series = under_driver(SERIES.replace("INDEX", "0"))
    count = len(series["time_s"])
    assert count == 3
    assert series["time_s"] == sorted(series["time_s"])
    for name, value in {
        "power_w": 350.5, "clock_mhz": 1980, "memory_clock_mhz": 2619, "temperature_c": 41, "utilisation_pct": 97,
        "throttled": False,
    }.items():  # fmt: skip
        assert series[name] == [value] * count, name
    assert series["process_bytes"] == [{"reason": "no process is watched yet"}] + [2147483648] * (count - 1)
    assert (series["num_throttled"], series["throttle_reasons"]) == (0, [])


def test_a_series_without_any_value_is_one_reason(under_driver: Callable[..., Any]) -> None:
    hidden = under_driver(SERIES.replace("INDEX", "0"), "foreign_pids")
    assert hidden["process_bytes"] == {"reason": "NVML lists no GPU memory for this process"}
    refused = under_driver(SERIES.replace("INDEX", "0"), "no_permission")
    assert refused["power_w"] == refused["throttled"] == {"reason": "the driver does not let this user read it"}
    hot = under_driver(SERIES.replace("INDEX", "1"))
    assert hot["throttle_reasons"] == ["sw_power_cap", "sw_thermal_slowdown"]
    assert set(hot["throttled"]) == {True}


def rapl(folder: Path, energies_uj: list[int]) -> None:
    for index, energy in enumerate(energies_uj):
        zone = folder / f"intel-rapl:{index}"
        zone.mkdir(exist_ok=True)
        (zone / "name").write_text(f"package-{index}\n")
        (zone / "energy_uj").write_text(f"{energy}\n")
        (zone / "max_energy_range_uj").write_text("1000000000\n")
    core = folder / "intel-rapl:0:0"
    core.mkdir(exist_ok=True)
    (core / "name").write_text("core\n")
    (core / "energy_uj").write_text("5\n")


def test_rapl_adds_packages_but_not_their_parts(tmp_path: Path) -> None:
    rapl(tmp_path, [2_000_000, 3_000_000])
    sensor = CpuSensor(tmp_path)
    start = sensor.energy_counters_j()
    assert start == (2.0, 3.0)
    rapl(tmp_path, [5_000_000, 10_000_000])
    end = sensor.energy_counters_j()
    assert isinstance(end, tuple)
    assert sensor.energy_between_j(start, end) == 10.0


def test_one_wrapped_rapl_counter_is_put_right(tmp_path: Path) -> None:
    rapl(tmp_path, [999_000_000, 3_000_000])
    sensor = CpuSensor(tmp_path)
    assert sensor.energy_between_j((999.0, 3.0), (2.0, 4.0)) == pytest.approx(4.0)
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").unlink()
    assert isinstance(sensor.energy_between_j((999.0, 3.0), (2.0, 4.0)), Absent)


def test_a_counter_that_wraps_twice_within_a_window_is_followed_through(tmp_path: Path) -> None:
    rapl(tmp_path, [900_000_000])
    with NvmlSampler(CPU, interval_s=60, sensor=CpuSensor(tmp_path)) as sampler:
        for energy_uj in (100_000_000, 700_000_000, 50_000_000):
            rapl(tmp_path, [energy_uj])
            time.sleep(0.04)
            sampler._sample(sampler._read_energy())
        rapl(tmp_path, [150_000_000])
    state = sampler.state()
    assert state.energy_j == pytest.approx(200 + 600 + 350 + 100)
    assert [s.energy_j for s in state.samples] == pytest.approx([0, 200, 800, 1150, 1250])
    powers = [s.power_w for s in state.samples[1:4]]
    assert all(isinstance(power, float) and power > 0 for power in powers[1:])


def test_a_counter_that_is_silent_for_a_while_is_a_gap_and_no_loss(tmp_path: Path) -> None:
    rapl(tmp_path, [1_000_000])
    energy = tmp_path / "intel-rapl:0" / "energy_uj"
    with NvmlSampler(CPU, interval_s=60, sensor=CpuSensor(tmp_path)) as sampler:
        time.sleep(0.11)
        energy.write_text("")
        sampler._sample(sampler._read_energy())
        energy.write_text("5000000")
    state = sampler.state()
    assert state.samples[1].energy_j == Absent("the RAPL energy counters could not be read")
    assert state.energy_j == 4.0


def test_a_cpu_that_counts_thermal_throttling_has_its_samples_flagged(tmp_path: Path) -> None:
    count = tmp_path / "cpu0" / "thermal_throttle" / "package_throttle_count"
    count.parent.mkdir(parents=True)
    count.write_text("7\n")
    sensor = CpuSensor(tmp_path / "powercap", cpus=tmp_path)
    with NvmlSampler(CPU, interval_s=60, sensor=sensor) as sampler:
        sampler._sample(sampler._read_energy())
        count.write_text("9\n")
        sampler._sample(sampler._read_energy())
    state = sampler.state()
    assert [sample.throttled for sample in state.samples[1:]] == [False, True, False]
    assert isinstance(state.samples[0].throttled, Absent)
    assert state.num_throttled == 1
    assert state.series().throttle_reasons == ("hw_thermal_slowdown",)


def test_missing_or_broken_rapl_has_a_reason(tmp_path: Path) -> None:
    assert isinstance(CpuSensor(tmp_path / "nowhere").energy_counters_j(), Absent)
    rapl(tmp_path, [1])
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("garbage\n")
    assert CpuSensor(tmp_path).energy_counters_j() == Absent("the RAPL energy counters could not be read")


def test_a_cpu_window_has_a_value_or_a_reason_everywhere(tmp_path: Path) -> None:
    rapl(tmp_path, [1_000_000])
    with NvmlSampler(CPU, sensor=CpuSensor(tmp_path, cpus=tmp_path)) as sampler:
        rapl(tmp_path, [4_000_000])
        time.sleep(0.12)
    state = sampler.state()
    assert state.energy_j == 3.0
    series = state.series()
    for value in (state.num_throttled, state.throttled, series.temperature_c):
        assert isinstance(value, Absent)
    assert isinstance(series.memory_clock_mhz, Absent)
    assert not isinstance(series.utilisation_pct, Absent)
    assert all(isinstance(value, Absent) or 0 <= value <= 100 for value in series.utilisation_pct)


def test_the_watched_process_is_weighed_and_its_end_is_no_failure() -> None:
    waiting = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with NvmlSampler(CPU, interval_s=60) as sampler:
            sampler.watch_process(child.pid)
            sampler._sample(sampler._read_energy())
            child.communicate("\n")
    sizes = [s.process_bytes for s in sampler.state().samples]
    assert sizes[0] == Absent("no process is watched yet")
    assert isinstance(sizes[1], int)
    assert sizes[1] > 2**20
    assert sizes[2] == Absent("the process has ended")


def test_the_thread_ends_with_the_window_and_the_sampler_serves_again() -> None:
    sampler = NvmlSampler(CPU, interval_s=0.01)
    for _ in range(2):
        with sampler:
            assert any(thread.name == "device-sampler" for thread in threading.enumerate())
        assert len(sampler.state().samples) >= 2
    assert not any(thread.name == "device-sampler" for thread in threading.enumerate())


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(AssertionError, match="burn a core"):
        NvmlSampler(CPU, interval_s=0)


def sample(
    reasons: tuple[str, ...] | Absent, power: float | Absent = 1.0, *, time_s: float = 0, energy: float | Absent = 0.0
) -> StateSample:
    return StateSample(
        time_s=time_s, power_w=power, clock_mhz=1.0, temperature_c=1.0, clock_reasons=reasons, memory_clock_mhz=1.0,
        utilisation_pct=1.0, process_bytes=1.0, energy_j=energy,
    )  # fmt: skip


def test_energy_between_two_moments_is_interpolated_between_samples() -> None:
    samples = [sample((), time_s=t, energy=e) for t, e in ((0.0, 0.0), (1.0, 100.0), (2.0, 400.0))]
    state = summarise(tuple(samples), 400.0, start_s=50.0)
    assert state.energy_between_j(50.5, 51.5) == pytest.approx(200.0)
    assert state.energy_between_j(51.0, 52.0) == pytest.approx(300.0)
    assert state.energy_between_j(51.0, 51.05) == Absent("the window is shorter than 100 ms, the counter's own tick")
    around = Absent("the energy counter was not read around this window")
    assert state.energy_between_j(49.0, 51.0) == state.energy_between_j(51.0, 53.0) == around
    silent = summarise(tuple(samples), Absent("lost"), start_s=50.0)
    assert silent.energy_between_j(50.5, 51.5) == Absent("lost")


def test_a_window_between_two_samples_is_throttled_if_either_is() -> None:
    samples = (sample((), time_s=0), sample(("hw_slowdown",), time_s=1), sample((), time_s=2), sample((), time_s=3))
    state = summarise(samples, 0.0, start_s=10.0)
    assert state.throttled_between(10.2, 10.4) is True
    assert state.throttled_between(12.2, 12.4) is False
    assert state.throttled_between(10.2, 12.9) is True
    gap = Absent("lost")
    assert summarise((sample(gap),), 0.0).throttled_between(0.0, 1.0) == gap


def test_idle_and_pinned_clocks_are_not_throttling() -> None:
    samples = (sample(("idle",)), sample(("applications_clocks_setting",)), sample(("idle", "hw_thermal_slowdown")))
    assert summarise(samples, 0.0).num_throttled == 1


def test_a_gap_is_neither_throttled_nor_zero_watts() -> None:
    gap = Absent("lost")
    state = summarise((sample(("sw_power_cap",), 5.0), sample(gap, gap)), gap)
    assert (state.num_throttled, state.series().power_w) == (1, (5.0, gap))
    assert summarise((sample(gap, gap),), gap).throttled == gap
