"""``metagrad-bench gate``: compare recorded runs with a baseline, or two revisions, and answer with an exit code.

The verdicts are made in ``bench.gating``; here both sides are read or measured, and what was found is counted into one
exit code.
"""

from __future__ import annotations

import argparse
import collections
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from bench.errors import ConfigError, NoBaselineError, NothingMeasuredError, RecordError
from bench.gating import CELL, THRESHOLDS, Comparison, Policy, Threshold, compare
from bench.gating.policy_file import Rules, Treat, read_policy, read_treat, with_threshold
from bench.gating.verdicts import OUTCOMES
from bench.printable import show_path, show_text
from bench.records.baseline import Baseline, is_baseline, read_baseline
from bench.records.entry import Entry, entry_of, newest_entries
from bench.records.find import find_records, read_records
from bench.records.write import RECORD_FILE
from bench.units import plural
from tools.against.verb import CONFIRM, REPEATS, compare_with_revision, shared_alpha
from tools.gate_output import RENDERERS, conclude, publish, unit
from tools.verb_parser import given_path, verb_parser

MOST_RUNS = 100  # of --repeats and --confirm
EPILOG = """thresholds, how much worse than the baseline a metric may become (recorded runs / measured in turn):
{thresholds}

Times are compared relative to the FP32 step of the same processes. Beyond its threshold a time or an accuracy counts
as regressed only if noise alone would hardly do that, counted over all metrics of the comparison; otherwise it is
inconclusive. How: docs/gate.md, and --explain.

exit codes, the first that applies:
  2  wrong usage, an unreadable record or an unreadable baseline
  4  the baseline file does not exist
  6  nothing was measured, or the baseline holds nothing, or no metric that was measured on both sides
  1  something regressed, went missing, failed or became n/a
  5  something is not comparable: another machine or another configuration
  3  something is inconclusive
  0  otherwise, new cells included

In a GitHub workflow (GITHUB_ACTIONS=true) findings also become annotations and the step's summary.

example:
  metagrad-bench baseline out/demo -o baseline.json
  metagrad-bench run suite=demo output_dir=out/new
  metagrad-bench gate out/new/demo --baseline baseline.json --write junit=gate.xml --thresholds step_ms=15
  metagrad-bench gate --against origin/main suite=demo
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments of the verb."""
    parser = verb_parser(
        "gate",
        description="Compare recorded runs with a baseline, or the working tree with another revision, cell by cell "
        "and metric by metric, and answer with an exit code.",
        epilog=EPILOG.format(thresholds="\n".join(map(_threshold_line, THRESHOLDS.items()))),
    )
    parser.add_argument(
        "candidate", nargs="*", metavar="CANDIDATE",
        help="folder of runs, a record.json or a baseline file; with --against what to run: suite=NAME, key=value",
    )  # fmt: skip
    reference = parser.add_mutually_exclusive_group(required=True)
    reference.add_argument("--baseline", type=given_path, metavar="FILE", help="written by `metagrad-bench baseline`")
    reference.add_argument(
        "--against", metavar="REV",
        help="run both the working tree and this revision of the repository in the current folder, in turn",
    )  # fmt: skip
    parser.add_argument(
        "--release-baseline", type=given_path, metavar="FILE",
        help="a second baseline that stays where a release was, so that small accepted steps add up",
    )  # fmt: skip
    parser.add_argument(
        "--in-turn", action="store_true",
        help="with --baseline: both sides were measured in turn on one machine, so that nothing else lies between them "
        "and the tighter thresholds hold",
    )  # fmt: skip
    parser.add_argument(
        "--confirm", type=_count, metavar="N",
        help="measure cells that would fail again, up to N times, and judge them on all repeats; recorded runs only "
        f"where they were made (default: {CONFIRM} with --against, else 0)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help=f"with --against: runs of each side (default: {REPEATS})"
    )
    parser.add_argument(
        "--config-dir",
        type=given_path,
        metavar="DIR",
        help="with --against: your own suites and variants, as `run` takes it",
    )
    parser.add_argument(
        "--output",
        type=given_path,
        metavar="DIR",
        help="with --against: new folder for both sides' records (in out/against)",
    )
    add_output_arguments(parser)
    return parser


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments on thresholds, verdicts and output, whatever is compared."""
    parser.add_argument(
        "--format", choices=tuple(RENDERERS), default="text", help="of what is printed (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    parser.add_argument(
        "--write", nargs="+", action="extend", default=[], metavar="FORMAT=FILE",
        help=f"write it to a file too; formats: {', '.join(RENDERERS)}",
    )  # fmt: skip
    parser.add_argument("--explain", action="store_true", help="say how each verdict came about, in words and numbers")
    parser.add_argument(
        "--warn-only", action="store_true",
        help="print the findings, but exit 0 instead of 1, 3 or 5, unless no cell was compared at all",
    )  # fmt: skip
    parser.add_argument("--policy", type=given_path, metavar="FILE", help="YAML with thresholds, alpha and treat")
    parser.add_argument(
        "--thresholds", nargs="+", action="extend", default=[], metavar="METRIC=VALUE",
        help="replace thresholds, in percent of the baseline (accuracy and shares: in points)",
    )  # fmt: skip
    parser.add_argument(
        "--treat", nargs="+", action="extend", default=[], metavar="VERDICT=OUTCOME",
        help=f"let a verdict count as {', '.join(OUTCOMES)}, e.g. inconclusive=ok",
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after the verb.

    Returns:
        The exit code, as ``--help`` lists them.

    Raises:
        UserError: an unreadable record or baseline, no baseline, nothing compared; each with its exit code.
    """
    parser = build_parser()
    arguments = parser.parse_intermixed_args(argv)
    _check_mode(arguments, parser.error)
    rules = read_rules(arguments, Policy(interleaved=arguments.against is not None or arguments.in_turn), parser.error)
    files = read_files(arguments, parser.error)
    run = _compare_recorded if arguments.against is None else _compare_revisions
    comparison, notes = run(arguments, rules.policy)
    outcome = conclude(comparison, rules, notes, warn_only=arguments.warn_only)
    publish(outcome, arguments.format, files, explain=arguments.explain)
    return outcome.exit_code


def _check_mode(arguments: argparse.Namespace, complain: Callable[[str], NoReturn]) -> None:
    """Refuse what the chosen way of comparing has no use for."""
    if "" in arguments.candidate:
        complain("an empty path names nothing to compare: is a variable unset?")
    if not arguments.candidate:
        complain("give folders of runs to compare, or with --against what to run, such as suite=demo")
    if arguments.against is None:
        for name in ("repeats", "config_dir", "output"):
            if getattr(arguments, name) is not None:
                complain(f"--{name.replace('_', '-')} goes with --against: a baseline is compared without running")
        if arguments.in_turn and (arguments.release_baseline is not None or arguments.confirm):
            complain("--in-turn is for two sides that were measured together: --release-baseline and --confirm are not")
    elif arguments.in_turn:
        complain("--in-turn goes with --baseline: --against measures in turn anyway")
    elif arguments.release_baseline is not None:
        complain("--release-baseline goes with --baseline: against a release measure its tag, --against v1.0")


def _compare_revisions(arguments: argparse.Namespace, policy: Policy) -> tuple[Comparison, tuple[str, ...]]:
    comparison, notes = compare_with_revision(
        arguments.against, arguments.candidate, policy,
        repeats=REPEATS if arguments.repeats is None else arguments.repeats,
        confirm=CONFIRM if arguments.confirm is None else arguments.confirm,
        config_dir=arguments.config_dir, output=arguments.output,
    )  # fmt: skip
    require_substance(comparison)
    return comparison, notes


def _compare_recorded(arguments: argparse.Namespace, policy: Policy) -> tuple[Comparison, tuple[str, ...]]:
    times = arguments.confirm or 0
    policy = shared_alpha(policy, times)
    paths = [Path(name) for name in arguments.candidate]
    entries, notes = read_entries(paths)
    baseline, release = _read_sides(arguments.baseline, arguments.release_baseline)
    if not entries:
        raise NothingMeasuredError("The candidate holds no records, so nothing was compared: run a suite first.")
    for path, side in ((arguments.baseline, baseline), (arguments.release_baseline, release)):
        if side is not None and not side:
            raise NothingMeasuredError(f"The baseline {show_path(path)} holds no entries: write it again.")
    comparison = compare(entries, baseline, policy, release=release or (), explain=arguments.explain)
    require_substance(comparison)
    if release is not None and not comparison.num_released:
        name = show_path(arguments.release_baseline)
        raise NothingMeasuredError(
            f"The release baseline {name} holds no cell that can be compared: pin one of this machine and suite."
        )
    notes = (*notes, *_notes(entries, baseline))
    if times:
        from tools.against.confirm import confirm_recorded

        found, _ = find_records(path for path in paths if not is_baseline(path))
        comparison, more = confirm_recorded(comparison, entries, found, baseline, release or (), policy, times=times)
        notes = (*notes, *more)
    return comparison, notes


def _read_sides(path: Path, release: Path | None) -> tuple[tuple[Entry, ...], tuple[Entry, ...] | None]:
    """Entries of the baseline and, where it is given, of the release's; one that is damaged outweighs one not there."""
    missing: NoBaselineError | None = None
    sides: list[tuple[Entry, ...]] = []
    for place in (path, release) if release is not None else (path,):
        try:
            sides.append(read_side(place).entries)
        except NoBaselineError as error:
            missing = missing or error
    if missing is not None:
        raise missing
    return sides[0], sides[1] if release is not None else None


def require_substance(comparison: Comparison) -> None:
    """A comparison of nothing is no pass.

    Raises:
        NothingMeasuredError: if no row rests on a measurement.
    """
    if comparison.is_empty:
        why = (f"{row.cell}: {row.reason.rstrip('.')}" for row in comparison.rows if row.metric == CELL)
        told = [f" ({show_text(text)})" for text in why][:1]
        raise NothingMeasuredError(
            f"Nothing was compared: no metric was measured on both sides{''.join(told)}. See the candidate's records."
        )


def read_side(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        NoBaselineError: the file does not exist.
        RecordError: it cannot be read.
    """
    if not os.path.lexists(path):
        name = show_path(path)
        raise NoBaselineError(
            f"There is no baseline {name}: write one with `metagrad-bench baseline CANDIDATE -o {name}`."
        )
    return read_baseline(path)


def read_entries(paths: Iterable[Path]) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Read the newest run of each cell, and notes on runs that were left aside.

    Args:
        paths: folders of runs, records, or baseline files, whose entries are taken as they are.

    Raises:
        RecordError: if a record cannot be read; comparing the rest would hide it.
    """
    paths = list(paths)
    ready = [entry for path in paths if is_baseline(path) for entry in read_baseline(path).entries]
    found, problems = read_records((path for path in paths if not is_baseline(path)), entry_of)
    unreadable = [problem.reason for problem in problems if problem.unreadable]
    if unreadable:
        more = f" ({len(unreadable) - 1} more cannot be read either.)" if len(unreadable) > 1 else ""
        raise RecordError(unreadable[0] + more)
    measured = newest_entries(entry for _, entry in found)
    entries = (*ready, *measured)
    notes = [problem.reason for problem in problems]
    older = len(found) - len(measured)
    if older:
        notes.append(f"Left aside, since their cells were run again on the same machine: {plural(older, 'older run')}.")
    twins = [key for key, count in collections.Counter(map(_identity, entries)).items() if count > 1]
    if twins:
        raise RecordError("A cell is given twice, in a baseline file and beside it: give one of them.")
    return entries, tuple(notes)


def read_rules(arguments: argparse.Namespace, policy: Policy, complain: Callable[[str], NoReturn]) -> Rules:
    """Thresholds and treatment from the policy file, and over it from the command line."""
    treat: Treat = {}
    if arguments.policy is not None:
        rules = read_policy(arguments.policy, policy)
        policy, treat = rules.policy, rules.treat
    try:
        for name, value in _pairs("--thresholds", "METRIC=VALUE", arguments.thresholds):
            policy = with_threshold(policy, name, value)
        treat |= read_treat(_pairs("--treat", "VERDICT=OUTCOME", arguments.treat))
    except ConfigError as error:
        complain(str(error))
    return Rules(policy, treat)


def read_files(arguments: argparse.Namespace, complain: Callable[[str], NoReturn]) -> Mapping[Path, str]:
    """What to write where: format by path, links followed.

    Raises:
        RecordError: a file that could not be written, or should not; said before anything is measured.
    """
    files: dict[Path, str] = {}
    given = (arguments.baseline, arguments.release_baseline, arguments.policy, *arguments.candidate)
    inputs = {os.path.realpath(path) for path in given if path is not None}
    try:
        for name, text in _pairs("--write", "FORMAT=FILE", arguments.write):
            if name not in RENDERERS:
                complain(f"--write: there is no format {name!a}; known are {', '.join(RENDERERS)}")
            path, shown = Path(os.path.realpath(text)), show_path(Path(text))
            if str(path) in inputs:
                raise RecordError(f"--write {name}={shown} would replace what is compared: name another file.")
            if path in files:
                raise RecordError(f"--write names {shown} twice, and one would replace the other: name two files.")
            if _holds_measurements(path):
                raise RecordError(f"--write {name}={shown} would replace what was measured: name another file.")
            if path.exists() and not path.is_file():
                raise RecordError(f"--write {name}={shown} names no regular file: name one, or print with --format.")
            if not path.parent.is_dir():
                raise RecordError(f"--write {name}={shown} is in a folder that does not exist: make it first.")
            files[path] = name
    except ConfigError as error:
        complain(str(error))
    return files


def _holds_measurements(path: Path) -> bool:
    """Whether a file is a baseline or a run's, which only their own verbs replace."""
    return path.is_file() and ((path.parent / RECORD_FILE).exists() or is_baseline(path))


def _notes(entries: Sequence[Entry], baseline: Sequence[Entry]) -> list[str]:
    """What a reader must know beside the rows."""
    notes = []
    for name, side in (("candidate", entries), ("baseline", baseline)):
        aside = sum(entry.throttled_set_aside for entry in side)
        kept = sum(entry.throttled_kept for entry in side)
        if aside:
            notes.append(f"Set aside of the {name}, since the device was throttled: {plural(aside, 'sample')}.")
        if kept:
            notes.append(f"Kept of the {name}, since throttled is how it mostly ran: {plural(kept, 'sample')}.")
    ours, machines = ({entry.fingerprint for entry in side} for side in (entries, baseline))
    if len(machines) > 1 and machines & ours:
        notes.append(f"The baseline holds {len(machines)} machines; compared was {', '.join(sorted(machines & ours))}.")
    return notes


def _identity(entry: Entry) -> tuple[str, str]:
    return entry.config_digest, entry.fingerprint


def _pairs(option: str, form: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ConfigError(f"{option} takes {form}, not {text!a}; give the candidates before it")
        pairs.append((name, value))
    return pairs


def _threshold_line(item: tuple[str, Threshold]) -> str:
    name, threshold = item
    limits = [limit for limit in (threshold.limit, threshold.interleaved_limit) if limit is not None]
    shown = " / ".join(f"{limit:g}" for limit in limits)
    floor = f", and {threshold.floor_pct:g} % of {threshold.floor_of}" if threshold.floor_of else ""
    return f"  {name:<31}{shown} {unit(name, limits[-1])}{floor}"


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) <= MOST_RUNS):
        raise argparse.ArgumentTypeError(f"takes a whole number up to {MOST_RUNS}, not {text!a}")
    return int(text)


def _positive(text: str) -> int:
    number = _count(text)
    if not number:
        raise argparse.ArgumentTypeError("takes 1 or more, not 0")
    return number
