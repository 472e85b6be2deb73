from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.compare import (
    CELL,
    KINDS,
    PHASE,
    THRESHOLDS,
    Verdict,
    compare,
    compare_all,
    nothing_measured,
    worst_first,
)
from bench.records.baseline import Entry, Metric, config_digest, entry_of
from bench.records.schema import RunRecord
from bench.units import Absent

MakeRecord = Callable[..., RunRecord]


@pytest.fixture
def entry(make_record: MakeRecord) -> Entry:
    return entry_of(make_record())


def scaled(entry: Entry, **factors: float) -> Entry:
    """The entry with each named metric's samples multiplied."""
    metrics = dict(entry.metrics)
    for name, factor in factors.items():
        samples = metrics[name].samples
        assert not isinstance(samples, Absent)
        metrics[name] = Metric(samples=tuple(tuple(value * factor for value in repeat) for repeat in samples))
    return dataclasses.replace(entry, metrics=metrics)


def with_value(entry: Entry, name: str, value: float | Absent) -> Entry:
    samples = value if isinstance(value, Absent) else ((value,),)
    return dataclasses.replace(entry, metrics=entry.metrics | {name: Metric(samples=samples)})


def configured(entry: Entry, **config: Any) -> Entry:
    return dataclasses.replace(entry, config=config, config_digest=config_digest(config))


def kinds(verdicts: list[Verdict]) -> dict[str, str]:
    """Verdicts that are not ok, by metric."""
    return {verdict.metric: verdict.kind for verdict in verdicts if verdict.kind != "ok"}


def of(verdicts: list[Verdict], metric: str) -> Verdict:
    return next(verdict for verdict in verdicts if verdict.metric == metric)


def test_identical_records_are_ok_in_every_metric(entry: Entry) -> None:
    verdicts = compare(entry, entry)
    assert {verdict.kind for verdict in verdicts} == {"ok"}
    assert {verdict.metric for verdict in verdicts} == set(THRESHOLDS)
    assert {verdict.change_pct for verdict in verdicts} == {0.0}


def test_a_verdict_carries_values_change_threshold_and_words(entry: Entry) -> None:
    verdict = of(compare(entry, scaled(entry, peak_allocated_bytes=1.05)), "peak_allocated_bytes")
    assert (verdict.kind, verdict.threshold_pct) == ("regressed", 1.0)
    assert (verdict.baseline, verdict.candidate) == (40 * 1024**2, 42 * 1024**2)
    assert verdict.change_pct == pytest.approx(5.0)
    assert verdict.reason == "worse by 5 %, more than 1 %."
    assert verdict.cell == "demo/metagrad_int4_recompute resnet20 digits seed 0"


@pytest.mark.parametrize(
    ("factors", "found"),
    [
        ({"step_ms": 1.10}, {}),
        ({"step_ms": 1.20}, {"time_vs_fp32": "regressed"}),
        ({"step_ms": 1.50}, {"time_vs_fp32": "regressed", "step_ms": "regressed"}),
        ({"step_ms": 0.80}, {"time_vs_fp32": "improved"}),
        # The whole machine is slower by a third: what the FP32 steps in between also saw is no regression.
        ({"step_ms": 1.35, "fp32_step_ms": 1.35, "forward_ms": 1.35, "backward_ms": 1.35}, {}),
        # Both steps became much slower: the ratio hides it, the absolute threshold does not.
        ({"step_ms": 1.6, "fp32_step_ms": 1.6}, {"step_ms": "regressed", "backward_ms": "improved",
                                                 "forward_ms": "improved", "meta_ms": "improved"}),
        ({"forward_ms": 1.25}, {}),
        ({"forward_ms": 1.40}, {"forward_ms": "regressed"}),
        ({"meta_ms": 0.60}, {"meta_ms": "improved"}),
        ({"data_ms": 3.00}, {}),  # 2 ms of a step of 100 ms
        ({"data_ms": 9.00}, {"data_ms": "regressed"}),
        ({"peak_allocated_bytes": 1.009}, {}),
        ({"peak_allocated_bytes": 0.98}, {"peak_allocated_bytes": "improved"}),
        ({"peak_process_bytes": 1.04}, {}),
        ({"peak_process_bytes": 1.06}, {"peak_process_bytes": "regressed"}),
        ({"hypernet_extra_allocated_bytes": 1.005}, {}),
        ({"hypernet_extra_allocated_bytes": 1.10}, {"hypernet_extra_allocated_bytes": "regressed"}),
        ({"hypernet_extra_process_bytes": 2.00}, {}),  # 5 MiB more in a process of 400 MiB
        ({"hypernet_extra_process_bytes": 4.00}, {"hypernet_extra_process_bytes": "regressed"}),
    ],
)  # fmt: skip
def test_each_metric_has_its_own_threshold(entry: Entry, factors: dict[str, float], found: dict[str, str]) -> None:
    assert kinds(compare(entry, scaled(entry, **factors))) == found


@pytest.mark.parametrize(
    ("metric", "value", "kind"),
    [
        ("test_accuracy_pct", 93.0, "ok"),
        ("test_accuracy_pct", 92.9, "regressed"),
        ("test_accuracy_pct", 97.1, "improved"),
        ("integer_share_pct", 99.99, "regressed"),
        ("integer_share_pct", 100.0, "ok"),
    ],
)
def test_accuracy_counts_in_points_and_the_integer_share_exactly(
    entry: Entry, metric: str, value: float, kind: str
) -> None:
    verdict = of(compare(entry, with_value(entry, metric, value)), metric)
    assert verdict.kind == kind
    before = of(compare(entry, entry), metric).baseline
    assert before is not None
    assert verdict.change_pct == pytest.approx(value - before)


def test_a_phase_says_against_what_it_was_measured(entry: Entry) -> None:
    verdict = of(compare(entry, scaled(entry, forward_ms=2, fp32_step_ms=1.25)), "forward_ms")
    assert (verdict.baseline, verdict.candidate, verdict.change_pct) == (30.0, 60.0, pytest.approx(60.0))
    assert verdict.reason == "worse by 60 %, more than 30 % relative to the FP32 step (20 ms, now 25 ms)."


def test_a_change_from_nothing_has_no_percentage_but_a_verdict(entry: Entry) -> None:
    base = with_value(entry, "hypernet_extra_allocated_bytes", 0)
    verdict = of(compare(base, entry), "hypernet_extra_allocated_bytes")
    assert (verdict.kind, verdict.change_pct, verdict.reason) == ("regressed", None, "worse from 0, more than 1 %.")
    assert of(compare(base, base), "hypernet_extra_allocated_bytes").kind == "ok"


def test_a_metric_that_became_absent_is_missing_and_one_that_appeared_is_new(entry: Entry) -> None:
    without = with_value(entry, "peak_process_bytes", Absent(reason="no permission"))
    lost = of(compare(entry, without), "peak_process_bytes")
    assert (lost.kind, lost.reason, lost.candidate) == ("missing", "became n/a (no permission).", None)
    assert lost.baseline == 400 * 1024**2
    gained = of(compare(without, entry), "peak_process_bytes")
    assert (gained.kind, gained.reason) == ("new", "the baseline has n/a (no permission).")
    assert "peak_process_bytes" not in {verdict.metric for verdict in compare(without, without)}


def test_a_metric_that_vanished_from_the_record_is_missing(entry: Entry) -> None:
    metrics = {name: metric for name, metric in entry.metrics.items() if name != "meta_ms"}
    assert kinds(compare(entry, dataclasses.replace(entry, metrics=metrics))) == {"meta_ms": "missing"}


def test_without_the_fp32_step_its_ratio_is_missing_and_phases_say_so(entry: Entry) -> None:
    verdicts = compare(entry, with_value(entry, "fp32_step_ms", Absent(reason="no FP32 steps")))
    assert kinds(verdicts) == {"time_vs_fp32": "missing"}
    assert of(verdicts, "time_vs_fp32").reason == "became n/a (no FP32 steps)."
    assert "in absolute time" in of(verdicts, "forward_ms").reason


def test_a_metric_without_a_threshold_is_not_passed_in_silence(entry: Entry) -> None:
    other = with_value(entry, "energy_j", 3.0)
    assert kinds(compare(other, other)) == {"energy_j": "not_comparable"}
    assert kinds(compare(other, entry)) == {"energy_j": "missing"}
    assert of(compare(with_value(entry, "pack_ms", 8.0), with_value(entry, "pack_ms", 8.0)), "pack_ms").kind == "ok"
    assert of(compare(with_value(entry, "pack_ms", 8.0), with_value(entry, "pack_ms", 80.0)), "pack_ms").kind == (
        "regressed"
    )


def test_thresholds_are_data_that_can_be_replaced(entry: Entry) -> None:
    slow = scaled(entry, step_ms=1.2)
    loose = THRESHOLDS | {"time_vs_fp32": dataclasses.replace(THRESHOLDS["time_vs_fp32"], limit=25.0)}
    assert kinds(compare(entry, slow, loose)) == {}
    assert of(compare(entry, slow, loose), "time_vs_fp32").threshold_pct == 25.0


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
    verdicts = compare(
        dataclasses.replace(entry, status=before), dataclasses.replace(entry, status=after, reason=reason)
    )
    verdict = of(verdicts, CELL)
    assert verdict.kind == found
    assert ("loss is nan at step 3" in verdict.reason) == (found != "improved")
    assert len(verdicts) == 1 if found == "failed" else len(verdicts) > 1


def test_another_machine_is_not_comparable_and_says_in_what(entry: Entry) -> None:
    elsewhere = dataclasses.replace(
        entry, fingerprint="cpu-0", environment=entry.environment | {"torch": {"version": "2.14.0+cpu", "threads": 8}}
    )
    (verdict,) = compare(entry, elsewhere)
    assert verdict.kind == "not_comparable"
    assert verdict.reason == (
        "the machine differs: torch version: 2.13.0+cpu against 2.14.0+cpu; number of threads: unknown against 8."
    )
    (blank,) = compare(entry, dataclasses.replace(entry, fingerprint="cpu-0"))
    assert blank.reason == "the machine differs: fingerprint: cpu-89abcdef against cpu-0."


def test_another_configuration_is_not_comparable_and_says_in_what(entry: Entry) -> None:
    config = {f"key{number}": number for number in range(6)}
    before = configured(entry, hidden=4, **config)
    (verdict,) = compare(before, configured(entry, hidden=8, **config))
    assert (verdict.kind, verdict.reason) == ("not_comparable", "the configuration differs: hidden: 4 against 8.")
    (many,) = compare(before, configured(entry, hidden=4))
    assert many.reason.endswith("key3: 3 against none; and 2 more.")
    (subtle,) = compare(configured(entry, flag=1), configured(entry, flag=True))
    assert subtle.reason == "the configuration differs: flag: 1 against true."


def test_a_vanished_cell_is_missing_and_an_added_one_is_new(entry: Entry) -> None:
    first, second = (dataclasses.replace(configured(entry, v=name), variant=name) for name in "ab")
    verdicts = compare_all([first, second], [second])
    assert [(verdict.kind, verdict.metric) for verdict in verdicts if verdict.kind != "ok"] == [("missing", CELL)]
    assert verdicts[0].cell.startswith("demo/a ")
    verdicts = compare_all([first], [first, second])
    assert [(verdict.kind, verdict.cell[:6]) for verdict in verdicts if verdict.kind != "ok"] == [("new", "demo/b")]


def test_a_new_cell_that_failed_is_a_finding(entry: Entry) -> None:
    first, second = (dataclasses.replace(configured(entry, v=name), variant=name) for name in "ab")
    broken = dataclasses.replace(second, status="failed", reason="killed.")
    (verdict, *_) = compare_all([first], [first, broken])
    assert (verdict.kind, verdict.reason) == (
        "failed", "it failed (killed), and the baseline does not know it on this machine.",
    )  # fmt: skip
    diverged = dataclasses.replace(second, status="diverged", reason="nan")
    assert compare_all([first], [first, diverged])[0].kind == "new"


def test_a_changed_configuration_answers_for_the_cell_of_its_name(entry: Entry) -> None:
    verdicts = compare_all([configured(entry, lr=0.1)], [configured(entry, lr=0.2)])
    assert [(verdict.kind, verdict.reason) for verdict in verdicts] == [
        ("not_comparable", "the configuration differs: lr: 0.1 against 0.2.")
    ]


def test_cells_of_one_name_are_matched_by_their_configuration(entry: Entry) -> None:
    first, second = configured(entry, lr=0.1), configured(scaled(entry, step_ms=3), lr=0.2)
    assert {verdict.kind for verdict in compare_all([first, second], [second, first])} == {"ok"}


def test_a_file_of_several_machines_answers_for_the_present_one(entry: Entry) -> None:
    cells = [dataclasses.replace(configured(entry, v=name), variant=name) for name in "ab"]
    elsewhere = [dataclasses.replace(scaled(cell, step_ms=9), fingerprint="cuda-1") for cell in cells]
    everything = cells + elsewhere
    assert {verdict.kind for verdict in compare_all(everything, cells)} == {"ok"}
    assert {verdict.kind for verdict in compare_all(everything, elsewhere)} == {"ok"}
    missing = compare_all(everything, cells[:1])
    assert [(verdict.kind, verdict.fingerprint) for verdict in missing if verdict.kind != "ok"] == [
        ("missing", entry.fingerprint)
    ]
    stranger = dataclasses.replace(cells[0], fingerprint="cpu-7")
    verdicts = compare_all(everything, [stranger])
    assert [(verdict.kind, verdict.cell[:6]) for verdict in verdicts] == [
        ("missing", "demo/b"), ("not_comparable", "demo/a"),
    ]  # fmt: skip


def test_an_old_run_on_another_machine_beside_the_present_one_is_only_new(entry: Entry) -> None:
    stale = dataclasses.replace(entry, fingerprint="cpu-7")
    verdicts = compare_all([entry], [entry, stale])
    assert {(verdict.kind, verdict.fingerprint) for verdict in verdicts} == {("ok", "cpu-89abcdef"), ("new", "cpu-7")}


def test_nothing_measured_is_told_from_a_failure(entry: Entry, make_record: MakeRecord) -> None:
    record = make_record(status="failed", reason="x", timing=None, memory=None, accuracy=None, gemms=None)
    broken = entry_of(record)
    assert nothing_measured(compare_all([broken], [broken]), [broken])
    assert not nothing_measured(compare_all([entry], [broken]), [broken])
    assert not nothing_measured(compare_all([entry], [entry]), [entry])
    diverged = dataclasses.replace(broken, status="diverged")
    assert not nothing_measured(compare_all([diverged], [diverged]), [diverged])


def test_verdicts_come_worst_first(entry: Entry) -> None:
    verdicts = compare(
        entry, scaled(entry, step_ms=1.5, peak_allocated_bytes=1.5, forward_ms=0.5, peak_process_bytes=1.1)
    )
    order = [(verdict.kind, verdict.metric) for verdict in worst_first(reversed(verdicts))]
    assert order[:5] == [
        ("regressed", "peak_allocated_bytes"),  # 50 times its threshold
        ("regressed", "time_vs_fp32"),
        ("regressed", "peak_process_bytes"),
        ("regressed", "step_ms"),
        ("improved", "forward_ms"),
    ]
    assert [KINDS.index(kind) for kind, _ in order] == sorted(KINDS.index(kind) for kind, _ in order)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    old=st.floats(1e-3, 1e9),
    new=st.floats(1e-3, 1e9),
    metric=st.sampled_from(["step_ms", "peak_allocated_bytes", "forward_ms"]),
)
def test_what_regressed_one_way_improved_or_passed_the_other(old: float, new: float, metric: str) -> None:
    def only(value: float) -> Entry:
        metrics = {"step_ms": Metric(samples=((1.0,),))} | {metric: Metric(samples=((value,),))}
        return Entry(
            suite="s", variant="v", model="m", data="d", seed=0, config_digest="0", fingerprint="f", status="ok",
            reason="", code_version="", started_at="", environment={}, config={}, metrics=metrics,
        )  # fmt: skip

    forward = of(compare(only(old), only(new)), metric)
    backward = of(compare(only(new), only(old)), metric)
    assert {forward.kind, backward.kind} <= {"ok", "improved", "regressed"}
    assert not (forward.kind == backward.kind != "ok")
    limit = THRESHOLDS.get(metric, PHASE).limit
    if forward.kind == "regressed":
        assert forward.change_pct is not None
        assert forward.change_pct > limit
