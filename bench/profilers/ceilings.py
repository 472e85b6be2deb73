"""What a device reaches at best, measured on the spot: integer product, FP32, bf16 and copy bandwidth.

Each figure is the fastest of several square products (or of several copies of a buffer far larger than the caches), so
that the share of it that a training step reaches means something on a machine that no datasheet describes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from bench.errors import HardwareError
from bench.kernels.int_mm import int_mm
from bench.kernels.selfcheck import check_device
from bench.profilers.phase_timer import Clock, CudaClock, HostClock
from bench.records.schema import Ceilings
from bench.units import MEBIBYTE, Absent

_SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)}
_COPY_BYTES = {"cpu": 256 * MEBIBYTE, "cuda": 1024 * MEBIBYTE}
_MAX_COPY_SHARE = 0.1  # of the memory that is free: a ceiling must not push the machine into swap


def measure_ceilings(device: torch.device, *, budget_s: float = 0.8) -> Ceilings:
    """Measure a device's ceilings.

    Args:
        device: an idle device; what else runs on it lowers the figures.
        budget_s: seconds for each of the four figures, warm-up included; the largest size that fits is the last.
    """
    clock: Clock = CudaClock(device) if device.type == "cuda" else HostClock()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            return Ceilings(
                int8_gops=_int8_gops(device, clock, budget_s),
                fp32_gflops=_float_gflops(device, clock, budget_s, torch.float32),
                bf16_gflops=_float_gflops(device, clock, budget_s, torch.bfloat16),
                copy_gb_s=_copy_gb_s(device, clock, budget_s),
            )
    finally:
        torch.set_float32_matmul_precision(precision)


def _int8_gops(device: torch.device, clock: Clock, budget_s: float) -> float | Absent:
    try:
        check_device(device)
    except HardwareError as error:
        return Absent(str(error))

    def prepare(size: int) -> Callable[[], Any]:
        a = torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device)
        b_t = torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device)
        return lambda: int_mm(a, b_t.t())

    return _best_gops(prepare, device, clock, budget_s)


def _float_gflops(device: torch.device, clock: Clock, budget_s: float, dtype: torch.dtype) -> float | Absent:
    def prepare(size: int) -> Callable[[], Any]:
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)
        return lambda: a @ b

    return _best_gops(prepare, device, clock, budget_s)


def _copy_gb_s(device: torch.device, clock: Clock, budget_s: float) -> float | Absent:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    num_bytes = min(_COPY_BYTES[device.type], int(free * _MAX_COPY_SHARE / 2))
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best_ms = _best_ms(lambda: target.copy_(source), clock, time.perf_counter() + budget_s)
    return 2 * num_bytes / best_ms / 1e6


def _best_gops(
    prepare: Callable[[int], Callable[[], Any]], device: torch.device, clock: Clock, budget_s: float
) -> float | Absent:
    """Try growing sizes while the next one, eight times the work, still fits the budget."""
    deadline = time.perf_counter() + budget_s
    best = 0.0
    for size in _SIZES[device.type]:
        started = time.perf_counter()
        try:
            product = prepare(size)
            product()  # the first call plans and allocates
            best_ms = _best_ms(product, clock, started + budget_s / len(_SIZES[device.type]))
        except RuntimeError as error:  # torch's: no room, no kernel for the type, or what cuBLAS answers
            return best or Absent(f"the product did not run: {str(error).splitlines()[0]}")
        best = max(best, 2 * size**3 / best_ms / 1e6)
        if time.perf_counter() + 8 * 2 * best_ms / 1e3 > deadline:
            break
    return best


def _best_ms(run: Callable[[], Any], clock: Clock, deadline: float) -> float:
    """Fastest of at least three runs, more until the deadline."""
    best_ms = float("inf")
    runs = 0
    while runs < 3 or (time.perf_counter() < deadline and runs < 50):
        start = clock.mark()
        run()
        end = clock.mark()
        clock.settle(end)
        best_ms = min(best_ms, clock.elapsed_ms(start, end))
        clock.release([start, end])
        runs += 1
    return best_ms
