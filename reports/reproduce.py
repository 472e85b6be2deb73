"""Commands that measure a section's cells again."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterable, Sequence
from importlib.resources import files

from bench.config import CellConfig, as_plain
from bench.records.schema import RunRecord
from reports.rows import Section
from reports.text import clean_text
from reports.values import leaves


def code_text(section: Section) -> str:
    """Which code measured a section: its version with the digest of its files, and git's commit or why it is unknown.

    Args:
        section: of one code version; its records may be of several commits that left that code as it was.
    """
    commits = dict.fromkeys(_commit(record) for record in section.records)
    return f"Code version {section.code_version} (digest of the code); {', '.join(commits)}"


def _commit(record: RunRecord) -> str:
    package = record.environment.get("package")
    package = package if isinstance(package, dict) else {}
    commit = package.get("git_commit")
    if isinstance(commit, dict):
        return f"git commit n/a ({commit.get('reason', 'not recorded')})"
    if not commit:
        return "git commit n/a (not recorded)"
    return f"git commit {commit}{' with uncommitted changes' if package.get('git_dirty') is True else ''}"


def section_commands(section: Section, sections: Sequence[Section]) -> tuple[str, ...]:
    """The whole suite first, then each row; a model or data set is named where the suite has several.

    Args:
        section: to measure again.
        sections: all of the report.
    """
    models = {other.model_name for other in sections if other.suite == section.suite}
    data_sets = {other.data_name for other in sections if other.suite == section.suite}
    seeds = sorted({record.seed for record in section.records})
    commands = []
    if section.suite != CellConfig().suite_name:
        words = [f"suite={section.suite}", f"device={section.device}", f"seed={','.join(map(str, seeds))}"]
        commands.append(" ".join(["metagrad-bench run", *(shlex.quote(clean_text(word)) for word in words)]))
    commands += [
        reproduce_command(row.first, with_model=len(models) > 1, with_data=len(data_sets) > 1, seeds=row.seeds)
        for row in section.rows
    ]
    return tuple(dict.fromkeys(commands))


def reproduce_command(record: RunRecord, *, with_model: bool, with_data: bool, seeds: Sequence[int]) -> str:
    """Command that measures a record's cell again.

    Args:
        record: of the cell.
        with_model: the suite sweeps models, so the cell must name its own.
        with_data: the suite sweeps data sets.
        seeds: to run.
    """
    words = ["metagrad-bench", "run"]
    overrides = [f"suite={record.suite}", f"variant={_variant_file(record.variant)}"]
    preset = record.cell.get("preset_name", "none")
    if record.variant == CellConfig().variant_name:
        overrides = list(_overrides(record))
    elif preset != "none":  # it names the model and the data, with their numbers
        overrides.append(f"preset={preset}")
        with_model = with_data = False
    if with_model:
        overrides.append(f"model={record.model_name}")
    if with_data:
        overrides.append(f"data={record.data_name}")
    overrides += [f"device={record.device}", f"seed={','.join(map(str, seeds))}"]
    return " ".join([*words, *(shlex.quote(clean_text(word)) for word in dict.fromkeys(overrides))])


@functools.cache
def _variant_file(label: str) -> str:
    """The variant that makes rows of this label: its file's name, which settings that it leaves open may follow."""
    name, variants = label, files("suites").joinpath("variant")
    while not variants.joinpath(f"{name}.yaml").is_file():
        if "_" not in name:
            return label  # a variant of the user's own
        name = name.rpartition("_")[0]
    return name


def _overrides(record: RunRecord) -> Iterable[str]:
    """A cell without a variant, as what it changes of the defaults; a group's name is its choice."""
    defaults = dict(leaves(as_plain(CellConfig())))
    for path, value in leaves(record.cell):
        if path in {"seed", "device", "suite_name", "variant_name", "preset_name"} or defaults.get(path) == value:
            continue
        yield f"{path.removesuffix('.name')}={'null' if value is None else value}"
