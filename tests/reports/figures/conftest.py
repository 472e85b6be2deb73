"""Sections of records, and the style in which their figures are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import matplotlib.pyplot as plt
import pytest

from bench.records.schema import Ceilings, ProductWork, ProfileResult, RunRecord, SideProfile
from bench.units import Absent
from reports.figures import NotDrawn, Sketch, figure_style
from reports.rows import Section
from reports.sections import build_sections


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with figure_style():
        yield
    plt.close("all")


@pytest.fixture
def section_of() -> Callable[[Sequence[RunRecord]], Section]:
    """The one section of some records."""

    def build(records: Sequence[RunRecord]) -> Section:
        (section,) = build_sections(records)
        return section

    return build


@pytest.fixture
def sketch_of() -> Callable[[Sketch | NotDrawn], Sketch]:
    """A figure that has to be drawn."""

    def check(sketch: Sketch | NotDrawn) -> Sketch:
        assert isinstance(sketch, Sketch), sketch
        assert sketch.alt.endswith(".")
        assert sketch.caption.endswith(".")
        return sketch

    return check


@pytest.fixture
def with_profile() -> Callable[..., RunRecord]:
    """The record with a profile of two layers; the integer side takes `factor` of FP32's time."""

    def make(record: RunRecord, factor: float = 0.5) -> RunRecord:
        def side(kind: str, path: str, times: float, num_bytes: int) -> SideProfile:
            products = tuple(
                ProductWork(
                    layer=layer, gemm=gemm, kind=kind, path=path, operations=2_000_000, num_bytes=num_bytes,
                    product_ms=times * (place + 1), all_ms=times * (place + 1) * 1.5,
                    gops=2.0 / (times * (place + 1)), ceiling_share_pct=1.0, copy_share_pct=1.0,
                )
                for place, layer in enumerate(("conv1", "fc"))
                for gemm in ("fprop", "dgrad", "wgrad")
                if (layer, gemm) != ("conv1", "dgrad")
            )  # fmt: skip
            return SideProfile(
                plain_step_ms=(10.0,), spanned_step_ms=(10.1,), span_overhead_pct=1.0, unattributed_pct=0.5,
                phases_ms={"forward": 4.0}, spans=(), products=products, work=(), trace=None, trace_missing="not asked",
            )  # fmt: skip

        ceilings = Ceilings(int8_gops=800.0, fp32_gflops=100.0, bf16_gflops=Absent("no bf16 units"), copy_gb_s=10.0)
        profile = ProfileResult(
            ceilings=ceilings, cell=side("int8", "int_mm", factor, 100_000), fp32=side("fp32", "float32", 1.0, 400_000)
        )
        return dataclasses.replace(record, profile=profile)

    return make
