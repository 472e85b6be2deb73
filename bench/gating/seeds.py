"""Accuracy: judged over the seeds of a cell, by an interval, since one training more or less says little."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from bench.gating.decide import median, show_df
from bench.gating.matching import Pair, cell_key
from bench.gating.metrics import Policy, Threshold
from bench.gating.verdicts import Reference, Row, Verdict
from bench.records.entry import Entry
from bench.units import Absent, plural


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedGroup:
    """One cell with all seeds that both sides measured."""

    row: Row  # as far as it is known
    threshold: Threshold
    seeds: tuple[int, ...]
    candidate: tuple[float, ...]  # one value per seed
    baseline: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedTest:
    """Difference of means over seeds, in the metric's unit."""

    change: float
    low: float  # 95 % interval
    high: float
    p_worse: float
    p_better: float
    spread: float  # standard deviation between seeds that was reckoned with
    df: float


def group_seeds(pairs: Sequence[Pair], reference: Reference, policy: Policy) -> list[SeedGroup]:
    """Gather the values of every metric that is judged over seeds, by cell without its seed."""
    found: dict[tuple[str, str, str], list[tuple[Entry, float, float]]] = collections.defaultdict(list)
    for pair in pairs:
        candidate, baseline = pair.candidate, pair.baseline
        assert candidate is not None, "a compared pair has both sides"
        assert baseline is not None, "a compared pair has both sides"
        for name, metric in candidate.metrics.items():
            threshold = policy.threshold_of(name)
            other = baseline.metrics.get(name)
            if threshold is None or threshold.judged_by != "seeds" or other is None:
                continue
            if isinstance(metric.samples, Absent) or isinstance(other.samples, Absent):
                continue
            key = (name, _without_seed(candidate), candidate.fingerprint)
            found[key].append((candidate, median(metric.samples), median(other.samples)))
    return [_group(name, members, reference, policy) for (name, _, _), members in found.items()]


def seed_test(group: SeedGroup, policy: Policy) -> SeedTest:
    """Test the difference of means; equal seeds see equal data, so that the spread is that of the differences.

    Few seeds say little of their spread: as for times, it is averaged with what is known beforehand
    (``Threshold.process_shift_pct`` of one side, counting for ``Policy.prior_df`` degrees of freedom).
    """
    gains = np.subtract(group.candidate, group.baseline)
    change, count = float(gains.mean()), len(gains)
    own = float(gains.var(ddof=1)) if count > 1 else 0.0
    df = policy.prior_df + count - 1
    spread = math.sqrt((policy.prior_df * 2 * group.threshold.process_shift_pct**2 + (count - 1) * own) / df)
    error = spread / math.sqrt(count)
    reach = float(stdtrit(df, 0.975)) * error
    upward = float(stdtr(df, -change / error)) if error else 0.5 if change == 0 else float(change < 0)
    worse, better = (1 - upward, upward)
    if group.threshold.lower_is_better:
        worse, better = better, worse
    return SeedTest(
        change=change, low=change - reach, high=change + reach, p_worse=worse, p_better=better, spread=spread, df=df
    )


def decide_seeds(
    group: SeedGroup, test: SeedTest, corrected_worse: float, corrected_better: float, num_tests: int, policy: Policy
) -> Row:
    """Judge a mean over seeds: beyond its threshold and significant, beyond and not, or within."""
    limit = group.threshold.limit_for(policy.interleaved)
    is_worse = (test.change > 0) == group.threshold.lower_is_better
    p_value, corrected = (test.p_worse, corrected_worse) if is_worse else (test.p_better, corrected_better)
    count, bound = len(group.seeds), plural(limit, "point")
    over = f"over {count} seeds" if count > 1 else "of one seed"
    change = f"{test.change:+.2f} points {over} (95 % interval {test.low:+.2f} to {test.high:+.2f})"
    chance = f"chance {corrected:.2g} after correction for {plural(num_tests, 'test')}"
    if group.candidate == group.baseline:
        verdict, reason = Verdict.OK, "the same"
    elif abs(test.change) <= limit:
        verdict, reason = Verdict.OK, f"{change}, within {bound}"
    elif corrected <= policy.alpha:
        verdict = Verdict.REGRESSED if is_worse else Verdict.IMPROVED
        reason = f"{'worse' if is_worse else 'better'}: {change}, more than {bound} ({chance})"
    elif is_worse:
        verdict = Verdict.INCONCLUSIVE
        reason = f"{change}, more than {bound}, but seeds may do that ({chance}): run more seeds"
    else:
        verdict, reason = Verdict.OK, f"{change}, better, if seeds did not do it ({chance})"
    old, new = float(np.mean(group.baseline)), float(np.mean(group.candidate))
    explanation = (
        f"Mean {over} ({', '.join(map(str, group.seeds))}): baseline {old:.2f} %, candidate {new:.2f} %.",
        f"The threshold is {bound}.",
        f"Differences between equal seeds spread by {plural(float(f'{test.spread:.2g}'), 'point')}, "
        f"{group.threshold.process_shift_pct:g} expected of each side and their own taken together; Student's t has "
        f"{show_df(test.df)}.",
        f"Chance alone goes so far with probability {p_value:.2g}, anywhere among {plural(num_tests, 'test')} with "
        f"{corrected:.2g} (Holm); {policy.alpha:g} is the most that counts as sure.",
        f"So it is {verdict.words}: {reason}.",
    )
    return dataclasses.replace(
        group.row, verdict=verdict, baseline=old, candidate=new, change_pct=test.change, low_pct=test.low,
        high_pct=test.high, threshold_pct=limit, p_value=p_value, corrected_p=corrected, reason=f"{reason}.",
        explanation=explanation,
    )  # fmt: skip


def _group(name: str, members: list[tuple[Entry, float, float]], reference: Reference, policy: Policy) -> SeedGroup:
    members = sorted(members, key=lambda member: member[0].seed)
    first, seeds = members[0][0], tuple(entry.seed for entry, _, _ in members)
    threshold = policy.threshold_of(name)
    assert threshold is not None, "only metrics with a threshold are grouped"
    place = f"{first.suite}/{first.variant} {first.model} {first.data}"
    row = Row(
        verdict=Verdict.OK,
        cell=f"{place} seed {seeds[0]}" if len(seeds) == 1 else f"{place} seeds {', '.join(map(str, seeds))}",
        metric=name,
        reference=reference,
        reason="",
        config_digest=first.config_digest,
        fingerprint=first.fingerprint,
    )
    candidate, baseline = tuple(new for _, new, _ in members), tuple(old for _, _, old in members)
    return SeedGroup(row=row, threshold=threshold, seeds=seeds, candidate=candidate, baseline=baseline)


def _without_seed(entry: Entry) -> str:
    """What the seeds of one cell have in common."""
    if "seed" not in entry.config:
        return cell_key(entry)
    config = {name: value for name, value in entry.config.items() if name != "seed"}
    return json.dumps([entry.suite, entry.variant, entry.model, entry.data, config], sort_keys=True)
