from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.profilers.nvml_sampler import CpuSensor, NvmlSampler, StateSample, summarise
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
    names = ("energy_j", "num_throttled", "throttled", "max_power_w", "max_temperature_c", "min_clock_mhz")
    return {"num_samples": len(state.samples), "powers": [plain(s.power_w) for s in state.samples],
            **{name: plain(getattr(state, name)) for name in names}}

print(json.dumps({calls}))
"""


def test_a_window_has_its_extremes_its_energy_and_its_throttled_samples(under_driver: Callable[..., Any]) -> None:
    steady, hot = under_driver(WATCH.replace("{calls}", "[watch(0, 0.15), watch(1, 0.15)]"))
    assert steady["energy_j"] == 35.0  # the fake counter moves by 35 J between two readings
    assert (steady["num_throttled"], steady["throttled"]) == (0, False)
    assert (steady["max_power_w"], steady["max_temperature_c"], steady["min_clock_mhz"]) == (350.5, 41, 1980)
    assert hot["num_throttled"] == hot["num_samples"] >= 2
    assert hot["throttled"] is True
    assert (hot["max_power_w"], hot["max_temperature_c"], hot["min_clock_mhz"]) == (699.0, 86, 1200)


def test_a_short_window_has_no_energy(under_driver: Callable[..., Any]) -> None:
    state = under_driver(WATCH.replace("{calls}", "watch(0, 0.0)"))
    assert state["energy_j"] == {"reason": "the window is shorter than 100 ms, the counter's own tick"}
    assert state["max_power_w"] == 350.5


def test_a_driver_that_vanishes_in_mid_run_leaves_gaps_and_ends_nothing(under_driver: Callable[..., Any]) -> None:
    # one reading of energy, then four a sample: the second sample is the first to fail
    state = under_driver(WATCH.replace("{calls}", "watch(0, 0.15)"), "lost", FAKE_NVML_CALLS="5")
    lost = {"reason": "the GPU is lost: it or its driver vanished"}
    assert state["powers"][0] == 350.5
    assert len(state["powers"]) >= 2
    assert all(power == lost for power in state["powers"][1:])
    assert state["energy_j"] == lost
    assert state["max_power_w"] == 350.5


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
        for name in ("energy_j", "num_throttled", "throttled", "max_power_w", "max_temperature_c", "min_clock_mhz"):
            assert states[mode][name]["reason"].startswith(reason)


def rapl(folder: Path, energies_uj: list[int], range_uj: int = 1_000_000_000) -> None:
    for index, energy in enumerate(energies_uj):
        zone = folder / f"intel-rapl:{index}"
        zone.mkdir(exist_ok=True)
        (zone / "name").write_text(f"package-{index}\n")
        (zone / "energy_uj").write_text(f"{energy}\n")
        (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
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


def test_missing_or_broken_rapl_has_a_reason(tmp_path: Path) -> None:
    assert isinstance(CpuSensor(tmp_path / "nowhere").energy_counters_j(), Absent)
    rapl(tmp_path, [1])
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("garbage\n")
    assert CpuSensor(tmp_path).energy_counters_j() == Absent("the RAPL energy counters could not be read")


def test_a_cpu_window_has_a_value_or_a_reason_everywhere(tmp_path: Path) -> None:
    rapl(tmp_path, [1_000_000])
    with NvmlSampler(CPU, sensor=CpuSensor(tmp_path)) as sampler:
        rapl(tmp_path, [4_000_000])
        time.sleep(0.12)
    state = sampler.state()
    assert state.energy_j == 3.0
    assert state.window_s >= 0.12
    for value in (state.num_throttled, state.throttled, state.max_power_w, state.max_temperature_c):
        assert isinstance(value, Absent)


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


def sample(reasons: tuple[str, ...] | Absent, power: float | Absent = 1.0) -> StateSample:
    return StateSample(time_s=0, power_w=power, clock_mhz=1.0, temperature_c=1.0, clock_reasons=reasons)


def test_idle_and_pinned_clocks_are_not_throttling() -> None:
    samples = (sample(("idle",)), sample(("applications_clocks_setting",)), sample(("idle", "hw_thermal_slowdown")))
    assert summarise(samples, 1.0, 0.0).num_throttled == 1


def test_a_gap_is_neither_throttled_nor_zero_watts() -> None:
    gap = Absent("lost")
    state = summarise((sample(("sw_power_cap",), 5.0), sample(gap, gap)), 1.0, gap)
    assert (state.num_throttled, state.max_power_w) == (1, 5.0)
    assert summarise((sample(gap, gap),), 1.0, gap).throttled == gap
