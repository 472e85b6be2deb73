"""What only a GPU can show of the hardware and profiler rooms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.hardware.environment import fingerprint, read_environment
from bench.hardware.probe import open_nvml, probe, resolve_device
from bench.profilers.base import UNATTRIBUTED
from bench.profilers.ceilings import measure_ceilings
from bench.profilers.memory import AllocationTracker, MemoryMeter
from bench.profilers.nvml_sampler import NvmlSampler
from bench.profilers.phase_timer import PhaseTimer
from bench.units import MEBIBYTE, Absent

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
    for value in (state.energy_j, state.max_power_w, state.max_temperature_c, state.min_clock_mhz):
        assert isinstance(value, Absent) or value > 0


def test_ceilings_of_a_gpu_are_above_those_of_its_host() -> None:
    gpu, host = measure_ceilings(cuda(), budget_s=0.5), measure_ceilings(torch.device("cpu"), budget_s=0.2)
    assert not isinstance(gpu.fp32_gflops, Absent)
    assert not isinstance(host.fp32_gflops, Absent)
    assert gpu.fp32_gflops > host.fp32_gflops
    assert isinstance(gpu.int8_gops, Absent) or gpu.int8_gops > 0
