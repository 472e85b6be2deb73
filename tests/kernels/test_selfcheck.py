"""A device that multiplies wrongly is refused."""

from __future__ import annotations

import pytest
import torch

from bench.errors import HardwareError
from bench.kernels import selfcheck


def test_this_cpu_multiplies_rightly():
    selfcheck.check_device("cpu", again=True)


def test_one_wrong_integer_is_an_error_in_a_sentence(monkeypatch):
    right = torch._int_mm

    def saturating(a, b, **options):
        """What a processor without VNNI was seen to do: int16 sums of pairs that saturate."""
        return right(a, b, **options).clamp_(-(2**15), 2**15 - 1)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    with pytest.raises(HardwareError, match="the int8 product on cpu is wrong in") as refusal:
        selfcheck.check_device("cpu", again=True)
    assert "dispatch=simulate" in str(refusal.value)


def test_the_check_runs_once_per_device(monkeypatch):
    selfcheck.check_device("cpu")

    def never(*_):
        raise AssertionError("the product ran again")

    monkeypatch.setattr(torch, "_int_mm", never)
    selfcheck.check_device("cpu")
