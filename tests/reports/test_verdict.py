from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bench.records.schema import Interval, RunRecord
from reports.rows import Section
from reports.sections import build_sections
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
    assert (
        "faster than FP32, with −0.27 points of accuracy (98.06 %; one seed, no statement about significance)."
        in said["speed"]
    )
    assert "metagrad_int4_slim (emulated)" in said["hypernetwork"]
    assert "21.0 MiB" in said["hypernetwork"]
    assert "retain runs the published nn.LSTM" in said["strategies"]
    assert "slim takes 0.59× [0.55, 0.62] the step time, 0.21× the added allocated" in said["strategies"]
    assert "allocated memory and 0.23× the added process memory; recompute takes" in said["strategies"]
    assert (
        "in accuracy, slim −0.28 and recompute 0.00 points on one seed, no statement about significance."
        in said["strategies"]
    )
    assert "One of 360 test images is worth 0.28 points." in said["accuracy"]
    assert "Nothing here ran on a GPU" in said["scope"]
    assert "unfinished" not in said


def test_the_choice_is_fp32_where_no_row_is_shown_to_be_faster_or_leaner(demo_records: Make) -> None:
    machine = "On Example CPU (cpu-89abcdef), "
    said = _said(build_sections(demo_records())[0])["choice"]
    assert said == (
        f"{machine}for speed uint8_int8 (integer), 0.92× [0.90, 0.94] the FP32 step’s time; for memory uint8_int8 "
        "(integer) and uint8_int4 (emulated), 0.95× FP32’s peak allocated; for accuracy nothing is settled, since one "
        "seed shows no order: the highest of the low-bit rows is uint8_int8 (integer) and metagrad_int8_recompute "
        "(integer) with 98.06 %, −0.27 points against FP32."
    )
    (record,) = demo_records(["metagrad_int4_slim"])
    said = _said(build_sections([_with_ratio(record, 0.98, 0.9, 1.1)])[0])["choice"]
    assert said == (
        f"{machine}for speed FP32: no low-bit row is shown to be faster; for memory FP32: the leanest low-bit row, "
        "metagrad_int4_slim (emulated), has 1.34× its peak allocated."
    )


def test_slower_than_fp32_and_cannot_tell_are_said_as_such(demo_records: Make) -> None:
    (record,) = demo_records(["uint8_int8"])
    slower = build_sections([_with_ratio(record, 1.3, 1.2, 1.4)])[0]
    assert "slower than FP32" in _said(slower)["speed"]
    unclear = build_sections([_with_ratio(record, 0.98, 0.9, 1.1)])[0]
    assert "no difference from FP32 that these samples can show" in _said(unclear)["speed"]


def test_rows_whose_intervals_overlap_the_fastest_are_named_and_every_other_is_said_only_if_all_are_slower(
    demo_records: Make,
) -> None:
    one, two, three = demo_records(["uint8_int8", "uint8_int4", "ste_w4a4"])
    apart = [_with_ratio(one, 1.10, 1.05, 1.15), _with_ratio(two, 1.3, 1.2, 1.4), _with_ratio(three, 1.4, 1.3, 1.5)]
    said = _said(build_sections(apart)[0])["speed"]
    assert said.startswith("The fastest low-bit row is uint8_int8 (integer)")
    assert "slower than FP32, as is every other low-bit row" in said
    assert "cannot be told" not in said
    wide = [apart[0], _with_ratio(two, 1.3, 0.8, 2.1), _with_ratio(three, 1.3, 0.8, 2.1)]
    said = _said(build_sections(wide)[0])["speed"]
    assert said.startswith("The fastest low-bit row by its point estimate is uint8_int8 (integer)")
    assert "slower than FP32" in said
    assert "every other" not in said
    assert said.endswith("; ste_w4a4 (emulated) and uint8_int4 (emulated) cannot be told from it by these samples.")


def test_every_other_row_is_not_called_slower_where_one_has_no_timing(demo_records: Make) -> None:
    one, two, three = demo_records(["uint8_int8", "uint8_int4", "ste_w4a4"])
    untimed = dataclasses.replace(three, timing=None, missing={"timing": "not asked for"})
    records = [_with_ratio(one, 1.1, 1.05, 1.15), _with_ratio(two, 1.3, 1.2, 1.4), untimed]
    assert "every other" not in _said(build_sections(records)[0])["speed"]


def test_a_row_of_one_process_is_never_called_faster_or_slower(demo_records: Make, one_process: Any) -> None:
    records = demo_records()
    mixed = [one_process(record) if record.variant == "uint8_int8" else record for record in records]
    said = _said(build_sections(mixed)[0])
    assert said["speed"].startswith("The fastest low-bit row is uint8_int4")
    assert said["speed"].endswith("; not ranked, since one process gives no interval: uint8_int8 (integer).")
    alone = [one_process(record) for record in records]
    said = _said(build_sections(alone)[0])
    assert "(one process, no interval): no order among them or against FP32 is confirmed." in said["speed"]
    assert "for speed nothing is settled, since one process shows no order" in said["choice"]
    assert "the step time (one process, no interval)" in said["strategies"]
    assert not [text for text in said.values() if "faster" in text or "slower" in text or "fastest" in text]
    said = _said(build_sections(alone[:3:2])[0])
    assert said["speed"].endswith("(one process, no interval): against FP32 that is not confirmed.")


def test_accuracy_is_compared_only_as_far_as_the_seeds_show(demo_records: Make) -> None:
    seeds = _said(build_sections(demo_records(["fp32", "uint8_int8", "uint8_int4"], seeds=(0, 1, 2)))[0])
    assert "no difference that 3 seeds show for uint8_int8 (integer)" in seeds["accuracy"]
    assert "uint8_int4 (emulated) −3.14 [−4.21, −2.08] points over 3 seeds" in seeds["accuracy"]
    one = _said(build_sections(demo_records())[0])
    assert "points on one seed, no statement about significance." in one["accuracy"]
    for text in (*seeds.values(), *one.values()):
        assert "same accuracy" not in text
        assert "accurate" not in text


def test_a_large_test_set_needs_no_word_about_one_image(demo_records: Make) -> None:
    records = [
        dataclasses.replace(record, data=dataclasses.replace(record.data, test_samples=10_000))
        for record in demo_records()
        if record.data is not None
    ]
    assert "test images" not in _said(build_sections(records)[0])["accuracy"]


def test_strategies_name_the_published_lstm_and_only_memory_that_was_added(demo_records: Make) -> None:
    retain, slim = demo_records(["metagrad_int4_retain", "metagrad_int4_slim"])
    assert slim.memory is not None
    less = dataclasses.replace(slim, memory=dataclasses.replace(slim.memory, hypernet_extra_process_bytes=-4096))
    said = _said(build_sections([retain, less])[0])["strategies"]
    assert "the step time and 0.21× the added allocated memory;" in said
    assert "process memory" not in said
    plain = [
        dataclasses.replace(record, method=dataclasses.replace(record.method, hypernet="multi_fc"))
        for record in (retain, slim)
    ]
    assert "nn.LSTM" not in _said(build_sections(plain)[0])["strategies"]


def test_a_section_with_fp32_alone_says_only_what_it_knows(demo_records: Make) -> None:
    assert set(_said(build_sections(demo_records(["fp32"]))[0])) == {"scope"}


def test_unfinished_cells_are_always_among_the_headlines(demo_records: Make, without_results: dict[str, Any]) -> None:
    failed = demo_records(
        ["metagrad_int4_retain"], seeds=(3,), status="out_of_memory", reason="9 GiB", **without_results
    )
    lines = headlines(build_sections([*demo_records(), *failed]))
    assert len(lines) == 3
    assert lines[-1] == "Of 9 cells, 1 ran out of memory (metagrad_int4_retain): their rows give the reason."


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
