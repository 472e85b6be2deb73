from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from bench.records.schema import RunRecord
from reports.rows import Row
from reports.sections import build_sections
from reports.verdict import section_verdicts
from reports.worth import plain_rival, ste_rival, worth_parts, worth_sentence

Make = Callable[..., list[RunRecord]]
SEEDS = (0, 1, 2)


def said(records: list[RunRecord]) -> str:
    (section,) = build_sections(records)
    return worth_sentence(worth_parts(section))


def moved(records: list[RunRecord], points: float) -> list[RunRecord]:
    """The records with other accuracies."""
    changed = []
    for record in records:
        assert record.accuracy is not None
        value = record.accuracy.test_accuracy_pct
        assert isinstance(value, float)
        accuracy = dataclasses.replace(record.accuracy, test_accuracy_pct=value + points)
        changed.append(dataclasses.replace(record, accuracy=accuracy))
    return changed


def test_one_seed_cannot_tell_and_the_costs_stand_beside(demo_records: Make) -> None:
    told = said(demo_records())
    assert told.startswith("Whether the hypernetwork is worth it cannot be told from one seed: ")
    assert "metagrad_int8_recompute (integer) has 0.00 points, " in told
    assert (
        "1.19× the peak allocated against uint8_int8 (integer), the same bits without one (its ∇W in floating" in told
    )
    assert "metagrad_int4_slim (emulated) has +0.55 points, 1.46× [" in told, "the fastest of its bits"
    assert "; metagrad_int4_slim (emulated) has −1.67 points, " in told
    assert "against ste_w4a4 (emulated), which quantizes the forward pass alone." in told


def test_several_comparisons_are_points_of_a_list_that_together_say_the_sentence(demo_records: Make) -> None:
    (section,) = build_sections(demo_records())
    (verdict,) = (verdict for verdict in section_verdicts(section) if verdict.question == "worth")
    ((answer, points),) = verdict.parts
    assert verdict.text == f"{answer}: {'; '.join(points)}."
    assert [point.split(" against ")[1].split(",")[0] for point in points] == [
        "uint8_int8 (integer)", "uint8_int4 (emulated)", "ste_w4a4 (emulated)",
    ]  # fmt: skip
    (alone,) = build_sections(demo_records(["fp32", "metagrad_int4_slim"]))
    assert [one.parts for one in section_verdicts(alone) if one.question == "worth"] == [()], "one point is a sentence"


@pytest.mark.parametrize(
    ("points", "answer"),
    [
        (
            0.0,
            "The hypernetwork is not shown to be worth it (no gain in accuracy that 3 seeds show, and it costs time): ",
        ),
        (9.0, "The hypernetwork buys accuracy for time: "),
        (-9.0, "The hypernetwork is not worth it here (it loses accuracy and costs time): "),
    ],
)
def test_seeds_say_whether_it_is_worth_it(demo_records: Make, points: float, answer: str) -> None:
    plain = demo_records(["uint8_int4"], seeds=SEEDS)
    row = moved(demo_records(["metagrad_int4_recompute"], seeds=SEEDS), points - 0.83)
    assert said([*plain, *row]).startswith(answer)


def test_without_a_row_to_compare_with_it_says_what_is_missing(demo_records: Make) -> None:
    assert said(demo_records(["fp32", "metagrad_int4_slim"])) == (
        "Whether the hypernetwork is worth it cannot be told: beside metagrad_int4_slim (emulated) neither the same "
        "bits without one nor STE with its forward pass was measured."
    )
    assert said(demo_records(["fp32", "uint8_int4"])) == ""


def test_the_plain_rival_has_the_same_bits_and_if_there_is_one_the_same_quantizer(demo_records: Make) -> None:
    records = demo_records(["ste_w4a4", "uint8_int8", "uint8_int4", "metagrad_int4_recompute"])
    method = dataclasses.replace(records[2].method, name="uniform", error_quantizer="uniform")
    uniform = dataclasses.replace(records[2], key="uniform", variant="uniform_int4", method=method)
    rows = _rows([*records, uniform])
    row = rows["metagrad_int4_recompute"]
    plain, ste = plain_rival(row, list(rows.values())), ste_rival(row, list(rows.values()))
    assert plain is not None
    assert ste is not None
    assert (plain.label, ste.label) == ("uniform_int4", "ste_w4a4")
    others = [one for label, one in rows.items() if label != "uniform_int4"]
    second = plain_rival(row, others)
    assert second is not None
    assert second.label == "uint8_int4"
    assert plain_rival(row, [rows["uint8_int8"], rows["ste_w4a4"]]) is None, "other bits"


def _rows(records: list[RunRecord]) -> dict[str, Row]:
    (section,) = build_sections(records)
    return {row.label: row for row in section.rows}
