"""The delayed meta update and the ways to its gradient."""

from __future__ import annotations

import inspect
from typing import Any

from bench.errors import ConfigError
from bench.update.base import Strategy
from bench.update.delayed import DelayedUpdate, Observation, no_phases, read_observation
from bench.update.recompute import Recompute
from bench.update.retain import Retain
from bench.update.slim import Slim

STRATEGIES: dict[str, type[Retain] | type[Slim] | type[Recompute]] = {
    "retain": Retain,
    "slim": Slim,
    "recompute": Recompute,
}


def build_strategy(name: str, **options: Any) -> Strategy:
    """The strategy of that name.

    Args:
        name: retain, slim or recompute.
        options: seed for slim; chunk, the number of weights evaluated at a time, for recompute.

    Raises:
        ConfigError: for an unknown name, or an option that the strategy does not have.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"unknown strategy {name!r}; choose one of: {', '.join(STRATEGIES)}.")
    known = inspect.signature(STRATEGIES[name]).parameters
    for key in options:
        if key not in known:
            raise ConfigError(f"{name} has no option {key!r}; it takes: {', '.join(known) or 'none'}.")
    return STRATEGIES[name](**options)


__all__ = [
    "STRATEGIES",
    "DelayedUpdate",
    "Observation",
    "Recompute",
    "Retain",
    "Slim",
    "Strategy",
    "build_strategy",
    "no_phases",
    "read_observation",
]
