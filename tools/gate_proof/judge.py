"""What the gate says of the proof's pairs, and counts with exact binomial bounds.

The gate is the product's own ``compare``; the proof only knows the truth beside its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from scipy.stats import binomtest

from bench.gating import Policy, Verdict, compare
from bench.records.entry import Entry
from tools.against.verb import CONFIRM, REPEATS, shared_alpha, suspects
from tools.gate_proof.runs import Recorded, Run

CONFIDENCE = 0.95
PHASE_METRICS = ("data_ms", "forward_ms", "backward_ms", "meta_ms", "optimizer_ms", "unattributed_ms")
MEMORY_METRICS = ("peak_allocated_bytes", "peak_process_bytes")
# As `gate` and `gate --against` decide: every row resampled, each look at runs in turn with its part of alpha.
RECORDED = Policy()
INTERLEAVED = shared_alpha(Policy(interleaved=True), CONFIRM)


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """How often something happened, with Clopper's and Pearson's exact bounds of its probability."""

    happened: int
    trials: int
    low: float
    high: float

    @staticmethod
    def of(happened: int, trials: int) -> Count:
        """Count and bounds; without trials anything is possible."""
        if not trials:
            return Count(happened=0, trials=0, low=0.0, high=1.0)
        interval = binomtest(happened, trials).proportion_ci(confidence_level=CONFIDENCE, method="exact")
        return Count(happened=happened, trials=trials, low=float(interval.low), high=float(interval.high))

    @property
    def share(self) -> float:
        """Of the trials."""
        return self.happened / self.trials if self.trials else 0.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison: what regressed, and what else was not ok."""

    regressed: list[str]  # metrics
    inconclusive: list[str]
    regressed_cells: list[str] = []  # config digests, one for each of `regressed`
    suspects: list[str] = []  # names of cells that the gate would measure again

    def of_cell(self, cell: Entry) -> Finding:
        """What regressed in one cell."""
        pairs = zip(self.regressed, self.regressed_cells, strict=True)
        return Finding(regressed=[metric for metric, digest in pairs if digest == cell.config_digest], inconclusive=[])


@dataclass(frozen=True, slots=True, kw_only=True)
class RealFindings:
    """What the gate says of all real comparisons."""

    pairs: dict[str, list[Finding]]  # of equal runs, by the way they are paired
    slowed: dict[str, dict[str, list[Finding]]]  # by phase and size
    leaking: dict[str, list[Finding]]  # by size

    @staticmethod
    def of(recorded: Recorded) -> RealFindings:
        """Judge them all, with every row resampled: seconds."""
        return RealFindings(pairs=equal_pairs(recorded), slowed=slowed_groups(recorded), leaking=leaks(recorded))


def judge(candidates: Iterable[Entry], baselines: Iterable[Entry], policy: Policy) -> Finding:
    """Let the gate compare; the candidate's cells are the baseline's."""
    comparison = compare(candidates, baselines, policy)
    rows = comparison.rows
    odd = [row for row in rows if row.verdict not in _USUAL]
    assert not odd, f"equal cells are compared in full, but {odd[0].metric} is {odd[0].verdict}: {odd[0].reason}"
    worse = [row for row in rows if row.verdict is Verdict.REGRESSED]
    return Finding(
        regressed=[row.metric for row in worse],
        inconclusive=[row.metric for row in rows if row.verdict is Verdict.INCONCLUSIVE],
        regressed_cells=[row.config_digest for row in worse],
        suspects=suspects(comparison),
    )


_USUAL = (Verdict.OK, Verdict.IMPROVED, Verdict.REGRESSED, Verdict.INCONCLUSIVE)


def pairings(recorded: Recorded) -> tuple[list[tuple[Run, Run]], list[tuple[Run, Run]]]:
    """The equal runs in disjoint pairs, twice: neighbours, and runs half the proof's duration apart."""
    runs = recorded.of("plain")
    half = len(runs) // 2
    return list(zip(runs[::2], runs[1::2], strict=False)), list(zip(runs[:half], runs[half : 2 * half], strict=True))


def equal_pairs(recorded: Recorded) -> dict[str, list[Finding]]:
    """The real equal runs, judged in three ways: neighbours twice, and paired anew once.

    The three are not independent of each other, since all take the same runs. ``neighbours``: runs next to each
    other, as recorded runs. ``apart``: runs half the proof's duration apart, as recorded runs. ``in_turn``: the
    processes of two neighbours dealt out A B B A A B, as runs in turn.
    """
    near, far = pairings(recorded)
    return {
        "neighbours": [judge([recorded.entry(b)], [recorded.entry(a)], RECORDED) for a, b in near],
        "apart": [judge([_timing(recorded, b)], [_timing(recorded, a)], RECORDED) for a, b in far],
        "in_turn": [
            judge([_dealt(recorded, a, b, 1)], [_dealt(recorded, a, b, 0)], INTERLEAVED) for a, b in near
        ],
    }  # fmt: skip


def slowed_groups(recorded: Recorded) -> dict[str, dict[str, list[Finding]]]:
    """Every group's slowed processes against its unslowed ones, in turn: findings by phase and size.

    As ``gate --against`` does it: the first turns are judged, and all of them where that leaves a doubt.
    """
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in recorded.of("slowed"):
        groups.setdefault((run.number, run.phase), []).append(run)
    findings: dict[str, dict[str, list[Finding]]] = {}
    for (_, phase), runs in sorted(groups.items()):
        plain = [run for run in runs if run.size_pct == 0]
        for size in sorted({run.size_pct for run in runs} - {0.0}):
            slowed = [run for run in runs if run.size_pct == size]
            if len(slowed) == len(plain):
                finding = judge([recorded.entry(*slowed[:REPEATS])], [recorded.entry(*plain[:REPEATS])], INTERLEAVED)
                if finding.suspects:
                    finding = judge([recorded.entry(*slowed)], [recorded.entry(*plain)], INTERLEAVED)
                findings.setdefault(phase, {}).setdefault(f"{size:g}", []).append(finding)
    return findings


def leaks(recorded: Recorded) -> dict[str, list[Finding]]:
    """Every leaking run against an equal run with a memory pass: findings by size."""
    plain = [run for run in recorded.of("plain") if MEMORY_METRICS[0] in run.metrics]
    findings: dict[str, list[Finding]] = {}
    for number, run in enumerate(recorded.of("leaking")):
        beside = plain[number % len(plain)]
        memory = Run(
            kind="plain", number=beside.number, started_s=beside.started_s,
            metrics={name: beside.metrics[name] for name in MEMORY_METRICS},
        )  # fmt: skip
        finding = judge([recorded.entry(run)], [recorded.entry(memory)], RECORDED)
        findings.setdefault(f"{run.size_pct:g}", []).append(finding)
    return findings


def named_right(finding: Finding, phase: str) -> bool:
    """Whether a detected slowdown's phase is named and no other."""
    phases = {metric for metric in finding.regressed if metric in PHASE_METRICS}
    return phases == {f"{phase}_ms"} and not set(finding.regressed) & set(MEMORY_METRICS)


def leak_named_right(finding: Finding) -> bool:
    """Whether a leak is named as memory and nothing else."""
    return bool(finding.regressed) and set(finding.regressed) <= set(MEMORY_METRICS)


def count_regressed(findings: Sequence[Finding]) -> Count:
    """In how many comparisons something regressed."""
    return Count.of(sum(bool(finding.regressed) for finding in findings), len(findings))


def _timing(recorded: Recorded, run: Run) -> Entry:
    """A run's times alone: its partner half the proof away may lack a memory pass."""
    times = {name: values for name, values in run.metrics.items() if name.endswith("_ms")}
    return recorded.entry(msgspec.structs.replace(run, metrics=times))


def _dealt(recorded: Recorded, first: Run, second: Run, side: int) -> Entry:
    """One side's processes when two runs' are dealt out A B B A A B."""
    processes = [(run, place) for run in (first, second) for place in range(len(run.metrics["step_ms"]))]
    chosen = [item for number, item in enumerate(processes) if (number + 1) // 2 % 2 == side]
    series = {
        name: [run.metrics[name][place] for run, place in chosen]
        for name in first.metrics
        if name.endswith("_ms")
    }  # fmt: skip
    return recorded.entry(msgspec.structs.replace(first, metrics=series))
