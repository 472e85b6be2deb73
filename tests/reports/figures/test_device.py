from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest
from matplotlib.axes import Axes

from bench.records.schema import RunRecord
from bench.units import MEBIBYTE, Absent
from reports.figures.device import device_over_time
from reports.figures.style import NotDrawn, Sketch
from reports.rows import Section

Make = Callable[..., list[RunRecord]]
SectionOf = Callable[[list[RunRecord]], Section]
SketchOf = Callable[[Sketch | NotDrawn], Sketch]
Change = Callable[..., RunRecord]


def _processes(ax: Axes) -> list[list[tuple[float, float]]]:
    """Seconds and heights of each stretch between gaps, of the lines that are rows."""
    found: list[list[tuple[float, float]]] = []
    for line in ax.lines:
        if str(line.get_label()).startswith("_"):
            continue
        points = [(round(float(x), 9), round(float(y), 9)) for x, y in line.get_xydata()]
        found += [list(part) for known, part in groupby(points, lambda point: point[0] == point[0]) if known]
    return found


def test_every_process_is_a_line_and_throttled_samples_are_crossed(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_device: Change
) -> None:
    (record,) = demo_records(["fp32"])
    gone = Absent("the process has ended")
    record = with_device(
        record,
        power_w=(100.0, 300.0, 200.0),
        process_bytes=(MEBIBYTE, 2 * MEBIBYTE, gone),
        throttled=(False, True, gone),
    )
    sketch = sketch_of(device_over_time(section_of([record])))
    power, memory = sketch.figure.axes
    titles = ["power, W: 100 to 300", "memory of the timing process, MiB: 1 to 2"]
    assert [ax.get_title(loc="left") for ax in (power, memory)] == titles
    assert _processes(power) == [[(0.1, 0.4), (0.2, -0.4), (0.3, 0.0)]] * 3
    assert _processes(memory) == [[(0.1, 0.4), (0.2, -0.4)]] * 3, "an unknown end is left away"
    assert power.collections[0].get_offsets().tolist() == [pytest.approx([0.2, -0.4])]
    assert [text.get_text() for text in power.texts] == ["200"]
    assert "clock: n/a (not reported)" in sketch.caption
    assert "power, W: 100 to 300, median 200." in sketch.alt
    assert {text.get_text() for text in sketch.figure.legends[0].get_texts()} == {"throttled"}


def test_each_row_has_its_lane_in_the_scale_of_all(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_device: Change
) -> None:
    fp32, uint8 = demo_records(["fp32", "uint8_int8"])
    rows = [with_device(fp32, power_w=(100.0, 100.0, 150.0)), with_device(uint8, power_w=(300.0, 200.0, 300.0))]
    (power,) = sketch_of(device_over_time(section_of(rows))).figure.axes
    lanes = [[height for _, height in process] for process in _processes(power)]
    assert lanes == [[0.4, 0.4, 0.2]] * 3 + [[0.6, 1.0, 0.6]] * 3
    assert [tick.get_text() for tick in power.get_yticklabels()] == ["fp32", "uint8_int8 · integer"]
    assert [text.get_text() for text in power.texts] == ["100", "300"]


def test_where_nothing_was_sampled_the_sensors_reason_is_told(
    demo_records: Make, section_of: SectionOf, with_device: Change
) -> None:
    (record,) = demo_records(["fp32"])
    for one, reason in (
        (record, "the device was not sampled while steps were timed"),
        (with_device(record, power_w=Absent("no permission")), "no permission"),
    ):
        sketch = device_over_time(section_of([one]))
        assert isinstance(sketch, NotDrawn)
        assert sketch.reason == reason


@pytest.mark.parametrize("count", [1, 3, 6])
def test_panels_without_a_quantity_are_hidden(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_device: Change, count: int
) -> None:
    names = ("power_w", "clock_mhz", "memory_clock_mhz", "temperature_c", "utilisation_pct", "process_bytes")[:count]
    (record,) = demo_records(["fp32"])
    record = with_device(record, **dict.fromkeys(names, (1.0, 2.0, 3.0)))
    sketch = sketch_of(device_over_time(section_of([record])))
    assert sum(ax.get_visible() for ax in sketch.figure.axes) == count
