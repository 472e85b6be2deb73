"""Statistics of the measurements: summaries, the interval of a ratio of step times, the interval of a mean over seeds.

Step times of one process are autocorrelated and whole processes are shifted against each other, so an interval that
takes all samples as independent is far too narrow. See docs/measuring.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr, stdtrit

from bench.records.schema import Interval, Summary
from bench.units import Absent

CONFIDENCE = 0.95
RESAMPLES = 1000


def summarize(samples: Sequence[float]) -> Summary:
    """Median and quartiles (linear interpolation), in the samples' unit.

    Args:
        samples: at least one finite number.
    """
    values = _finite(samples)
    q1, median, q3 = np.quantile(values, (0.25, 0.5, 0.75))
    return Summary(median=float(median), q1=float(q1), q3=float(q3), n=values.size)


def ratio_interval(
    numer_repeats: Sequence[Sequence[float]],
    denom_repeats: Sequence[Sequence[float]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """Ratio of two medians that were measured interleaved in the same processes, with its 95 % confidence interval.

    The hierarchical bootstrap draws processes, then circular blocks of about sqrt(n) consecutive samples inside each,
    at the same places in numerator and denominator, because both saw the same drift. With few processes it is too
    narrow when they are shifted against each other (three processes: it covered 73 % in simulation), so each side
    reaches at least as far as Student's t interval over the processes' own log ratios. One process alone has only its
    blocks, and its interval knows nothing of the shifts between processes.

    Args:
        numer_repeats: one sequence of positive samples per process, e.g. ms of the cell's steps.
        denom_repeats: as many sequences, of the same processes, in the same unit.
        seed: of the resampling; equal seeds give equal intervals.
        resamples: bootstrap replicates.

    Returns:
        Value: median of all numerator samples over median of all denominator samples.

    Source: Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time" (ISMM 2013), for the levels; Künsch 1989 for
    the blocks.
    """
    numer = [_positive(repeat) for repeat in numer_repeats]
    denom = [_positive(repeat) for repeat in denom_repeats]
    assert numer, "a ratio needs at least one repeat"
    assert len(numer) == len(denom), f"{len(numer)} repeats of the numerator against {len(denom)} of the denominator"
    num_repeats = len(numer)
    value = float(np.median(np.concatenate(numer)) / np.median(np.concatenate(denom)))

    num_blocks = math.isqrt(min(len(repeat) for repeat in (*numer, *denom)))
    numer_places, denom_places = (
        _seeded_places(tuple(map(len, side)), num_blocks, resamples, seed) for side in (numer, denom)
    )
    replicates = _medians_at(numer, numer_places) / _medians_at(denom, denom_places)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.log(replicates / value), (tail, 1 - tail))
    # Drawing n processes from n leaves out 1/n of their variance.
    shrinkage = math.sqrt(num_repeats / (num_repeats - 1)) if num_repeats > 1 else 1.0
    reach = 0.0
    if num_repeats > 1:
        reach = _student_half_width(np.log(_medians(numer) / _medians(denom)))
    low, high = min(low * shrinkage, -reach, 0.0), max(high * shrinkage, reach, 0.0)
    return Interval(value=value, low=value * math.exp(low), high=value * math.exp(high))


def median_half_width(values: Sequence[float]) -> float:
    """How far the 95 % confidence interval of a median reaches to its farther side, as a share of the median.

    Order statistics bound the interval without assuming a distribution: between the k-th smallest and the k-th largest
    value lies the median with probability 1 − 2·P(B < k), B binomial over n fair coins.

    Args:
        values: independent positive values, such as the medians of blocks of steps.

    Returns:
        The share; infinite for fewer than six values, of which no interval holds 95 %.
    """
    ordered = np.sort(_positive(values))
    rank = 0  # 0-based: the interval reaches from ordered[rank] to ordered[-1 - rank]
    tail = (1 - CONFIDENCE) / 2
    if bdtr(0, ordered.size, 0.5) > tail:
        return math.inf
    while bdtr(rank + 1, ordered.size, 0.5) <= tail:
        rank += 1
    median = float(np.median(ordered))
    return max(median - float(ordered[rank]), float(ordered[-1 - rank]) - median) / median


def mean_interval(values: Sequence[float]) -> Interval | Absent:
    """Mean of independent values, e.g. accuracies over seeds, with Student's 95 % interval.

    Returns:
        The interval in the values' unit; absent for a single value, which says nothing about its spread.
    """
    sample = _finite(values)
    if sample.size == 1:
        return Absent(reason="one value has no interval")
    mean, half_width = float(sample.mean()), _student_half_width(sample)
    return Interval(value=mean, low=mean - half_width, high=mean + half_width)


def resampled_medians(repeats: list[np.ndarray], picks: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Median of each replicate of a hierarchical bootstrap: processes drawn, then circular blocks within them.

    Args:
        repeats: samples per process.
        picks: (R, P) drawn processes.
        starts: (R, P, B) places of the drawn blocks, as shares of the process's length.

    Returns:
        (R,) float64.
    """
    return _medians_at(repeats, _places([len(repeat) for repeat in repeats], picks, starts))


@functools.lru_cache(maxsize=4)
def _seeded_places(lengths: tuple[int, ...], num_blocks: int, resamples: int, seed: int) -> np.ndarray:
    """`_places` drawn from a seed; kept, as the rows of a report mostly have as many processes and samples."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(lengths), size=(resamples, len(lengths)))
    return _places(lengths, picks, rng.random(size=(resamples, len(lengths), num_blocks)))


def _places(lengths: Sequence[int], picks: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Where each replicate's samples stand in all processes' samples, one process after another.

    Returns:
        (R, P · longest) int32; after the last place where a drawn process is shorter than the longest.
    """
    sizes = np.asarray(lengths)
    firsts = (np.cumsum(sizes) - sizes).astype(np.int32)
    if len(set(lengths)) == 1:
        return (firsts[picks][..., None] + _in_blocks(starts, lengths[0])).reshape(len(picks), -1)
    places = np.full((*picks.shape, sizes.max()), sizes.sum(), dtype=np.int32)
    for length in np.unique(sizes):
        drawn = sizes[picks] == length
        places[drawn, :length] = firsts[picks[drawn]][:, None] + _in_blocks(starts[drawn], int(length))
    return places.reshape(len(picks), -1)


def _in_blocks(starts: np.ndarray, length: int) -> np.ndarray:
    """(…, length) places of circular blocks within a process, from (…, B) shares of its length."""
    offsets = np.arange(-(-length // starts.shape[-1]), dtype=np.int32)
    places = (starts * length).astype(np.int32)[..., None] + offsets
    places -= (places >= length) * np.int32(length)  # at most once around; a third of what a remainder takes
    return places.reshape(*starts.shape[:-1], -1)[..., :length]


def _medians_at(repeats: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
    """(R,) medians of the samples at the places; sorted as ranks, which are narrower than float64 and so faster."""
    samples = np.concatenate(repeats)
    order = np.argsort(samples, kind="stable")
    ranks = np.empty(samples.size + 1, dtype=np.uint16 if samples.size < 2**16 else np.uint32)
    ranks[order] = np.arange(samples.size)
    ranks[samples.size] = samples.size  # nothing drawn: behind every sample
    drawn = np.sort(ranks[places], axis=1)
    ordered = samples[order]
    if drawn[:, -1].max() < samples.size:  # all processes are of one length
        middles = (drawn.shape[1] - 1) // 2, drawn.shape[1] // 2
        return (ordered[drawn[:, middles[0]]] + ordered[drawn[:, middles[1]]]) / 2
    counts, each = np.count_nonzero(drawn < samples.size, axis=1), np.arange(len(drawn))
    return (ordered[drawn[each, (counts - 1) // 2]] + ordered[drawn[each, counts // 2]]) / 2


def _medians(repeats: Sequence[np.ndarray]) -> np.ndarray:
    """(P,) median of each process."""
    if len({len(repeat) for repeat in repeats}) == 1:
        return np.median(np.stack(repeats), axis=1)
    return np.array([np.median(repeat) for repeat in repeats])


def _student_half_width(values: np.ndarray) -> float:
    """Half width of Student's interval around the mean of at least two values."""
    spread = float(values.std(ddof=1)) / math.sqrt(values.size)
    return float(stdtrit(values.size - 1, (1 + CONFIDENCE) / 2)) * spread


def _finite(samples: Sequence[float]) -> np.ndarray:
    values = np.asarray(samples, dtype=np.float64)
    assert values.ndim == 1, f"samples must be a flat sequence, not of shape {values.shape}"
    assert values.size, "no samples"
    assert np.isfinite(values).all(), "samples must be finite"
    return values


def _positive(samples: Sequence[float]) -> np.ndarray:
    values = _finite(samples)
    assert (values > 0).all(), "samples of a ratio must be positive"
    return values
