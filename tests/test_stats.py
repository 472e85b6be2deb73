from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.records.schema import Interval, Summary
from bench.stats import mean_interval, median_half_width, ratio_interval, resampled_medians, summarize
from bench.units import Absent

positive = st.floats(min_value=1e-3, max_value=1e6)
repeats = st.lists(st.lists(positive, min_size=1, max_size=12), min_size=1, max_size=4)


def autocorrelated(rng: np.random.Generator, *, processes: int, steps: int, sd: float, rho: float) -> np.ndarray:
    noise = rng.standard_normal((processes, steps)) * sd
    for step in range(1, steps):
        noise[:, step] = rho * noise[:, step - 1] + math.sqrt(1 - rho**2) * noise[:, step]
    return noise


def test_a_summary_is_median_and_quartiles() -> None:
    assert summarize([5.0, 1.0, 3.0, 2.0, 4.0]) == Summary(median=3.0, q1=2.0, q3=4.0, n=5)
    assert summarize([1.0, 2.0]) == Summary(median=1.5, q1=1.25, q3=1.75, n=2)
    assert summarize([7]) == Summary(median=7.0, q1=7.0, q3=7.0, n=1)


@pytest.mark.parametrize("samples", [[], [math.nan], [1.0, math.inf], [[1.0], [2.0]]])
def test_a_summary_of_what_is_no_sample_is_a_programming_error(samples: list) -> None:
    with pytest.raises(AssertionError, match="samples"):
        summarize(samples)


def test_the_mean_of_known_values_has_students_interval() -> None:
    # t(0.975, 2) = 4.302653; mean 96, standard deviation 1, so 4.302653 / sqrt(3) = 2.484138 on each side.
    interval = mean_interval([95.0, 96.0, 97.0])
    assert isinstance(interval, Interval)
    assert interval.value == 96.0
    assert interval.low == pytest.approx(96 - 2.484138, abs=1e-6)
    assert interval.high == pytest.approx(96 + 2.484138, abs=1e-6)
    assert mean_interval([2.0, 2.0]) == Interval(value=2.0, low=2.0, high=2.0)


def test_one_seed_has_no_interval() -> None:
    assert isinstance(mean_interval([95.0]), Absent)


def test_a_ratio_without_noise_is_exact() -> None:
    assert ratio_interval([[6.0] * 5, [6.0] * 4], [[2.0] * 3, [2.0] * 7], seed=0) == Interval(value=3, low=3, high=3)
    assert ratio_interval([[1.5]], [[1.0]], seed=0) == Interval(value=1.5, low=1.5, high=1.5)


@pytest.mark.parametrize("lengths", [(9, 9, 9), (7, 12, 1, 12)])
def test_a_replicates_median_is_that_of_the_samples_drawn_one_by_one(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    samples = [np.round(rng.lognormal(size=length), 1) for length in lengths]  # rounded: some are equal
    picks = rng.integers(len(lengths), size=(20, len(lengths)))
    starts = rng.random(size=(20, len(lengths), 2))

    def drawn(process: int, places: np.ndarray) -> list[float]:
        repeat, length = samples[process], lengths[process]
        block = math.ceil(length / len(places))
        taken = [repeat[(int(place * length) + step) % length] for place in places for step in range(block)]
        return taken[:length]

    expected = [
        float(np.median([v for process, places in zip(*line, strict=True) for v in drawn(process, places)]))
        for line in zip(picks, starts, strict=True)
    ]
    assert resampled_medians(samples, picks, starts).tolist() == expected


def test_the_value_is_the_ratio_of_the_medians_that_a_report_shows() -> None:
    numer, denom = [[100.0, 110.0, 90.0], [120.0]], [[10.0, 11.0], [30.0, 9.0, 8.0]]
    interval = ratio_interval(numer, denom, seed=0)
    assert interval.value == summarize([90, 100, 110, 120]).median / summarize([8, 9, 10, 11, 30]).median
    assert interval.low < interval.value < interval.high


@settings(max_examples=40, deadline=None)
@given(numer=repeats, seed=st.integers(0, 2**32), factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_a_ratio_against_itself_is_one_and_follows_a_change_of_unit(
    numer: list[list[float]], seed: int, factor: float
) -> None:
    assert ratio_interval(numer, numer, seed=seed, resamples=50) == Interval(value=1, low=1, high=1)
    denom = [[1.0 + index / 8 for index in range(len(repeat))] for repeat in numer]
    interval = ratio_interval(numer, denom, seed=seed, resamples=50)
    scaled = ratio_interval([[x * factor for x in repeat] for repeat in numer], denom, seed=seed, resamples=50)
    assert interval.low <= interval.value <= interval.high
    assert (scaled.low, scaled.value, scaled.high) == pytest.approx(
        (interval.low * factor, interval.value * factor, interval.high * factor)
    )


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    numer, denom = rng.lognormal(1, 0.1, (1, 40)), rng.lognormal(0, 0.1, (1, 40))
    assert ratio_interval(numer, denom, seed=1) == ratio_interval(numer, denom, seed=1)
    assert ratio_interval(numer, denom, seed=1) != ratio_interval(numer, denom, seed=2)


def test_a_shift_that_both_share_does_not_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.01, (2, 3, 60))
    shared = np.array([[1.0], [1.3], [0.8]])
    calm = ratio_interval(5 * noise[0], noise[1], seed=0)
    shifted = ratio_interval(5 * noise[0] * shared, noise[1] * shared, seed=0)
    apart = ratio_interval(5 * noise[0] * shared, noise[1], seed=0)
    assert math.log(shifted.high / shifted.low) < 4 * math.log(calm.high / calm.low)
    assert math.log(apart.high / apart.low) > 10 * math.log(shifted.high / shifted.low)


@pytest.mark.parametrize(
    ("numer", "denom"), [([], []), ([[1.0]], [[1.0], [1.0]]), ([[1.0], []], [[1.0], [1.0]]), ([[0.0]], [[1.0]])]
)
def test_what_makes_no_ratio_is_a_programming_error(numer: list, denom: list) -> None:
    with pytest.raises(AssertionError):
        ratio_interval(numer, denom, seed=0)


@pytest.mark.parametrize(
    ("shift_sd", "noise_sd", "rho"),
    [(0.0, 0.03, 0.0), (0.0, 0.03, 0.8), (0.02, 0.03, 0.5), (0.05, 0.03, 0.0)],
    ids=["independent", "autocorrelated", "shifted and autocorrelated", "mostly shifts"],
)
def test_the_interval_covers_the_true_ratio(shift_sd: float, noise_sd: float, rho: float) -> None:
    rng, truth, trials, covered = np.random.default_rng(7), 5.0, 200, 0
    for trial in range(trials):
        shifts = rng.standard_normal((3, 1)) * shift_sd
        numer = truth * np.exp(shifts + autocorrelated(rng, processes=3, steps=60, sd=noise_sd, rho=rho))
        denom = np.exp(autocorrelated(rng, processes=3, steps=60, sd=noise_sd, rho=rho))
        interval = ratio_interval(numer, denom, seed=trial, resamples=200)
        covered += interval.low <= truth <= interval.high
    # 95 % nominal; binomial noise of 200 trials is 1.5 points.
    assert covered / trials >= 0.92


def test_the_interval_is_narrow_enough_to_see_a_tenth() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for trial in range(50):
        numer, denom = np.exp(rng.standard_normal((2, 3, 60)) * 0.05)
        interval = ratio_interval(1.1 * numer, denom, seed=trial)
        widths.append(interval.high / interval.low)
    assert np.median(widths) < 1.1


@pytest.mark.parametrize(
    ("count", "lowest"),  # ranks as in tables of distribution-free 95 % intervals of a median
    [(6, 1), (8, 1), (9, 2), (20, 6), (50, 18)],
)
def test_a_medians_interval_lies_between_the_ranks_that_the_tables_give(count: int, lowest: int) -> None:
    values = [float(value) for value in range(101, 101 + count)]
    median = 101 + (count - 1) / 2
    assert median_half_width(values[::-1]) == pytest.approx((median - (100 + lowest)) / median)


def test_fewer_than_six_values_have_no_interval_of_their_median() -> None:
    assert median_half_width([1.0, 1.0, 1.0, 1.0, 1.0]) == float("inf")
    assert median_half_width([2.0] * 6) == 0.0
