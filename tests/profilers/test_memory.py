from __future__ import annotations

import pytest
import torch

from bench.hardware.probe import open_nvml
from bench.profilers.memory import MemoryMeter
from bench.units import MEBIBYTE, Absent

KIB = 1024


def test_the_meter_answers_each_peak_or_its_reason_on_a_cpu() -> None:
    x = torch.zeros(1024)
    with MemoryMeter(torch.device("cpu"), [x]) as meter:
        y = x * 2
    assert y.numel() == 1024
    peaks = meter.peaks()
    assert peaks.peak_allocated_bytes == 8 * KIB
    assert peaks.peak_reserved_bytes == Absent("only CUDA's allocator reserves memory")
    assert peaks.peak_device_bytes == Absent("the device is a CPU")
    assert isinstance(peaks.peak_process_bytes, Absent) or peaks.peak_process_bytes > 10 * MEBIBYTE


def test_without_tracking_only_the_process_is_measured() -> None:
    with MemoryMeter(torch.device("cpu"), track=False) as meter:
        torch.zeros(1024)
    assert meter.peaks().peak_allocated_bytes == Absent("live tensors were not tracked")


def test_a_window_that_is_not_over_has_no_peaks() -> None:
    with MemoryMeter(torch.device("cpu")) as meter, pytest.raises(AssertionError, match="after the block"):
        meter.peaks()


def test_a_cpu_has_no_nvml() -> None:
    assert open_nvml(torch.device("cpu")) == Absent("the device is a CPU")
