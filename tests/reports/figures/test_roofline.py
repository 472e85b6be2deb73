from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from bench.records.schema import RunRecord
from reports.figures.layers import layer_times
from reports.figures.roofline import roofline
from reports.figures.style import NotDrawn, Sketch
from reports.rows import Section

Make = Callable[..., list[RunRecord]]
SectionOf = Callable[[list[RunRecord]], Section]
SketchOf = Callable[[Sketch | NotDrawn], Sketch]
Change = Callable[..., RunRecord]


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
    (record,) = demo_records(["ste_w4a4"])
    record = with_profile(record, 0.5)
    products = tuple(
        product if product.gemm == "fprop" else dataclasses.replace(product, kind="fp32", path="float32")
        for product in record.profile.cell.products
    )
    cell = dataclasses.replace(record.profile.cell, products=products)
    record = dataclasses.replace(record, profile=dataclasses.replace(record.profile, cell=cell))
    (ax,) = sketch_of(roofline(section_of([record]))).figure.axes
    labels = {c.get_label() for c in ax.collections}
    assert {"ste_w4a4 · emulated, fprop", "ste_w4a4 · float, dgrad", "ste_w4a4 · float, wgrad"} <= labels


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
