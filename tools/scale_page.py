"""The table of ``docs/scale.md`` out of the figures that ``make scale`` keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.units import format_bytes
from tools.provenance import put_between

BEGIN, END = "<!-- figures: written by make scale -->\n", "<!-- end of the figures -->\n"
NAMES = {
    "plan": "composing, checking and locating a sweep",
    "again": "`run` of a sweep that is measured already",
    "write": "writing records, each flushed to the disk",
    "fill": "writing records, unflushed",
    "status": "`status`, first look",
    "baseline": "`baseline`",
    "gate": "`gate`, against another measurement",
    "report": "`report`; over 20,000 cells: a report of each variant, one after another",
}


def as_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """CPU seconds and peak memory by stage and size, and how both grow towards the largest one.

    Args:
        stages: as the JSON holds them.
    """
    sizes = sorted({row["cells"] for row in stages})
    found = {(row["stage"], row["cells"]): row for row in stages}
    heads = ("step", *(f"{size:,} cells" for size in sizes), "grows")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, words in NAMES.items():
        measured = [found[name, size] for size in sizes if (name, size) in found]
        if measured:
            cells = [_figures(found.get((name, size))) for size in sizes]
            lines.append("| " + " | ".join((words, *cells, _growth(measured))) + " |")
    return "\n".join(lines) + "\n"


def quote(page: str, stages: Sequence[Mapping[str, Any]]) -> str:
    """A page with the table, the machine and the day in the place for them."""
    machines = sorted({f"{row['machine']['cpu']}, {row['machine']['cores']} cores" for row in stages})
    days = sorted({row["measured_at"][:10] for row in stages})
    told = f"Measured on {' and '.join(days)} on {'; '.join(machines)}: CPU seconds and peak resident memory.\n"
    return put_between(page, BEGIN, END, f"{told}\n{as_table(stages)}")


def _figures(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    if "reason" in row:
        return f"n/a ({row['reason']})"
    seconds = row["cpu_s"]
    return f"{seconds:.{0 if seconds >= 100 else 1 if seconds >= 10 else 2}f} s, {format_bytes(row['peak_bytes'])}"


def _growth(measured: Sequence[Mapping[str, Any]]) -> str:
    """Of the two largest sizes: by what factor time and memory rise with the cells."""
    known = [row for row in measured if "reason" not in row]
    if len(known) < 2:
        return ""
    one, other = known[-2:]
    cells, seconds, memory = (other[key] / one[key] for key in ("cells", "cpu_s", "peak_bytes"))
    return f"{cells:.3g}× the cells: {seconds:.2g}× the time, {memory:.2g}× the memory"
