"""Sentences on top of the report, computed from the rows: what is fast, what it costs, what could not be told."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.records.schema import STATUS_VERBS, Interval, Summary
from bench.units import Absent, format_bytes, format_ms, format_percent
from reports.choice import choice_sentence
from reports.rows import AgainstRetain, Estimate, Ratio, Row, Section, machine_name
from reports.text import plural, ratio_text
from reports.values import ONE_PROCESS
from reports.why import why_sentence
from reports.wording import difference_clauses, joined, listed, points_text, shows_difference, with_interval
from reports.worth import worth_parts, worth_sentence

NUM_HEADLINES = 3
_COARSE_POINTS = 0.05  # what one test image is worth from where on the sentence says it

_HEADINGS = {
    "choice": "What to take here", "worth": "Is the hypernetwork worth it?", "speed": "Speed",
    "why": "Where its time goes",
    "hypernetwork": "What the hypernetwork costs", "strategies": "Its strategies", "accuracy": "Accuracy",
    "unfinished": "Unfinished", "scope": "What this cannot tell",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence and the question it answers."""

    question: Literal[
        "choice", "worth", "speed", "why", "accuracy", "hypernetwork", "strategies", "unfinished", "scope"
    ]
    text: str
    parts: tuple[tuple[str, tuple[str, ...]], ...] = ()  # the text as answers with several points each, for a list

    @property
    def heading(self) -> str:
        """The question as a reader sees it."""
        return _HEADINGS[self.question]


def section_verdicts(section: Section) -> tuple[Verdict, ...]:
    """Sentences about one section, the most telling first; questions that its rows cannot answer are left out."""
    parts = worth_parts(section)
    sentences = (
        ("choice", choice_sentence(section)),
        ("worth", worth_sentence(parts)),
        ("speed", _speed(section)),
        ("why", why_sentence(section)),
        ("hypernetwork", _hypernetwork(section)),
        ("strategies", _strategies(section)),
        ("accuracy", _accuracy(section)),
        ("unfinished", _unfinished(section)),
        ("scope", _scope(section)),
    )
    several = parts if sum(len(points) for _, points in parts) > 1 else ()
    return tuple(
        Verdict(question=question, text=text, parts=several if question == "worth" else ())  # type: ignore[arg-type]
        for question, text in sentences
        if text
    )


def headlines(sections: Sequence[Section]) -> tuple[str, ...]:
    """The most telling sentences over all sections; each names its section when there are several.

    Of several sections each says its first sentence before any says its second. Cells that did not finish are never
    left out: they take the last place.
    """
    picked: list[tuple[str, str]] = []
    said = []
    for section, title in zip(sections, section_titles(sections), strict=True):
        name = f"{title}: " if len(sections) > 1 else ""
        said.append([(verdict.question, name + verdict.text) for verdict in section_verdicts(section)])
    for turn in itertools.zip_longest(*said):
        picked += [sentence for sentence in turn if sentence is not None]
    unfinished = [text for question, text in picked if question == "unfinished"][:1]
    others = [text for question, text in picked if question != "unfinished"]
    return (*others[: NUM_HEADLINES - len(unfinished)], *unfinished)


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
    low_bit = [row for row in section.rows if row.is_low_bit]
    timed = [(row, row.time_vs_fp32) for row in low_bit if isinstance(row.time_vs_fp32, Ratio)]
    ranked = [(row, ratio.interval) for row, ratio in timed if isinstance(ratio.interval, Interval)]
    if not ranked:
        return _unranked_speed(timed)
    best, ratio = min(ranked, key=lambda pair: pair[1].value)
    assert isinstance(best.time_vs_fp32, Ratio), "only rows with a ratio are ranked"
    if ratio.high < 1:
        verdict = "faster than FP32"
    elif ratio.low > 1:
        slower = [row for row, other in ranked if other.low > 1]
        every = len(low_bit) > 1 and len(slower) == len(low_bit)
        verdict = f"slower than FP32{', as is every other low-bit row' if every else ''}"
    else:
        verdict = "no difference from FP32 that these samples can show"
    alike = [row.named for row, other in ranked if row is not best and other.low <= ratio.high]
    single = [row.named for row, _ in timed if row.timed_once]
    lead = "The fastest low-bit row by its point estimate" if alike else "The fastest low-bit row"
    doubts = f"; {listed(alike)} cannot be told from it by these samples" if alike else ""
    doubts += f"; not ranked, since one process gives no interval: {listed(single)}" if single else ""
    of = "the FP32 step’s time"
    return (
        f"{lead} is {best.named}: its training step takes {with_interval(best.time_vs_fp32, of)} on "
        f"{machine_name(best.first)}{_median_clause(best)}, {verdict}{_accuracy_clause(best)}{doubts}."
    )


def _unranked_speed(timed: Sequence[tuple[Row, Ratio]]) -> str:
    """Rows of one process each: their ratios, and no order."""
    if not timed:
        return ""
    ordered = sorted(timed, key=lambda pair: pair[1].value)
    (first, lowest), (last, highest) = ordered[0], ordered[-1]
    machine = machine_name(first.first)
    if len(ordered) == 1:
        return (
            f"The training step of {first.named} takes {ratio_text(lowest.value)} the FP32 step’s time on {machine}"
            f"{_median_clause(first)} ({ONE_PROCESS}): against FP32 that is not confirmed."
        )
    return (
        f"The training steps of {len(ordered)} low-bit rows take {ratio_text(lowest.value)} ({first.named}) to "
        f"{ratio_text(highest.value)} ({last.named}) the FP32 step’s time on {machine} ({ONE_PROCESS}): no order "
        "among them or against FP32 is confirmed."
    )


def _median_clause(row: Row) -> str:
    return f", {format_ms(row.step_ms.median)} at the median" if isinstance(row.step_ms, Summary) else ""


def _accuracy_clause(row: Row) -> str:
    delta, accuracy = row.accuracy_vs_fp32, row.accuracy
    if isinstance(delta, Absent) or isinstance(accuracy, Absent):
        return ""
    text = f", with {points_text(delta)} points of accuracy"
    if isinstance(delta.interval, Absent):
        return f"{text} ({accuracy.value:.2f} %; one seed, no statement about significance)"
    if shows_difference(delta):
        return f"{text} ({accuracy.value:.2f} %, {plural(delta.n, 'seed')})"
    return f"{text} ({accuracy.value:.2f} %; no difference that {plural(delta.n, 'seed')} show)"


def _accuracy(section: Section) -> str:
    if section.synthetic:
        return ""
    compared = [
        (row.named, row.accuracy_vs_fp32)
        for row in section.rows
        if row.is_low_bit and isinstance(row.accuracy_vs_fp32, Estimate)
    ]
    fp32 = section.fp32
    if not compared or fp32 is None or isinstance(fp32.accuracy, Absent):
        return ""
    reference = f"{fp32.accuracy.value:.2f} % ({plural(fp32.accuracy.n, 'seed')})"
    return f"Against FP32’s {reference}: {'; '.join(difference_clauses(compared))}.{_grain(section)}"


def _grain(section: Section) -> str:
    """What one test image is worth, where that is coarse."""
    samples = {record.data.test_samples for record in section.records if record.data is not None}
    if len(samples) != 1 or (count := samples.pop()) <= 0 or 100 / count < _COARSE_POINTS:
        return ""
    return f" One of {count:,} test images is worth {100 / count:.2f} points."


def _hypernetwork(section: Section) -> str:
    rows = [row for row in section.rows if row.has_hypernet and not isinstance(row.phase_share_pct, Absent)]
    if not rows:
        return ""
    row = min(rows, key=lambda one: one.time_vs_fp32.value if isinstance(one.time_vs_fp32, Ratio) else float("inf"))
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
    chosen = f", which has the lowest measured ratio to FP32 of {len(rows)} such rows" if len(rows) > 1 else ""
    return (
        f"The hypernetwork ({row.method.hypernet}{size}) takes {format_ms(meta_ms)} a step, {format_percent(share)} of "
        f"it{adds}: in {row.named}{chosen}."
    )


def _strategies(section: Section) -> str:
    """Slim, recompute and tabulate against retain, for the configuration with the most strategies."""
    groups: dict[str, list[Row]] = {}
    for row in section.rows:
        if row.has_hypernet and row.against_retain is not None and not isinstance(row.against_retain, Absent):
            facts = row.method
            name = f"{facts.name} with {facts.hypernet}, {facts.error_bits}-bit error signals"
            name += f", {', '.join(row.labels)}" if row.labels else ""
            groups.setdefault(name, []).append(row)
    groups = {name: rows for name, rows in groups.items() if any(row.method.strategy != "retain" for row in rows)}
    if not groups:
        return ""
    name, rows = max(groups.items(), key=lambda item: len(item[1]))
    parts = [part for part in map(_strategy_clause, rows) if part]
    accuracies = [
        (row.method.strategy, row.against_retain.accuracy_points)
        for row in rows
        if row.method.strategy != "retain"
        and isinstance(row.against_retain, AgainstRetain)
        and isinstance(row.against_retain.accuracy_points, Estimate)
    ]
    if parts and accuracies:
        parts.append(f"in accuracy, {'; '.join(difference_clauses(accuracies))}")
    published = "; retain runs the published nn.LSTM" if "lstm" in rows[0].method.hypernet else ""
    return f"Against the retained graph ({name}{published}), {'; '.join(parts)}." if parts else ""


def _strategy_clause(row: Row) -> str:
    against = row.against_retain
    if row.method.strategy == "retain" or against is None or isinstance(against, Absent):
        return ""
    costs = []
    if isinstance(against.time, Ratio):
        interval = against.time.interval
        chance = isinstance(interval, Interval) and interval.low <= 1 <= interval.high
        costs.append(f"{with_interval(against.time, 'the step time')}{' (which could be chance)' if chance else ''}")
    for kind, extra in (("allocated", against.hypernet_extra_allocated), ("process", against.hypernet_extra_process)):
        if not isinstance(extra, Absent) and extra > 0:
            costs.append(f"{ratio_text(extra)} the added {kind} memory")
    return f"{row.method.strategy} takes {joined(costs)}" if costs else ""


def _unfinished(section: Section) -> str:
    records = section.records
    counts = Counter(record.status for record in records if record.status != "ok")
    if not counts:
        return ""
    parts = []
    for status, count in sorted(counts.items()):
        of = [row.label for row in section.rows if any(record.status == status for record in row.records)]
        parts.append(f"{count} {STATUS_VERBS[status]} ({listed(of)})")
    return f"Of {plural(len(records), 'cell')}, {', '.join(parts)}: their rows give the reason."


def _scope(section: Section) -> str:
    parts = []
    if not section.on_gpu:
        parts.append("Nothing here ran on a GPU: times and memory are a CPU’s.")
    if section.synthetic:
        parts.append("The data is synthetic, so no accuracy is shown.")
    labels = {row.ran_as for row in section.rows if row.is_low_bit and isinstance(row.ran_as, str)}
    if "emulated" in labels:
        parts.append("Rows labelled emulated give the low-bit results but not a native low-bit kernel’s speed.")
    if "simulated" in labels:
        parts.append(
            "Rows labelled simulated computed in floating point: their times say nothing about integer kernels."
        )
    return " ".join(parts)
