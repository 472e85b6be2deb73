"""Sentences on top of the report, computed from the rows: what is fast, what it costs, what could not be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.records.schema import Interval, Summary
from bench.units import Absent, format_bytes, format_ms, format_percent
from reports.rows import Estimate, Row, Section, machine_name
from reports.text import plural, ratio_text, signed

_FINE = 0.005  # two decimals show no smaller difference


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence and the question it answers."""

    question: Literal["speed", "accuracy", "hypernetwork", "strategies", "unfinished", "scope"]
    text: str


def section_verdicts(section: Section) -> tuple[Verdict, ...]:
    """Sentences about one section, the most telling first; questions that its rows cannot answer are left out."""
    sentences = (
        ("speed", _speed(section)),
        ("hypernetwork", _hypernetwork(section)),
        ("strategies", _strategies(section)),
        ("accuracy", _accuracy(section)),
        ("unfinished", _unfinished(section)),
        ("scope", _scope(section)),
    )
    return tuple(Verdict(question=question, text=text) for question, text in sentences if text)  # type: ignore[arg-type]


def headlines(sections: Sequence[Section], count: int = 3) -> tuple[str, ...]:
    """The most telling sentences over all sections; each names its section when there are several.

    Cells that did not finish are never left out: they take the last place.
    """
    picked: list[tuple[str, str]] = []
    for section, title in zip(sections, section_titles(sections), strict=True):
        name = f"{title}: " if len(sections) > 1 else ""
        picked += [(verdict.question, name + verdict.text) for verdict in section_verdicts(section)]
    unfinished = [text for question, text in picked if question == "unfinished"][:1]
    others = [text for question, text in picked if question != "unfinished"]
    return (*others[: count - len(unfinished)], *unfinished)


def section_titles(sections: Sequence[Section]) -> tuple[str, ...]:
    """Suite, model, data and device of each; where these do not tell sections apart, what does."""
    plain = [f"{s.suite}, {s.model_name} on {s.data_name}, {s.device}" for s in sections]
    details = [(f"batch {s.batch_size}", f"machine {s.fingerprint}", f"code {s.code_version}") for s in sections]
    titles = []
    for title, mine in zip(plain, details, strict=True):
        rivals = [other for name, other in zip(plain, details, strict=True) if name == title]
        extra = [part for index, part in enumerate(mine) if len({rival[index] for rival in rivals}) > 1]
        titles.append(", ".join([title, *extra]))
    return tuple(titles)


def _speed(section: Section) -> str:
    timed = [row for row in section.rows if row.is_low_bit and isinstance(row.time_vs_fp32, Interval)]
    if not timed:
        return ""
    best = min(timed, key=lambda row: row.time_vs_fp32.value if isinstance(row.time_vs_fp32, Interval) else 0.0)
    ratio = best.time_vs_fp32
    assert isinstance(ratio, Interval), "only timed rows are compared"
    if ratio.high < 1:
        verdict = "faster than FP32"
    elif ratio.low > 1:
        others = [row.time_vs_fp32 for row in timed if row is not best]
        slower = [other for other in others if isinstance(other, Interval) and other.low > 1]
        verdict = "slower than FP32"
        if others and len(slower) == len(others):
            verdict += ", as is every other low-bit row"
    else:
        verdict = "no difference from FP32 that these samples can show"
    interval = f"[{ratio.low:.2f}, {ratio.high:.2f}]"
    step = f", {format_ms(best.step_ms.median)} at the median" if isinstance(best.step_ms, Summary) else ""
    return (
        f"The fastest low-bit row is {_named(best)}: its training step takes {ratio_text(ratio.value)} {interval} "
        f"the FP32 step's time on {machine_name(best.first)}{step}, {verdict}{_accuracy_clause(best)}."
    )


def _accuracy_clause(row: Row) -> str:
    delta = row.accuracy_vs_fp32
    if isinstance(delta, Absent) or isinstance(row.accuracy, Absent):
        return ""
    return f", with {_points(delta.value)} ({row.accuracy.value:.2f} %, {plural(delta.n, 'seed')})"


def _points(difference: float) -> str:
    return "the same accuracy" if abs(difference) < _FINE else f"{signed(difference)} points of accuracy"


def _accuracy(section: Section) -> str:
    if section.synthetic:
        return ""
    compared = [row for row in section.rows if row.is_low_bit and isinstance(row.accuracy_vs_fp32, Estimate)]
    fp32 = section.fp32
    if len(compared) < 2 or fp32 is None or isinstance(fp32.accuracy, Absent):
        return ""
    ranked = sorted(compared, key=_delta)
    best, worst = ranked[-1], ranked[0]
    return (
        f"Against FP32's {fp32.accuracy.value:.2f} %, the most accurate low-bit row is {_named(best)} "
        f"({signed(_delta(best))} points) and the least accurate {_named(worst)} ({signed(_delta(worst))} points)."
    )


def _delta(row: Row) -> float:
    assert isinstance(row.accuracy_vs_fp32, Estimate), "only rows with a difference are ranked"
    return row.accuracy_vs_fp32.value


def _hypernetwork(section: Section) -> str:
    rows = [row for row in section.rows if row.has_hypernet and not isinstance(row.phase_share_pct, Absent)]
    if not rows:
        return ""
    row = min(rows, key=lambda one: one.time_vs_fp32.value if isinstance(one.time_vs_fp32, Interval) else float("inf"))
    assert not isinstance(row.phase_share_pct, Absent), "rows without phases were left out"
    assert not isinstance(row.phases_ms, Absent), "phases come with their shares"
    share, meta_ms = row.phase_share_pct.get("meta"), row.phases_ms.get("meta")
    if share is None or meta_ms is None:
        return ""
    size = f", {row.first.hypernet.num_parameters:,} parameters" if row.first.hypernet is not None else ""
    memory = row.hypernet_extra_allocated_bytes
    kind = "allocated memory"
    if isinstance(memory, Absent):
        memory, kind = row.hypernet_extra_process_bytes, "process memory"
    adds = "" if isinstance(memory, Absent) else f", and adds {format_bytes(memory)} to the peak {kind}"
    return (
        f"The hypernetwork ({row.method.hypernet}{size}) at its fastest, {_named(row)}, takes {format_ms(meta_ms)} "
        f"a step, {format_percent(share)} of it{adds}."
    )


def _strategies(section: Section) -> str:
    """Slim, recompute and tabulate against retain, for the configuration with the most strategies."""
    groups: dict[str, list[Row]] = {}
    for row in section.rows:
        if row.has_hypernet and row.against_retain is not None and not isinstance(row.against_retain, Absent):
            facts = row.method
            name = f"{facts.name} with {facts.hypernet}, {facts.error_bits}-bit error signals"
            groups.setdefault(name, []).append(row)
    groups = {name: rows for name, rows in groups.items() if any(row.method.strategy != "retain" for row in rows)}
    if not groups:
        return ""
    name, rows = max(groups.items(), key=lambda item: len(item[1]))
    parts = [part for part in map(_strategy_clause, rows) if part]
    return f"Against the retained graph ({name}), {'; '.join(parts)}." if parts else ""


def _strategy_clause(row: Row) -> str:
    against = row.against_retain
    if row.method.strategy == "retain" or against is None or isinstance(against, Absent):
        return ""
    costs = []
    if isinstance(against.time, Interval):
        time = against.time
        doubt = ", which could be chance," if time.low <= 1 <= time.high else ""
        costs.append(f"{ratio_text(time.value)} [{time.low:.2f}, {time.high:.2f}] the step time{doubt}")
    if not isinstance(against.hypernet_extra, Absent):
        costs.append(f"{ratio_text(against.hypernet_extra)} the added memory")
    if not costs:
        return ""
    points = against.accuracy_points
    accuracy = f", with {_points(points.value)}" if isinstance(points, Estimate) else ""
    return f"{row.method.strategy} takes {' and '.join(costs)}{accuracy}"


def _unfinished(section: Section) -> str:
    records = section.records
    counts = Counter(record.status for record in records if record.status != "ok")
    if not counts:
        return ""
    words = {"failed": "failed", "diverged": "diverged", "out_of_memory": "ran out of memory"}
    parts = [f"{count} {words[status]}" for status, count in sorted(counts.items())]
    return f"Of {plural(len(records), 'cell')}, {', '.join(parts)}: their rows give the reason."


def _scope(section: Section) -> str:
    parts = []
    if not section.on_gpu:
        parts.append("Nothing here ran on a GPU: times and memory are a CPU's.")
    if section.synthetic:
        parts.append("The data is synthetic, so no accuracy is shown.")
    labels = {row.ran_as for row in section.rows if row.is_low_bit and isinstance(row.ran_as, str)}
    if "emulated" in labels:
        parts.append("Rows labelled emulated give the low-bit results but not a native low-bit kernel's speed.")
    if "simulated" in labels:
        parts.append(
            "Rows labelled simulated computed in floating point: their times say nothing about integer kernels."
        )
    return " ".join(parts)


def _named(row: Row) -> str:
    return f"{row.label} ({row.ran_as})" if isinstance(row.ran_as, str) else row.label
