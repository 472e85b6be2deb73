"""Overrides that are refused: unknown choices, and what would make a row's label lie; and those worth a notice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hydra.core.override_parser.types import Override

from bench.composing.cells import Composer
from bench.composing.flags import is_flag, is_true_or_false, look_up
from bench.composing.groups import options
from bench.composing.search_path import GROUPS
from bench.composing.sentences import unknown_name
from bench.config import CellConfig
from bench.errors import ConfigError

_LONGEST_SHOWN = 80
_SINGLE = ("suite", "output_dir", "fresh", "progress")  # a list of them is no sweep that anybody means


def repeated_settings(settings: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each key given with two values: the last one wins, as everywhere with Hydra.

    Who meant a sweep is told that a part of it will not run; a script that sets defaults first goes on.

    Args:
        settings: as the command line has them. ``~key`` takes out and ``key={...}`` merges: neither replaces anything.
    """
    given: dict[str, list[str]] = {}
    for setting in settings:
        key, equals, value = setting.lstrip("+").partition("=")
        if equals and not key.startswith("~") and not value.startswith("{"):
            given.setdefault(key, []).append(value)
    return tuple(_say_repeat(key, values) for key, values in given.items() if len(set(values)) > 1)


def _say_repeat(key: str, values: Sequence[str]) -> str:
    several = ", ".join(_show(f"{key}={value}") for value in values)
    sentence = f"{_show(key)} is given {len(values)} times ({several}): the last counts"
    swept = ",".join(dict.fromkeys(values))
    if all(values) and key not in _SINGLE and not key.startswith("hydra"):
        sentence += f"; a list sweeps over all, {_show(f'{key}={swept}')}"
    return f"{sentence}."


def _show(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def check_group_choices(overrides: Sequence[Override]) -> None:
    """An unknown choice of a group is refused by name, with the near misses."""
    for override in overrides:
        group = override.key_or_group
        if group not in GROUPS:
            continue
        known = options(group)
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
        for value in values:
            if str(value).strip("'\"") not in known:
                raise ConfigError(unknown_name(group, str(value), known))


def refuse_odd_flags(overrides: Sequence[Override]) -> None:
    """Anything else for true or false is refused: OmegaConf takes a number for true."""
    for override in overrides:
        key = override.key_or_group
        if not is_flag(key) or override.is_delete():
            continue
        values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
        odd = next((value for value in values if not is_true_or_false(value)), None)
        if odd is not None:
            raise ConfigError(f"{key}={odd} is not possible: it must be true or false.")


def refuse_suite_sweep(overrides: Sequence[Override]) -> None:
    """Several suites at once are refused: each would lose its sweep."""
    for override in overrides:
        if override.key_or_group == "suite" and override.is_sweep_override():
            raise ConfigError(
                "suite= takes one suite at a time, since each brings its own sweep: run them one after another."
            )


def refuse_fixed_keys(variant: str, user_keys: Sequence[str], composer: Composer) -> None:
    """A key that the variant fixes cannot be overridden beside it: the row's label would lie."""
    if variant == "custom":
        return
    fixed = composer.fixed_keys(variant)
    for key in user_keys:
        if key in ("variant", "suite"):
            continue
        clash = next((name for name in fixed if key == name or name.startswith(f"{key}.")), None)
        if clash:
            raise ConfigError(
                f"{key}= cannot be set beside variant={variant}, which fixes it: its label would lie; "
                "use variant=custom and name the parts, or write a variant of your own (--config-dir)."
            )


def refuse_preset_groups(preset: str, user_keys: Sequence[str], composer: Composer) -> None:
    """A preset's numbers belong to the model that it names; single numbers may be overridden beside it."""
    groups = [name for name in composer.fixed_keys(preset, group="preset") if name in GROUPS]
    clash = next((key for key in user_keys if key in groups), None)
    if clash:
        raise ConfigError(
            f"{clash}= cannot be set beside preset={preset}, whose numbers are meant for the {clash} that it names: "
            "choose another preset, or preset=none."
        )


def refuse_changed_labels(cell: CellConfig, variant: str, composer: Composer) -> None:
    """What a suite's body or sweep sets must not change what a variant's label says either."""
    if variant == "custom" or variant not in composer.variants:
        return
    alone = composer.alone(variant)
    for key in composer.fixed_keys(variant):
        if key == "variant_name":  # may name settings that the variant leaves open
            continue
        ours, theirs = look_up(cell, key), look_up(alone, key)
        if not dataclasses.is_dataclass(theirs) and ours != theirs:
            raise ConfigError(
                f"{key}={ours} stands beside variant={variant}, which fixes {key}={theirs}: its label would lie; "
                "take it out of the suite, or write a variant of your own (--config-dir)."
            )
