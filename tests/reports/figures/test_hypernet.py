from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.records.schema import RunRecord
from bench.units import MEBIBYTE
from reports.figures.hypernet import amplification, hidden_sizes, surfaces
from reports.figures.style import NotDrawn, Sketch
from reports.rows import Section

Make = Callable[..., list[RunRecord]]
SectionOf = Callable[[list[RunRecord]], Section]
SketchOf = Callable[[Sketch | NotDrawn], Sketch]
Beside = Callable[..., Path]


def test_amplification_is_the_median_over_layers_with_its_quartiles(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, write_beside: Beside
) -> None:
    records = demo_records(["fp32", "metagrad_int4_slim", "metagrad_int4_retain"])
    folders = {records[1].key: write_beside("slim", steps=(11, 22, 33))}
    sketch = sketch_of(amplification(section_of(records), folders))
    gain, cosine, zeros = sketch.figure.axes
    assert gain.lines[0].get_xdata().tolist() == [11, 22, 33]
    assert gain.lines[0].get_ydata().tolist() == [22, 44, 66], "of 1, 2 and 4 times the step"
    band = gain.collections[0].get_paths()[0].vertices
    assert {(11.0, 16.5), (11.0, 33.0)} <= {tuple(point) for point in band}
    assert cosine.lines[0].get_ydata().tolist() == [0.5] * 3, "an undefined layer is left out"
    assert zeros.lines[0].get_ydata().tolist() == [11, 22, 33]
    assert (
        "metagrad_int4_slim (emulated) 22 at the first observed step and 66 at the last, between 22 and 66"
        in sketch.alt
    )
    assert sketch.caption.endswith("Not shown: 1 of 2 rows (no hypernet.csv lies beside the record).")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("step,layer\n1,a\n", "cannot be read"),
        ("", "cannot be read"),
        ("step,amplification,cosine,zero_share_pct\n", "is empty"),
    ],
)
def test_a_damaged_table_is_a_reason(
    demo_records: Make, section_of: SectionOf, write_beside: Beside, text: str, reason: str
) -> None:
    (record,) = demo_records(["metagrad_int4_slim"])
    folder = write_beside("slim")
    (folder / "hypernet.csv").write_text(text)
    sketch = amplification(section_of([record]), {record.key: folder})
    assert isinstance(sketch, NotDrawn)
    assert sketch.reason == f"its hypernet.csv {reason}"


def test_a_surface_is_shown_before_after_and_as_what_was_learned(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, write_beside: Beside
) -> None:
    (record,) = demo_records(["metagrad_int4_slim"])
    sketch = sketch_of(surfaces(section_of([record]), {record.key: write_beside("slim")}))
    before, after, learned = (ax.images[0] for ax in sketch.figure.axes)
    assert before.get_array().tolist() == [[-0.5, 0.0, 0.5]] * 3
    assert after.get_array().tolist() == [[-0.5, 0.25, 1.0]] * 3
    assert learned.get_array().tolist() == [[0.0, 0.25, 0.5]] * 3
    assert before.get_clim() == after.get_clim() == (-1.0, 1.0)
    assert learned.get_clim() == (-0.5, 0.5)
    assert before.get_extent() == [-1.0, 1.0, -1.0, 1.0]
    first = sketch.figure.axes[0]
    assert (first.get_xlabel(), first.get_ylabel()) == ("W/max|W|", "∇W/max|∇W|")
    assert first.get_title(loc="left") == "metagrad_int4_slim · emulated: f/max|∇W|\nbefore"
    assert "it changed by at most 0.5." in sketch.alt


def test_a_function_of_one_input_is_a_curve_beside_the_maps(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf, write_beside: Beside
) -> None:
    slim, retain = demo_records(["metagrad_int4_slim", "metagrad_int4_retain"])
    folders = {slim.key: write_beside("slim", axes=1), retain.key: write_beside("retain")}
    sketch = sketch_of(surfaces(section_of([slim, retain]), folders))
    curves = sketch.figure.axes[3]
    before, after = curves.lines
    assert list(before.get_ydata()) == [-0.5, 0.0, 0.5]
    assert before.get_linewidth() < after.get_linewidth()
    assert (list(after.get_xdata()), list(after.get_ydata())) == ([-1.0, 0.0, 1.0], [-0.5, 0.25, 1.0])
    assert sum(bool(ax.images) for ax in sketch.figure.axes) == 3


def test_a_damaged_surface_is_a_reason_without_a_path(
    demo_records: Make, section_of: SectionOf, write_beside: Beside
) -> None:
    (record,) = demo_records(["metagrad_int4_slim"])
    folder = write_beside("slim")
    (folder / "hypernet_surface.json").write_text("{")
    sketch = surfaces(section_of([record]), {record.key: folder})
    assert isinstance(sketch, NotDrawn)
    assert sketch.reason == "its hypernet_surface.json cannot be read"


def test_a_sweep_of_hidden_sizes_is_one_line_with_everything_else_equal(
    demo_records: Make, section_of: SectionOf, sketch_of: SketchOf
) -> None:
    (record,) = demo_records(["metagrad_int4_recompute"])
    assert record.memory is not None

    def with_hidden(hidden: int, added: int, **changes: object) -> RunRecord:
        assert record.memory is not None
        return dataclasses.replace(
            record,
            key=f"h{hidden}{changes}",
            variant=f"h{hidden}",
            cell=record.cell | {"variant_name": f"h{hidden}", "hypernet": {"hidden": hidden, "name": "dual_lstm_fc"}},
            method=dataclasses.replace(record.method, hidden=hidden, **changes),  # type: ignore[arg-type]
            memory=dataclasses.replace(record.memory, hypernet_extra_allocated_bytes=added * MEBIBYTE),
        )

    other = with_hidden(50, 9, strategy="slim")
    sketch = sketch_of(hidden_sizes(section_of([with_hidden(100, 5), with_hidden(4, 2), with_hidden(30, 3), other])))
    accuracy, ratio, added = sketch.figure.axes
    assert record.timing is not None
    assert accuracy.lines[0].get_xdata().tolist() == [4, 30, 100]
    assert accuracy.lines[0].get_ydata().tolist() == [96.11] * 3
    assert np.unique(ratio.lines[0].get_ydata()).tolist() == [record.timing.time_vs_fp32.value]
    assert added.lines[0].get_ydata().tolist() == [2, 3, 5], "slim differs in more than the size"
    assert "4: 2, 30: 3, 100: 5" in sketch.alt


@pytest.mark.parametrize(
    ("variants", "reason"),
    [
        (["fp32"], "no row has a hypernetwork"),
        (["metagrad_int4_slim"], "no hypernetwork was measured with two hidden sizes, all else equal"),
    ],
)
def test_without_a_sweep_there_is_a_reason(
    demo_records: Make, section_of: SectionOf, variants: list[str], reason: str
) -> None:
    sketch = hidden_sizes(section_of(demo_records(variants)))
    assert isinstance(sketch, NotDrawn)
    assert sketch.reason == reason
