"""One metric of one cell: the ratio of medians of two sets of processes, its interval, and how likely noise made it.

Step times within a process are autocorrelated, and processes are shifted against each other, so samples are never
counted as independent. Three processes a side give four degrees of freedom, on which no threshold for false alarms
holds without what is known beforehand; the spread between processes is therefore moderated: own spread, with its
degrees of freedom, and an expected one, with ``Policy.prior_df``, are averaged. What is expected is the largest of a
fixed figure per metric, the median spread of the same metric over the comparison's cells, its own among them, and how
far medians wander within these very processes. Processes that stand alone are set aside before. A hierarchical
bootstrap over processes and blocks of neighbouring samples bounds the standard error from below.

Source: Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time" (ISMM 2013), for the levels; Künsch 1989 for the
blocks; Smyth 2004 (Stat. Appl. Genet. Mol. Biol. 3:3) for the moderated variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from bench.gating.metrics import Policy, Threshold
from bench.gating.repeats import Repeats, Spread, set_strays_aside


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioTest:
    """A candidate's median over a baseline's: the change, its interval and what noise could do."""

    change_pct: float  # of the ratio of medians
    process_change_pct: float  # of the mean over processes, which one process or clock mode does not turn over
    nearer_pct: float  # of the two the one nearer to no change: it decides
    low_pct: float  # 95 % interval around `change_pct`
    high_pct: float
    p_worse: float  # how often noise alone would raise the ratio so far
    p_better: float  # would lower it
    process_spread_pct: float  # standard deviation between processes that was reckoned with
    own_spread_pct: float  # that these processes showed
    expected_spread_pct: float  # that was expected
    bootstrap_error_pct: float | None  # standard error by the bootstrap; None: not drawn, the verdict needs none
    error_pct: float  # standard error of the change that was reckoned with
    df: float  # of Student's t
    num_processes: tuple[int, int]  # candidate, baseline; without those set aside
    num_strays: tuple[int, int]  # processes that stood alone and were set aside
    num_samples: tuple[int, int]
    medians: tuple[float, float]  # of these samples, in the metric's unit
    same_samples: bool


def ratio_test(
    candidate: Repeats,
    baseline: Repeats,
    threshold: Threshold,
    policy: Policy,
    *,
    usual: float = 0.0,
) -> RatioTest:
    """Test the ratio of two medians.

    Args:
        candidate: positive samples, with a yardstick or without.
        baseline: the same of the other side, in the same unit.
        threshold: what is known beforehand of the noise; its limit decides whether the bootstrap is needed.
        policy: how both were measured, resampling, degrees of freedom.
        usual: variance between processes over the comparison's cells, this one too (``usual_variance``); 0: not known.

    Returns:
        Percentages of the baseline; the same arguments give the same figures.
    """
    given, same = (len(candidate.samples), len(baseline.samples)), candidate.same_as(baseline)
    candidate, baseline = set_strays_aside(candidate, baseline, threshold)
    pooled = candidate.log_median - baseline.log_median
    mean = float(candidate.process_logs.mean() - baseline.process_logs.mean())
    nearer = min(pooled, mean, key=abs) if pooled * mean > 0 else 0.0
    spread = Spread.of(candidate, baseline)
    wander = (candidate.wander_variance + baseline.wander_variance) / 2
    expected = max((threshold.process_shift_pct / 100) ** 2, usual, wander)
    df = policy.prior_df + spread.df
    moderated = (policy.prior_df * expected + spread.df * spread.variance) / df
    counts = len(candidate.samples), len(baseline.samples)
    variance = moderated * (1 / counts[0] + 1 / counts[1])

    shift = 0.0 if policy.interleaved else 2 * (threshold.session_shift_pct / 100) ** 2
    beyond = abs(_percent(nearer)) > threshold.limit_for(policy.interleaved)
    # The bootstrap has a say only in a change beyond its limit or by a small chance: it raises a chance, and one above
    # alpha stays there and eases no other row's correction.
    bootstrap = None
    if policy.resample_all or beyond or _tail(-abs(nearer), math.sqrt(variance + shift), df) <= policy.alpha:
        rng = np.random.default_rng(policy.seed)
        bootstrap = sum(side.bootstrap_variance(rng, policy.resamples) for side in (candidate, baseline))
        variance = max(variance, bootstrap)
    error = math.sqrt(variance + shift)
    reach = float(stdtrit(df, 0.975)) * error
    return RatioTest(
        change_pct=_percent(pooled),
        process_change_pct=_percent(mean),
        nearer_pct=_percent(nearer),
        low_pct=_percent(pooled - reach),
        high_pct=_percent(pooled + reach),
        p_worse=_tail(-nearer, error, df),
        p_better=_tail(nearer, error, df),
        process_spread_pct=100 * math.sqrt(moderated),
        own_spread_pct=100 * math.sqrt(spread.variance),
        expected_spread_pct=100 * math.sqrt(expected),
        bootstrap_error_pct=None if bootstrap is None else 100 * math.sqrt(bootstrap),
        error_pct=100 * error,
        df=df,
        num_processes=counts,
        num_strays=(given[0] - counts[0], given[1] - counts[1]),
        num_samples=(sum(map(len, candidate.samples)), sum(map(len, baseline.samples))),
        medians=(candidate.median, baseline.median),
        same_samples=same,
    )


def _tail(difference: float, error: float, df: float) -> float:
    if error == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    return float(stdtr(df, difference / error))


def _percent(log_ratio: float) -> float:
    return 100 * math.expm1(min(log_ratio, 700.0))
