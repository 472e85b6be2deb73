from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import numpy as np
import pytest

from bench.records.schema import RunRecord
from bench.stats import mean_interval
from bench.units import Absent
from reports.figures.convergence import convergence, curve_of
from reports.figures.style import INK, NotDrawn, Sketch
from reports.rows import Section

Make = Callable[..., list[RunRecord]]
SectionOf = Callable[[list[RunRecord]], Section]
SketchOf = Callable[[Sketch | NotDrawn], Sketch]


def test_curves_stand_at_the_records_points_over_steps_and_seconds(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    ste, uint8 = demo_records(["ste_w4a4", "uint8_int8"])
    sketch = sketch_of(convergence(section_of([uint8, ste])))
    axes = sketch.figure.axes
    assert [ax.get_ylabel() for ax in axes] == ["training loss", "", "test accuracy, %", ""]
    for record, line_of in ((ste, 0), (uint8, 1)):  # the reference is drawn first
        assert record.accuracy is not None
        curve = record.accuracy.curve
        for ax, x, y in (
            (axes[0], "step", "train_loss"), (axes[1], "seconds", "train_loss"),
            (axes[2], "step", "test_accuracy_pct"), (axes[3], "seconds", "test_accuracy_pct"),
        ):  # fmt: skip
            line = ax.lines[line_of]
            assert line.get_xdata().tolist() == [getattr(point, x) for point in curve]
            assert line.get_ydata().tolist() == [getattr(point, y) for point in curve]
    assert (axes[0].lines[0].get_color(), axes[0].lines[0].get_linestyle()) == (INK, "--")
    assert "ste_w4a4 (emulated) loss" in sketch.alt


def test_seeds_are_thin_lines_under_their_mean_and_its_interval(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    records = demo_records(["uint8_int8"], seeds=(0, 1, 2))
    section = section_of(records)
    sketch = sketch_of(convergence(section))
    *seeds, mean = sketch.figure.axes[2].lines
    assert len(seeds) == 3
    finals = [record.accuracy.test_accuracy_pct for record in records if record.accuracy is not None]
    assert [line.get_ydata()[-1] for line in seeds] == finals
    interval = mean_interval([float(value) for value in finals if not isinstance(value, Absent)])
    assert not isinstance(interval, Absent)
    curve = curve_of(section.rows[0], "test_accuracy_pct")
    assert curve is not None
    assert curve.mean[-1, 2:].tolist() == pytest.approx([interval.value, interval.low, interval.high])
    assert mean.get_ydata()[-1] == pytest.approx(np.mean([float(value) for value in finals]))  # type: ignore[arg-type]


def test_a_diverged_row_is_drawn_as_far_as_it_went(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    (record,) = demo_records(["uint8_int8"])
    assert record.accuracy is not None
    lost = Absent("the loss is not finite")
    *known, last = record.accuracy.curve
    curve = (*known, dataclasses.replace(last, train_loss=lost, test_accuracy_pct=lost))
    accuracy = dataclasses.replace(record.accuracy, curve=curve, test_accuracy_pct=lost)
    diverged = dataclasses.replace(record, status="diverged", reason="the loss", accuracy=accuracy)
    sketch = sketch_of(convergence(section_of([diverged])))
    assert sketch.figure.axes[0].lines[0].get_xdata().tolist() == [point.step for point in known]
    assert "No STE row was measured here." in sketch.caption
    assert "Rows start from FP32 weights that were trained before" in sketch.caption


def test_of_too_many_rows_references_leave_room_for_methods(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[convergence.__module__], "MAX_LINES", 3)  # its package has a function of that name
    records = demo_records(["fp32", "ste_w4a4", "uint8_int8", "uint8_int4"])
    second = dataclasses.replace(records[1], key="other", variant="ste_w4a4_other")
    sketch = sketch_of(convergence(section_of([*records, second])))
    labels = [text.get_text().split(" ")[0] for text in sketch.figure.legends[0].get_texts()]
    assert labels == ["ste_w4a4", "fp32", "uint8_int8"]
    assert sketch.caption.endswith("The first 3 of 5 rows.")


def test_rows_that_trained_alike_take_turns_over_steps_and_are_named(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    retain, recompute, other = demo_records(["metagrad_int4_retain", "metagrad_int4_recompute", "uint8_int4"])
    sketch = sketch_of(convergence(section_of([retain, recompute, other])))
    loss = {line.get_label().split(" ")[0]: line for line in sketch.figure.axes[0].lines}
    alike = [loss[record.variant] for record in (retain, recompute)]
    assert [line.get_markevery() for line in alike] == [(0, 2), (1, 2)]
    assert loss[other.variant].get_linestyle() == "-"
    names = "training loss over steps, test accuracy, % over steps"
    told = f" Coinciding, so drawn in alternating dashes: {retain.variant}, {recompute.variant} (in {names})."
    assert told in sketch.caption
    over_seconds = sketch.figure.axes[1].lines
    assert {line.get_linestyle() for line in over_seconds} == {"-"}, "their steps take different times"


def test_synthetic_data_shows_loss_alone(demo_records: Make, section_of: SectionOf, sketch_of: SketchOf) -> None:
    (record,) = demo_records(["uint8_int8"])
    assert record.data is not None
    synthetic = dataclasses.replace(record, data=dataclasses.replace(record.data, synthetic=True))
    sketch = sketch_of(convergence(section_of([synthetic])))
    assert len(sketch.figure.axes) == 2
    assert "accuracy" not in sketch.alt
    assert "(synthetic data)" in sketch.figure.get_suptitle()


def test_untrained_rows_give_a_reason(demo_records: Make, section_of: SectionOf) -> None:
    (record,) = demo_records(["fp32"])
    sketch = convergence(section_of([dataclasses.replace(record, accuracy=None)]))
    assert isinstance(sketch, NotDrawn)
    assert sketch.reason == "no row was trained"
