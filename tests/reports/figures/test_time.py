from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from bench.records.schema import RunRecord
from reports.figures.style import NotDrawn, Sketch
from reports.figures.time import phase_times, step_times
from reports.rows import Section

Make = Callable[..., list[RunRecord]]
SectionOf = Callable[[list[RunRecord]], Section]
SketchOf = Callable[[Sketch | NotDrawn], Sketch]


def test_phases_are_stacked_to_the_mean_step_and_to_a_hundred(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    records = demo_records(["fp32", "metagrad_int4_slim"])
    sketch = sketch_of(phase_times(section_of(records)))
    left, right = sketch.figure.axes
    for place, record in enumerate(records):
        assert record.timing is not None
        steps = [step for repeat in record.timing.repeats for step in repeat.step_ms]
        absolute = {c.get_label(): c.patches[place].get_width() for c in left.containers}
        relative = [c.patches[place].get_width() for c in right.containers]
        for name, share in record.timing.phase_share_pct.items():
            assert absolute[name] == pytest.approx(np.mean(steps) * share / 100)
        assert sum(absolute.values()) == pytest.approx(np.mean(steps))
        assert sum(relative) == pytest.approx(100)
        assert [w for w in relative if w] == list(record.timing.phase_share_pct.values())
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["fp32", "metagrad_int4_slim · emulated"]
    assert "meta 33.0 % in metagrad_int4_slim (emulated)" in sketch.alt


def test_every_sample_is_a_point_over_its_quartiles(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    records = demo_records(["fp32", "uint8_int8"], seeds=(0, 1))
    section = section_of(records)
    (ax,) = sketch_of(step_times(section)).figure.axes
    for place, row in enumerate(section.rows):
        samples = [s for r in row.records if r.timing for repeat in r.timing.repeats for s in repeat.step_ms]
        points = ax.collections[place].get_offsets()
        assert points[:, 0].tolist() == samples
        assert abs(points[:, 1] - place).max() <= 0.2
        q1, median, q3 = np.quantile(samples, (0.25, 0.5, 0.75))
        box = ax.containers[place].patches[0]
        assert (box.get_x(), box.get_x() + box.get_width()) == pytest.approx((q1, q3))
        assert list(ax.lines[place].get_xdata()) == pytest.approx([median] * 2)


def test_many_points_are_drawn_as_one_picture(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.figures.time.RASTER_ABOVE", 40)
    sketch = sketch_of(step_times(section_of(demo_records(["fp32", "uint8_int8"]))))
    assert all(collection.get_rasterized() for collection in sketch.figure.axes[0].collections)


def test_untimed_rows_give_no_figure_but_a_reason(demo_records: Make, section_of: SectionOf) -> None:
    (record,) = demo_records(["fp32"])
    section = section_of([dataclasses.replace(record, timing=None)])
    for build in (phase_times, step_times):
        sketch = build(section)
        assert isinstance(sketch, NotDrawn)
        assert sketch.reason == "no row was timed"
