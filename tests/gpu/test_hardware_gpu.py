"""What only a GPU can show of the hardware and profiler rooms."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.app import parse_arguments, plan_cells
from bench.cell import run_cell
from bench.config import CellConfig
from bench.hardware import probe as hardware_probe
from bench.hardware.environment import fingerprint, read_environment, to_plain
from bench.hardware.peaks import find_gpu
from bench.hardware.probe import device_kinds, open_nvml, probe, read_peaks, resolve_device
from bench.passes import timing_pass
from bench.process import run_pass
from bench.profilers.allocation_tracker import AllocationTracker
from bench.profilers.base import UNATTRIBUTED
from bench.profilers.ceilings import measure_ceilings
from bench.profilers.memory import MemoryMeter
from bench.profilers.nvml_sampler import NvmlSampler
from bench.profilers.phase_timer import PhaseTimer
from bench.units import MEBIBYTE, Absent
from tools.doctor.devices import describe_device

pytestmark = pytest.mark.gpu
CHECKOUT = Path(__file__).resolve().parents[2]


def cuda() -> torch.device:
    return torch.device("cuda", 0)


def test_resolving_and_probing_a_gpu_does_not_start_cuda() -> None:
    script = (
        "import torch\n"
        "from bench.hardware.probe import open_nvml, probe, resolve_device\n"
        "device = resolve_device('cuda')\n"
        "assert resolve_device('auto') == device == torch.device('cuda', 0)\n"
        "from bench.units import Absent\n"
        "if not isinstance(open_nvml(device), Absent):\n"
        "    probe(device)\n"
        "print(torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.split() == ["False", "False"]


def test_the_probe_agrees_with_torch() -> None:
    properties = torch.cuda.get_device_properties(0)
    capability = probe(resolve_device("cuda"))
    assert capability.sm == 10 * properties.major + properties.minor
    assert capability.name.removeprefix("NVIDIA ").startswith(properties.name.removeprefix("NVIDIA ").split(" MIG")[0])


def test_nvml_finds_the_same_gpu_before_and_after_cuda_starts() -> None:
    torch.zeros(1, device=cuda())
    gpu = open_nvml(cuda())
    if isinstance(gpu, Absent):
        pytest.skip(f"NVML cannot be read here: {gpu.reason}")
    total = gpu.memory_total_bytes()
    assert not isinstance(total, Absent)
    assert total >= torch.cuda.get_device_properties(0).total_memory


def test_the_environment_names_the_gpu_without_its_serial_numbers() -> None:
    environment = read_environment(cuda())
    assert environment["device"]["kind"] == "cuda"
    assert fingerprint(environment).startswith("cuda-")
    text = json.dumps(environment)
    assert "GPU-" not in text
    assert str(torch.cuda.get_device_properties(0).uuid) not in text


def test_phases_on_a_gpu_add_up_and_do_not_wait_inside_the_step() -> None:
    timer = PhaseTimer(cuda())
    a = torch.randn(4096, 4096, device=cuda())
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    for _ in range(5):
        with timer.step():
            with timer("forward"):
                b = a @ a
            with timer("backward"):
                for _ in range(20):
                    b = b @ a
            still_running = not torch.cuda.current_stream().query()
        assert still_running, "the step waited for the GPU"
    samples = timer.read()
    for index, step_ms in enumerate(samples.step_ms):
        assert sum(values[index] for values in samples.phases_ms.values()) == pytest.approx(step_ms, abs=0.05)
        assert samples.phases_ms["backward"][index] > samples.phases_ms["forward"][index]
    assert set(samples.phases_ms) == {"forward", "backward", UNATTRIBUTED}


def test_peaks_on_a_gpu_hold_a_planted_allocation() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with MemoryMeter(cuda()) as meter:
        planted = torch.zeros(64 * MEBIBYTE, dtype=torch.uint8, device=cuda())
        del planted
    peaks = meter.peaks()
    assert isinstance(peaks.peak_allocated_bytes, int)
    assert isinstance(peaks.peak_reserved_bytes, int)
    assert peaks.peak_allocated_bytes - before == 64 * MEBIBYTE
    assert peaks.peak_reserved_bytes >= peaks.peak_allocated_bytes
    for value in (peaks.peak_process_bytes, peaks.peak_device_bytes):
        assert isinstance(value, Absent) or value >= 64 * MEBIBYTE


def test_the_tracker_agrees_with_cudas_allocator() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(512, 1024, bias=False, device=cuda())
    images = torch.randn(256, 512, device=cuda())
    layer(images).sum().backward()  # cuBLAS takes its workspace now
    layer.weight.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with AllocationTracker([layer.weight, images], device=cuda()) as tracker:
        layer(images).square().sum().backward()
    allocators = torch.cuda.max_memory_allocated() - before
    assert tracker.peak_allocated_bytes - tracker.baseline_bytes == pytest.approx(allocators, rel=0.05)


def test_a_watched_window_has_power_and_energy_or_a_reason() -> None:
    a = torch.randn(4096, 4096, device=cuda())
    with NvmlSampler(cuda(), interval_s=0.02) as sampler:
        for _ in range(200):
            b = a @ a
        torch.cuda.synchronize()
        torch.cuda._sleep(500_000_000)
        torch.cuda.synchronize()
    assert b.shape == a.shape
    state = sampler.state()
    assert len(state.samples) >= 2
    seen = [value for sample in state.samples for value in (sample.power_w, sample.temperature_c, sample.clock_mhz)]
    for value in (state.energy_j, *seen):
        assert isinstance(value, Absent) or value > 0


def test_ceilings_of_a_gpu_are_above_those_of_its_host() -> None:
    gpu, host = measure_ceilings(cuda(), budget_s=0.5), measure_ceilings(torch.device("cpu"), budget_s=0.2)
    assert not isinstance(gpu.fp32_gflops, Absent)
    assert not isinstance(host.fp32_gflops, Absent)
    assert gpu.fp32_gflops > host.fp32_gflops
    assert isinstance(gpu.int8_gops, Absent) or gpu.int8_gops > 0


def tiny_cell(*argv: str) -> CellConfig:
    settings = ["data=synthetic", "protocol=tiny", "protocol.pretrain_epochs=0", "device=cuda", *argv]
    return plan_cells(parse_arguments(settings)).cells[0]


def test_the_training_process_is_watched_from_outside_on_a_gpu(tmp_path: Path) -> None:
    argv = ("variant=fp32", "protocol.passes=[timing]", f"output_dir={tmp_path}", "progress=false")
    record = run_cell(tiny_cell(*argv, "protocol.energy_window_s=1.0"))
    assert record.timing is not None
    (repeat,) = record.timing.repeats
    assert repeat.device is not None
    for name in ("power_w", "clock_mhz", "temperature_c", "utilisation_pct"):
        series = getattr(repeat.device, name)
        assert isinstance(series, Absent) or all(isinstance(value, Absent) or value >= 0 for value in series)
    energy = record.timing.energy_j
    if isinstance(energy["step"], Absent):
        pytest.skip(f"the energy counter cannot be read here: {energy['step'].reason}")
    assert energy["step"] > 0
    assert isinstance(energy["forward"], float)
    assert 0 < energy["forward"] < energy["step"]


def test_phase_marks_cost_less_than_a_hundredth_of_a_step_on_a_gpu() -> None:
    cell = tiny_cell("variant=fp32", "model=resnet20", "protocol.timing_blocks=6", "protocol.steps_per_block=10")
    outcome = run_pass(
        timing_pass, {"cell": cell, "device": "cuda:0", "weights": None, "repeat": 0}, limit_s=300,
        on_progress=lambda progress: None,
    )  # fmt: skip
    assert outcome.status == "ok", outcome.traceback
    repeat = outcome.value
    added = statistics.median(repeat.marked_step_ms) - statistics.median(repeat.unmarked_step_ms)
    assert added / repeat.mark_repeats / statistics.median(repeat.step_ms) < 0.01


def test_doctor_describes_a_gpu_and_measures_below_its_published_peaks() -> None:
    device = to_plain(describe_device(cuda(), measure=True))
    assert device["self_check"] == "passed"
    assert {path["label"] for path in device["integer_paths"].values()} <= {"integer", "emulated", "simulated"}
    published, measured = device["published"], device["ceilings"]
    assert device["published"]["memory_gb"] > 0
    for name, peak, scale in (("int8_gops", "int8_tops", 1e3), ("bf16_gflops", "bf16_tflops", 1e3)):
        if isinstance(published[peak], float | int) and isinstance(measured[name], float):
            assert 0 < measured[name] <= 1.05 * scale * published[peak]


def test_properties_of_a_gpu_give_the_rates_that_its_row_publishes() -> None:
    name = torch.cuda.get_device_properties(0).name
    listed = find_gpu(name)
    if isinstance(listed, Absent):
        pytest.skip(f"{name} has no row to compare with")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware_probe, "find_gpu", lambda name: Absent("a test asks its properties"))
        computed = read_peaks(cuda(), name)
    assert not isinstance(computed, Absent)
    for rate in ("fp32_tflops", "bandwidth_gb_s", "memory_gb"):
        ours, theirs = getattr(computed, rate), getattr(listed, rate)
        if not isinstance(ours, Absent) and not isinstance(theirs, Absent):
            assert ours == pytest.approx(theirs, rel=0.1)


def test_all_devices_hold_the_cpu_and_this_gpu() -> None:
    kinds = device_kinds()
    assert kinds[:2] == ("cpu", "cuda:0")
    names = [torch.cuda.get_device_name(torch.device(kind)) for kind in kinds[1:]]
    assert len(set(names)) == len(names)
