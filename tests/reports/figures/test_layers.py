from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from bench.records.schema import ProfileResult, RunRecord
from bench.units import Absent
from reports.figures.layers import layer_times
from reports.figures.roofline import roofline
from reports.figures.style import NotDrawn, Sketch
from reports.rows import Section

Make = Callable[..., list[RunRecord]]
SectionOf = Callable[[list[RunRecord]], Section]
SketchOf = Callable[[Sketch | NotDrawn], Sketch]
Change = Callable[..., RunRecord]


def slowed(record: RunRecord, factor: float) -> RunRecord:
    """The record as a process in which everything took longer would have left it."""
    assert record.profile is not None
    sides = {
        name: dataclasses.replace(
            side,
            products=tuple(
                dataclasses.replace(p, product_ms=float(p.product_ms) * factor, all_ms=float(p.all_ms) * factor)  # type: ignore[arg-type]
                for p in side.products
            ),
        )
        for name, side in (("cell", record.profile.cell), ("fp32", record.profile.fp32))
    }
    profile = ProfileResult(ceilings=record.profile.ceilings, **sides)
    return dataclasses.replace(record, profile=profile)


def test_layers_show_fp32_in_ms_and_one_row_a_width_against_it(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_profile: Change
) -> None:
    records = demo_records(["fp32", "uint8_int8", "uint8_int4", "metagrad_int4_slim"])
    section = section_of([with_profile(record, 0.25 if record.method.error_bits == 8 else 0.5) for record in records])
    sketch = sketch_of(layer_times(section))
    fp32, fprop, dgrad, wgrad = sketch.figure.axes
    assert [tick.get_text() for tick in fp32.get_yticklabels()] == ["conv1", "fc"]
    assert [[x for x, _ in c.get_offsets().tolist()] for c in fp32.collections] == [[1.5, 3.0], [3.0], [1.5, 3.0]]
    legend = [text.get_text() for text in sketch.figure.legends[0].get_texts()]
    assert legend == ["uint8_int8 · integer", "uint8_int4 · emulated"]
    drawn = [[(x, round(y)) for x, y in c.get_offsets().tolist()] for c in wgrad.collections]
    assert drawn == [[(0.25, 0), (0.25, 1)], [(0.5, 0), (0.5, 1)]]
    assert [len(c.get_offsets()) for c in dgrad.collections] == [1, 1], "the first layer has no dgrad"
    spans = [line.get_xdata() for line in fprop.lines if len(set(line.get_xdata())) == 2]
    assert spans[0] == pytest.approx([0.25 / 1.5, 0.25]), "alone, and with all"
    assert "fprop: FP32 4.5 ms, uint8_int8 (integer) 0.25×, uint8_int4 (emulated) 0.50×" in sketch.alt


def test_a_slower_process_moves_no_ratio_and_widens_fp32s_range(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_profile: Change
) -> None:
    one, other = (with_profile(record) for record in demo_records(["uint8_int8", "uint8_int4"]))
    sketch = sketch_of(layer_times(section_of([one, slowed(other, 1.5)])))
    fp32, fprop, *_ = sketch.figure.axes
    assert {x for c in fprop.collections for x, _ in c.get_offsets().tolist()} == {0.5}
    assert [1.5, 2.25] in [list(line.get_xdata()) for line in fp32.lines]
    assert "median and range over 2 processes" in sketch.caption


def test_seeds_of_a_row_are_shown_by_their_median(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_profile: Change
) -> None:
    records = demo_records(["uint8_int8"], seeds=(0, 1, 2))
    section = section_of([with_profile(r, factor) for r, factor in zip(records, (0.5, 0.6, 0.9), strict=True)])
    fprop = sketch_of(layer_times(section)).figure.axes[1]
    assert [x for x, _ in fprop.collections[0].get_offsets().tolist()] == pytest.approx([0.6, 0.6])


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
    fp32, fprop, *_ = sketch_of(layer_times(section)).figure.axes
    assert [len(fp32.collections[0].get_offsets()), len(fprop.collections[0].get_offsets())] == [2, 1]
    (ax,) = sketch_of(roofline(section)).figure.axes
    assert sum(len(c.get_offsets()) for c in ax.collections) == 5 + 2
