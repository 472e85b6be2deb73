"""How each metric is judged: its threshold, its floor and what is known of its noise. Data, not code.

The limits for recorded runs are wider than those for runs measured in turn: two recordings lie days apart, and how the
machine stood on those days is in no sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

YARDSTICK = "fp32_step_ms"  # divides the times of the same process
# An interval that reaches so many times the threshold, or the floor if that is larger, is no pass: a gross regression
# may hide in it. Where `Threshold.alarm` is False, the rule does not apply.
BLIND_FACTOR = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """How much worse a metric may become, and how that is decided."""

    limit: float  # percent of the baseline; points if `in_points`
    interleaved_limit: float | None = None  # where both sides were measured in turn; none: the same
    # ratio: threshold and interval over repeats; exact: threshold alone; seeds: threshold and interval over seeds
    judged_by: Literal["ratio", "exact", "seeds"] = "exact"
    lower_is_better: bool = True
    in_points: bool = False  # the metric is a percentage: its difference counts, not its ratio
    floor_of: str = ""  # a change below `floor_pct` of this metric's baseline is noise, whatever its ratio
    floor_pct: float = 0.0
    yardstick: str = ""  # metric of the same processes that divides this one, where both sides have it
    # What is known beforehand of the spread (standard deviation, percent or points) between processes of one run (or
    # seeds), and between runs on different days. Samples that spread more count; those that spread less count in part.
    process_shift_pct: float = 0.0
    session_shift_pct: float = 0.0
    # False: of recorded runs it is inconclusive beyond the limit, since the machine alone may be the cause; and within
    # the limit it is ok however wide its interval, in turn too (BLIND_FACTOR).
    alarm: bool = True

    def limit_for(self, interleaved: bool) -> float:
        """The limit for recorded runs, or for runs measured in turn."""
        return self.interleaved_limit if interleaved and self.interleaved_limit is not None else self.limit

    def alarms(self, interleaved: bool) -> bool:
        """Whether it can regress: where both sides took turns on one machine, that is the same for both."""
        return self.alarm or interleaved


def _phase(process_shift_pct: float) -> Threshold:
    return Threshold(
        limit=15.0, interleaved_limit=6.0, judged_by="ratio", floor_of="step_ms", floor_pct=1.5, yardstick=YARDSTICK,
        process_shift_pct=process_shift_pct, session_shift_pct=3.5,
    )  # fmt: skip


PHASE = _phase(4.0)  # one that is not listed
THRESHOLDS: dict[str, Threshold] = {
    "step_ms": Threshold(
        limit=10.0, interleaved_limit=5.0, judged_by="ratio", yardstick=YARDSTICK, process_shift_pct=2.0,
        session_shift_pct=2.5,
    ),
    "fp32_step_ms": Threshold(
        limit=60.0, interleaved_limit=30.0, judged_by="ratio", process_shift_pct=3.0, session_shift_pct=10.0,
        alarm=False,
    ),
    "forward_ms": _phase(2.5),
    "backward_ms": _phase(2.5),
    "meta_ms": _phase(2.5),
    "optimizer_ms": _phase(4.0),
    "data_ms": _phase(6.0),
    "unattributed_ms": _phase(6.0),
    "peak_allocated_bytes": Threshold(limit=0.5),
    "peak_process_bytes": Threshold(limit=2.0),
    # Differences of two measurements: a small one is mostly the noise of the large ones.
    "hypernet_extra_allocated_bytes": Threshold(limit=0.5, floor_of="peak_allocated_bytes", floor_pct=0.1),
    "hypernet_extra_process_bytes": Threshold(limit=15.0, floor_of="peak_process_bytes", floor_pct=2.0),
    "test_accuracy_pct": Threshold(
        limit=1.0, judged_by="seeds", lower_is_better=False, in_points=True, process_shift_pct=0.7
    ),
    "integer_share_pct": Threshold(limit=0.0, lower_is_better=False, in_points=True),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All that a comparison depends on beside the samples."""

    thresholds: Mapping[str, Threshold] = field(default_factory=lambda: dict(THRESHOLDS))
    interleaved: bool = False  # both sides were measured in turn on one machine (`gate --against`)
    alpha: float = 0.01  # how often a whole comparison of unchanged code may find something regressed
    prior_df: float = 20.0  # degrees of freedom that what is known beforehand of the noise counts for
    resamples: int = 1000  # of the bootstrap
    seed: int = 0
    # False: only rows are resampled that have a say in what counts as regressed or improved (`ratio_test`), so these
    # verdicts are the same; the others' intervals come from Student's t alone, and one that only the bootstrap makes
    # inconclusive is ok.
    resample_all: bool = True

    def threshold_of(self, metric: str) -> Threshold | None:
        """The threshold of a metric; a phase that is not listed gets ``PHASE``."""
        return self.thresholds.get(metric, PHASE if metric.endswith("_ms") else None)
