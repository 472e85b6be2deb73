"""Sections of small built records, and the style in which their figures are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from bench.profilers.memory_categories import CATEGORIES
from bench.records.schema import (
    Ceilings,
    DeviceSeries,
    HypernetSurface,
    MemoryPhase,
    ProductWork,
    ProfileResult,
    RunRecord,
    SideProfile,
    SurfaceAxis,
)
from bench.records.surface import write_surface
from bench.units import MEBIBYTE, Absent
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
def with_categories() -> Callable[..., RunRecord]:
    """The record with its peak told apart, MiB by category; a smaller peak stands in another phase."""

    def make(record: RunRecord, **mebibytes: float) -> RunRecord:
        assert record.memory is not None
        sizes = {name: int(mebibytes.get(name, 0) * MEBIBYTE) for name in CATEGORIES}
        absent = Absent("only CUDA's allocator tells")
        top = MemoryPhase(
            phase="backward", peak_bytes=sum(sizes.values()), categories=sizes, layer="conv1", allocator_bytes=absent
        )
        small = dataclasses.replace(
            top, phase="forward", peak_bytes=1, categories={**dict.fromkeys(CATEGORIES, 0), "data": 1}
        )
        return dataclasses.replace(record, memory=dataclasses.replace(record.memory, phases=(small, top)))

    return make


@pytest.fixture
def with_device() -> Callable[..., RunRecord]:
    """The record with the same series in every timing process."""

    def make(record: RunRecord, **changes: object) -> RunRecord:
        assert record.timing is not None
        absent = Absent("not reported")
        series = DeviceSeries(
            time_s=(0.1, 0.2, 0.3), power_w=absent, clock_mhz=absent, memory_clock_mhz=absent, temperature_c=absent,
            utilisation_pct=absent, process_bytes=absent, throttled=absent, throttle_reasons=(), num_throttled=absent,
            energy_j=absent,
        )  # fmt: skip
        series = dataclasses.replace(series, **changes)  # type: ignore[arg-type]
        repeats = tuple(dataclasses.replace(repeat, device=series) for repeat in record.timing.repeats)
        return dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=repeats))

    return make


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


@pytest.fixture
def write_beside(tmp_path: Path) -> Callable[..., Path]:
    """A record's folder with what a hypernetwork leaves beside it: ``hypernet.csv`` and its surface."""

    def write(name: str, *, axes: int = 2, steps: Sequence[int] = (11, 22)) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        lines = ["step,layer,amplification,cosine,zero_share_pct,meta_grad_norm,interpolation_error"]
        for step in steps:
            for layer, amplification in (("a", 1.0), ("b", 2.0), ("c", 4.0)):
                cosine = "" if layer == "c" else "0.5"
                lines.append(f"{step},{layer},{amplification * step},{cosine},{step},0.1,")
        (folder / "hypernet.csv").write_text("\n".join(lines) + "\n")
        values = (-1.0, 0.0, 1.0)
        rows = 3 if axes == 2 else 1
        surface = HypernetSurface(
            schema_version=1, output="f/max|∇W|",
            axes=tuple(SurfaceAxis(name=n, values=values) for n in ("W/max|W|", "∇W/max|∇W|")[:axes]),
            before=tuple((-0.5, 0.0, 0.5) for _ in range(rows)),
            after=tuple((-0.5, 0.25, 1.0) for _ in range(rows)),
        )  # fmt: skip
        write_surface(folder, surface)
        return folder

    return write
