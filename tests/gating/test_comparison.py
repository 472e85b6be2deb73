from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bench.gating import Comparison, Policy, Verdict, compare
from bench.records.entry import Entry, Metric

SHARES = {"step_ms": 1.0, "forward_ms": 0.3, "backward_ms": 0.5, "meta_ms": 0.2}


def cell(name: str, seed: int, *, memory: int = 10**8, **factors: float) -> Entry:
    """A cell of 100 ms a step with its noise, each named phase or the step slower by a factor."""
    rng = np.random.default_rng(seed)
    machine, process = np.exp(rng.normal(0, 0.05, 3)), np.exp(rng.normal(0, 0.01, 3))
    step = sum(SHARES[phase] * factors.get(phase, 1.0) for phase in SHARES if phase != "step_ms")
    levels = {phase: 100 * share * factors.get(phase, 1.0) for phase, share in SHARES.items()}
    levels["step_ms"] = 100 * step

    def noisy(level: float) -> tuple[float, ...]:
        return tuple(level * np.exp(rng.normal(0, 0.015, 24)))

    metrics = {
        phase: Metric(samples=tuple(noisy(level * m * p) for m, p in zip(machine, process, strict=True)))
        for phase, level in levels.items()
    }
    metrics["fp32_step_ms"] = Metric(samples=tuple(noisy(20 * m) for m in machine))
    metrics["peak_allocated_bytes"] = Metric(samples=((memory,),))
    return Entry(
        suite="s", variant=name, model="m", data="d", seed=0, config_digest=f"digest-{name}", fingerprint="cpu-0",
        status="ok", reason="", throttled_set_aside=0, throttled_kept=0, code_version="1", started_at="",
        environment={}, config={"variant_name": name}, metrics=metrics,
    )  # fmt: skip


def found(comparison: Comparison) -> set[tuple[str, str]]:
    return {(row.metric, row.verdict.value) for row in comparison.rows if row.verdict is not Verdict.OK}


def test_unchanged_code_on_a_machine_of_changing_speed_is_ok() -> None:
    baseline, candidate = ([cell(f"c{number}", start + number) for number in range(8)] for start in (0, 100))
    assert found(compare(candidate, baseline, Policy(interleaved=True))) == set()
    assert found(compare(candidate, baseline)) == set()


def test_a_tenth_more_is_found_where_it_is() -> None:
    baseline = [cell(f"c{number}", number) for number in range(8)]
    candidate = [cell(f"c{number}", 100 + number, backward_ms=1.2 if number == 3 else 1.0) for number in range(8)]
    comparison = compare(candidate, baseline, Policy(interleaved=True))
    assert found(comparison) == {("backward_ms", "regressed"), ("step_ms", "regressed")}
    assert comparison.rows[0].cell.startswith("s/c3 ")
    assert {row.config_digest for row in comparison.suspects()} == {"digest-c3"}


def test_a_hundredth_more_memory_is_found() -> None:
    comparison = compare([cell("a", 1, memory=101 * 10**6)], [cell("a", 0)], Policy(interleaved=True))
    assert found(comparison) == {("peak_allocated_bytes", "regressed")}


def test_small_steps_that_each_pass_are_found_against_the_release() -> None:
    release, accepted, now = (cell("a", seed, backward_ms=1.0 + 0.08 * seed, forward_ms=1.0) for seed in (0, 1, 2))
    policy = Policy(interleaved=True, thresholds=Policy().thresholds)
    assert not any(row.verdict is Verdict.REGRESSED for row in compare([now], [accepted], policy).rows[1:])
    rows = compare([now], [accepted], policy, release=[release]).rows
    worst = rows[0]
    assert (worst.verdict, worst.metric, worst.reference) == (Verdict.REGRESSED, "backward_ms", "release")


def test_resampling_only_what_is_beyond_its_threshold_gives_the_same_verdicts() -> None:
    baseline = [cell(f"c{number}", number) for number in range(4)]
    candidate = [cell(f"c{number}", 50 + number, backward_ms=1 + 0.05 * number) for number in range(4)]
    lazy, whole = (
        compare(candidate, baseline, Policy(interleaved=True, resample_all=everything)) for everything in (False, True)
    )
    assert {(row.cell, row.metric): row.verdict for row in lazy.rows} == {
        (row.cell, row.metric): row.verdict for row in whole.rows
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_same_arguments_give_the_same_rows(seed: int) -> None:
    sides = [cell("a", seed + 10)], [cell("a", seed)]
    comparison = compare(*sides)
    assert comparison == compare(*sides)
    assert any(row.explanation for row in comparison.rows)
    silent = compare(*sides, explain=False).rows
    assert silent == tuple(dataclasses.replace(row, explanation=()) for row in comparison.rows)
