from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from bench.gating import Policy, Repeats, Threshold, ratio_test
from bench.gating.decide import holm
from bench.gating.repeats import Spread, usual_variance

THRESHOLD = Threshold(limit=5.0, judged_by="ratio", process_shift_pct=1.0)
TOGETHER = Policy(interleaved=True)


def noise(seed: int, *, processes: int = 3, middle: float = 100.0) -> list[list[float]]:
    """Steps of 100 ms with 1 % of noise and 1 % of shift between processes."""
    rng = np.random.default_rng(seed)
    shifts = np.exp(rng.normal(0, 0.01, processes))
    return [list(middle * shift * np.exp(rng.normal(0, 0.01, 24))) for shift in shifts]


def scaled(samples: list[list[float]], factor: float) -> list[list[float]]:
    return [[value * factor for value in repeat] for repeat in samples]


def test_equal_samples_have_no_change_and_even_chances() -> None:
    test = ratio_test(Repeats(noise(0)), Repeats(noise(0)), THRESHOLD, TOGETHER)
    assert test.same_samples
    assert (test.change_pct, test.p_worse, test.p_better) == (0.0, 0.5, 0.5)


def test_the_change_is_that_of_the_medians_and_the_interval_holds_it() -> None:
    test = ratio_test(Repeats(scaled(noise(0), 1.2)), Repeats(noise(0)), THRESHOLD, TOGETHER)
    assert test.change_pct == pytest.approx(20.0)
    assert test.process_change_pct == pytest.approx(20.0)
    assert test.low_pct < 20.0 < test.high_pct
    assert test.p_worse < 1e-6
    assert test.p_worse + test.p_better == pytest.approx(1.0)


def test_a_worked_case_gives_the_moderated_t() -> None:
    # One sample a process: own logs 0, 0.02, 0.04 against 0, 0, 0: own variance (0.0008 + 0) / 4, expected 0.0001.
    candidate = Repeats([[math.exp(0.0)], [math.exp(0.02)], [math.exp(0.04)]])
    policy = dataclasses.replace(TOGETHER, prior_df=8, resample_all=False)
    test = ratio_test(candidate, Repeats([[1.0]] * 3), THRESHOLD, policy)
    variance = (8 * 0.0001 + 4 * 0.0002) / 12
    assert test.df == 12
    assert test.own_spread_pct == pytest.approx(100 * math.sqrt(0.0002))
    assert test.error_pct == pytest.approx(100 * math.sqrt(variance * 2 / 3))
    reach = 2.178813 * math.sqrt(variance * 2 / 3)  # Student's t of 12 degrees at 97.5 %, from a table
    assert test.high_pct == pytest.approx(100 * math.expm1(0.02 + reach), rel=1e-5)


def test_what_divides_takes_the_machines_speed_out() -> None:
    slow = [scaled(noise(0), 1.5), scaled(noise(1, middle=20.0), 1.5)]
    test = ratio_test(Repeats(*slow), Repeats(noise(0), noise(1, middle=20.0)), THRESHOLD, TOGETHER)
    assert test.change_pct == pytest.approx(0.0, abs=1e-9)
    absolute = ratio_test(Repeats(slow[0]), Repeats(noise(0)), THRESHOLD, TOGETHER)
    assert absolute.change_pct == pytest.approx(50.0)


def test_shifts_between_processes_widen_the_interval_however_many_samples_there_are() -> None:
    def width(shifts: tuple[float, ...]) -> float:
        sides = [Repeats([[100 * shift + 0.01 * step for step in range(400)] for shift in shifts]) for _ in range(2)]
        test = ratio_test(*sides, THRESHOLD, TOGETHER)
        return test.high_pct - test.low_pct

    assert width((1.0, 1.1, 1.2)) > 3 * width((1.0, 1.0, 1.0))


def test_a_clock_that_wanders_within_processes_counts_though_their_medians_agree() -> None:
    steady = [[100.0 + index % 2 for index in range(24)]] * 3
    wandering = [[90.0 if index < 12 else 112.0 for index in range(24)]] * 3
    narrow = ratio_test(Repeats(steady), Repeats(steady), THRESHOLD, TOGETHER)
    wide = ratio_test(Repeats(wandering), Repeats(wandering), THRESHOLD, TOGETHER)
    assert wide.expected_spread_pct > 3 * narrow.expected_spread_pct


def test_one_odd_process_does_not_decide_alone() -> None:
    odd = noise(0)
    odd[0] = [value * 1.5 for value in odd[0]]
    test = ratio_test(Repeats(odd), Repeats(noise(0)), THRESHOLD, TOGETHER)
    assert test.process_change_pct > 10
    assert test.nearer_pct < test.process_change_pct
    assert test.p_worse > 0.01


def test_runs_recorded_apart_carry_the_shift_between_days() -> None:
    threshold = dataclasses.replace(THRESHOLD, session_shift_pct=3.0)
    sides = Repeats(noise(0)), Repeats(noise(1))
    apart = ratio_test(*sides, threshold, Policy())
    together = ratio_test(*sides, threshold, TOGETHER)
    assert apart.error_pct**2 - together.error_pct**2 == pytest.approx(2 * 3.0**2)


def test_the_bootstrap_only_widens_and_is_drawn_where_the_verdict_needs_it() -> None:
    lazy = dataclasses.replace(TOGETHER, resample_all=False)
    near, far = Repeats(noise(1)), Repeats(scaled(noise(1), 1.3))
    assert ratio_test(near, Repeats(noise(0)), THRESHOLD, lazy).bootstrap_error_pct is None
    # Within its threshold, yet so sure that it stands before others in Holm's correction: its chance is the whole one.
    base, small = noise(0, processes=8), scaled(noise(1, processes=8), 1.04)
    sure = ratio_test(Repeats(small), Repeats(base), THRESHOLD, lazy)
    assert sure.nearer_pct < THRESHOLD.limit
    assert sure == ratio_test(Repeats(small), Repeats(base), THRESHOLD, TOGETHER)
    drawn = ratio_test(far, Repeats(noise(0)), THRESHOLD, lazy)
    assert drawn == ratio_test(far, Repeats(noise(0)), THRESHOLD, TOGETHER)
    assert drawn.bootstrap_error_pct is not None
    assert drawn.error_pct >= drawn.bootstrap_error_pct


def test_the_usual_variance_is_the_cells_median_and_one_odd_cell_does_not_raise_it() -> None:
    spreads = [Spread(variance=1e-4, df=4)] * 5
    usual = usual_variance(spreads)
    assert usual == pytest.approx(1e-4 / (1 - 2 / 36) ** 3)
    assert usual_variance([*spreads, Spread(variance=1.0, df=4)]) == pytest.approx(usual)
    assert usual_variance(spreads[:1]) == 0.0


def test_holms_correction_matches_a_worked_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def with_speeds(samples: list[list[float]], speeds: list[float]) -> list[list[float]]:
    return [[value * speed for value in repeat] for repeat, speed in zip(samples, speeds, strict=True)]


def test_a_machine_that_changes_its_speed_between_processes_changes_no_ratio() -> None:
    # Both sides met the slow machine, the candidate once more often: 10 % slower code must still read as that.
    ours, theirs = [1.0, 1.4, 1.4, 1.4], [1.0, 1.0, 1.4, 1.4]
    steps, fp32 = noise(0, processes=4), noise(1, processes=4, middle=20.0)
    slower_steps = [[value * 1.1 for value in repeat] for repeat in noise(2, processes=4)]
    candidate = Repeats(with_speeds(slower_steps, ours), with_speeds(noise(3, processes=4, middle=20.0), ours))
    baseline = Repeats(with_speeds(steps, theirs), with_speeds(fp32, theirs))
    test = ratio_test(candidate, baseline, THRESHOLD, TOGETHER)
    assert test.change_pct == pytest.approx(10.0, abs=1.5)
    assert test.process_change_pct == pytest.approx(10.0, abs=1.5)
    assert test.bootstrap_error_pct is not None
    assert test.bootstrap_error_pct < 2
    assert test.p_worse < 1e-4


@pytest.mark.parametrize("side", ["candidate", "baseline"])
def test_a_process_that_stands_alone_is_set_aside_and_blinds_nothing(side: str) -> None:
    slow, base = scaled(noise(0, processes=4), 1.1), noise(1, processes=4)
    struck = slow if side == "candidate" else base
    struck[2] = [value * 2.5 for value in struck[2]]
    test = ratio_test(Repeats(slow), Repeats(base), THRESHOLD, TOGETHER)
    assert test.num_strays == ((1, 0) if side == "candidate" else (0, 1))
    assert test.change_pct == pytest.approx(10.0, abs=1.5)
    assert test.p_worse < 1e-4


def test_a_second_state_that_both_sides_know_is_not_set_aside() -> None:
    # Three of four processes in the slow state against one of four: chance may deal them so, and no code changed.
    ours, theirs = (
        with_speeds(noise(0, processes=4), [1, 1.1, 1.1, 1.1]),
        with_speeds(noise(1, processes=4), [1, 1, 1, 1.1]),
    )
    test = ratio_test(Repeats(ours), Repeats(theirs), THRESHOLD, TOGETHER)
    assert test.num_strays == (0, 0)
    assert test.p_worse > 0.01


def test_of_three_processes_none_is_set_aside() -> None:
    odd = noise(0)
    odd[0] = [value * 2.5 for value in odd[0]]
    assert ratio_test(Repeats(odd), Repeats(noise(1)), THRESHOLD, TOGETHER).num_strays == (0, 0)
