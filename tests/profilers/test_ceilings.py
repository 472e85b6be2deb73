from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.errors import HardwareError
from bench.kernels.int_mm import record_gemms
from bench.profilers import ceilings
from bench.profilers.ceilings import measure_ceilings
from bench.units import MEBIBYTE, Absent

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_SIZES", {"cpu": (32, 64)})
    monkeypatch.setattr(ceilings, "_COPY_BYTES", {"cpu": MEBIBYTE})


def test_every_ceiling_is_a_positive_rate_and_int8_went_through_the_kernel() -> None:
    with record_gemms() as calls:
        measured = measure_ceilings(CPU, budget_s=0.02)
    for field in dataclasses.fields(measured):
        value = getattr(measured, field.name)
        assert not isinstance(value, Absent)
        assert value > 0
    assert {(call.m, call.k, call.n) for call in calls} >= {(32, 32, 32)}


def test_a_wrong_integer_product_has_a_reason_and_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise HardwareError("12 sums were wrong.")

    monkeypatch.setattr(ceilings, "check_device", fail)
    measured = measure_ceilings(CPU, budget_s=0.02)
    assert measured.int8_gops == Absent("12 sums were wrong.")
    assert isinstance(measured.fp32_gflops, float)


def test_the_precision_setting_is_given_back() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        measure_ceilings(CPU, budget_s=0.01)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


class OneMillisecond:
    """A clock on which every run takes 1 ms."""

    def mark(self) -> int:
        return 0

    def settle(self, last: int) -> None:
        pass

    def elapsed_ms(self, start: int, end: int) -> float:
        return 1.0

    def release(self, marks: list[int]) -> None:
        pass


def test_rates_follow_from_the_time_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "HostClock", OneMillisecond)
    monkeypatch.setattr(ceilings, "_SIZES", {"cpu": (100,)})
    measured = measure_ceilings(CPU, budget_s=0.01)
    assert measured.fp32_gflops == pytest.approx(2.0)  # 2 * 100**3 operations in a millisecond
    assert measured.int8_gops == pytest.approx(2.0)
    assert measured.copy_gb_s == pytest.approx(2 * MEBIBYTE / 1e6)  # each byte is read and written
