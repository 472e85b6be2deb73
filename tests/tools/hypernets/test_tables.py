from __future__ import annotations

import pytest
from rich.console import Console

from bench.records.schema import Summary
from bench.units import Absent
from tools.hypernets.results import CaseResult, Cost, StepCost, as_plain_result
from tools.hypernets.tables import render


@pytest.fixture
def result() -> CaseResult:
    summary = Summary(median=2.0, q1=1.0, q3=3.0, n=7)
    return CaseResult(
        recompute_speedup=6.5, recompute_memory_ratio=16.0, tabulate_step_ratio=1.05,
        tabulate_extra_peak=0.04, tabulate_extra_bytes_per_weight=4.2, tabulate_same_codes=1.0,
        tabulate_meta_gradient_error=5e-6, tabulate_grid_points=129, model="vgg16", hidden=11,
        num_weights=14_714_688, compared_num_weights=1_471_471, note="retain does not fit: said why.",
        strategies=(Cost(strategy="retain", num_weights=10, update_ms=summary, extra_bytes=1024),),
        step=StepCost(
            batch_size=128, metagrad_ms=summary, plain_ms=summary, grid_points=33, metagrad_peak_bytes=2048,
            plain_peak_bytes=Absent("no peak here"),
        ),
    )  # fmt: skip


def test_unknown_figures_are_shown_and_saved_with_their_reason(result: CaseResult) -> None:
    console = Console(record=True, width=160)
    render("vgg16_h11", result, console)
    text = console.export_text()
    assert "retain does not fit: said why." in text
    assert "n/a (no peak here)" in text
    assert "6.50× faster, 16.00× less extra memory" in text
    assert "4.2 bytes a weight" in text
    assert as_plain_result(result)["step"]["plain_peak_bytes"] == {"reason": "no peak here"}
