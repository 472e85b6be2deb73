from __future__ import annotations

import dataclasses
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from bench.records.schema import RunRecord
from reports.figures import FIGURES, draw_across, draw_section, inline_svg
from reports.figures.row_style import FP32_GREY, alternating, coincidence_note, coinciding, row_styles
from reports.figures.style import GRID, INK, PALETTE, Sketch, tag
from reports.rows import Section
from reports.sections import build_sections
from reports.tables import TOPICS

Make = Callable[..., list[RunRecord]]
SectionOf = Callable[[list[RunRecord]], Section]
Change = Callable[..., RunRecord]
KEYS = [
    "accuracy", "phases", "steps", "memory", "memory_strategies", "amplification", "surface", "hidden_size", "layers",
    "roofline", "convergence", "device",
]  # fmt: skip
HOSTILE = '<script>alert("$x$ & y")</script>|\n_\u202eevil'


@pytest.fixture
def whole(
    demo_records: Make,
    with_categories: Change,
    with_device: Change,
    with_profile: Change,
    write_beside: Callable[..., Path],
) -> Callable[..., tuple[Section, dict[str, Path]]]:
    """A section that has data for every figure, and the folders beside its records."""

    def make(**changes: Any) -> tuple[Section, dict[str, Path]]:
        cell = {"protocol": {"epochs": 4, "batch_size": 64}, "hypernet": {"hidden": 4}}
        records = demo_records(["fp32", "ste_w4a4", "metagrad_int4_slim", "metagrad_int4_retain"], cell=cell, **changes)
        slim = records[2]
        wide = dataclasses.replace(
            slim, key="wide", cell=cell | {"hypernet": {"hidden": 9}}, method=dataclasses.replace(slim.method, hidden=9)
        )
        records = [
            with_profile(with_device(with_categories(record, weights=2, activations=5), power_w=(50.0, 60.0, 55.0)))
            for record in (*records, wide)
        ]
        (section,) = build_sections(records)
        return section, {slim.key: write_beside("slim")}

    return make


def check_inline(svg: str) -> None:
    """Described, themed, with ids of its own, and nothing to load."""
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'says "a < b"'
    assert "var(--ink)" in svg
    assert INK not in svg
    assert GRID not in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids
    assert all(one.startswith("p-") for one in ids)
    assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)
    assert all(link.startswith(("#p-", "data:image/png;base64,")) for link in re.findall(r'href="([^"]+)"', svg))


def test_every_figure_is_drawn_where_its_data_is_and_the_same_twice(
    whole: Callable[..., tuple[Section, dict[str, Path]]],
) -> None:
    section, folders = whole()
    figures = draw_section(section, folders)
    assert figures == draw_section(section, folders)
    assert figures.not_drawn == ()
    assert [drawing.key for drawing in figures.drawn] == KEYS
    for drawing in figures.drawn:
        assert drawing.alt, drawing.key
        assert drawing.topic in TOPICS, drawing.key
        assert drawing.png.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", drawing.png[16:24])
        assert width == 1238, "one width for all"
        assert height < 1600
        assert len(drawing.svg) < 500_000
        ids = re.findall(r'\bid="([^"]+)"', drawing.svg)
        assert len(ids) == len(set(ids)), drawing.key
        check_inline(inline_svg(drawing.svg, "p", 'says "a < b"'))


def test_hostile_names_are_drawn_as_text(whole: Callable[..., tuple[Section, dict[str, Path]]]) -> None:
    section, folders = whole(variant=HOSTILE, model_name=HOSTILE, data_name=HOSTILE)
    figures = draw_section(section, folders)
    assert figures.drawn
    for drawing in figures.drawn:
        for text in (drawing.svg, inline_svg(drawing.svg, "p", drawing.alt)):
            assert "<script" not in text
            assert "\u202e" not in text
            ET.fromstring(text)


def test_a_name_that_starts_with_an_underscore_stays_in_the_legend(demo_records: Make, section_of: SectionOf) -> None:
    section = section_of(demo_records(["uint8_int8"], variant="_mine"))
    assert "_mine" in draw_section(section).drawn[0].svg
    assert tag(section.rows[0]) == " _mine · integer"


@pytest.mark.parametrize("variant", ["fp32", "metagrad_int4_retain"])
def test_one_cell_alone_is_drawn(demo_records: Make, section_of: SectionOf, variant: str) -> None:
    figures = draw_section(section_of(demo_records([variant])))
    assert [drawing.key for drawing in figures.drawn] == ["accuracy", "phases", "steps", "memory", "convergence"]
    assert all(one.reason for one in figures.not_drawn)


def test_failed_cells_alone_give_reasons_and_beside_others_break_nothing(
    demo_records: Make, section_of: SectionOf
) -> None:
    nothing = dict.fromkeys(("accuracy", "timing", "memory", "hypernet", "gemms", "data", "model"))
    failed = demo_records(["uint8_int8", "metagrad_int4_slim"], status="failed", reason="no", **nothing)
    figures = draw_section(section_of(failed))
    assert figures.drawn == ()
    assert [one.key for one in figures.not_drawn] == KEYS
    beside = draw_section(section_of([*failed, *demo_records(["fp32"])]))
    assert [drawing.key for drawing in beside.drawn] == ["accuracy", "phases", "steps", "memory", "convergence"]


def test_figures_of_synthetic_data_show_no_accuracy(whole: Callable[..., tuple[Section, dict[str, Path]]]) -> None:
    section, folders = whole()
    data = section.rows[0].first.data
    assert data is not None
    synthetic = dataclasses.replace(data, synthetic=True)
    records = [dataclasses.replace(record, data=synthetic) for record in section.records]
    figures = draw_section(build_sections(records)[0], folders)
    assert "accuracy" not in {drawing.key for drawing in figures.drawn}
    for drawing in figures.drawn:
        assert "accuracy" not in drawing.svg, drawing.key
        assert "(synthetic data)" in drawing.svg, drawing.key


def test_two_machines_are_drawn_once_for_both(demo_records: Make) -> None:
    sections = build_sections([*demo_records(["fp32"], machine="a"), *demo_records(["fp32"], machine="b")])
    (drawing,) = draw_across(sections).drawn
    assert drawing.key == "machines"


def test_colours_are_seaborns_colour_blind_palette_and_repeat_darker(demo_records: Make, section_of: SectionOf) -> None:
    section = section_of(demo_records())
    assert {style.colour for style in row_styles([section]).values()} <= {*PALETTE, INK, FP32_GREY}
    many = tuple(dataclasses.replace(section.rows[2], label=str(index)) for index in range(14))
    assert len({style.colour for style in row_styles([dataclasses.replace(section, rows=many)]).values()}) == 14


def test_a_row_looks_the_same_in_every_figure_of_a_report(
    whole: Callable[..., tuple[Section, dict[str, Path]]],
) -> None:
    section, folders = whole()
    styles = row_styles([section])
    for build in FIGURES:
        sketch = build(section, folders, styles)
        assert isinstance(sketch, Sketch)
        if sketch.key in {"phases", "memory", "memory_strategies", "surface", "hidden_size"}:
            continue  # their colours are parts of a bar, values of a map, and a sweep of several rows
        artists = [artist for ax in sketch.figure.axes for artist in (*ax.lines, *ax.collections)]
        seen = {}
        for artist in artists:
            label = next((row.label for row in section.rows if str(artist.get_label()).startswith(tag(row))), None)
            if label is not None:
                colour = artist.get_color() if hasattr(artist, "get_color") else artist.get_facecolor()[0]
                assert to_hex(colour) == styles[label].colour, (sketch.key, label)
                seen[label] = colour
        assert seen or sketch.key == "steps", sketch.key


def test_a_row_looks_the_same_in_every_section(demo_records: Make) -> None:
    sections = build_sections([*demo_records(["fp32", "uint8_int8"]), *demo_records(suite="other")])
    styles = row_styles(sections)
    assert set(styles) == {row.label for section in sections for row in section.rows}
    assert styles["fp32"].colour == FP32_GREY
    assert styles["ste_w4a4"].colour == INK
    drawings = [{d.key: d for d in draw_section(section, {}, styles).drawn}["steps"] for section in sections]
    assert all(styles["uint8_int8"].colour in drawing.svg for drawing in drawings)


@pytest.mark.parametrize("log", [False, True])
def test_curves_that_lie_on_one_another_are_found_and_take_turns(log: bool) -> None:
    steps = np.arange(1.0, 13.0)
    curves = {
        name: np.column_stack([steps, values])
        for name, values in (("a", steps), ("b", steps * 2), ("c", steps * 1.001), ("d", steps * 2), ("e", steps * 2))
    }
    curves["short"] = curves["a"][:5]
    groups = coinciding(curves, log=log)
    assert groups == [("a", "c"), ("b", "d", "e")]
    assert alternating("short", groups) == {"markevery": 1}
    turns = [alternating(name, groups, every=2) for name in ("b", "d", "e")]
    assert [turn["markevery"] for turn in turns] == [(0, 6), (2, 6), (4, 6)]
    for place in np.arange(0.5, 30):  # along the line, every place shows one of the three alone
        showing = [((place + offset) % sum(dash)) < dash[0] for offset, dash in (turn["linestyle"] for turn in turns)]
        assert sum(showing) == 1
    assert coinciding({}) == []
    assert coincidence_note({"loss": groups, "accuracy": [("a", "c")]}) == (
        " Coinciding, so drawn in alternating dashes: a, c (in loss, accuracy); b, d, e (in loss)."
    )
    assert coincidence_note({"loss": []}) == ""


def test_there_is_a_builder_for_every_key() -> None:
    assert len(FIGURES) == len(KEYS)
