"""Prints what ``metagrad-bench hypernets`` measured: updates by strategy, the whole step, and the ratios."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from bench.units import Absent, format_absent, format_bytes, format_ms, format_percent, format_ratio

if TYPE_CHECKING:
    from rich.console import Console

    from bench.records.schema import Summary
    from tools.hypernets.results import CaseResult


def render(name: str, result: CaseResult, console: Console, *, quick: bool = False) -> None:
    """Print a case as two tables and its ratios.

    Args:
        name: of the case.
        result: what ``measure_case`` answers.
        console: where to print.
        quick: it was measured with small shapes, which stands beside all that might be quoted.
    """
    mark = "--quick, not to be quoted: " if quick else ""
    console.print(
        f"\n[bold]{name}[/bold]: {mark}DualLSTMFC, H = {result.hidden}, {result.num_weights:,} weights of "
        f"{result.model}"
    )
    if result.note:
        console.print(result.note)
    table = Table("one update by", "weights", "median", "quartiles", "extra peak memory")
    for cost in result.strategies:
        table.add_row(
            cost.strategy, f"{cost.num_weights:,}", *_times(cost.update_ms), format_bytes(cost.extra_bytes)
        )  # fmt: skip
    console.print(table)
    step = result.step
    table = Table(f"one step of INT4 training, batch {step.batch_size}", "median", "quartiles", "peak memory")
    table.add_row("metagrad, tabulate", *_times(step.metagrad_ms), format_bytes(step.metagrad_peak_bytes))
    table.add_row("uniform, no hypernetwork", *_times(step.plain_ms), format_bytes(step.plain_peak_bytes))
    console.print(table)
    per_weight = result.tabulate_extra_bytes_per_weight
    lines = [
        f"recompute against retain: {format_ratio(result.recompute_speedup)} faster, "
        f"{format_ratio(result.recompute_memory_ratio)} less extra memory",
        f"the step with tabulate takes {format_ratio(result.tabulate_step_ratio)} the plain one's time, its peak "
        f"{_percent(result.tabulate_extra_peak)} more, "
        + (format_absent(per_weight) if isinstance(per_weight, Absent) else f"{per_weight:.1f} bytes a weight"),
        f"tabulate's INT4 codes are the exact ones for {100 * result.tabulate_same_codes:.4f} % of the weights, its "
        f"meta-gradient is within {result.tabulate_meta_gradient_error:.1e} ({result.tabulate_grid_points} grid points "
        "an axis)",
    ]
    for line in lines:
        console.print(f"{mark}{line}")


def _times(summary: Summary) -> tuple[str, str]:
    return format_ms(summary.median), f"{format_ms(summary.q1)} – {format_ms(summary.q3)}"


def _percent(share: float | Absent) -> str:
    return format_absent(share) if isinstance(share, Absent) else format_percent(100 * share)
