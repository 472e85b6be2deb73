from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.gating import THRESHOLDS, Policy, Threshold, Verdict, compare, worst_first
from bench.gating.policy_file import with_threshold
from bench.records.entry import Entry, Metric
from bench.units import Absent
from tests.gating.entries import configured, judge, of, scaled, verdicts, with_samples, with_value


def test_identical_records_are_ok_in_every_metric(entry: Entry) -> None:
    rows = judge(entry, entry)
    assert {row.verdict for row in rows} == {Verdict.OK}
    assert {row.metric for row in rows} == set(THRESHOLDS)
    assert {row.change_pct for row in rows} == {0.0}


def test_a_row_carries_values_change_threshold_and_words(entry: Entry) -> None:
    row = of(judge(entry, scaled(entry, peak_allocated_bytes=1.05)), "peak_allocated_bytes")
    assert (row.verdict, row.threshold_pct) == (Verdict.REGRESSED, 0.5)
    assert (row.baseline, row.candidate) == (40 * 1024**2, 42 * 1024**2)
    assert row.change_pct == pytest.approx(5.0)
    assert row.reason == "worse by 5 %, more than 0.5 %."
    assert row.cell == "demo/metagrad_int4_recompute resnet20 digits seed 0"


@pytest.mark.parametrize(
    ("factors", "found"),
    [
        ({"step_ms": 1.08}, {}),
        ({"step_ms": 1.30}, {"step_ms": "regressed"}),
        ({"step_ms": 1.18}, {"step_ms": "regressed"}),
        ({"step_ms": 1.12}, {"step_ms": "inconclusive"}),
        ({"step_ms": 0.70}, {"step_ms": "improved"}),
        # The whole machine is slower by a third: what the FP32 steps in between also saw is no regression.
        ({"step_ms": 1.35, "fp32_step_ms": 1.35, "forward_ms": 1.35, "backward_ms": 1.35, "meta_ms": 1.35,
          "optimizer_ms": 1.35}, {}),
        # Twice as slow together: the machine or what both steps share, which nothing here can tell apart.
        ({"step_ms": 2, "fp32_step_ms": 2, "forward_ms": 2, "backward_ms": 2, "meta_ms": 2, "optimizer_ms": 2},
         {"fp32_step_ms": "inconclusive"}),
        ({"forward_ms": 1.10}, {}),
        ({"forward_ms": 1.40}, {"forward_ms": "regressed"}),
        ({"meta_ms": 0.60}, {"meta_ms": "improved"}),
        ({"data_ms": 2.00}, {}),  # 1 ms of a step of 100 ms
        ({"data_ms": 9.00}, {"data_ms": "regressed"}),
        ({"peak_allocated_bytes": 1.004}, {}),
        ({"peak_allocated_bytes": 1.01}, {"peak_allocated_bytes": "regressed"}),
        ({"peak_allocated_bytes": 0.98}, {"peak_allocated_bytes": "improved"}),
        ({"peak_process_bytes": 1.015}, {}),
        ({"peak_process_bytes": 1.05}, {"peak_process_bytes": "regressed"}),
        ({"hypernet_extra_allocated_bytes": 1.004}, {}),
        ({"hypernet_extra_allocated_bytes": 1.10}, {"hypernet_extra_allocated_bytes": "regressed"}),
        ({"hypernet_extra_process_bytes": 2.00}, {}),  # 5 MiB more in a process of 400 MiB
        ({"hypernet_extra_process_bytes": 4.00}, {"hypernet_extra_process_bytes": "regressed"}),
    ],
)  # fmt: skip
def test_each_metric_has_its_own_threshold(entry: Entry, factors: dict[str, float], found: dict[str, str]) -> None:
    assert verdicts(judge(entry, scaled(entry, **factors))) == found


def test_runs_measured_in_turn_are_judged_more_tightly(entry: Entry) -> None:
    slower = scaled(entry, step_ms=1.08, backward_ms=1.12)
    assert verdicts(judge(entry, slower)) == {}
    assert verdicts(judge(entry, slower, Policy(interleaved=True))) == {
        "step_ms": "regressed", "backward_ms": "regressed",
    }  # fmt: skip


def test_a_slowdown_that_noise_may_have_made_is_inconclusive(entry: Entry) -> None:
    shifted = tuple(tuple(factor * value for value in (101.0, 99.0, 100.0, 102.0)) for factor in (1.0, 1.12, 1.3))
    row = of(judge(entry, with_samples(entry, "step_ms", shifted)), "step_ms")
    assert row.verdict is Verdict.INCONCLUSIVE
    assert "more than 10 %, but noise may do that (chance 1 after" in row.reason


@pytest.mark.parametrize(
    ("metric", "value", "verdict"),
    [
        ("test_accuracy_pct", 94.1, "ok"),
        ("test_accuracy_pct", 93.0, "inconclusive"),
        ("test_accuracy_pct", 85.0, "regressed"),
        ("test_accuracy_pct", 99.9, "improved"),
        ("integer_share_pct", 99.99, "regressed"),
        ("integer_share_pct", 100.0, "ok"),
    ],
)
def test_accuracy_counts_in_points_and_the_integer_share_exactly(
    entry: Entry, metric: str, value: float, verdict: str
) -> None:
    row = of(judge(entry, with_value(entry, metric, value)), metric)
    assert row.verdict.value == verdict
    before = of(judge(entry, entry), metric).baseline
    assert before is not None
    assert row.change_pct == pytest.approx(value - before)


def test_a_phase_says_against_what_it_was_measured(entry: Entry) -> None:
    row = of(judge(entry, scaled(entry, forward_ms=2, fp32_step_ms=1.25)), "forward_ms")
    assert (row.baseline, row.candidate, row.change_pct) == (30.0, 60.0, pytest.approx(60.0))
    assert row.reason.startswith("worse: +60 % (95 % interval +")
    assert row.reason.endswith(", of times divided by the FP32 step beside them (20.0 ms, now 25.0 ms).")
    assert row.per_fp32_step
    assert not of(judge(entry, entry), "fp32_step_ms").per_fp32_step


def test_a_change_from_nothing_has_no_percentage_but_a_verdict(entry: Entry) -> None:
    base = with_value(entry, "hypernet_extra_allocated_bytes", 0)
    row = of(judge(base, entry), "hypernet_extra_allocated_bytes")
    assert (row.verdict, row.change_pct) == (Verdict.REGRESSED, None)
    assert row.reason == "worse from 0, more than 0.5 %."
    assert of(judge(base, base), "hypernet_extra_allocated_bytes").verdict is Verdict.OK


def test_memory_of_several_repeats_regresses_only_if_none_contradicts(entry: Entry) -> None:
    def repeats(*values: int) -> Entry:
        samples = tuple((value,) for value in values)
        return dataclasses.replace(entry, metrics=entry.metrics | {"peak_process_bytes": Metric(samples=samples)})

    before = repeats(100, 101, 102)
    assert of(judge(before, repeats(106, 107, 106)), "peak_process_bytes").verdict is Verdict.REGRESSED
    unsure = of(judge(before, repeats(106, 107, 102)), "peak_process_bytes")
    assert unsure.verdict is Verdict.INCONCLUSIVE
    assert unsure.reason == "changed by 4.95 %, more than 2 %, but repeats overlap."


def test_a_metric_that_became_absent_is_missing_and_one_that_appeared_is_new(entry: Entry) -> None:
    without = with_value(entry, "peak_process_bytes", Absent(reason="no permission"))
    lost = of(judge(entry, without), "peak_process_bytes")
    assert (lost.verdict.value, lost.reason, lost.candidate) == ("missing", "became n/a (no permission).", None)
    assert lost.baseline == 400 * 1024**2
    gained = of(judge(without, entry), "peak_process_bytes")
    assert (gained.verdict.value, gained.reason) == ("new", "the baseline has n/a (no permission).")
    assert "peak_process_bytes" not in {row.metric for row in judge(without, without)}


def test_a_metric_that_vanished_from_the_record_is_missing(entry: Entry) -> None:
    metrics = {name: metric for name, metric in entry.metrics.items() if name != "meta_ms"}
    assert verdicts(judge(entry, dataclasses.replace(entry, metrics=metrics))) == {"meta_ms": "missing"}


def test_without_the_fp32_step_it_is_missing_and_times_say_so(entry: Entry) -> None:
    rows = judge(entry, with_value(scaled(entry, forward_ms=1.01), "fp32_step_ms", Absent(reason="no FP32 steps")))
    assert verdicts(rows) == {"fp32_step_ms": "missing"}
    assert of(rows, "fp32_step_ms").reason == "became n/a (no FP32 steps)."
    assert "in absolute time" in of(rows, "forward_ms").reason


def test_a_metric_without_a_threshold_is_not_passed_in_silence(entry: Entry) -> None:
    other = with_value(entry, "energy_j", 3.0)
    assert verdicts(judge(other, other)) == {"energy_j": "not_comparable"}
    assert verdicts(judge(other, entry)) == {"energy_j": "missing"}


def test_a_phase_that_no_table_lists_is_judged_like_the_others(entry: Entry) -> None:
    def packing(value: float) -> Entry:
        return with_value(entry, "pack_ms", value)

    assert of(judge(packing(8.0), packing(8.0)), "pack_ms").verdict is Verdict.OK
    assert of(judge(packing(8.0), packing(80.0)), "pack_ms").verdict is Verdict.REGRESSED


def test_thresholds_are_data_that_can_be_replaced(entry: Entry) -> None:
    slow = scaled(entry, step_ms=1.3)
    loose = with_threshold(Policy(), "step_ms", 35.0)
    assert verdicts(judge(entry, slow)) == {"step_ms": "regressed"}
    assert verdicts(judge(entry, slow, loose)) == {}
    assert of(judge(entry, slow, loose), "step_ms").threshold_pct == 35.0


def test_an_interval_that_a_gross_regression_fits_into_is_no_pass(entry: Entry) -> None:
    wild = tuple(tuple(100 * factor * ratio for ratio in (1, 1.1, 0.9, 1)) for factor in (0.5, 1.0, 2.0))
    row = of(judge(with_samples(entry, "step_ms", wild), entry), "step_ms")
    assert abs(row.change_pct or 0.0) < 10
    assert row.verdict is Verdict.INCONCLUSIVE
    assert "the interval does not rule out 40 %: measure more processes" in row.reason


def test_seeds_of_one_cell_are_judged_together(entry: Entry) -> None:
    def seeds(*accuracies: float) -> list[Entry]:
        return [
            dataclasses.replace(with_value(configured(entry, seed=seed), "test_accuracy_pct", value), seed=seed)
            for seed, value in enumerate(accuracies)
        ]

    before = seeds(95.0, 94.5, 95.5, 95.2, 94.8)
    rows = compare(seeds(93.0, 92.4, 93.6, 93.1, 92.9), before).rows
    (row,) = (row for row in rows if row.metric == "test_accuracy_pct")
    assert row.verdict is Verdict.REGRESSED
    assert row.cell == "demo/metagrad_int4_recompute resnet20 digits seeds 0, 1, 2, 3, 4"
    assert (row.baseline, row.candidate) == (pytest.approx(95.0), pytest.approx(93.0))
    assert row.reason.startswith("worse: -2.00 points over 5 seeds (95 % interval -2.")
    uneven = compare(seeds(95.5, 88.0, 96.0, 89.9, 96.5), before).rows
    assert of(list(uneven), "test_accuracy_pct").verdict is Verdict.INCONCLUSIVE


def test_every_row_explains_itself_and_ends_in_its_verdict(entry: Entry) -> None:
    rows = judge(entry, scaled(entry, step_ms=1.3, peak_allocated_bytes=2))
    assert all(row.explanation for row in rows)
    step = of(rows, "step_ms")
    assert step.explanation[-1] == f"So it is regressed: {step.reason}"
    assert len(step.explanation) == 10
    for words in (
        "12 samples in 3 processes",
        "FP32 step of their own processes (20.0 ms, now 20.0 ms)",
        "The threshold is 10 %; the change is beyond it.",
        "Student's t of 24 degrees",
    ):
        assert any(words in sentence for sentence in step.explanation), words  # fmt: skip


def test_rows_come_worst_first(entry: Entry) -> None:
    rows = judge(entry, scaled(entry, step_ms=1.5, peak_allocated_bytes=1.5, forward_ms=0.5, peak_process_bytes=1.1))
    order = [(row.verdict.value, row.metric) for row in worst_first(reversed(rows))]
    assert order[:4] == [
        ("regressed", "peak_allocated_bytes"),  # 100 times its threshold
        ("regressed", "peak_process_bytes"),  # 5.5 times
        ("regressed", "step_ms"),
        ("improved", "forward_ms"),
    ]
    ranks = [row.verdict.rank for row in rows]
    assert ranks == sorted(ranks)


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
            reason="", throttled_set_aside=0, throttled_kept=0, code_version="", started_at="", environment={},
            config={}, metrics=metrics,
        )  # fmt: skip

    forward, backward = of(judge(only(old), only(new)), metric), of(judge(only(new), only(old)), metric)
    assert not (forward.verdict is backward.verdict is Verdict.REGRESSED)
    assert not (forward.verdict is backward.verdict is Verdict.IMPROVED)
    threshold = Policy().threshold_of(metric)
    assert isinstance(threshold, Threshold)
    if forward.verdict is Verdict.REGRESSED:
        assert forward.change_pct is not None
        assert forward.change_pct > threshold.limit


def test_a_slowdown_that_fp32_shares_fails_in_turn_and_is_inconclusive_of_recorded_runs(entry: Entry) -> None:
    names = ("step_ms", "forward_ms", "backward_ms", "meta_ms", "optimizer_ms", "data_ms", "unattributed_ms")
    slow = scaled(entry, fp32_step_ms=1.7, **dict.fromkeys(names, 1.7))
    assert verdicts(judge(entry, slow)) == {"fp32_step_ms": "inconclusive"}
    assert verdicts(judge(entry, slow, Policy(interleaved=True))) == {"fp32_step_ms": "regressed"}


def test_a_sample_of_nothing_among_others_leaves_the_test_a_ratio(entry: Entry) -> None:
    # A coarse clock may read 0 once; compared in absolute time, a machine half as fast would look like a regression.
    phases = ("step_ms", "backward_ms", "meta_ms", "optimizer_ms", "data_ms", "unattributed_ms", "fp32_step_ms")
    slow = scaled(entry, forward_ms=1.5, **dict.fromkeys(phases, 1.5))
    samples = slow.metrics["forward_ms"].samples
    assert not isinstance(samples, Absent)
    row = of(judge(entry, with_samples(slow, "forward_ms", ((0.0, *samples[0][1:]), *samples[1:]))), "forward_ms")
    assert row.verdict is Verdict.OK
    assert "divided by the FP32 step" in row.reason


def test_a_machine_whose_fp32_step_varies_widely_does_not_make_unchanged_code_inconclusive(entry: Entry) -> None:
    speeds = (1.0, 1.9, 0.7)

    def at_speeds(value: float) -> tuple[tuple[float, ...], ...]:
        return tuple((value * speed, 1.01 * value * speed, 0.99 * value * speed) for speed in speeds)

    before = with_samples(with_samples(entry, "fp32_step_ms", at_speeds(20.0)), "step_ms", at_speeds(100.0))
    after = with_samples(with_samples(entry, "fp32_step_ms", at_speeds(20.2)), "step_ms", at_speeds(101.0))
    rows = judge(before, after, Policy(interleaved=True))
    assert (of(rows, "step_ms").verdict, of(rows, "fp32_step_ms").verdict) == (Verdict.OK, Verdict.OK)
