from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.records.schema import RunRecord
from bench.units import MEBIBYTE
from reports.figures.machines import across_machines, comparable_sections, machine_labels
from reports.figures.style import NotDrawn, Sketch
from reports.rows import Ratio, Summary
from reports.sections import build_sections

Make = Callable[..., list[RunRecord]]
SketchOf = Callable[[Sketch | NotDrawn], Sketch]


def test_each_machine_has_its_own_points_and_none_is_averaged(demo_records: Make, sketch_of: SketchOf) -> None:
    records = [
        *demo_records(["fp32", "uint8_int8"], machine="cpu-one"),
        *demo_records(["fp32"], machine="cpu-two", device="cuda:0"),
    ]
    sections = build_sections(records)
    (group,) = comparable_sections(sections)
    sketch = sketch_of(across_machines([sections[index] for index in group]))
    step, ratio, memory = sketch.figure.axes
    assert [tick.get_text() for tick in step.get_yticklabels()] == ["fp32", "uint8_int8 · integer"]
    for ax, of in (
        (step, lambda row: row.step_ms), (ratio, lambda row: row.time_vs_fp32),
        (memory, lambda row: row.peak_allocated_bytes / MEBIBYTE),
    ):  # fmt: skip
        drawn = [collection.get_offsets()[:, 0].tolist() for collection in ax.collections]
        values = [[of(row) for row in sections[index].rows] for index in group]
        plain = [
            [v.median if isinstance(v, Summary) else v.value if isinstance(v, Ratio) else v for v in one]
            for one in values
        ]
        assert drawn == plain
    labels = [text.get_text() for text in sketch.figure.legends[0].get_texts()]
    assert labels == ["Example CPU (cpu-one)", "Example CPU (cpu-two)"]
    assert "2 rows on 2 machines" in sketch.alt
    assert "2 machines" in sketch.figure.get_suptitle()


def test_machines_of_one_name_are_told_apart(demo_records: Make) -> None:
    environment = {"device": {"name": "GPU"}}
    records = [
        *demo_records(["fp32"], machine="a", device="cuda:0", environment=environment),
        *demo_records(["fp32"], machine="a", device="cuda:1", environment=environment, key="other"),
    ]
    assert sorted(machine_labels(build_sections(records))) == ["GPU (cuda:0)", "GPU (cuda:1)"]


@pytest.mark.parametrize("changes", [{"code_version": "2"}, {"model_name": "vgg16"}, {"suite": "other"}])
def test_other_work_or_other_code_on_one_machine_is_no_group(demo_records: Make, changes: dict[str, str]) -> None:
    records = [*demo_records(["fp32"]), *demo_records(["fp32"], key="k", **changes)]
    assert comparable_sections(build_sections(records)) == []
