"""Entries of a candidate and of a baseline -> rows with verdicts. A pure function: no file, no clock, no chance.

First every cell is matched and what needs no statistics is said. Then all ratios of times are tested, and a change
beyond its threshold counts only if it stays significant after Holm's correction for all tests of the comparison:
a suite of unchanged code finds something regressed in at most ``Policy.alpha`` of all comparisons.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.gating.decide import Tested, decide_exact, decide_ratio, holm, median
from bench.gating.matching import Pair, differences, match
from bench.gating.metrics import Policy, Threshold
from bench.gating.ratio_test import RatioTest, ratio_test
from bench.gating.repeats import Repeats, Spread, set_strays_aside, usual_variance
from bench.gating.seeds import SeedGroup, decide_seeds, group_seeds, seed_test
from bench.gating.verdicts import CELL, Reference, Row, Verdict, worst_first
from bench.records.entry import Entry, Metric, Samples, cell_label, is_measured
from bench.records.schema import FINISHED, STATUS_VERBS, STATUSES
from bench.units import Absent

MANY_TESTS = 10_000  # beyond so many only rows with a say in a finding are resampled: of each it takes milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows, worst first, and on how much they rest."""

    rows: tuple[Row, ...]
    num_tests: int  # ratios and seed groups that were tested, all of which the correction counts
    num_compared: int  # cells of the baseline that were compared
    num_released: int  # cells of the release's baseline that were compared
    policy: Policy
    is_empty: bool  # nothing was compared, and nothing was found either

    @property
    def has_pair(self) -> bool:
        """Whether any cell was set against one of the other side; one that newly failed was, as far as it came."""
        if self.num_compared + self.num_released:
            return True
        return any(row.verdict is Verdict.FAILED for row in self.rows)

    def suspects(self) -> tuple[Row, ...]:
        """Rows to measure again before they count: worse, sure or not, in what another run would measure anew."""
        doubtful = (Verdict.REGRESSED, Verdict.INCONCLUSIVE)
        return tuple(row for row in self.rows if row.verdict in doubtful and self._measured_anew(row))

    def _measured_anew(self, row: Row) -> bool:
        threshold = self.policy.threshold_of(row.metric)
        # A training with the same seed says the same again: accuracy needs other seeds, not another run.
        return threshold is not None and threshold.judged_by != "seeds"


def compare(
    candidates: Iterable[Entry],
    baselines: Iterable[Entry],
    policy: Policy | None = None,
    *,
    release: Iterable[Entry] = (),
    explain: bool = True,
) -> Comparison:
    """Compare a candidate with a baseline and, where one is pinned, with that of a release.

    Args:
        candidates: one entry per cell and machine.
        baselines: what moves with accepted changes.
        policy: thresholds, statistics, and how both sides were measured; none: the defaults.
        release: what does not move, so that several small accepted steps add up; only cells that can be compared with
            it give rows, since the baseline says what vanished and what is new.
        explain: with the sentences on how each verdict came about, which are most of what many rows take.

    Returns:
        A row per cell and metric; the same arguments give the same rows.
    """
    policy = policy or Policy()
    ours = list(candidates)
    work = _Work(policy, explain=explain)
    compared = _walk_pairs(match(ours, baselines), "baseline", work)
    pinned = [
        pair
        for pair in match(ours, release)
        if pair.candidate and pair.baseline and not differences(pair.candidate, pair.baseline)
    ]
    released = _walk_pairs(pinned, "release", work)
    rows = work.finish()
    return Comparison(
        rows=tuple(worst_first(rows)),
        num_tests=work.num_tests,
        num_compared=compared,
        num_released=released,
        policy=policy,
        is_empty=_is_empty(rows, ours),
    )


def _is_empty(rows: list[Row], candidates: list[Entry]) -> bool:
    """Whether rows rest on no measurement at all; a cell that newly failed is a finding, not nothing."""
    if not any(map(is_measured, candidates)):
        return all(row.verdict is not Verdict.FAILED for row in rows)
    weightless = (Verdict.NEW, Verdict.OK)
    is_finished = {entry.config_digest for entry in candidates if entry.status in FINISHED}
    return not any(
        row.verdict not in weightless
        or (row.baseline is not None and row.candidate is not None)
        or (row.metric == CELL and row.verdict is Verdict.OK and row.config_digest in is_finished)
        for row in rows
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One metric of one pair whose ratio is to be tested."""

    row: Row  # as far as it is known
    threshold: Threshold
    samples: tuple[Samples, Samples]  # candidate, baseline
    divisors: tuple[Samples, Samples] | None
    floor: float | None  # median of the baseline's ``floor_of``
    yardstick: tuple[float, float] | None  # medians of what divides candidate and baseline

    def sides(self) -> tuple[Repeats, Repeats]:
        """Candidate and baseline; made anew each time, since arrays of 100,000 cells would take gigabytes."""
        ours, theirs = self.divisors or (None, None)
        return Repeats(self.samples[0], ours), Repeats(self.samples[1], theirs)


class _Work:
    """Rows that are finished, and tests that wait for the correction."""

    def __init__(self, policy: Policy, *, explain: bool) -> None:
        self.policy = policy
        self.explain = explain
        self.rows: list[Row] = []
        self.cases: collections.deque[_Case] = collections.deque()
        self.groups: list[SeedGroup] = []
        self.num_tests = 0

    def add(self, row: Row) -> None:
        self.rows.append(row if self.explain else replace(row, explanation=()))

    def finish(self) -> list[Row]:
        spreads: dict[str, list[Spread]] = collections.defaultdict(list)
        for case in self.cases:
            if case.row.reference == "baseline":
                spreads[case.row.metric].append(Spread.of(*set_strays_aside(*case.sides(), case.threshold)))
        usual = {metric: usual_variance(values) for metric, values in spreads.items()}
        few = len(self.cases) <= MANY_TESTS
        policy = replace(self.policy, resample_all=self.policy.resample_all and few)
        tests: collections.deque[RatioTest] = collections.deque(
            ratio_test(*case.sides(), case.threshold, policy, usual=usual.get(case.row.metric, 0.0))
            for case in self.cases
        )
        seeds = [seed_test(group, self.policy) for group in self.groups]
        self.num_tests = len(tests) + len(seeds)
        worse = holm([*(test.p_worse for test in tests), *(test.p_worse for test in seeds)])
        better = holm([*(test.p_better for test in tests), *(test.p_better for test in seeds)])
        corrected = zip(worse, better, strict=True)
        while tests:  # each goes as its row comes: of 100,000 cells they are a million
            case, test, (p_worse, p_better) = self.cases.popleft(), tests.popleft(), next(corrected)
            tested = Tested(test=test, corrected_worse=p_worse, corrected_better=p_better, num_tests=self.num_tests)
            self.add(
                decide_ratio(case.row, case.threshold, tested, self.policy, floor=case.floor, yardstick=case.yardstick)
            )
        for group, seed, (p_worse, p_better) in zip(self.groups, seeds, corrected, strict=True):
            self.add(decide_seeds(group, seed, p_worse, p_better, self.num_tests, self.policy))
        return self.rows


def _walk_pairs(pairs: Sequence[Pair], reference: Reference, work: _Work) -> int:
    """Say what is clear at once, leave the tests; answers how many pairs were compared."""
    compared = []
    for pair in pairs:
        cell_rows, comparable = _on_pair(pair, reference)
        for row in cell_rows:
            work.add(row)
        if comparable:
            compared.append(pair)
    for pair in compared:
        _on_metrics(pair, reference, work)
    work.groups += group_seeds(compared, reference, work.policy)
    return len(compared)


def _on_pair(pair: Pair, reference: Reference) -> tuple[list[Row], bool]:
    """Rows on a cell as a whole, and whether its metrics are to be compared."""
    candidate, baseline = pair.candidate, pair.baseline
    if candidate is None:
        assert baseline is not None, "a pair has at least one side"
        reason = "the baseline has this cell and the candidate does not."
        return [_on_cell(Verdict.MISSING, baseline, reason, reference)], False
    if baseline is None:
        if candidate.status not in FINISHED:
            reason = f"it {_became(candidate)}, and the baseline does not know it on this machine."
            return [_on_cell(Verdict.FAILED, candidate, reason, reference)], False
        reason = "the baseline does not know this cell on this machine."
        return [_on_cell(Verdict.NEW, candidate, reason, reference)], False
    sentence = differences(candidate, baseline)
    if sentence:
        return [_on_cell(Verdict.NOT_COMPARABLE, candidate, sentence, reference)], False
    before, after = STATUSES.index(baseline.status), STATUSES.index(candidate.status)
    if after > before:
        was = f"and was {_words(baseline.status)} in the {reference}"
        return [_on_cell(Verdict.FAILED, candidate, f"it {_became(candidate)}, {was}.", reference)], False
    if after < before:
        reason = f"it is {_words(candidate.status)} and was {_words(baseline.status)}."
        return [_on_cell(Verdict.IMPROVED, candidate, reason, reference)], True
    if after > 0:
        return [_on_cell(Verdict.OK, candidate, f"it {_became(candidate)}, as in the {reference}.", reference)], True
    return [], True


def _on_metrics(pair: Pair, reference: Reference, work: _Work) -> None:
    """Every metric that either side knows, save those over seeds."""
    candidate, baseline = pair.candidate, pair.baseline
    assert candidate is not None, "a compared pair has both sides"
    assert baseline is not None, "a compared pair has both sides"
    label = cell_label(candidate)
    for name in dict.fromkeys((*baseline.metrics, *candidate.metrics)):
        before = _samples(baseline, name, "not in the baseline")
        after = _samples(candidate, name, "no longer recorded")
        if isinstance(before, Absent) and isinstance(after, Absent):
            continue
        if reference == "release" and (isinstance(before, Absent) or isinstance(after, Absent)):
            continue  # what came or went is told by the baseline
        threshold = work.policy.threshold_of(name)
        blank = Row(
            verdict=Verdict.OK,
            cell=label,
            metric=name,
            reference=reference,
            threshold_pct=threshold.limit_for(work.policy.interleaved) if threshold else None,
            reason="",
            config_digest=candidate.config_digest,
            fingerprint=candidate.fingerprint,
        )
        if isinstance(before, Absent) or isinstance(after, Absent) or threshold is None:
            work.add(_without_test(blank, before, after))
        elif threshold.judged_by == "ratio" and _positive(before) and _positive(after):
            divisors = _yardsticks(candidate, baseline, after, before, threshold)
            case = _Case(
                row=blank,
                threshold=threshold,
                samples=(after, before),
                divisors=divisors,
                floor=_median_of(baseline, threshold.floor_of),
                yardstick=divisors and (median(divisors[0]), median(divisors[1])),
            )
            work.cases.append(case)
        elif threshold.judged_by != "seeds":
            floor = _median_of(baseline, threshold.floor_of)
            work.add(decide_exact(blank, threshold, after, before, floor, work.policy))


def _without_test(row: Row, before: Samples | Absent, after: Samples | Absent) -> Row:
    """A metric that one side lacks, or that no threshold is known for."""
    known = replace(
        row,
        baseline=None if isinstance(before, Absent) else median(before),
        candidate=None if isinstance(after, Absent) else median(after),
    )
    if isinstance(after, Absent):
        verdict, reason = Verdict.MISSING, f"became n/a ({after.reason})."
    elif isinstance(before, Absent):
        verdict, reason = Verdict.NEW, f"the baseline has n/a ({before.reason})."
    else:
        verdict, reason = Verdict.NOT_COMPARABLE, "this version knows no threshold for it."
    return replace(known, verdict=verdict, reason=reason, explanation=(f"It is {verdict.words}: {reason}",))


def _yardsticks(
    candidate: Entry, baseline: Entry, after: Samples, before: Samples, threshold: Threshold
) -> tuple[Samples, Samples] | None:
    """What divides both sides; none unless both have it for each of their processes."""
    ours, theirs = (_samples(entry, threshold.yardstick, "") for entry in (candidate, baseline))
    if isinstance(ours, Absent) or isinstance(theirs, Absent):
        return None
    if len(ours) != len(after) or len(theirs) != len(before) or not (_positive(ours) and _positive(theirs)):
        return None
    return ours, theirs


def _samples(entry: Entry, name: str, otherwise: str) -> Samples | Absent:
    return entry.metrics.get(name, Metric(samples=Absent(reason=otherwise))).samples


def _median_of(entry: Entry, name: str) -> float | None:
    samples = _samples(entry, name, "")
    return None if isinstance(samples, Absent) else median(samples)


def _positive(samples: Samples) -> bool:
    """Whether most samples of each process are above zero, so that its median has a logarithm."""
    return all(sorted(repeat)[(len(repeat) - 1) // 2] > 0 for repeat in samples)


def _on_cell(verdict: Verdict, entry: Entry, reason: str, reference: Reference) -> Row:
    return Row(
        verdict=verdict, cell=cell_label(entry), metric=CELL, reference=reference, reason=reason,
        explanation=(reason[0].upper() + reason[1:],), config_digest=entry.config_digest, fingerprint=entry.fingerprint,
    )  # fmt: skip


def _words(status: str) -> str:
    return status.replace("_", " ")


def _became(entry: Entry) -> str:
    reason = entry.reason.rstrip(".")
    return STATUS_VERBS[entry.status] + (f" ({reason})" if reason else "")
