from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bench.records.schema import Interval, RunRecord
from reports.rows import Section, build_sections
from reports.verdict import headlines, section_titles, section_verdicts

Make = Callable[..., list[RunRecord]]


def _said(section: Section) -> dict[str, str]:
    return {verdict.question: verdict.text for verdict in section_verdicts(section)}


def _with_ratio(record: RunRecord, value: float, low: float, high: float) -> RunRecord:
    assert record.timing is not None
    ratio = Interval(value=value, low=low, high=high)
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, time_vs_fp32=ratio))


def test_the_demo_answers_every_question(demo_records: Make) -> None:
    said = _said(build_sections(demo_records())[0])
    assert said["speed"].startswith("The fastest low-bit row is uint8_int8 (integer): its training step takes 0.92×")
    assert "faster than FP32, with −0.27 points of accuracy (98.06 %, 1 seed)" in said["speed"]
    assert "metagrad_int4_slim (emulated)" in said["hypernetwork"]
    assert "21.0 MiB" in said["hypernetwork"]
    assert "slim takes 0.59× [0.55, 0.62] the step time and 0.21× the added memory" in said["strategies"]
    assert "recompute takes 0.68× [0.64, 0.73] the step time and 0.089× the added memory" in said["strategies"]
    assert "Nothing here ran on a GPU" in said["scope"]
    assert "unfinished" not in said


def test_slower_than_fp32_and_cannot_tell_are_said_as_such(demo_records: Make) -> None:
    (record,) = demo_records(["uint8_int8"])
    slower = build_sections([_with_ratio(record, 1.3, 1.2, 1.4)])[0]
    assert "slower than FP32" in _said(slower)["speed"]
    unclear = build_sections([_with_ratio(record, 0.98, 0.9, 1.1)])[0]
    assert "no difference from FP32 that these samples can show" in _said(unclear)["speed"]


def test_a_section_with_fp32_alone_says_only_what_it_knows(demo_records: Make) -> None:
    assert set(_said(build_sections(demo_records(["fp32"]))[0])) == {"scope"}


def test_unfinished_cells_are_always_among_the_headlines(demo_records: Make, without_results: dict[str, Any]) -> None:
    failed = demo_records(
        ["metagrad_int4_retain"], seeds=(3,), status="out_of_memory", reason="9 GiB", **without_results
    )
    lines = headlines(build_sections([*demo_records(), *failed]))
    assert len(lines) == 3
    assert lines[-1] == "Of 9 cells, 1 ran out of memory: their rows give the reason."


def test_headlines_name_their_section_when_there_are_several(demo_records: Make) -> None:
    lines = headlines(build_sections([*demo_records(), *demo_records(machine="cpu-other", device="cuda:0")]))
    assert all(line.startswith("demo, resnet20 on digits, c") for line in lines)


def test_sections_that_differ_only_in_machine_code_or_batch_are_titled_by_it(demo_records: Make) -> None:
    records = [*demo_records(["fp32"]), *demo_records(["fp32"], machine="cpu-other")]
    assert section_titles(build_sections(records)) == (
        "demo, resnet20 on digits, cpu, machine cpu-89abcdef",
        "demo, resnet20 on digits, cpu, machine cpu-other",
    )


def test_synthetic_data_gives_no_sentence_about_accuracy(demo_records: Make) -> None:
    records = [
        dataclasses.replace(record, data=dataclasses.replace(record.data, synthetic=True))
        for record in demo_records()
        if record.data is not None
    ]
    said = _said(build_sections(records)[0])
    assert "accuracy" not in said
    assert "points" not in " ".join(said.values())
    assert "synthetic" in said["scope"]
