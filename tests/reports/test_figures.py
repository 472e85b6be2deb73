from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from bench.records.schema import RunRecord
from reports.figures import draw_section, inline_svg, pareto_front
from reports.sections import build_sections

Make = Callable[..., list[RunRecord]]
POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(POINTS)
def test_no_point_of_the_pareto_front_is_beaten_and_every_other_is(points: list[tuple[int, int]]) -> None:
    front = pareto_front([(float(c), float(g)) for c, g in points])
    for index, (cost, gain) in enumerate(points):
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        assert (index in front) is not beaten


def test_equal_records_give_equal_bytes(demo_records: Make) -> None:
    (section,) = build_sections(demo_records())
    first, second = draw_section(section), draw_section(section)
    assert [drawing.key for drawing in first] == ["accuracy", "phases", "memory", "steps", "convergence"]
    assert first == second


def test_every_sample_is_a_point_of_the_step_time_figure(demo_records: Make) -> None:
    (section,) = build_sections(demo_records(["fp32", "uint8_int8"], seeds=(0, 1)))
    steps = next(drawing for drawing in draw_section(section) if drawing.key == "steps")
    collections = re.findall(r'<g id="PathCollection_\d+">.*?\n  </g>', steps.svg, flags=re.DOTALL)
    assert sum(collection.count("<use ") for collection in collections) == 2 * 2 * 24


def test_figures_of_synthetic_data_show_no_accuracy(demo_records: Make) -> None:
    (record,) = demo_records(["uint8_int8"])
    assert record.data is not None
    synthetic = dataclasses.replace(record, data=dataclasses.replace(record.data, synthetic=True))
    drawings = draw_section(build_sections([synthetic])[0])
    assert "accuracy" not in {drawing.key for drawing in drawings}
    assert not any("accuracy" in drawing.svg for drawing in drawings)


def test_inlined_drawings_are_described_themed_and_have_ids_of_their_own(demo_records: Make) -> None:
    (section,) = build_sections(demo_records(["fp32", "uint8_int8"]))
    drawing = draw_section(section)[0]
    svg = inline_svg(drawing.svg, "p", 'says "a < b"')
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'says "a < b"'
    assert "var(--ink)" in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids
    assert all(one.startswith("p-") for one in ids)
    assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)


def test_a_hostile_name_is_drawn_as_text(demo_records: Make) -> None:
    records = demo_records(["uint8_int8"], variant='<script>alert("$x$")</script>')
    for drawing in draw_section(build_sections(records)[0]):
        assert "<script" not in drawing.svg
        ET.fromstring(drawing.svg)
