"""What the gate found, for people and programs: a table, markdown, JSON, and where it runs in CI what CI reads."""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.errors import ExitCode, RecordError
from bench.gating import CELL, THRESHOLDS, Comparison, Row, Threshold, Verdict, exit_code
from bench.gating.decide import show_value
from bench.gating.policy_file import Rules
from bench.printable import show_text
from bench.records.write import write_atomic
from bench.units import plural
from tools.gate_ci import append_summary, is_github, render_github, render_junit, without_commands
from tools.output import emit

OUTPUT_VERSION = 2
MOST_LINES = 500  # of a table for people, the worst first; JSON and JUnit hold every row
PIPED_WIDTH = 160  # columns of a table that no terminal shows
STYLES = {
    Verdict.FAILED: "bold red", Verdict.REGRESSED: "bold red", Verdict.MISSING: "red",
    Verdict.NOT_COMPARABLE: "yellow", Verdict.INCONCLUSIVE: "yellow", Verdict.NEW: "cyan", Verdict.IMPROVED: "green",
    Verdict.OK: "dim",
}  # fmt: skip
COLUMNS = ("verdict", "cell", "metric", "baseline", "candidate", "change", "change of", "why")
AS_SHOWN, PER_STEP = "as shown", "time / FP32 step"
LEGEND = (
    f"{PER_STEP}: each side's time is divided by the FP32 step's in the same processes, which takes the machine's "
    "speed out; the change is that of the two quotients, not of the times shown."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the gate found; the JSON output is this."""

    schema_version: int
    exit_code: int
    warn_only: bool
    conclusion: str
    counts: dict[str, int]  # rows by verdict
    treat: dict[str, int]  # exit codes that replace a verdict's own
    alpha: float
    num_tests: int
    interleaved: bool
    thresholds: dict[str, Threshold]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]

    def code_of(self, row: Row) -> ExitCode:
        """What one row counts as."""
        return exit_code([row], {Verdict(name): ExitCode(code) for name, code in self.treat.items()})


def conclude(comparison: Comparison, rules: Rules, notes: Sequence[str], *, warn_only: bool) -> Outcome:
    """Count verdicts into an exit code and one line.

    Args:
        comparison: all rows.
        rules: the policy, and what verdicts count as.
        notes: what a reader must know beside the rows.
        warn_only: answer 0, and say what the code would be; where no cell had another to be compared with, it stays.
    """
    rows = comparison.rows
    code = exit_code(rows, rules.treat)
    if warn_only and code and not comparison.has_pair:
        warn_only = False
        notes = (*notes, f"No cell was compared, so --warn-only leaves the exit code at {int(code)}.")
    if warn_only and code:
        notes = (*notes, f"Warning only: the exit code would be {int(code)}.")
    counts = collections.Counter(row.verdict for row in rows)
    return Outcome(
        schema_version=OUTPUT_VERSION,
        exit_code=int(ExitCode.OK if warn_only else code),
        warn_only=warn_only,
        conclusion=_conclude(rows, counts, code, rules),
        counts={verdict.value: counts[verdict] for verdict in Verdict},
        treat={verdict.value: int(value) for verdict, value in rules.treat.items()},
        alpha=comparison.policy.alpha,
        num_tests=comparison.num_tests,
        interleaved=comparison.policy.interleaved,
        thresholds=dict(comparison.policy.thresholds),
        notes=tuple(notes),
        rows=rows,
    )


def publish(outcome: Outcome, form: str, files: Mapping[Path, str], *, explain: bool) -> None:
    """Print in one format, write others to files, and tell GitHub where it runs there.

    Raises:
        RecordError: if a file or the output cannot be written.
    """
    failures: list[RecordError] = []
    for path, name in files.items():
        try:
            write_atomic(path, RENDERERS[name](outcome, explain).encode(), replace=True)
        except RecordError as error:  # what was found, maybe over hours, is printed all the same
            failures.append(error)
    in_github = is_github(os.environ)
    text = RENDERERS[form](outcome, explain)
    emit(without_commands(text) if in_github and form == "text" else text)
    if failures:
        raise failures[0]
    if in_github:
        append_summary(os.environ, render_markdown(outcome, explain))
        if form == "text":
            emit(render_github(outcome, explain))
        elif form != "github":  # the output is for a program: GitHub reads the other stream too
            print(render_github(outcome, explain), end="", file=sys.stderr)


def unit(metric: str, amount: float = 0.0) -> str:
    """What a metric's threshold and change are counted in, as it stands behind an amount."""
    known = THRESHOLDS.get(metric)
    if known is None or not known.in_points:
        return "%"
    return "point" if amount == 1 else "points"


def format_change(row: Row) -> tuple[str, str]:
    """Print a change with its sign, in percent or points, and what it is the change of."""
    if row.change_pct is None:
        return "", ""
    return f"{row.change_pct:+.1f} {unit(row.metric)}", PER_STEP if row.per_fp32_step else AS_SHOWN


def findings(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Rows of the table, worst first: one per row, but one per cell for all that is ok in it."""
    lines, fine = [], collections.defaultdict(list)
    for row in rows:
        if row.verdict is Verdict.OK and row.metric != CELL:
            fine[_cell(row), row.config_digest, row.fingerprint].append(row)
            continue
        values = [show_value(row.metric, value) for value in (row.baseline, row.candidate)]
        if row.metric == CELL:
            values = ["", ""]
        lines.append((row.verdict.words, _cell(row), row.metric, *values, *format_change(row), row.reason))
    for (cell, _, _), rows_of_cell in sorted(fine.items()):
        widest = max(rows_of_cell, key=lambda row: (_share_of_threshold(row), row.metric == "step_ms"))
        values = [show_value(widest.metric, value) for value in (widest.baseline, widest.candidate)]
        one = len(rows_of_cell) == 1
        count = widest.reason if one else f"{len(rows_of_cell)} metrics are ok; this one is closest to its threshold."
        lines.append((Verdict.OK.words, cell, widest.metric, *values, *format_change(widest), count))
    return [tuple(map(show_text, line)) for line in lines]


def _legend(lines: Iterable[Sequence[str]]) -> list[str]:
    return [LEGEND] if any(PER_STEP in line for line in lines) else []


def _cut(lines: list[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], str]:
    """As many lines as a person reads, and a sentence on the others; empty where there are none."""
    rest = lines[MOST_LINES:]
    if not rest:
        return lines, ""
    fine = sum(words == Verdict.OK.words for words, *_ in rest)
    count = plural(len(rest), "more line")
    return lines[:MOST_LINES], f"And {count}, {fine:,} of them ok: --write json=FILE holds every row."


def render_text(outcome: Outcome, explain: bool) -> str:
    """A table for terminals and logs, worst first, and the conclusion as the last line."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else PIPED_WIDTH
    drawn = io.StringIO()
    console = Console(file=drawn, width=width, force_terminal=is_terminal)
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in ("baseline", "candidate", "change") else "left")
    lines, more = _cut(findings(outcome.rows))
    for words, *cells in lines:
        table.add_row(Text(words, style=STYLES[Verdict(words.replace(" ", "_"))]), *map(Text, cells))
    console.print(table)
    shown = [*(line.rstrip() for line in drawn.getvalue().splitlines()), *([more] if more else []), *_legend(lines)]
    explained: list[str] = []
    for title, sentences in _explanations(outcome) if explain else ():
        explained += ["", title, *(f"  {sentence}" for sentence in sentences)]
    return "\n".join([*shown, *explained, "", *map(show_text, outcome.notes), show_text(outcome.conclusion)]) + "\n"


def render_markdown(outcome: Outcome, explain: bool) -> str:
    """A summary for a pull request: the conclusion, then the table."""
    lines, more = _cut(findings(outcome.rows))
    rows = [COLUMNS, ("---", "---", "---", "---:", "---:", "---:", "---", "---"), *lines]
    table = "\n".join("| " + " | ".join(_escape_markdown(cell) for cell in row) + " |" for row in rows)
    said = (*([more] if more else []), *_legend(lines), *outcome.notes)
    notes = "".join(f"\n{_escape_markdown(show_text(note))}\n" for note in said)
    explained = ""
    for title, sentences in _explanations(outcome) if explain else ():
        listed = "".join(f"- {_escape_markdown(sentence)}\n" for sentence in sentences)
        explained += f"\n<details><summary>{_escape_markdown(title)}</summary>\n\n{listed}\n</details>\n"
    return f"**{_escape_markdown(show_text(outcome.conclusion))}**\n\n{table}\n{notes}{explained}"


def render_json(outcome: Outcome, explain: bool) -> str:
    """Every row, for programs; its explanation with ``explain`` only."""
    if not explain:
        rows = tuple(dataclasses.replace(row, explanation=()) for row in outcome.rows)
        outcome = dataclasses.replace(outcome, rows=rows)
    return msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode() + "\n"


RENDERERS: dict[str, Callable[[Outcome, bool], str]] = {
    "text": render_text,
    "markdown": render_markdown,
    "json": render_json,
    "junit": render_junit,
    "github": render_github,
}


def _explanations(outcome: Outcome) -> Iterable[tuple[str, list[str]]]:
    """A title and sentences for each row, as they may be printed."""
    for row in outcome.rows:
        title = f"{row.verdict.words}: {row.metric} of {_cell(row)}"
        yield show_text(title), [show_text(sentence) for sentence in row.explanation]


def _conclude(rows: Sequence[Row], counts: collections.Counter[Verdict], code: ExitCode, rules: Rules) -> str:
    """One line: pass or not and what is worst, how many rows of which verdict, over how many cells."""
    cells = len({(row.config_digest, row.fingerprint) for row in rows})
    heads = {
        ExitCode.OK: "Gate passed", ExitCode.NOT_COMPARABLE: "Gate cannot compare everything",
        ExitCode.INCONCLUSIVE: "Gate cannot tell",
    }  # fmt: skip
    if code == ExitCode.FAILED:
        worst = next(row for row in rows if exit_code([row], rules.treat) == code)
        subject = _cell(worst) if worst.metric == CELL else f"{worst.metric} of {_cell(worst)}"
        became = "is" if worst.verdict not in (Verdict.FAILED, Verdict.REGRESSED, Verdict.IMPROVED) else ""
        heads[code] = f"Gate failed: {subject} {became} {worst.verdict.words}".replace("  ", " ")
    listed = ", ".join(f"{counts[verdict]} {verdict.words}" for verdict in Verdict if counts[verdict])
    return f"{heads[code]} ({listed}; {plural(cells, 'cell')})."


def _cell(row: Row) -> str:
    return row.cell if row.reference == "baseline" else f"{row.cell} (against the release)"


def _share_of_threshold(row: Row) -> float:
    """How much of its threshold a passing change uses up; one that passed below a noise floor counts as none."""
    share = abs(row.change_pct or 0.0) / (row.threshold_pct or math.inf)
    return round(share, 9) if share <= 1 else 0.0  # equal shares differ in the last bit


def _escape_markdown(text: str) -> str:
    """Text without meaning for GitHub: no markdown, HTML, mention or link."""
    for letter in "\\`|<>[]*":
        text = text.replace(letter, f"\\{letter}" if letter not in "<>" else {"<": "&lt;", ">": "&gt;"}[letter])
    return re.sub(r"(?i)\b(https?|ftp)://", r"\1&#58;//", text).replace("@", "&#64;")
