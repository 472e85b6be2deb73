from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from bench.records.schema import Interval, RunRecord
from bench.units import Absent
from reports.choice import choice_sentence
from reports.sections import build_sections
from reports.tables.main import main_table
from reports.verdict import section_verdicts

Make = Callable[..., list[RunRecord]]


def with_accuracies(records: Sequence[RunRecord], *values: float) -> list[RunRecord]:
    """One record a value, with seeds from 0."""
    changed = []
    for record, value in zip(records, values, strict=True):
        assert record.accuracy is not None
        changed.append(
            dataclasses.replace(record, accuracy=dataclasses.replace(record.accuracy, test_accuracy_pct=value))
        )
    return changed


def with_ratio(record: RunRecord, value: float, low: float, high: float) -> RunRecord:
    assert record.timing is not None
    return dataclasses.replace(
        record, timing=dataclasses.replace(record.timing, time_vs_fp32=Interval(value=value, low=low, high=high))
    )


def said(records: list[RunRecord]) -> str:
    (section,) = build_sections(records)
    return choice_sentence(section)


def test_the_fastest_row_that_is_shown_to_be_faster_is_taken_for_speed(demo_records: Make) -> None:
    one, two = demo_records(["uint8_int8", "uint8_int4"])
    told = said([with_ratio(one, 0.8, 0.5, 1.2), with_ratio(two, 0.9, 0.85, 0.95)])
    assert "for speed uint8_int4 (emulated), 0.90× [0.85, 0.95] the FP32 step’s time" in told
    assert "for speed FP32: no low-bit row is shown to be faster" in said([with_ratio(one, 0.8, 0.5, 1.2)])


def test_an_accuracy_that_guessing_reaches_is_said_to_be_chance(demo_records: Make) -> None:
    records = demo_records(["fp32", "uint8_int8"])
    told = said(with_accuracies(records, 10.0, 10.83))
    assert "with 10.83 % (no more than guessing: chance is 10 % for 10 classes), +0.83 points against FP32" in told
    assert "guessing" not in said(with_accuracies(records, 10.0, 16.0)), "360 images leave 1.6 points of error"


def test_one_seed_settles_nothing_about_accuracy_but_the_highest_is_named(demo_records: Make) -> None:
    told = said(demo_records())
    assert "for accuracy nothing is settled, since one seed shows no order: the highest of the low-bit rows is" in told
    assert "uint8_int8 (integer) and metagrad_int8_recompute (integer) with 98.06 %, −0.27 points" in told


def test_a_loss_that_seeds_show_chooses_fp32(demo_records: Make) -> None:
    fp32 = with_accuracies(demo_records(["fp32"], seeds=(0, 1, 2)), 98.0, 98.1, 98.2)
    low = with_accuracies(demo_records(["uint8_int8"], seeds=(0, 1, 2)), 97.0, 97.2, 97.1)
    told = said([*fp32, *low])
    assert "for accuracy FP32: the low-bit row with the highest mean, uint8_int8 (integer), has −1.00 [" in told
    assert "points against FP32’s over 3 seeds" in told


def test_rows_that_seeds_do_not_tell_apart_are_named_and_the_fastest_of_them(demo_records: Make) -> None:
    seeds = (0, 1, 2)
    fp32 = with_accuracies(demo_records(["fp32"], seeds=seeds), 98.0, 98.1, 98.2)
    best = with_accuracies(demo_records(["ste_w4a4"], seeds=seeds), 98.2, 98.0, 98.2)
    alike = with_accuracies(demo_records(["uint8_int8"], seeds=seeds), 98.0, 98.2, 98.1)
    worse = with_accuracies(demo_records(["uint8_int4"], seeds=seeds), 95.2, 95.0, 95.2)
    told = said([*fp32, *best, *alike, *worse])
    assert "for accuracy ste_w4a4 (emulated) (98.13 %, +0.03 [" in told
    assert "over 3 seeds, no difference that they show)" in told
    assert "from which uint8_int8 (integer) cannot be told by these seeds" in told
    assert "and of all of these uint8_int8 (integer) takes the least time" in told
    assert "uint8_int4" not in told.split("for accuracy")[1], "that it is worse is shown"


def test_bf16_is_a_candidate_and_named_as_what_it_is(demo_records: Make) -> None:
    fp32, low, base = demo_records(["fp32", "uint8_int8", "ste_w4a4"])
    facts = dataclasses.replace(fp32.method, name="bf16", weight_bits=16, activation_bits=16, error_bits=16)
    assert base.memory is not None
    memory = dataclasses.replace(base.memory, peak_allocated_bytes=30 * 1024**2)
    bf16 = dataclasses.replace(base, key="bf16", variant="half", method=facts, memory=memory, gemms=None)
    told = said([fp32, low, with_ratio(bf16, 0.5, 0.48, 0.53)])
    assert "for speed half (bfloat16, not low-bit), 0.50× [0.48, 0.53] the FP32 step’s time" in told
    assert "for memory half (bfloat16, not low-bit), 0.49× FP32’s peak allocated" in told
    assert "the highest of the other rows is uint8_int8 (integer) with 98.06 %" in told
    slow = said([fp32, with_ratio(low, 1.2, 1.1, 1.3), with_ratio(bf16, 1.2, 1.1, 1.3)])
    assert "for speed FP32: no other row is shown to be faster" in slow


def test_a_row_whose_seed_diverged_is_ranked_nowhere_and_says_so(demo_records: Make) -> None:
    seeds = (0, 1, 2)
    fp32 = with_accuracies(demo_records(["fp32"], seeds=seeds), 98.0, 98.1, 98.2)
    whole = with_accuracies(demo_records(["ste_w4a4"], seeds=seeds), 97.0, 97.1, 97.2)
    cut = with_accuracies(demo_records(["uint8_int4"], seeds=seeds), 99.3, 99.5, 0.0)
    assert cut[2].accuracy is not None
    lost = dataclasses.replace(cut[2].accuracy, test_accuracy_pct=Absent(reason="training diverged"))
    cut[2] = dataclasses.replace(cut[2], status="diverged", reason="the loss", accuracy=lost)
    cut = [with_ratio(record, 0.5, 0.4, 0.6) for record in cut]
    told = said([*fp32, *whole, *cut])
    assert "for accuracy FP32: the low-bit row with the highest mean, ste_w4a4 (emulated), has −1.00 [" in told
    assert "for memory FP32: the leanest low-bit row, ste_w4a4 (emulated), has 1.08×" in told
    assert told.endswith(
        "; not ranked, since not all of their seeds finished: uint8_int4 (emulated, 1 of 3 seeds diverged)."
    )
    (section,) = build_sections([*fp32, *whole, *cut])
    table = main_table(section)
    bold = {column.key: [r.row.label for r in table.rows if r.cells[i].best] for i, column in enumerate(table.columns)}
    assert bold["accuracy"] == ["fp32"], "99.40 % of two survivors is no best value"
    assert bold["peak"] == ["fp32"]
    page = {verdict.question: verdict.text for verdict in section_verdicts(section)}
    assert page["unfinished"] == "Of 9 cells, 1 diverged (uint8_int4): their rows give the reason."
    assert "uint8_int4 (emulated, 1 of 3 seeds diverged)" in page["accuracy"]
    assert said([*fp32, *cut]) == (
        "On Example CPU (cpu-89abcdef), not ranked, since not all of their seeds finished: "
        "uint8_int4 (emulated, 1 of 3 seeds diverged)."
    )
    broken = dataclasses.replace(fp32[0], status="killed", reason="signal 9")
    assert "of FP32 itself not all seeds finished: fp32 (1 of 3 seeds killed)." in said([broken, *fp32[1:], *whole])


def test_questions_without_an_answer_are_left_out(demo_records: Make) -> None:
    record = demo_records(["uint8_int8"])[0]
    assert record.memory is not None
    unknown = dataclasses.replace(record.memory, peak_allocated_bytes=Absent(reason="not tracked"))
    bare = dataclasses.replace(record, timing=None, memory=unknown, accuracy=None)
    assert said([bare]) == ""
    assert said([dataclasses.replace(record, timing=None, accuracy=None)]).startswith("On Example CPU")
    assert "for speed" not in said([dataclasses.replace(record, timing=None)])
