"""The Hydra application: composes and checks every cell first, then lets Hydra run them.

Hydra exits 1 for every configuration mistake, prints more than a sentence and writes its own files before it has
composed all jobs. So ``plan_cells`` composes each job through the same loader beforehand and turns what goes wrong into
one ``ConfigError``; ``hydra_main`` runs only what has passed.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from bench.composing.cells import CONFIG_NAME, Composer, to_cell
from bench.composing.refusals import (
    check_group_choices,
    refuse_changed_labels,
    refuse_fixed_keys,
    refuse_odd_flags,
    refuse_preset_groups,
    refuse_suite_sweep,
    repeated_settings,
)
from bench.composing.search_path import CONFIG_PATH, hydra_loader
from bench.composing.sentences import as_sentence
from bench.config import CellConfig
from bench.errors import ConfigError

PASSTHROUGH = ("cfg", "info", "hydra_help", "shell_completion")  # Hydra's own questions: nothing runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one command line is going to run."""

    cells: tuple[CellConfig, ...]
    jobs: tuple[tuple[str, ...], ...]  # overrides that make each cell alone
    sweep: bool
    launcher: str  # basic, joblib, ray, submitit_slurm, …
    notices: tuple[str, ...]  # sentences about settings that count for less than who gave them may think

    @property
    def here(self) -> bool:
        """Whether the cells run on this machine."""
        return self.launcher not in ("ray", "submitit_slurm")


@hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name=CONFIG_NAME)
def hydra_main(config: DictConfig) -> str:
    """One Hydra job: one cell. Returns the record's status; a failing cell does not raise."""
    from bench.cell import run_cell

    cell = to_cell(config)
    with contextlib.suppress(OSError):  # the sweeper's own copy names the working folder; each run keeps its config
        (Path(cell.output_dir) / cell.suite_name / "multirun.yaml").unlink()
    return run_cell(cell).status


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's own arguments, flags before settings too.

    Raises:
        ConfigError: a wrong flag, instead of an exit.
    """
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise ConfigError(f"{as_sentence(message)} See `metagrad-bench run --help`.")

    parser.error = refuse  # type: ignore[method-assign,assignment]
    return parser.parse_intermixed_args(list(argv))


def settings_first(argv: Sequence[str]) -> list[str]:
    """The same arguments in the order that Hydra takes: settings, then flags with their values.

    Raises:
        ConfigError: a wrong flag.
    """
    settings: list[str] = parse_arguments(argv).overrides
    flags = list(argv)
    for setting in settings:
        flags.remove(setting)
    return [*settings, *flags]


def plan_cells(args: argparse.Namespace) -> Plan:
    """Compose every cell of a command line, in the order in which Hydra will run them.

    Raises:
        ConfigError: an unknown name or key, a wrong type, a value out of range, a refused override.
    """
    with hydra_loader(args.config_dir):
        return _plan(args)


def _plan(args: argparse.Namespace) -> Plan:
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(args.overrides))
    task = [override for override in overrides if not override.key_or_group.startswith("hydra")]
    refuse_odd_flags(task)
    check_group_choices(task)
    refuse_suite_sweep(task)
    config_name = args.config_name or CONFIG_NAME
    fixed_choices = [override.input_line or "" for override in overrides if not override.is_sweep_override()]
    settings = compose(config_name=config_name, overrides=fixed_choices, return_hydra_config=True).hydra
    swept = any(override.is_sweep_override() for override in task)
    sweep = bool(args.multirun) or (settings.mode is not None and settings.mode.name == "MULTIRUN")
    if swept and not sweep:
        keys = ", ".join(override.key_or_group for override in task if override.is_sweep_override())
        raise ConfigError(f"{keys} lists several values: add --multirun to run each of them.")
    launcher = str(settings.runtime.choices.get("hydra/launcher", "basic"))
    if launcher != "basic" and not sweep:
        raise ConfigError(f"hydra/launcher={launcher} runs the cells of a sweep: add --multirun.")
    jobs = _jobs(loader, settings, args.overrides) if sweep else [[override.input_line or "" for override in task]]
    user_keys = [override.key_or_group for override in task]
    composer = Composer(config_name)
    cells = []
    for job in jobs:
        choices = dict(part.lstrip("+~").split("=", 1) for part in job if "=" in part)
        refuse_fixed_keys(choices.get("variant", "custom"), user_keys, composer)
        refuse_preset_groups(choices.get("preset", "none"), user_keys, composer)
        cell = to_cell(composer.compose(job))
        variant = choices.get("variant", cell.variant_name)
        if cell.variant_name != variant and not cell.variant_name.startswith(f"{variant}_"):
            raise ConfigError(
                f"variant/{variant}.yaml says variant_name={cell.variant_name}: name it like its file, "
                "so that its rows carry the label that was asked for; more may follow after a _."
            )
        refuse_changed_labels(cell, variant, composer)
        cells.append(cell)
    if not cells:
        raise ConfigError("The sweep is empty: name at least one variant.")
    return Plan(
        cells=tuple(cells), jobs=tuple(map(tuple, jobs)), sweep=sweep, launcher=launcher,
        notices=repeated_settings(args.overrides),
    )  # fmt: skip


def _jobs(loader: Any, settings: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """Overrides of each job, as Hydra's basic sweeper makes them, and ours; another's are not known beforehand."""
    sweeper = str(settings.sweeper.get("_target_", ""))
    if not sweeper.endswith(("BasicSweeper", "CheckedSweeper")):
        raise ConfigError(
            f"The sweeper {sweeper} decides its cells while it runs, so they cannot be checked first: "
            "use hydra/sweeper=basic."
        )
    params = [f"{key}={value}" for key, value in (settings.sweeper.params or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *overrides])
    task = [override for override in parsed if not override.key_or_group.startswith("hydra")]
    refuse_odd_flags(task)
    return [job for batch in BasicSweeper.split_arguments(task, None) for job in batch]
