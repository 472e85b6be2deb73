"""The same rows on several devices, side by side and never averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reports.figures.quantity import Quantity, ends_of, in_mib, is_known, middle_of
from reports.figures.style import (
    INK,
    PALETTE,
    NotDrawn,
    Sketch,
    legend_below,
    log_axis,
    panels,
    shorten,
    tag,
    wants_log,
)
from reports.rows import Row, Section, machine_name
from reports.text import clean_text, plural

MAX_MACHINES = 8
MAX_LABELS = 30
LOG_ABOVE = 8  # largest over smallest
_MARKERS = "osD^vPX<"


def comparable_sections(sections: Sequence[Section]) -> list[list[int]]:
    """Positions of sections that hold the same work on several machines or devices; the largest groups first."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, s in enumerate(sections):
        groups.setdefault((s.suite, s.model_name, s.data_name, s.batch_size), []).append(index)
    several = [
        group for group in groups.values() if len({(sections[i].device, sections[i].fingerprint) for i in group}) > 1
    ]
    return sorted(several, key=lambda group: (-sum(len(sections[i].rows) for i in group), group[0]))


def across_machines(sections: Sequence[Section]) -> Sketch | NotDrawn:
    """Step time, its ratio to FP32 and peak memory of every row on every machine that measured it.

    Args:
        sections: of one suite, model, data set and batch size.
    """
    key, topic, title = "machines", "accuracy", "Across machines"
    shown = list(sections)[:MAX_MACHINES]
    quantities: list[tuple[str, Callable[[Row], Quantity]]] = [
        ("step time, ms (median)", lambda row: row.step_ms),
        ("step against FP32, ratio", lambda row: row.time_vs_fp32),
        ("peak allocated, MiB", lambda row: in_mib(row.peak_allocated_bytes)),
    ]
    by_label: dict[str, dict[int, Row]] = {}
    for index, section in enumerate(shown):
        for row in section.rows:
            by_label.setdefault(row.label, {})[index] = row
    known = {
        label: rows
        for label, rows in by_label.items()
        if any(is_known(of(r)) for r in rows.values() for _, of in quantities)
    }
    labels = list(known)[:MAX_LABELS]
    present = [q for q in quantities if any(is_known(q[1](row)) for label in labels for row in known[label].values())]
    if not present or len(shown) < 2:
        return NotDrawn(key=key, topic=topic, title=title, reason="no two machines measured the same")
    names = machine_labels(shown)
    figure, axes = panels(shown, 1, len(present), height_in=1.7 + 0.3 * len(labels), sharey=True)
    sentences = []
    for ax, (words, of) in zip(axes[0], present, strict=True):
        values = []
        for index, name in enumerate(names):
            points = [
                (place, of(known[label][index]))
                for place, label in enumerate(labels)
                if index in known[label] and is_known(of(known[label][index]))
            ]
            offset = (index - (len(names) - 1) / 2) * min(0.16, 0.7 / len(names))
            colour, marker = PALETTE[index % len(PALETTE)], _MARKERS[index]
            for place, value in points:
                if (ends := ends_of(value)) is not None:
                    ax.plot(ends, [place + offset] * 2, color=colour, linewidth=1.3)
            ax.scatter(
                [middle_of(v) for _, v in points], [place + offset for place, _ in points], s=30, marker=marker,
                color=colour, label=name, zorder=3,
            )  # fmt: skip
            values += [middle_of(value) for _, value in points]
        if "ratio" in words:
            ax.axvline(1.0, color=INK, linewidth=0.8, linestyle=":")
        if wants_log(values, LOG_ABOVE):
            log_axis(ax, "x")
        ax.set_title(words)
        ax.grid(visible=False, axis="y")
        sentences.append(f"{words}: {min(values):.4g} to {max(values):.4g}.")
    first = axes[0][0]
    first.set_yticks(range(len(labels)), [tag(next(iter(known[label].values()))) for label in labels])
    first.set_ylim(len(labels) - 0.4, -0.6)
    for ax in axes[0][1:]:
        ax.set_ylim(first.get_ylim())
    handles_ax = max(axes[0], key=lambda ax: len(ax.get_legend_handles_labels()[1]))
    legend_below(figure, handles_ax, 2)
    caption = (
        "Each point is one row on one machine; lines are quartiles of the step time and 95 % intervals of the ratio. "
        "Nothing is averaged over machines."
    )
    if len(sections) > len(shown):
        caption += f" The first {len(shown)} of {len(sections)} machines."
    alt = f"{plural(len(labels), 'row')} on {len(names)} machines ({'; '.join(names)}). {' '.join(sentences)}"
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=alt, figure=figure)


def machine_labels(sections: Sequence[Section]) -> list[str]:
    """A name for each section's machine; what tells equal names apart follows."""
    names = [clean_text(machine_name(section.rows[0].first)) for section in sections]
    labels = []
    for index, (name, section) in enumerate(zip(names, sections, strict=True)):
        twins = [sections[other] for other, text in enumerate(names) if text == name and other != index]
        extra = ""
        if twins:
            parts = ("device", "fingerprint", "code_version")
            differing = [part for part in parts if any(getattr(twin, part) != getattr(section, part) for twin in twins)]
            extra = ", ".join(str(getattr(section, part)) for part in differing)
        label = shorten(name, 44) + (f" ({clean_text(extra)})" if extra else "")
        labels.append(f" {label}" if label.startswith("_") else label)
    return labels
