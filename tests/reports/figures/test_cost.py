from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.records.schema import Interval, RunRecord
from bench.units import MEBIBYTE, Absent
from reports.figures.cost import accuracy_vs_cost, pareto_front
from reports.figures.style import NotDrawn, Sketch
from reports.rows import Estimate, Section, Summary

Make = Callable[..., list[RunRecord]]
SectionOf = Callable[[list[RunRecord]], Section]
SketchOf = Callable[[Sketch | NotDrawn], Sketch]
POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 90)], [0]),
        ([(1, 90), (2, 95), (3, 94)], [0, 1]),  # dearer and worse
        ([(1, 90), (1, 95)], [1]),  # as cheap and better
        ([(1, 90), (2, 90)], [0]),  # as good and cheaper
        ([(1, 90), (1, 90)], [0, 1]),  # equal: neither beats the other
        ([(3, 99), (1, 80), (2, 90), (2.5, 85)], [0, 1, 2]),
    ],
)
def test_the_pareto_front_worked_by_hand(points: list[tuple[float, float]], front: list[int]) -> None:
    assert pareto_front(points) == front


@given(POINTS)
def test_no_point_of_the_pareto_front_is_beaten_and_every_other_is(points: list[tuple[int, int]]) -> None:
    front = pareto_front([(float(c), float(g)) for c, g in points])
    for index, (cost, gain) in enumerate(points):
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        assert (index in front) is not beaten


def test_every_point_stands_at_its_rows_numbers(demo_records: Make, section_of: SectionOf, sketch_of: SketchOf) -> None:
    section = section_of(demo_records(["fp32", "uint8_int8", "metagrad_int4_retain"], seeds=(0, 1, 2)))
    sketch = sketch_of(accuracy_vs_cost(section))
    time_ax, memory_ax = sketch.figure.axes
    for ax, cost in (
        (time_ax, lambda row: row.step_ms.median),
        (memory_ax, lambda row: row.peak_allocated_bytes / MEBIBYTE),
    ):
        drawn = [tuple(collection.get_offsets()[0]) for collection in ax.collections]
        assert drawn == [(cost(row), row.accuracy.value) for row in section.rows]
    labels = [text.get_text() for text in sketch.figure.legends[0].get_texts()]
    assert labels == ["fp32 · n = 3", "uint8_int8 · integer · n = 3", "metagrad_int4_retain · emulated · n = 3"]
    first = section.rows[1]
    assert isinstance(first.accuracy, Estimate)
    assert isinstance(first.accuracy.interval, Interval)
    assert isinstance(first.step_ms, Summary)
    ends = [first.accuracy.interval.low, first.accuracy.interval.high]
    assert any(list(line.get_ydata()) == ends for line in time_ax.lines), "the interval over seeds"
    assert any(list(line.get_xdata()) == [first.step_ms.q1, first.step_ms.q3] for line in time_ax.lines)


def test_the_dashed_line_joins_the_front_and_the_words_name_it(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    section = section_of(demo_records(["fp32", "uint8_int8", "uint8_int4"]))
    sketch = sketch_of(accuracy_vs_cost(section))
    (dashed,) = (line for line in sketch.figure.axes[0].lines if line.get_linestyle() == "--")
    by_label = {row.label: row for row in section.rows}
    fast, best = by_label["uint8_int8"], by_label["fp32"]
    assert isinstance(fast.step_ms, Summary)
    assert isinstance(best.step_ms, Summary)
    assert list(dashed.get_xdata()) == [fast.step_ms.median, best.step_ms.median]
    assert list(dashed.get_ydata()) == [98.06, 98.33]
    assert "against step time, cheapest first: uint8_int8 (integer) (98.06 %" in sketch.alt
    assert "uint8_int4" not in sketch.alt


def test_rows_without_accuracy_or_cost_are_named_in_the_caption(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    whole, broken = demo_records(["fp32", "uint8_int8"])
    broken = dataclasses.replace(broken, status="failed", reason="no", accuracy=None, timing=None, memory=None)
    sketch = sketch_of(accuracy_vs_cost(section_of([whole, broken])))
    assert sketch.caption.endswith("not shown: uint8_int8.")
    assert "as measured, which may be chance; two rows’ step times were not taken side by side" in sketch.caption


def test_a_row_with_a_lost_seed_is_drawn_but_never_on_the_front(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    one, other = demo_records(["uint8_int8"], seeds=(0, 1))
    lost = dataclasses.replace(other, status="killed", reason="signal 9")
    sketch = sketch_of(accuracy_vs_cost(section_of([*demo_records(["fp32"]), one, lost])))
    assert "cheapest first: fp32 (" in sketch.alt
    assert "uint8_int8" not in sketch.alt
    assert "Never outlined, since not all of their seeds finished: uint8_int8 (integer, 1 of 2 seeds killed)." in (
        sketch.caption
    )
    alone = sketch_of(accuracy_vs_cost(section_of([one, lost])))
    assert "cheapest first: no row." in alone.alt
    assert not [line for line in alone.figure.axes[0].lines if line.get_linestyle() == "--"]


def test_points_on_one_another_all_show_and_are_named(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    one, other, third = demo_records(["uint8_int8", "fp32", "metagrad_int4_slim"])
    twin = dataclasses.replace(one, key="twin", variant="uint8_twin")
    sketch = sketch_of(accuracy_vs_cost(section_of([one, twin, other, third])))
    sizes = {str(c.get_label()).split(" ")[0]: c.get_sizes()[0] for c in sketch.figure.axes[0].collections}
    assert sizes["uint8_int8"] > 2 * sizes["uint8_twin"] == 2 * sizes["fp32"] == 2 * sizes["metagrad_int4_slim"]
    assert (
        "Of uint8_int8, uint8_twin, which coincide over step time and peak allocated, the first is drawn larger."
        in sketch.caption
    )


def test_without_allocated_bytes_the_processs_peak_stands_in(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    (record,) = demo_records(["fp32"])
    assert record.memory is not None
    memory = dataclasses.replace(record.memory, peak_allocated_bytes=Absent("not tracked"))
    sketch = sketch_of(accuracy_vs_cost(section_of([dataclasses.replace(record, memory=memory)])))
    assert sketch.figure.axes[1].get_xlabel() == "peak of the process, MiB"


def test_synthetic_data_has_no_such_figure(demo_records: Make, section_of: SectionOf) -> None:
    (record,) = demo_records(["fp32"])
    assert record.data is not None
    synthetic = dataclasses.replace(record, data=dataclasses.replace(record.data, synthetic=True))
    sketch = accuracy_vs_cost(section_of([synthetic]))
    assert isinstance(sketch, NotDrawn)
    assert sketch.reason == "synthetic data has no accuracy"
