from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from bench.records.schema import RunRecord
from bench.units import Absent
from reports.figures.kernels import layer_times, roofline
from reports.figures.style import NotDrawn, Sketch
from reports.rows import Section

Make = Callable[..., list[RunRecord]]
SectionOf = Callable[[list[RunRecord]], Section]
SketchOf = Callable[[Sketch | NotDrawn], Sketch]
Change = Callable[..., RunRecord]


def test_layers_show_each_product_of_fp32_and_of_one_row_a_width(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_profile: Change
) -> None:
    records = demo_records(["fp32", "uint8_int8", "uint8_int4", "metagrad_int4_slim"])
    section = section_of([with_profile(record, 0.25 if record.method.error_bits == 8 else 0.5) for record in records])
    sketch = sketch_of(layer_times(section))
    fprop, dgrad, wgrad = sketch.figure.axes
    assert [tick.get_text() for tick in fprop.get_yticklabels()] == ["conv1", "fc"]
    assert [text.get_text() for text in sketch.figure.legends[0].get_texts()] == [
        "FP32", "uint8_int8 · integer", "uint8_int4 · emulated",
    ]  # fmt: skip
    drawn = [[(x, round(y)) for x, y in c.get_offsets().tolist()] for c in wgrad.collections]
    assert drawn == [[(1.5, 0), (3.0, 1)], [(0.375, 0), (0.75, 1)], [(0.75, 0), (1.5, 1)]]
    assert [len(c.get_offsets()) for c in dgrad.collections] == [1, 1, 1], "the first layer has no dgrad"
    assert [list(line.get_xdata()) for line in fprop.lines[:2]] == [[1.0, 1.5], [2.0, 3.0]], "alone, and with all"
    assert "fprop: FP32 4.5 ms, uint8_int8 1.125 ms, uint8_int4 2.25 ms" in sketch.alt


def test_a_product_whose_time_is_unknown_is_no_point(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_profile: Change
) -> None:
    (record,) = demo_records(["uint8_int8"])
    record = with_profile(record)
    assert record.profile is not None
    unknown = Absent("not spanned")
    products = tuple(
        dataclasses.replace(p, product_ms=unknown, all_ms=unknown, gops=unknown) if p.layer == "fc" else p
        for p in record.profile.cell.products
    )
    cell = dataclasses.replace(record.profile.cell, products=products)
    section = section_of([dataclasses.replace(record, profile=dataclasses.replace(record.profile, cell=cell))])
    fprop = sketch_of(layer_times(section)).figure.axes[0]
    assert [len(c.get_offsets()) for c in fprop.collections] == [2, 1]
    (ax,) = sketch_of(roofline(section)).figure.axes
    assert sum(len(c.get_offsets()) for c in ax.collections) == 5 + 2


def test_the_roofline_is_the_smaller_of_ceiling_and_copying(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_profile: Change
) -> None:
    (record,) = demo_records(["uint8_int8"])
    sketch = sketch_of(roofline(section_of([with_profile(record, 0.5)])))
    (ax,) = sketch.figure.axes
    drawn = {c.get_label(): c.get_offsets().tolist() for c in ax.collections}
    assert drawn["FP32, fprop"] == [[5.0, 2.0], [5.0, 1.0]], "2 million operations, 400 kB, 1 and 2 ms"
    assert drawn["uint8_int8 · integer, dgrad"] == [[20.0, 2.0]]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]
    assert ([40.0, 40.0], [800.0, 800.0]) in lines, "INT8's ridge, 80 operations a byte, lies beyond the points"
    assert ([10.0, 40.0], [100.0, 100.0]) in lines
    assert ([2.5, 10.0], [25.0, 100.0]) in lines, "copying 10 GB/s"
    assert len(lines) == 4, "no roof for bf16"
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "Ceilings: copying 10 GB/s, INT8 800·10⁹ operations a second, FP32 100·10⁹" in sketch.alt


def test_the_roofline_says_of_each_product_what_it_ran_as(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_profile: Change
) -> None:
    (record,) = demo_records(["ste_int4"])
    record = with_profile(record, 0.5)
    products = tuple(
        product if product.gemm == "fprop" else dataclasses.replace(product, kind="fp32", path="float32")
        for product in record.profile.cell.products
    )
    cell = dataclasses.replace(record.profile.cell, products=products)
    record = dataclasses.replace(record, profile=dataclasses.replace(record.profile, cell=cell))
    (ax,) = sketch_of(roofline(section_of([record]))).figure.axes
    labels = {c.get_label() for c in ax.collections}
    assert {"ste_int4 · emulated, fprop", "ste_int4 · float, dgrad", "ste_int4 · float, wgrad"} <= labels


@pytest.mark.parametrize("build", [layer_times, roofline])
def test_without_a_profile_the_records_reason_is_told(
    build: Callable[[Section], Sketch | NotDrawn], demo_records: Make, section_of: SectionOf
) -> None:
    (record,) = demo_records(["uint8_int8"])
    left_out = dataclasses.replace(record, missing={"profile": "protocol.passes leaves the profile pass out"})
    for one, reason in ((record, "no low-bit row was profiled"), (left_out, left_out.missing["profile"])):
        sketch = build(section_of([one]))
        assert isinstance(sketch, NotDrawn)
        assert sketch.reason == reason
