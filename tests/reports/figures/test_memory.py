from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from bench.records.schema import RunRecord
from bench.units import Absent
from reports.figures.memory import memory_by_category, memory_of_strategies
from reports.figures.style import NotDrawn, Sketch
from reports.rows import Section

Make = Callable[..., list[RunRecord]]
SectionOf = Callable[[list[RunRecord]], Section]
SketchOf = Callable[[Sketch | NotDrawn], Sketch]
Change = Callable[..., RunRecord]
CELL = {"variant_name": "x", "protocol": {"epochs": 4, "batch_size": 64}}


def bars(ax: object, place: int) -> dict[str, float]:
    return {c.get_label(): c.patches[place].get_width() for c in ax.containers if c.patches[place].get_width()}  # type: ignore[attr-defined]


def test_categories_of_the_highest_phase_are_stacked(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_categories: Change
) -> None:
    fp32, metagrad = demo_records(["fp32", "metagrad_int4_slim"])
    section = section_of(
        [with_categories(fp32, weights=1, activations=3), with_categories(metagrad, weights=1, hypernet_activations=4)]
    )
    sketch = sketch_of(memory_by_category(section))
    left, right = sketch.figure.axes
    assert bars(left, 0) == {"weights": 1.0, "activations": 3.0}
    assert bars(left, 1) == {"weights": 1.0, "hypernetwork activations": 4.0}
    assert bars(right, 1) == pytest.approx({"weights": 20.0, "hypernetwork activations": 80.0})
    assert [text.get_text() for text in left.texts] == [" 4", " 5 (+21)"]
    assert (
        "the largest is metagrad_int4_slim (emulated) with 5 MiB, most of it hypernetwork activations with 4 MiB"
        in sketch.alt
    )


def test_parts_too_small_to_be_seen_in_any_bar_are_joined_and_named(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_categories: Change
) -> None:
    fp32, metagrad = demo_records(["fp32", "metagrad_int4_slim"])
    section = section_of(
        [
            with_categories(fp32, weights=100, data=0.5, other=0.25, workspaces=0.5),
            with_categories(metagrad, weights=100, data=0.5, workspaces=9),
        ]
    )
    sketch = sketch_of(memory_by_category(section))
    assert bars(sketch.figure.axes[0], 0) == {"weights": 100.0, "smaller parts": 0.75, "workspaces": 0.5}
    assert bars(sketch.figure.axes[0], 1) == {"weights": 100.0, "smaller parts": 0.5, "workspaces": 9.0}
    assert "Smaller parts, each below 1 % of every bar: data, other." in sketch.caption


def test_a_peak_that_was_not_told_apart_is_one_bar_that_says_so(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    sketch = sketch_of(memory_by_category(section_of(demo_records(["fp32"]))))
    assert bars(sketch.figure.axes[0], 0) == {"not told apart": 61.0}


def test_a_bar_that_presses_the_others_flat_is_cut_in_a_panel_beside_the_whole(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_categories: Change
) -> None:
    fp32, ste, retain = demo_records(["fp32", "ste_w4a4", "metagrad_int4_retain"])
    others = [with_categories(fp32, weights=8), with_categories(ste, weights=10)]
    section = section_of([*others, with_categories(retain, hypernet_activations=300)])
    sketch = sketch_of(memory_by_category(section))
    whole, cut, shares = sketch.figure.axes
    assert whole.get_xlim()[1] > 300
    assert cut.get_xlim() == pytest.approx((0, 10.8))
    assert cut.get_xlabel() == "the same, up to 10.8 MiB"
    assert [bars(ax, 2) for ax in (whole, cut)] == [{"hypernetwork activations": 300.0}] * 2
    assert {round(line.get_ydata().mean()) for line in cut.lines} == {2}, "one bar is struck through"  # type: ignore[union-attr]
    assert shares.get_xlim() == (0, 100)
    assert "up to 10.8 MiB; cut there, with two strokes: metagrad_int4_retain." in sketch.caption
    plain = sketch_of(memory_by_category(section_of(others)))
    assert len(plain.figure.axes) == 2
    assert "strokes" not in plain.caption


def test_strategies_stand_side_by_side_and_absent_ones_are_named(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, with_categories: Change
) -> None:
    retain, slim, recompute = demo_records(
        ["metagrad_int4_retain", "metagrad_int4_slim", "metagrad_int4_recompute"], cell=CELL
    )
    broken = dataclasses.replace(retain, status="out_of_memory", reason="256 GiB asked for", memory=None)
    section = section_of([broken, with_categories(slim, weights=2), with_categories(recompute, weights=3)])
    sketch = sketch_of(memory_of_strategies(section))
    left = sketch.figure.axes[0]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["retain", "slim", "recompute", "tabulate"]
    assert [bars(left, place) for place in range(4)] == [{}, {"weights": 2.0}, {"weights": 3.0}, {}]
    assert left.texts[0].get_text() == " n/a (out of memory)"
    assert left.texts[3].get_text() == " n/a (not in these records)"
    assert left.get_title(loc="left") == "metagrad, ∇y 4 bit, ∇W 4 bit: dual_lstm_fc, H = 4, emulated"
    assert "retain n/a (out of memory), slim 2 MiB" in sketch.alt


def test_strategies_of_different_configurations_never_share_a_panel(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    records = demo_records(["metagrad_int4_retain", "metagrad_int4_slim", "metagrad_int8_recompute"], cell=CELL)
    sketch = sketch_of(memory_of_strategies(section_of(records)))
    assert len(sketch.figure.axes) == 2, "one panel and its shares: INT8 has one strategy alone"


@pytest.mark.parametrize(
    ("variants", "reason"),
    [
        (["fp32"], "no row has a hypernetwork"),
        (["metagrad_int4_slim"], "no configuration was measured with two strategies"),
    ],
)
def test_without_two_strategies_there_is_a_reason(
    demo_records: Make, section_of: SectionOf, variants: list[str], reason: str
) -> None:
    sketch = memory_of_strategies(section_of(demo_records(variants)))
    assert isinstance(sketch, NotDrawn)
    assert sketch.reason == reason


def test_an_unknown_addition_is_no_zero(demo_records: Make, section_of: SectionOf, sketch_of: SketchOf) -> None:
    (record,) = demo_records(["metagrad_int4_slim"])
    assert record.memory is not None
    memory = dataclasses.replace(record.memory, hypernet_extra_allocated_bytes=Absent("the pass failed"))
    sketch = sketch_of(memory_by_category(section_of([dataclasses.replace(record, memory=memory)])))
    assert sketch.figure.axes[0].texts[0].get_text() == " 82 (added: n/a)"
