"""Peak memory by category: every row, and a hypernetwork's strategies side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bench.records.schema import MEMORY_CATEGORIES, MemoryPhase
from bench.units import MEBIBYTE, Absent
from reports.figures.style import (
    INK,
    PALETTE,
    NotDrawn,
    Sketch,
    cap_rows,
    legend_below,
    name_rows,
    panels,
    same_but,
    shorten,
)
from reports.rows import Row, Section, missing_reason, status_text
from reports.text import clean_text

STRATEGIES = ("retain", "slim", "recompute", "tabulate")
MAX_GROUPS = 6
ZOOM_ABOVE = 3.0  # a bar over the median one: it presses the others flat, so these have a second panel
SLIVER_PCT = 1.0  # of a bar: two points of the page's width
_UNTOLD, _SLIVERS = "not told apart", "smaller parts"
_STYLES = {
    "weights": (PALETTE[0], ""), "integer_copies": (PALETTE[9], ".."), "activations": (PALETTE[1], ""),
    "gradients": (PALETTE[2], "//"), "optimizer_state": (PALETTE[5], ""), "hypernet_parameters": (PALETTE[3], ""),
    "hypernet_activations": (PALETTE[4], "xx"), "pending_gradients": (PALETTE[6], "\\\\"),
    "workspaces": ("#949494", ""), "data": ("#5f5f5f", ".."), "other": ("#d9d9d9", ""), _UNTOLD: ("#c8c8c8", "oo"),
    _SLIVERS: ("#d9d9d9", "--"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Bar:
    """One row's peak, MiB by category, and what stands beside it."""

    parts: dict[str, float]
    note: str

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def memory_by_category(section: Section) -> Sketch | NotDrawn:
    """What each row held when its step held most, by category; the whole peak where that was not told apart."""
    key, topic, title = "memory", "memory", "Peak memory by category"
    known = [row for row in section.rows if _bar(row, "peak_allocated_bytes") is not None]
    name, peak_name = "peak_allocated_bytes", "allocated"
    if not known:
        name, peak_name = "peak_process_bytes", "of the process"
        known = [row for row in section.rows if _bar(row, name) is not None]
    rows, more = cap_rows(known)
    if not rows:
        return NotDrawn(key=key, topic=topic, title=title, reason="no row's memory was measured")
    bars = [bar for row in rows if (bar := _bar(row, name)) is not None]
    end = _zoom_end(bars)
    figure, axes = panels(section, 1, height_in=1.9 + 0.32 * len(rows), sharey=True, **_columns(end))
    small = _slivers(bars)
    _stack(axes[0], bars, small, end)
    name_rows(axes[0][0], rows)
    _name_axes(axes[0], f"peak {peak_name}, MiB", end)
    legend_below(figure, axes[0][0], 4)
    top = max(range(len(rows)), key=lambda index: bars[index].total)
    alt = (
        f"Peak memory ({peak_name}) of {len(rows)} rows; the largest is {rows[top].named} with "
        f"{bars[top].total:.4g} MiB, most of it {_most(bars[top])}."
    )
    caption = (
        "Live tensors at the moment in which the step held most; beside it the sum, and in brackets what the "
        f"hypernetwork adds to the peak, measured in two processes.{_sliver_note(small)}"
    )
    caption += _zoom_note([row.label for row in rows], bars, end) + more
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=alt, figure=figure)


def memory_of_strategies(section: Section) -> Sketch | NotDrawn:
    """One panel per configuration: retain, slim, recompute and tabulate below each other, absent ones named."""
    key, topic, title = "memory_strategies", "memory", "Memory of the hypernetwork's strategies"
    groups: dict[str, dict[str, Row]] = {}
    for row in section.rows:
        if row.has_hypernet:
            groups.setdefault(_configuration(row), {})[row.method.strategy] = row
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        reason = "no configuration was measured with two strategies" if groups else "no row has a hypernetwork"
        return NotDrawn(key=key, topic=topic, title=title, reason=reason)
    shown = several[:MAX_GROUPS]
    if not any(_bar(row, "peak_allocated_bytes") for group in shown for row in group.values()):
        return NotDrawn(key=key, topic=topic, title=title, reason="no strategy's memory was measured")
    sentences = []
    bars_of = [[_strategy_bar(group.get(strategy)) for strategy in STRATEGIES] for group in shown]
    everything = [bar for bars in bars_of for bar in bars]
    small, end = _slivers(everything), _zoom_end(everything)
    figure, axes = panels(
        section, len(shown), height_in=1.6 + 1.35 * len(shown), sharex="col", sharey=True, **_columns(end)
    )
    for line, group, bars in zip(axes, shown, bars_of, strict=True):
        ax = line[0]
        _stack(line, bars, small, end)
        ax.set_yticks(range(len(STRATEGIES)), STRATEGIES)
        ax.set_ylim(len(STRATEGIES) - 0.4, -0.6)
        first = next(iter(group.values()))
        name = _group_name(first)
        ax.set_title(name)
        told = [
            f"{strategy} {bar.total:.4g} MiB" if bar.parts else f"{strategy} {bar.note}"
            for strategy, bar in zip(STRATEGIES, bars, strict=True)
        ]
        sentences.append(f"{name}: {', '.join(told)}.")
    _name_axes(axes[-1], "peak allocated, MiB", end)
    legend = next(ax for ax in axes[:, 0] if ax.get_legend_handles_labels()[0])
    legend_below(figure, legend, 4)
    caption = (
        "The same configuration under each strategy: live tensors at the moment in which the step held most; in "
        f"brackets what the hypernetwork adds to the peak.{_sliver_note(small)}"
    )
    caption += _zoom_note(STRATEGIES * len(shown), everything, end)
    if len(several) > MAX_GROUPS:
        caption += f" The first {MAX_GROUPS} of {len(several)} configurations."
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=" ".join(sentences), figure=figure)


def highest_phase(row: Row) -> MemoryPhase | None:
    """The phase in which the row held most, of all its seeds; None where categories were not told apart."""
    told = [record.memory.phases for record in row.records if record.memory is not None]
    phases = [phase for one in told if not isinstance(one, Absent) for phase in one]
    return max(phases, key=lambda phase: phase.peak_bytes) if phases else None


def _bar(row: Row, name: str) -> _Bar | None:
    """Peak by category, as far as it was told apart; None where it is unknown."""
    peak = getattr(row, name)
    highest = highest_phase(row) if name == "peak_allocated_bytes" else None
    if highest is not None:
        parts = {category: size / MEBIBYTE for category, size in highest.categories.items() if size}
    elif isinstance(peak, Absent):
        return None
    else:
        parts = {_UNTOLD: peak / MEBIBYTE}
    extra = getattr(row, "hypernet_extra_process_bytes" if "process" in name else "hypernet_extra_allocated_bytes")
    note = ""
    if row.has_hypernet:
        note = " (added: n/a)" if isinstance(extra, Absent) else f" ({extra / MEBIBYTE:+.3g})"
    return _Bar(parts, note)


def _strategy_bar(row: Row | None) -> _Bar:
    if row is None:
        return _Bar({}, "n/a (not in these records)")
    bar = _bar(row, "peak_allocated_bytes")
    if bar is not None:
        return bar
    record = row.first
    reason = status_text(record) if record.status != "ok" else missing_reason(record, "memory")
    return _Bar({}, f"n/a ({shorten(clean_text(reason), 60)})")


def _zoom_end(bars: Sequence[_Bar]) -> float | None:
    """Where a second panel's axis ends so that bars of the usual length can be read, MiB; None where one shows all."""
    totals = sorted(bar.total for bar in bars if bar.parts)
    usual = [total for total in totals if total <= ZOOM_ABOVE * median_low(totals)]
    return 1.08 * usual[-1] if len(usual) < len(totals) else None


def _columns(end: float | None) -> dict[str, Any]:
    """Options of ``panels``: MiB, the same as far as ``end`` where there is one, percent."""
    widths = [1.0, 0.9] if end is None else [1.3, 1.0, 0.8]
    return {"columns": len(widths), "width_ratios": widths}


def _name_axes(axes: Sequence[Axes], absolute: str, end: float | None) -> None:
    axes[0].set_xlabel(absolute)
    axes[-1].set_xlabel("share of the peak, %")
    if end is not None:
        axes[1].set_xlabel(f"the same, up to {end:.3g} MiB")


def _zoom_note(names: Sequence[str], bars: Sequence[_Bar], end: float | None) -> str:
    """Which bars the second panel cuts, for a caption; "" without one."""
    if end is None:
        return ""
    cut = dict.fromkeys(name for name, bar in zip(names, bars, strict=True) if bar.total > end)
    return (
        f" Second panel: the same bars up to {end:.3g} MiB; cut there, with two strokes: {clean_text(', '.join(cut))}."
    )


def _stack(axes: Sequence[Axes], bars: Sequence[_Bar], small: Sequence[str], end: float | None) -> None:
    """Horizontal stacked bars, one below the other: MiB with their sum and note on the left, percent on the right.

    Args:
        axes: as many as ``_columns`` names.
        bars: from top to bottom.
        small: categories that are joined to one part.
        end: of the second panel's axis.
    """
    bars = [_joined(bar, small) for bar in bars]
    totals = np.array([bar.total for bar in bars])
    starts = np.zeros(len(bars))
    units = [np.ones(len(bars))] * (len(axes) - 1) + [100 / np.where(totals == 0, 1.0, totals)]
    for category in (*MEMORY_CATEGORIES, _SLIVERS, _UNTOLD):
        sizes = np.array([bar.parts.get(category, 0.0) for bar in bars])
        if not sizes.any():
            continue
        colour, hatch = _STYLES.get(category, (PALETTE[7], "**"))
        for ax, unit in zip(axes, units, strict=True):
            ax.barh(
                range(len(bars)), sizes * unit, left=starts * unit, height=0.72, color=colour, hatch=hatch,
                edgecolor="#ffffff", linewidth=np.where(sizes > 0, 0.4, 0.0), label=_words(category),
            )  # fmt: skip
        starts += sizes
    absolute = axes[0]
    for place, bar in enumerate(bars):
        text = f" {bar.total:.3g}{bar.note}" if bar.parts else f" {bar.note}"
        absolute.annotate(text, (bar.total, place), va="center", fontsize=7.5, color=INK)
    room = 1.42 if end is None else 1.62  # for the texts
    absolute.set_xlim(0, max(max(totals) * room, absolute.get_xlim()[1]))
    axes[-1].set_xlim(0, 100)
    if end is not None:
        _cut(axes[1], end, [place for place, total in enumerate(totals) if total > end])
    for ax in axes:
        ax.grid(visible=False, axis="y")


def _cut(ax: Axes, end: float, places: Sequence[int]) -> None:
    """End an axis, and strike through the bars that go on."""
    ax.set_xlim(0, end)
    for place in places:
        ends = [place + 0.36, place - 0.36]
        for at, width, colour in ((0.945, 6.0, "#ffffff"), (0.93, 1.2, "#202020"), (0.96, 1.2, "#202020")):
            across = [(at - 0.012) * end, (at + 0.012) * end]
            ax.plot(across, ends, color=colour, linewidth=width, solid_capstyle="butt")


def _slivers(bars: Sequence[_Bar]) -> list[str]:
    """Categories that are too small to be seen in every bar."""
    present = [name for name in MEMORY_CATEGORIES if any(bar.parts.get(name) for bar in bars)]
    known = [bar for bar in bars if bar.parts]
    return [name for name in present if all(bar.parts.get(name, 0.0) * 100 < SLIVER_PCT * bar.total for bar in known)]


def _joined(bar: _Bar, small: Sequence[str]) -> _Bar:
    parts = {name: size for name, size in bar.parts.items() if name not in small}
    rest = sum(size for name, size in bar.parts.items() if name in small)
    return _Bar(parts | ({_SLIVERS: rest} if rest else {}), bar.note)


def _sliver_note(small: Sequence[str]) -> str:
    """What "smaller parts" holds, for a caption; "" where nothing is that small."""
    return (
        f" Smaller parts, each below {SLIVER_PCT:g} % of every bar: {', '.join(map(_words, small))}." if small else ""
    )


def _words(category: str) -> str:
    return category.replace("_", " ").replace("hypernet ", "hypernetwork ")


def _most(bar: _Bar) -> str:
    name, size = max(bar.parts.items(), key=lambda part: part[1])
    return f"{_words(name)} with {size:.4g} MiB"


def _configuration(row: Row) -> str:
    return same_but(
        row, method={"strategy": ""}, cell=lambda cell: {name: v for name, v in cell.items() if name != "strategy"}
    )


def _group_name(row: Row) -> str:
    facts = row.method
    hidden = "" if isinstance(facts.hidden, Absent) else f", H = {facts.hidden}"
    ran = f", {row.ran_as}" if isinstance(row.ran_as, str) else ""
    bits = f"{facts.name}, ∇y {facts.error_bits} bit, ∇W {facts.grad_bits} bit"
    return shorten(clean_text(f"{bits}: {facts.hypernet}{hidden}{ran}"), 100)
