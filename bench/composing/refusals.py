"""Overrides that are refused: unknown choices, and what would make a row's label lie."""

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

_SWEPT = "hydra.sweeper.params."  # the sweeper's own name of a key
_LONGEST_SHOWN = 80
_SINGLE = ("suite", "output_dir", "fresh", "progress")  # a list of them is no sweep that anybody means


def refuse_repeats(settings: Sequence[str]) -> None:
    """A key given twice is refused: Hydra lets the last one win, and who meant a sweep would get a part of it unasked.

    Args:
        settings: as the command line has them. ``~key`` takes out and ``key={...}`` merges: neither replaces anything.

    Raises:
        ConfigError: one sentence with both values, and the list that sweeps over them.
    """
    given: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.lstrip("+").partition("=")
        key = key.removeprefix(_SWEPT)
        if not equals or key.startswith("~") or value.startswith("{"):
            continue
        if key in given:
            raise ConfigError(_say_repeat(key, given[key], value))
        given[key] = value


def _say_repeat(key: str, first: str, second: str) -> str:
    remedy = "give it once"
    if first != second and first and second and key not in _SINGLE and not key.startswith("hydra"):
        remedy = f"give one, or a list that sweeps over both, {_show(f'{key}={first},{second}')}"
    both = f"{_show(f'{key}={first}')} and {_show(f'{key}={second}')}"
    return f"{_show(key)} is given twice ({both}), and the last would win in silence: {remedy}."


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
