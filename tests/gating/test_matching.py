from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from bench.gating import CELL, Verdict, compare
from bench.records.entry import Entry, entry_of
from bench.records.schema import RunRecord
from tests.gating.entries import configured, judge, judge_all, of, scaled, verdicts

MakeRecord = Callable[..., RunRecord]


def test_an_option_that_one_version_did_not_have_counts_as_at_its_default(entry: Entry) -> None:
    before = configured(entry, seed=0, variant_name="a")
    assert verdicts(judge(before, configured(entry, seed=0, variant_name="a", compact=False))) == {}
    (row,) = judge(before, configured(entry, seed=0, variant_name="a", compact=True))
    assert row.reason == "the configuration differs: compact: false against true."


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("ok", "failed", "failed"),
        ("ok", "out_of_memory", "failed"),
        ("ok", "crashed", "failed"),
        ("diverged", "killed", "failed"),
        ("timed_out", "timed_out", "ok"),
        ("crashed", "ok", "improved"),
        ("ok", "diverged", "failed"),
        ("diverged", "failed", "failed"),
        ("diverged", "diverged", "ok"),
        ("out_of_memory", "out_of_memory", "ok"),
        ("failed", "failed", "ok"),
        ("diverged", "ok", "improved"),
        ("failed", "diverged", "improved"),
    ],
)
def test_a_status_that_got_worse_is_failed_and_one_that_stayed_is_ok(
    entry: Entry, before: Any, after: Any, found: str
) -> None:
    reason = "" if after == "ok" else "loss is nan at step 3"
    rows = judge(dataclasses.replace(entry, status=before), dataclasses.replace(entry, status=after, reason=reason))
    row = of(rows, CELL)
    assert row.verdict.value == found
    assert ("loss is nan at step 3" in row.reason) == (found != "improved")
    assert len(rows) == 1 if found == "failed" else len(rows) > 1


def test_another_machine_is_not_comparable_and_says_in_what(entry: Entry) -> None:
    elsewhere = dataclasses.replace(
        entry, fingerprint="cpu-0", environment=entry.environment | {"torch": {"version": "2.14.0+cpu", "threads": 8}}
    )
    (row,) = judge(entry, elsewhere)
    assert row.verdict is Verdict.NOT_COMPARABLE
    assert row.reason == (
        "the machine differs: torch version: 2.13.0+cpu against 2.14.0+cpu; number of threads: unknown against 8."
    )
    (blank,) = judge(entry, dataclasses.replace(entry, fingerprint="cpu-0"))
    assert blank.reason == "the machine differs: fingerprint: cpu-89abcdef against cpu-0."


def test_another_configuration_is_not_comparable_and_says_in_what(entry: Entry) -> None:
    config = {f"key{number}": number for number in range(6)}
    before = configured(entry, hidden=4, **config)
    (row,) = judge(before, configured(entry, hidden=8, **config))
    assert (row.verdict.value, row.reason) == ("not_comparable", "the configuration differs: hidden: 4 against 8.")
    (many,) = judge(before, configured(entry, hidden=4))
    assert many.reason.endswith("key3: 3 against none; and 2 more.")
    (subtle,) = judge(configured(entry, flag=1), configured(entry, flag=True))
    assert subtle.reason == "the configuration differs: flag: 1 against true."


def test_a_vanished_cell_is_missing_and_an_added_one_is_new(entry: Entry) -> None:
    first, second = (dataclasses.replace(configured(entry, v=name), variant=name) for name in "ab")
    rows = judge_all([first, second], [second])
    assert [(row.verdict.value, row.metric) for row in rows if row.verdict is not Verdict.OK] == [("missing", CELL)]
    assert rows[0].cell.startswith("demo/a ")
    rows = judge_all([first], [first, second])
    assert [(row.verdict.value, row.cell[:6]) for row in rows if row.verdict is not Verdict.OK] == [("new", "demo/b")]


def test_a_new_cell_that_failed_is_a_finding(entry: Entry) -> None:
    first, second = (dataclasses.replace(configured(entry, v=name), variant=name) for name in "ab")
    broken = dataclasses.replace(second, status="failed", reason="killed.")
    (row, *_) = judge_all([first], [first, broken])
    assert (row.verdict.value, row.reason) == (
        "failed", "it failed (killed), and the baseline does not know it on this machine.",
    )  # fmt: skip
    diverged = dataclasses.replace(second, status="diverged", reason="nan")
    assert judge_all([first], [first, diverged])[0].verdict is Verdict.NEW


def test_a_changed_configuration_answers_for_the_cell_of_its_name(entry: Entry) -> None:
    rows = judge_all([configured(entry, lr=0.1)], [configured(entry, lr=0.2)])
    assert [(row.verdict.value, row.reason) for row in rows] == [
        ("not_comparable", "the configuration differs: lr: 0.1 against 0.2.")
    ]


def test_cells_of_one_name_are_matched_by_their_configuration(entry: Entry) -> None:
    first, second = configured(entry, lr=0.1), configured(scaled(entry, step_ms=3), lr=0.2)
    assert {row.verdict.value for row in judge_all([first, second], [second, first])} == {"ok"}


def test_a_file_of_several_machines_answers_for_the_present_one(entry: Entry) -> None:
    cells = [dataclasses.replace(configured(entry, v=name), variant=name) for name in "ab"]
    elsewhere = [dataclasses.replace(scaled(cell, step_ms=9), fingerprint="cuda-1") for cell in cells]
    everything = cells + elsewhere
    assert {row.verdict.value for row in judge_all(everything, cells)} == {"ok"}
    assert {row.verdict.value for row in judge_all(everything, elsewhere)} == {"ok"}
    missing = judge_all(everything, cells[:1])
    assert [(row.verdict.value, row.fingerprint) for row in missing if row.verdict is not Verdict.OK] == [
        ("missing", entry.fingerprint)
    ]
    stranger = dataclasses.replace(cells[0], fingerprint="cpu-7")
    rows = judge_all(everything, [stranger])
    assert [(row.verdict.value, row.cell[:6]) for row in rows] == [
        ("missing", "demo/b"), ("not_comparable", "demo/a"),
    ]  # fmt: skip


def test_an_old_run_on_another_machine_beside_the_present_one_is_only_new(entry: Entry) -> None:
    stale = dataclasses.replace(entry, fingerprint="cpu-7")
    rows = judge_all([entry], [entry, stale])
    assert {(row.verdict.value, row.fingerprint) for row in rows} == {("ok", "cpu-89abcdef"), ("new", "cpu-7")}


def test_nothing_compared_is_told_from_a_failure(entry: Entry, make_record: MakeRecord) -> None:
    record = make_record(status="failed", reason="x", timing=None, memory=None, accuracy=None, gemms=None)
    broken = entry_of(record)
    diverged = dataclasses.replace(broken, status="diverged")
    bare = dataclasses.replace(entry, metrics={})
    assert compare([broken], [broken]).is_empty
    assert compare([entry], [bare]).is_empty
    assert not compare([broken], [entry]).is_empty
    assert not compare([entry], [entry]).is_empty
    assert not compare([diverged], [diverged]).is_empty


def test_of_two_versions_records_of_one_cell_the_newer_counts(entry: Entry) -> None:
    before = configured(entry, seed=0, variant_name="a")
    old = dataclasses.replace(scaled(before, step_ms=3), started_at="2026-01-01T00:00:00+00:00")
    new = dataclasses.replace(configured(entry, seed=0, variant_name="a", compact=False), started_at="2026-02-01")
    for candidates in ([old, new], [new, old]):
        assert {row.verdict.value for row in judge_all([before], candidates)} == {"ok"}
    assert {row.verdict.value for row in judge_all([old, new], [before])} == {"ok"}
