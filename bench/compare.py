"""Two measurements of one cell -> verdicts, by fixed thresholds; what report and gate have to agree on.

Step time is compared twice. ``step_ms`` itself carries the load of a shared machine, so its threshold is wide and only
a large loss shows. ``time_vs_fp32`` divides by the FP32 steps that ran between the cell's own in the same process,
where most of that load cancels, so its threshold is tighter; a slower FP32 step hides in it, which the first one sees.
Phases are divided by the FP32 step for the same reason. Memory is tight, accuracy in points, the share of integer GEMMs
exact. See docs/measuring.md.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench.records.baseline import Entry, Samples, cell_label, is_measured
from bench.records.schema import FINISHED, STATUS_VERBS, STATUSES
from bench.units import Absent

Kind = Literal["ok", "improved", "regressed", "inconclusive", "new", "missing", "not_comparable", "failed"]
KINDS: tuple[Kind, ...] = (
    "failed", "regressed", "missing", "not_comparable", "inconclusive", "new", "improved", "ok",
)  # fmt: skip  # worst first
YARDSTICK = "fp32_step_ms"  # divides times, is not judged itself
CELL = "cell"  # the metric of a verdict on a whole cell
MOST_DIFFERENCES = 4  # named in one sentence


Medians = dict[str, float | Absent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """How much worse a metric may become."""

    limit: float  # percent of the baseline; points if `in_points`
    lower_is_better: bool = True
    in_points: bool = False  # the metric is a percentage: its difference counts, not its ratio
    floor_of: str = ""  # a change below `floor_pct` of this metric's baseline is noise, whatever its ratio
    floor_pct: float = 0.0


PHASE = Threshold(limit=30.0, floor_of="step_ms", floor_pct=5.0)
THRESHOLDS: dict[str, Threshold] = {
    "time_vs_fp32": Threshold(limit=15.0),
    "step_ms": Threshold(limit=40.0),
    **{f"{name}_ms": PHASE for name in ("data", "forward", "backward", "meta", "optimizer", "unattributed")},
    "peak_allocated_bytes": Threshold(limit=1.0),
    "peak_process_bytes": Threshold(limit=5.0),
    # Differences of two measurements: a small one is mostly the noise of the large ones.
    "hypernet_extra_allocated_bytes": Threshold(limit=1.0, floor_of="peak_allocated_bytes", floor_pct=0.1),
    "hypernet_extra_process_bytes": Threshold(limit=25.0, floor_of="peak_process_bytes", floor_pct=2.0),
    "test_accuracy_pct": Threshold(limit=2.0, lower_is_better=False, in_points=True),
    "integer_share_pct": Threshold(limit=0.0, lower_is_better=False, in_points=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one metric of one cell, or of the cell as a whole."""

    kind: Kind
    cell: str
    metric: str  # a metric's name, or "cell"
    baseline: float | None  # in the metric's unit; None: there is none, and the reason says why
    candidate: float | None
    change_pct: float | None  # points for metrics in percent; against FP32 for phases; None: not to be had
    threshold_pct: float | None
    reason: str
    config_digest: str
    fingerprint: str


def compare(baseline: Entry, candidate: Entry, thresholds: Mapping[str, Threshold] = THRESHOLDS) -> list[Verdict]:
    """Compare one cell with its baseline.

    Args:
        baseline: how it was.
        candidate: how it is.
        thresholds: by metric; a phase that is not listed gets ``PHASE``.

    Returns:
        One verdict per metric that either side knows, and one on the cell where its status changed or stayed bad; a
        single one where the two cannot be compared or the candidate failed.
    """
    differences = _differences(baseline, candidate)
    if differences:
        return [_on_cell("not_comparable", candidate, differences)]
    before, after = STATUSES.index(baseline.status), STATUSES.index(candidate.status)
    if after > before:
        was = f"and was {_words(baseline.status)} in the baseline"
        return [_on_cell("failed", candidate, f"it {_became(candidate)}, {was}.")]
    verdicts = []
    if after < before:
        reason = f"it is {_words(candidate.status)} and was {_words(baseline.status)}."
        verdicts.append(_on_cell("improved", candidate, reason))
    elif after > 0:
        verdicts.append(_on_cell("ok", candidate, f"it {_became(candidate)}, as in the baseline."))
    return verdicts + _compare_metrics(baseline, candidate, thresholds)


def compare_all(
    baseline: Iterable[Entry], candidates: Iterable[Entry], thresholds: Mapping[str, Threshold] = THRESHOLDS
) -> list[Verdict]:
    """Match the cells of two sets by configuration and machine, and compare them.

    A cell that was measured on another machine only, or whose configuration changed under the same name, is not
    comparable, unless another candidate answers for it; then it is new. A cell of the baseline that no candidate
    answers is missing, unless it belongs to a machine of which the candidates hold nothing while they do hold others
    of the baseline's machines.

    Returns:
        All verdicts, worst first.
    """
    known, ours = list(baseline), list(candidates)
    exact = {(entry.config_digest, entry.fingerprint): entry for entry in known}
    compared = {entry.config_digest for entry in ours if (entry.config_digest, entry.fingerprint) in exact}
    answered: set[tuple[str, str]] = set()
    verdicts: list[Verdict] = []
    for candidate in ours:
        partner = exact.get((candidate.config_digest, candidate.fingerprint))
        if partner is None and candidate.config_digest not in compared:
            partner = _nearest(candidate, known, ours)
        if partner is not None:
            answered.add((partner.config_digest, partner.fingerprint))
            verdicts += compare(partner, candidate, thresholds)
        elif candidate.status not in FINISHED:
            reason = f"it {_became(candidate)}, and the baseline does not know it on this machine."
            verdicts.append(_on_cell("failed", candidate, reason))
        else:
            verdicts.append(_on_cell("new", candidate, "the baseline does not know this cell on this machine."))

    answered_cells = {digest for digest, _ in answered}
    shared_machines = {entry.fingerprint for entry in known} & {entry.fingerprint for entry in ours}
    for entry in known:
        if shared_machines and entry.fingerprint not in shared_machines:
            continue
        if (entry.config_digest, entry.fingerprint) in answered:
            continue
        if not shared_machines and entry.config_digest in answered_cells:
            continue
        answered_cells.add(entry.config_digest)
        verdicts.append(_on_cell("missing", entry, "the baseline has this cell and the candidate does not."))
    return worst_first(verdicts)


def worst_first(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Sort by kind, then by how far a change went past its threshold, then by name."""

    def rank(verdict: Verdict) -> tuple[int, float, str, str, str, str]:
        change, limit = abs(verdict.change_pct or 0.0), verdict.threshold_pct or 1.0
        return (
            KINDS.index(verdict.kind), -change / limit, verdict.cell, verdict.metric, verdict.config_digest,
            verdict.fingerprint,
        )  # fmt: skip

    return sorted(verdicts, key=rank)


def nothing_measured(verdicts: Iterable[Verdict], candidates: Iterable[Entry]) -> bool:
    """Whether a comparison rests on no measurement at all; a cell that newly failed is a finding, not nothing."""
    return not any(map(is_measured, candidates)) and not any(verdict.kind == "failed" for verdict in verdicts)


def _compare_metrics(baseline: Entry, candidate: Entry, thresholds: Mapping[str, Threshold]) -> list[Verdict]:
    old, new = _medians(baseline), _medians(candidate)
    names = [name for name in dict.fromkeys((*old, *new)) if name != YARDSTICK]
    verdicts = (_on_metric(candidate, name, old, new, thresholds) for name in names)
    return [verdict for verdict in verdicts if verdict is not None]


def _on_metric(
    candidate: Entry, name: str, old: Medians, new: Medians, thresholds: Mapping[str, Threshold]
) -> Verdict | None:
    """Judge one metric; None where neither side has it."""
    before = old.get(name, Absent(reason="not in the baseline"))
    after = new.get(name, Absent(reason="no longer recorded"))
    threshold = thresholds.get(name, PHASE if name.endswith("_ms") else None)
    kind: Kind
    change: float | None = None
    if isinstance(after, Absent):
        if isinstance(before, Absent):
            return None
        kind, reason = "missing", f"became n/a ({after.reason})."
    elif isinstance(before, Absent):
        kind, reason = "new", f"the baseline has n/a ({before.reason})."
    elif threshold is None:
        kind, reason = "not_comparable", "this version knows no threshold for it."
    else:
        scale, note = _fp32_scale(name, old, new)
        change = (after * scale - before) if threshold.in_points else _percent(after * scale - before, before)
        kind, reason = _judge(before, after * scale, change, threshold, old)
        reason += f"{note}."
    return Verdict(
        kind=kind,
        cell=cell_label(candidate),
        metric=name,
        baseline=None if isinstance(before, Absent) else before,
        candidate=None if isinstance(after, Absent) else after,
        change_pct=change,
        threshold_pct=threshold.limit if threshold else None,
        reason=reason,
        config_digest=candidate.config_digest,
        fingerprint=candidate.fingerprint,
    )


def _judge(before: float, after: float, change: float | None, threshold: Threshold, old: Medians) -> tuple[Kind, str]:
    """Verdict on two values, and a sentence without its full stop."""
    unit = "points" if threshold.in_points else "%"
    if math.isclose(after, before, rel_tol=1e-12) or (change is not None and abs(change) <= threshold.limit):
        return "ok", f"within {threshold.limit:g} {unit}"
    amount = "from 0" if change is None else f"by {abs(change):.3g} {unit}"
    floor = old.get(threshold.floor_of)
    if isinstance(floor, float) and abs(after - before) <= floor * threshold.floor_pct / 100:
        return "ok", f"changed {amount}, which is less than {threshold.floor_pct:g} % of {threshold.floor_of}"
    is_worse = (after > before) == threshold.lower_is_better
    how = f"{'worse' if is_worse else 'better'} {amount}, more than {threshold.limit:g} {unit}"
    return ("regressed" if is_worse else "improved"), how


def _medians(entry: Entry) -> Medians:
    """Median over all repeats of each metric, with ``time_vs_fp32`` in front."""
    values = {name: _median(metric.samples) for name, metric in entry.metrics.items()}
    step, reference = (values.get(name, Absent(reason="no steps were timed")) for name in ("step_ms", YARDSTICK))
    ratio: float | Absent
    if isinstance(step, Absent) or isinstance(reference, Absent):
        ratio = step if isinstance(step, Absent) else reference
    else:
        ratio = step / reference if reference > 0 else Absent(reason="the FP32 step took no time")
    return {"time_vs_fp32": ratio, **values}


def _median(samples: Samples | Absent) -> float | Absent:
    if isinstance(samples, Absent):
        return samples
    return float(statistics.median(value for repeat in samples for value in repeat))


def _fp32_scale(name: str, old: Medians, new: Medians) -> tuple[float, str]:
    """Factor that takes the machine's present speed out of a phase's time, and the words for it."""
    if name == "step_ms" or not name.endswith("_ms"):
        return 1.0, ""
    before, after = old.get(YARDSTICK), new.get(YARDSTICK)
    if not isinstance(before, float) or not isinstance(after, float) or before <= 0 or after <= 0:
        return 1.0, " in absolute time, since an FP32 step is missing beside it"
    return before / after, f" relative to the FP32 step ({before:.3g} ms, now {after:.3g} ms)"


def _percent(difference: float, base: float) -> float | None:
    """Change in percent; None where the base is 0 or the quotient leaves the numbers."""
    change = 100 * (difference / abs(base)) if base else math.inf
    return change if math.isfinite(change) else None


def _nearest(candidate: Entry, known: list[Entry], ours: list[Entry]) -> Entry | None:
    """The baseline's entry that comes closest to a candidate without an equal one.

    First the same cell on another machine, then a cell of the same name whose own configuration is gone.
    """
    same_cell = [entry for entry in known if entry.config_digest == candidate.config_digest]
    if same_cell:
        return min(same_cell, key=lambda entry: len(_paths(entry.environment, candidate.environment)))
    alive = {entry.config_digest for entry in ours}
    same_name = [
        entry for entry in known if cell_label(entry) == cell_label(candidate) and entry.config_digest not in alive
    ]
    if same_name:
        return min(same_name, key=lambda entry: (entry.fingerprint != candidate.fingerprint, entry.config_digest))
    return None


def _differences(baseline: Entry, candidate: Entry) -> str:
    """A sentence on why two entries cannot be compared; empty where they can."""
    if baseline.config_digest != candidate.config_digest:
        phrases = _paths(baseline.config, candidate.config)
        return f"the configuration differs: {_enumerate(phrases)}."
    if baseline.fingerprint == candidate.fingerprint:
        return ""
    # It reads torch's build, which costs seconds to import.
    from bench.hardware.environment import describe_differences

    phrases = describe_differences(baseline.environment, candidate.environment)
    if not phrases:
        phrases = (f"fingerprint: {baseline.fingerprint} against {candidate.fingerprint}",)
    return f"the machine differs: {_enumerate(phrases)}."


def _paths(ours: Any, theirs: Any, place: str = "") -> tuple[str, ...]:
    """One phrase per leaf in which two nested values differ (``hypernet.hidden: 4 against 8``)."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted({*ours, *theirs})
        inner = [_paths(ours.get(name), theirs.get(name), f"{place}.{name}" if place else name) for name in names]
        return tuple(phrase for phrases in inner for phrase in phrases)
    same = json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)  # tells 1 from 1.0 and true
    return () if same else (f"{place}: {_value(ours)} against {_value(theirs)}",)


def _value(value: Any) -> str:
    """A value in a sentence, cut where it is long."""
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _enumerate(phrases: tuple[str, ...]) -> str:
    rest = len(phrases) - MOST_DIFFERENCES
    return "; ".join(phrases[:MOST_DIFFERENCES]) + (f"; and {rest} more" if rest > 0 else "")


def _on_cell(kind: Kind, entry: Entry, reason: str) -> Verdict:
    return Verdict(
        kind=kind,
        cell=cell_label(entry),
        metric=CELL,
        baseline=None,
        candidate=None,
        change_pct=None,
        threshold_pct=None,
        reason=reason,
        config_digest=entry.config_digest,
        fingerprint=entry.fingerprint,
    )


def _words(status: str) -> str:
    return status.replace("_", " ")


def _became(entry: Entry) -> str:
    return STATUS_VERBS[entry.status] + (f" ({entry.reason.rstrip('.')})" if entry.reason else "")
