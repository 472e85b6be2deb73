from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn

from bench.kernels.int_mm import GemmCall
from bench.kernels.spans import Span
from bench.layers.convert import QuantSpec, quantize_model
from bench.units import Absent
from tests.tools.kernels.works import CEILINGS
from tools.kernels.layers import OTHER, LayerWork, WidthDetail, join
from tools.kernels.passes import SavedBytes, StepTimes
from tools.kernels.results import (
    ModelResult,
    as_plain_result,
    compare_lean,
    compare_width,
    side_times,
    write_json,
)
from tools.kernels.sides import SIDES
from tools.kernels.tables import headline, render


def times_of(**step_ms: tuple[float, ...]) -> StepTimes:
    return StepTimes(
        step_ms=step_ms,
        phases_ms={side: {"forward": samples} for side, samples in step_ms.items()},
        first_step_s=dict.fromkeys(step_ms, 0.5),
        from_compile_cache={},
        absent={"bf16_compiled": Absent("torch.compile failed here: no compiler")},
        not_finite=(),
        labels={"int8": "integer", "int4": "emulated"},
        threads=2,
    )


@pytest.fixture
def result() -> ModelResult:
    times = times_of(
        fp32=(10.0, 12.0, 11.0), bf16=(5.0, 6.0, 5.5), fp32_compiled=(9.0, 8.0, 8.0), int8=(4.0, 5.0, 6.0),
        int4=(5.0, 5.0, 5.0), int8_compact=(6.0, 6.0, 7.0), int4_compact=(6.0, 6.0, 6.0), fp32_lean=(9.0, 8.0, 9.9),
    )  # fmt: skip
    sizes = {"fp32": 800, "bf16": 500, "int8": 600, "int4": 600, "int8_compact": 400, "int4_compact": 300}
    saved = {side: SavedBytes(total_bytes=size, by_dtype={"int8": size}) for side, size in sizes.items()}
    peaks = {**sizes, "int4": Absent("no peak here")}
    rows = join(
        [LayerWork(name="features[0]", macs=10**6, needs_dgrad=False, fp32_ms={"fprop": 2.0}, bf16_ms={"fprop": 1.0})],
        quantize_model(nn.Sequential(nn.Conv2d(3, 4, 3)), QuantSpec()).swapped, (),
        [GemmCall(gemm="fprop", layer="features[0]", m=64, k=28, n=5, padded=(64, 32, 8), path="int_mm", macs=9)],
        [[Span(piece="gemm", layer="features[0]", gemm="fprop", span_ms=0.5)]],
        CEILINGS, traced_ms=(4.0,), untraced_ms=(3.2,),
    )  # fmt: skip
    widths = {width: compare_width(width, times, saved, peaks, rows) for width in ("int8", "int4")}  # type: ignore[arg-type]
    return ModelResult(
        model="vgg16", batch=2, image_size=8, images="synthetic", dispatch="integer", device="cpu", threads=2,
        steps={side: side_times(side, times) for side in SIDES}, saved=saved, peak_bytes=peaks,  # type: ignore[arg-type]
        peak_meaning="growth", ceilings=CEILINGS, fp32_lean=compare_lean(times), int8=widths["int8"],
        int4=widths["int4"], notices=("The machine was busy.",),
    )  # fmt: skip


def test_several_networks_stand_under_their_names_and_one_at_the_top(result: ModelResult, tmp_path: Path) -> None:
    environment = {
        "package": {"version": "1", "git_commit": "abc"},
        "python": {"version": "3"},
        "torch": {"version": "2"},
    }
    one, several = tmp_path / "one.json", tmp_path / "several.json"
    write_json(one, {"vgg16": result}, quick=False, environment=environment)
    write_json(several, {"vgg16": result, "other": result}, quick=False, environment=environment)
    flat, nested = (json.loads(path.read_text(encoding="utf-8")) for path in (one, several))
    assert flat["int8"] == nested["vgg16"]["int8"] == nested["other"]["int8"]
    assert flat["int8"]["step_vs_fp32"] == pytest.approx(5 / 11)
    assert flat["model"] == "vgg16"
    assert flat["versions"] == nested["versions"]
    assert flat["versions"] == {"metagrad_bench": "1", "git_commit": "abc", "python": "3", "torch": "2"}


def test_what_could_not_be_had_is_shown_and_saved_with_its_reason(result: ModelResult) -> None:
    plain = as_plain_result(result)
    assert plain["int8"]["step_vs_bf16_compiled"] == {"reason": "torch.compile failed here: no compiler"}
    assert plain["int4"]["peak_vs_fp32"] == {"reason": "no peak here"}
    assert plain["int8"]["peak_vs_fp32"] == 0.75
    assert plain["int8"]["layers"][0]["shape"] == [64, 28, 5]
    console = Console(record=True, width=200)
    render(result, console)
    text = console.export_text()
    parts = (
        "features[0]", "64×28×5", "64×32×8", "int_mm", "0.500 ms", "tracing adds 25.0 % to INT8's",
        "n/a (torch.compile failed here: no compiler)", "n/a (no peak here)", "The machine was busy.",
    )  # fmt: skip
    for part in parts:
        assert part in text, part


@pytest.mark.parametrize(("why", "printed"), [("int_mm: dispatch=integer", False), ("direct: fastest of both", True)])
def test_reasons_are_printed_where_they_differ(result: ModelResult, why: str, printed: bool) -> None:
    one, other = result.int8.detail.layers
    rows = (
        dataclasses.replace(one, path="direct", why=why),
        dataclasses.replace(other, why="int_mm: dispatch=integer"),
    )
    width = dataclasses.replace(result.int8, detail=dataclasses.replace(result.int8.detail, layers=rows))
    console = Console(record=True, width=200)
    render(dataclasses.replace(result, int8=width), console)
    text = console.export_text()
    assert ("INT8: why this path" in text) == printed
    assert ("fastest of both" in text) == printed


def test_the_headline_holds_all_four_ratios(result: ModelResult) -> None:
    assert headline(result, "int8") == (
        "vgg16, batch 2, INT8: the step takes 0.45× FP32's time (0.62× compiled FP32's) and 0.91× bf16 autocast's "
        "(n/a compiled bf16's); it keeps 0.75× FP32's bytes for backward (0.50× with compact), peak 0.75× "
        "(n/a: torch.compile failed here: no compiler)."
    )
    assert "INT4 (emulated)" in headline(result, "int4")


def test_the_detail_of_a_width_is_what_the_table_shows(result: ModelResult) -> None:
    detail: WidthDetail = result.int8.detail
    (fprop, wgrad) = detail.layers
    assert (fprop.gemm, wgrad.gemm) == ("fprop", "wgrad")
    assert detail.pieces_ms[OTHER] == pytest.approx(3.5)
