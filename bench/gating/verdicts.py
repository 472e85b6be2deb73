"""What the gate can say about a metric of a cell, and how that becomes one exit code."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from bench.errors import ExitCode

CELL = "cell"  # the metric of a row on a whole cell
Reference = Literal["baseline", "release"]


class Verdict(enum.StrEnum):
    """What became of one metric of one cell, worst first."""

    FAILED = "failed"
    REGRESSED = "regressed"
    MISSING = "missing"  # the cell vanished, or the metric became n/a
    NOT_COMPARABLE = "not_comparable"
    INCONCLUSIVE = "inconclusive"
    NEW = "new"
    IMPROVED = "improved"
    OK = "ok"

    @property
    def words(self) -> str:
        """As a reader sees it."""
        return self.value.replace("_", " ")

    @property
    def rank(self) -> int:
        """0 is the worst."""
        return list(Verdict).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One verdict and the figures behind it."""

    verdict: Verdict
    cell: str
    metric: str  # a metric's name, or "cell"
    reference: Reference = "baseline"  # what it was compared with: the baseline, or the pinned one of a release
    baseline: float | None = None  # median in the metric's unit; None: there is none, and the reason says why
    candidate: float | None = None
    change_pct: float | None = None  # points for shares
    per_fp32_step: bool = False  # the change is not the times' own: both were divided by the FP32 step beside them
    low_pct: float | None = None  # 95 % interval of the change; None: judged without one
    high_pct: float | None = None
    threshold_pct: float | None = None
    p_value: float | None = None  # how often noise alone would move the metric so far in this direction
    corrected_p: float | None = None  # the same anywhere among all metrics tested
    reason: str  # one sentence
    explanation: tuple[str, ...] = ()  # how the verdict came about, a sentence each
    config_digest: str
    fingerprint: str


_CODES = {
    Verdict.FAILED: ExitCode.FAILED,
    Verdict.REGRESSED: ExitCode.FAILED,
    Verdict.MISSING: ExitCode.FAILED,
    Verdict.NOT_COMPARABLE: ExitCode.NOT_COMPARABLE,
    Verdict.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    Verdict.NEW: ExitCode.OK,
    Verdict.IMPROVED: ExitCode.OK,
    Verdict.OK: ExitCode.OK,
}
_PRECEDENCE = (ExitCode.FAILED, ExitCode.NOT_COMPARABLE, ExitCode.INCONCLUSIVE)
OUTCOMES = {
    "fail": ExitCode.FAILED, "not_comparable": ExitCode.NOT_COMPARABLE, "inconclusive": ExitCode.INCONCLUSIVE,
    "ok": ExitCode.OK,
}  # fmt: skip  # what --treat may make of a verdict


def exit_code(rows: Iterable[Row], treat: Mapping[Verdict, ExitCode] | None = None) -> ExitCode:
    """The exit code of a comparison that took place: 1 before 5 before 3 before 0.

    Args:
        rows: all verdicts.
        treat: exit codes that replace a verdict's own.
    """
    codes = {((treat or {}).get(row.verdict, _CODES[row.verdict])) for row in rows}
    return next((code for code in _PRECEDENCE if code in codes), ExitCode.OK)


def worst_first(rows: Iterable[Row]) -> list[Row]:
    """Sort by verdict, then by how far a change went past its threshold, then by name."""

    def order(row: Row) -> tuple[int, float, str, str, str, str, str]:
        change, limit = abs(row.change_pct or 0.0), row.threshold_pct or 1.0
        return (
            # Rounded: equal changes differ in the last bit, and then the names decide.
            row.verdict.rank, round(-change / limit, 9), row.cell, row.metric, row.reference, row.config_digest,
            row.fingerprint,
        )  # fmt: skip

    return sorted(rows, key=order)
