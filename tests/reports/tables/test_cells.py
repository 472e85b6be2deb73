from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bench.records.schema import RunRecord
from reports.tables.cells import error_cell, forward_cell


def test_bits_that_change_during_training_are_shown_with_both_bounds(make_record: Callable[..., RunRecord]) -> None:
    plain = dataclasses.replace(make_record().method, weight_bits=8, activation_bits=8, error_bits=8)
    assert forward_cell(plain).text == "W8 A8"
    cyclic = dataclasses.replace(plain, name="cpt", cycle_min_bits=3, cycles=32)
    assert forward_cell(cyclic).text == "W3–8 A3–8"
    adaptive = dataclasses.replace(plain, name="afp", error_quantizer="afp", error_rounding="nearest")
    assert error_cell(adaptive).text == "8–24 bit"
    assert error_cell(dataclasses.replace(adaptive, error_quantizer="uniform")).text == "8 bit"
