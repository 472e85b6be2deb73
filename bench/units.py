"""The few conversions and the one formatting rule per quantity; an unknown value is ``Absent(reason)``, never 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MEBIBYTE = 1024**2


@dataclass(frozen=True, slots=True)
class Absent:
    """A value that could not be known, with the reason a reader sees."""

    reason: str


def format_absent(absent: Absent) -> str:
    """Print an unknown value: ``n/a (reason)``."""
    return f"n/a ({absent.reason})"


def format_bytes(value: float | Absent) -> str:
    """Print bytes in binary units with three significant digits (``11.4 MiB``)."""
    if isinstance(value, Absent):
        return format_absent(value)
    sign, size = ("-" if value < 0 else ""), abs(float(value))
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 999.5 or unit == "TiB":
            return f"{sign}{_three_digits(size) if unit != 'B' else f'{size:.0f}'} {unit}"
        size /= 1024
    raise AssertionError("unreachable: the last unit always returns")


def format_ms(value: float | Absent) -> str:
    """Print milliseconds with three significant digits (``12.3 ms``)."""
    return format_absent(value) if isinstance(value, Absent) else f"{_three_digits(value)} ms"


def format_joules(value: float | Absent) -> str:
    """Print joules with three significant digits."""
    return format_absent(value) if isinstance(value, Absent) else f"{_three_digits(value)} J"


def format_ratio(value: float | Absent) -> str:
    """Print a ratio against a reference (``1.34×``)."""
    return format_absent(value) if isinstance(value, Absent) else f"{value:.2f}×"


def format_span_overhead(cells_pct: Sequence[float], fp32_pct: Sequence[float]) -> str:
    """How much longer a step with the profile pass's spans took, over several cells, in a sentence.

    Args:
        cells_pct: ``span_overhead_pct`` of at least one cell.
        fp32_pct: the same of the FP32 steps beside them.
    """
    cells, fp32 = _signed_range(cells_pct), _signed_range(fp32_pct)
    return (
        f"Spans change a step’s time by {cells} %, that of FP32 beside it by {fp32} %; step times elsewhere are of "
        "steps without them."
    )


def _signed_range(values: Sequence[float]) -> str:
    low, high = (f"{round(value):+d}".replace("-", "−").replace("+0", "0") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def format_stopping(ends: Sequence[tuple[str | Absent, float | Absent]]) -> str:
    """How many timing processes ended before their medians were narrow, in a sentence; "" where none did.

    Args:
        ends: ``stopped_by`` and ``half_width_pct`` of each process.
    """
    widths = [width for stopped, width in ends if stopped == "budget"]
    if not widths:
        return ""
    known = [width for width in widths if not isinstance(width, Absent)]
    reach = f"±{max(known):.1f} %" if known else ""
    widest = f"; the 95 % interval of a median within one process reaches {reach} at the widest" if known else ""
    return (
        f"{len(widths)} of {len(ends)} timing processes ended with protocol.timing_budget_s before both medians were "
        f"as narrow as protocol.timing_interval_pct asks{widest}."
    )


def format_percent(value: float | Absent, digits: int = 1) -> str:
    """Print a share in percent; the value is already in percent."""
    return format_absent(value) if isinstance(value, Absent) else f"{value:.{digits}f} %"


def plural(count: float, noun: str, many: str = "") -> str:
    """Print a count with its noun (``1 record``, ``8 records``, ``2 processes``, ``0.5 points``).

    Args:
        count: a number of things, or of units.
        noun: of one.
        many: of several, where that is not the noun with an s.
    """
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun if count == 1 else many or noun + 's'}"


def format_duration(seconds: float) -> str:
    """Print a duration the way a progress bar does (``1:02:03``, ``2:05``)."""
    total = max(0, round(seconds))
    hours, minutes, secs = total // 3600, total % 3600 // 60, total % 60
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent (``0.0123``, ``1.23``, ``12.3``, ``1234``)."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    for limit, digits in ((0.0995, 4), (0.995, 3), (9.995, 2), (99.95, 1)):
        if magnitude < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"
