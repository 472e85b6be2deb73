"""Samples of one side of a comparison by process: their medians, how far processes and their parts differ.

A process during which something else took the machine may last twice as long against its own FP32 steps. It stands
alone then, apart from all others of both sides, and is set aside; what stands where the other side's processes do may
be a second state of the machine, and stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.gating.metrics import Threshold
from bench.stats import resampled_medians

CHUNKS = 4  # parts of a process whose medians show how far it wanders
_MIN_CHUNK = 3  # samples in a part
_MOST_DRAWN = 1_000_000  # numbers per side and resampling: longer recordings are drawn less often
_LEAST_RESAMPLES = 200
Numbers = Sequence[float] | np.ndarray
_TINY = 1e-12
_FEWEST = 4  # processes of a side, of which one may be told from the others
_STRAY = 5.0  # standard deviations off both sides' medians
_NORMAL = 1.4826  # a normal's standard deviation over its median absolute deviation


class Repeats:
    """Samples of one metric in time order, one array per process, and those that divide them, e.g. FP32 steps."""

    def __init__(self, samples: Sequence[Numbers], yardstick: Sequence[Numbers] | None = None) -> None:
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
        return _median(np.concatenate(self.samples))

    @cached_property
    def log_median(self) -> float:
        """Logarithm of the median of all samples, each over its own process's yardstick.

        Medians of all samples and of all yardsticks may come from different processes: where the machine changes its
        speed between them, their quotient is of no process at all.
        """
        return _log(_median(np.concatenate(_over_medians(self.samples, self.yardstick))))

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
        # The median over processes, so that one restless process says nothing of the others; see `usual_variance`.
        return float(np.median(variances)) / _median_over_mean(CHUNKS - 1) / CHUNKS if variances else 0.0

    def without(self, places: np.ndarray) -> Repeats:
        """The processes that are not at these places of a (P,) mask."""
        kept = [number for number, is_left_out in enumerate(places) if not is_left_out]
        yardstick = None if self.yardstick is None else [self.yardstick[number] for number in kept]
        return Repeats([self.samples[number] for number in kept], yardstick)

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
        samples = _over_medians(self.samples, self.yardstick)
        logs = np.log(np.maximum(resampled_medians(samples, picks, starts), _TINY))
        if self.yardstick is not None:
            divisors = _over_medians(self.yardstick, self.yardstick)
            logs -= np.log(np.maximum(resampled_medians(divisors, picks, starts), _TINY))
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
    known = [spread.variance / _median_over_mean(spread.df) for spread in spreads if spread.df]
    return float(np.median(known)) if len(known) > 1 else 0.0


def set_strays_aside(candidate: Repeats, baseline: Repeats, threshold: Threshold) -> tuple[Repeats, Repeats]:
    """Leave out single processes that stand far from all others of both sides.

    Args:
        candidate: one side.
        baseline: the other.
        threshold: how far processes are expected to spread, at least.

    Returns:
        Both sides without processes further than five standard deviations from the medians of both, fewer than half of
        a side's; the standard deviation is the expected one or, if larger, a robust one of these processes.
    """
    sides = (candidate, baseline)
    if min(len(side.samples) for side in sides) < _FEWEST:
        return sides
    middles = [_median(side.process_logs) for side in sides]
    residuals = np.concatenate(
        [_residuals(side.process_logs, middle) for side, middle in zip(sides, middles, strict=True)]
    )
    scale = max(threshold.process_shift_pct / 100, _NORMAL * _median(residuals))
    kept = []
    for side in sides:
        strays = np.min([np.abs(side.process_logs - middle) for middle in middles], axis=0) > _STRAY * scale
        kept.append(side.without(strays) if 0 < strays.sum() < len(strays) / 2 else side)
    return kept[0], kept[1]


def _median_over_mean(df: int) -> float:
    """Of chi-square: Wilson and Hilferty 1931."""
    return (1 - 2 / (9 * df)) ** 3


def _residuals(logs: np.ndarray, middle: float) -> np.ndarray:
    """Distances from a side's median; of an odd count one is that median itself and tells nothing."""
    distances = np.sort(np.abs(logs - middle))
    return distances[len(logs) % 2 :]


def _over_medians(repeats: list[np.ndarray], yardstick: list[np.ndarray] | None) -> list[np.ndarray]:
    """Samples of each process over the median of its yardstick."""
    if yardstick is None:
        return repeats
    return [repeat / max(_median(divisor), _TINY) for repeat, divisor in zip(repeats, yardstick, strict=True)]


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
