"""One metric of one cell: the ratio of medians of two sets of processes, its interval, and how likely noise made it.

Step times within a process are autocorrelated, and processes are shifted against each other, so samples are never
counted as independent. Three processes a side give four degrees of freedom, on which no threshold for false alarms
holds without what is known beforehand; the spread between processes is therefore moderated: own spread, with its
degrees of freedom, and an expected one, with ``Policy.prior_df``, are averaged. What is expected is the largest of a
fixed figure per metric, the spread of the same metric in the comparison's other cells, and how far medians wander
within these very processes. A hierarchical bootstrap over processes and blocks of neighbouring samples bounds the
standard error from below.

Source: Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time" (ISMM 2013), for the levels; Künsch 1989 for the
blocks; Smyth 2004 (Stat. Appl. Genet. Mol. Biol. 3:3) for the moderated variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import stdtr, stdtrit

from bench.gating.metrics import Policy, Threshold
from bench.stats import resampled_medians

CHUNKS = 4  # parts of a process whose medians show how far it wanders
_MIN_CHUNK = 3  # samples in a part
_MOST_DRAWN = 1_000_000  # numbers per side and resampling: longer recordings are drawn less often
_LEAST_RESAMPLES = 200
_TINY = 1e-12


class Repeats:
    """Samples of one metric in time order, one array per process, and those that divide them, e.g. FP32 steps."""

    def __init__(self, samples: Sequence[Sequence[float]], yardstick: Sequence[Sequence[float]] | None = None) -> None:
        """Take raw samples.

        Args:
            samples: one sequence of numbers above zero per process.
            yardstick: of the same processes in the same order; none: nothing divides.
        """
        self.samples = [np.asarray(repeat, dtype=np.float64) for repeat in samples]
        self.yardstick = None if yardstick is None else [np.asarray(repeat, dtype=np.float64) for repeat in yardstick]
        assert self.samples, "a ratio needs at least one process"
        assert yardstick is None or len(yardstick) == len(samples), "the yardstick must be of the same processes"

    @cached_property
    def median(self) -> float:
        """Of all samples, in the metric's unit."""
        return float(np.median(np.concatenate(self.samples)))

    @cached_property
    def log_median(self) -> float:
        """Logarithm of the median of all samples, over that of the yardstick."""
        divisor = 0.0 if self.yardstick is None else _log(float(np.median(np.concatenate(self.yardstick))))
        return _log(self.median) - divisor

    @cached_property
    def process_logs(self) -> np.ndarray:
        """(P,) the same of each process."""
        logs = np.array([_log(_median(repeat)) for repeat in self.samples])
        return logs if self.yardstick is None else logs - [_log(_median(repeat)) for repeat in self.yardstick]

    @cached_property
    def wander_variance(self) -> float:
        """Variance expected of a process's log median, from how its quarters differ; 0 where samples are too few.

        Quarters are taken as independent of each other: what they share is a shift of the whole process, which the
        spread between processes shows.
        """
        variances = []
        for number, repeat in enumerate(self.samples):
            logs = _chunk_logs(repeat)
            if self.yardstick is not None and logs is not None:
                divisors = _chunk_logs(self.yardstick[number])
                logs = None if divisors is None else logs - divisors
            if logs is not None:
                variances.append(float(logs.var(ddof=1)))
        return sum(variances) / len(variances) / CHUNKS if variances else 0.0

    def same_as(self, other: Repeats) -> bool:
        """Whether both hold the very same numbers."""
        return _equal(self.samples, other.samples) and (
            self.yardstick is other.yardstick is None
            or (self.yardstick is not None and other.yardstick is not None and _equal(self.yardstick, other.yardstick))
        )

    def bootstrap_variance(self, rng: np.random.Generator, resamples: int) -> float:
        """Variance of the log median when processes, then blocks within them, are drawn anew."""
        count = len(self.samples)
        series = [*self.samples, *(self.yardstick or ())]
        longest = max(map(len, series))
        resamples = max(min(resamples, _MOST_DRAWN // (longest * count)), min(resamples, _LEAST_RESAMPLES))
        picks = rng.integers(count, size=(resamples, count))
        starts = rng.random(size=(resamples, count, math.isqrt(min(map(len, series)))))
        logs = np.log(np.maximum(resampled_medians(self.samples, picks, starts), _TINY))
        if self.yardstick is not None:
            logs -= np.log(np.maximum(resampled_medians(self.yardstick, picks, starts), _TINY))
        # Drawing n processes from n leaves out 1/n of their variance.
        return float(logs.var(ddof=1)) * (count / (count - 1) if count > 1 else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Spread of a metric between the processes of one cell."""

    variance: float  # of log medians, within each side
    df: int

    @staticmethod
    def of(candidate: Repeats, baseline: Repeats) -> Spread:
        """Both sides' processes, each around its own mean."""
        sides = (candidate.process_logs, baseline.process_logs)
        df = sum(len(logs) - 1 for logs in sides)
        total = sum(float(((logs - logs.mean()) ** 2).sum()) for logs in sides)
        return Spread(variance=total / df if df else 0.0, df=df)


def usual_variance(spreads: Sequence[Spread]) -> float:
    """Variance that the cells of one comparison usually show: their median, so that one odd cell blinds no other."""
    # The median of chi-square over its mean is (1 − 2/9n)³: Wilson and Hilferty 1931.
    known = [spread.variance / (1 - 2 / (9 * spread.df)) ** 3 for spread in spreads if spread.df]
    return float(np.median(known)) if len(known) > 1 else 0.0


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
    num_processes: tuple[int, int]  # candidate, baseline
    num_samples: tuple[int, int]
    same_samples: bool


def ratio_test(
    candidate: Repeats,
    baseline: Repeats,
    threshold: Threshold,
    policy: Policy,
    *,
    usual: float = 0.0,
    resample: bool | None = None,
) -> RatioTest:
    """Test the ratio of two medians.

    Args:
        candidate: positive samples, with a yardstick or without.
        baseline: the same of the other side, in the same unit.
        threshold: what is known beforehand of the noise; its limit decides whether the bootstrap is needed.
        policy: how both were measured, resampling, degrees of freedom.
        usual: variance between processes in the comparison's cells (``usual_variance``); 0: not known.
        resample: draw the bootstrap; none: where ``policy.resample_all``, or the change is beyond its limit.

    Returns:
        Percentages of the baseline; the same arguments give the same figures.
    """
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

    if resample is None:
        resample = policy.resample_all or abs(_percent(nearer)) > threshold.limit_for(policy.interleaved)
    bootstrap = None
    if resample:
        rng = np.random.default_rng(policy.seed)
        bootstrap = sum(side.bootstrap_variance(rng, policy.resamples) for side in (candidate, baseline))
        variance = max(variance, bootstrap)
    if not policy.interleaved:
        variance += 2 * (threshold.session_shift_pct / 100) ** 2
    error = math.sqrt(variance)
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
        num_samples=(sum(map(len, candidate.samples)), sum(map(len, baseline.samples))),
        same_samples=candidate.same_as(baseline),
    )


def _tail(difference: float, error: float, df: float) -> float:
    if error == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    return float(stdtr(df, difference / error))


def _median(values: np.ndarray) -> float:
    ordered, middle = np.sort(values), len(values) // 2
    return float(ordered[middle]) if len(values) % 2 else float(ordered[middle - 1] + ordered[middle]) / 2


def _chunk_logs(values: np.ndarray) -> np.ndarray | None:
    """(CHUNKS,) log medians of consecutive parts; none where they would hold too few samples."""
    length = len(values) // CHUNKS
    if length < _MIN_CHUNK:
        return None
    ordered = np.sort(values[: length * CHUNKS].reshape(CHUNKS, length), axis=1)
    medians = (ordered[:, (length - 1) // 2] + ordered[:, length // 2]) / 2
    return np.log(np.maximum(medians, _TINY))


def _equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _log(value: float) -> float:
    return math.log(max(value, _TINY))


def _percent(log_ratio: float) -> float:
    return 100 * math.expm1(min(log_ratio, 700.0))
