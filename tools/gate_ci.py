"""The gate's findings as CI systems read them: JUnit XML, and GitHub's workflow commands and step summary."""

from __future__ import annotations

import io
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from bench.errors import ExitCode, RecordError, system_reason
from bench.gating import CELL, Verdict
from bench.printable import show_text
from bench.units import plural

if TYPE_CHECKING:
    from tools.gate_output import Outcome

MOST_ANNOTATIONS = 10  # GitHub shows so many of each level in a step
_LEVELS = {
    ExitCode.FAILED: "error", ExitCode.NOT_COMPARABLE: "error", ExitCode.INCONCLUSIVE: "warning", ExitCode.OK: "notice",
}  # fmt: skip
_NOT_XML = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, sections 2.2 and 3.3.3


def render_junit(outcome: Outcome, explain: bool) -> str:
    """JUnit XML: a suite per cell, a case per metric.

    What counts as failed is a failure; what cannot be compared or told is an error, since the check did not come to an
    end; with ``--warn-only`` both are skipped cases with the same message. A verdict of its own is in each message.
    """
    document = JUnitXml("metagrad-bench gate")
    suites: dict[tuple[str, str, str], TestSuite] = {}
    for row in outcome.rows:
        where = (row.cell, row.config_digest, row.fingerprint)
        suite = suites.setdefault(where, TestSuite(_xml(row.cell)))
        metric = row.metric if row.reference == "baseline" else f"{row.metric} (against the release)"
        case = TestCase(_xml(metric), classname=_xml(row.cell), time=0)
        code = outcome.code_of(row)
        message = _xml(f"{row.verdict.words}: {row.reason}")
        if code != ExitCode.OK:
            kind = Skipped if outcome.warn_only else Failure if code == ExitCode.FAILED else Error
            case.result = [kind(message, row.verdict.value)]
        lines = (message, *map(_xml, row.explanation)) if explain else (message,)
        case.system_out = "\n".join(lines)
        suite.add_testcase(case)
    for key in sorted(suites):
        document.add_testsuite(suites[key])
    document.update_statistics()
    content = io.BytesIO()
    document.write(content, pretty=True)
    return content.getvalue().decode()


def render_github(outcome: Outcome, explain: bool) -> str:
    """Workflow commands: an annotation for every row that is no plain pass, the worst first, ten of each level.

    Source: GitHub's "Workflow commands for GitHub Actions".
    """
    lines: list[str] = []
    counts: dict[str, int] = {}
    for row in outcome.rows:
        code = outcome.code_of(row)
        if code == ExitCode.OK and (row.verdict is Verdict.OK or (row.verdict is Verdict.NEW and row.metric != CELL)):
            continue
        level = "warning" if outcome.warn_only and code != ExitCode.OK else _LEVELS[code]
        counts[level] = counts.get(level, 0) + 1
        if counts[level] > MOST_ANNOTATIONS:
            continue
        against = " (against the release)" if row.reference == "release" else ""
        text = f"{row.cell}: {row.metric}: {row.reason}{against}"
        text = "\n".join((text, *row.explanation)) if explain else text
        lines.append(f"::{level} title={_property(f'gate: {row.verdict.words}')}::{_data(text)}")
    hidden = sum(max(0, count - MOST_ANNOTATIONS) for count in counts.values())
    lines += [f"::notice title=gate::{_data(outcome.conclusion)}"]
    if hidden:
        lines.append(f"In the step's summary: {plural(hidden, 'more finding')}.")
    return "\n".join(lines) + "\n"


def is_github(environment: Mapping[str, str]) -> bool:
    """Whether this runs in a GitHub workflow."""
    return environment.get("GITHUB_ACTIONS") == "true"


def without_commands(text: str) -> str:
    """Text in which GitHub obeys nothing: a cell's name may hold ``::``, and a wrapped line may begin with it."""
    token = f"gate-{secrets.token_hex(8)}"
    return f"::stop-commands::{token}\n{text.rstrip()}\n::{token}::\n"


def append_summary(environment: Mapping[str, str], markdown: str) -> None:
    """Append to the step's summary, where GitHub names a file for it.

    Raises:
        RecordError: if the file cannot be written.
    """
    name = environment.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    try:
        with Path(name).open("a", encoding="utf-8") as stream:
            stream.write(markdown + os.linesep)
    except OSError as error:
        raise RecordError(
            f"The step summary {name} (GITHUB_STEP_SUMMARY) cannot be written: {system_reason(error)}; unset it or "
            "free it."
        ) from error


def _xml(text: str) -> str:
    """One line without the characters that XML cannot hold; an attribute cannot hold line breaks either."""
    return _NOT_XML.sub(lambda found: ascii(found[0])[1:-1], text)


def _data(text: str) -> str:
    lines = (show_text(line) for line in text.splitlines())  # a log is read in a terminal too
    return "\n".join(lines).replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
