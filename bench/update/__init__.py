"""The delayed meta update and the ways to its gradient."""

from __future__ import annotations

import inspect
from typing import Any

from bench.errors import ConfigError
from bench.update.base import Strategy
from bench.update.delayed import DelayedUpdate, no_phases
from bench.update.observation import Observation, read_observation, read_whole_step
from bench.update.recompute import Recompute
from bench.update.retain import Retain
from bench.update.slim import Slim
from bench.update.surface import surface_axes, surface_output, surface_values
from bench.update.tabulate import Tabulate, TabulationSample

STRATEGIES: dict[str, type[Retain] | type[Slim] | type[Recompute] | type[Tabulate]] = {
    "retain": Retain,
    "slim": Slim,
    "recompute": Recompute,
    "tabulate": Tabulate,
}


def build_strategy(name: str, **options: Any) -> Strategy:
    """The strategy of that name.

    Args:
        name: retain, slim, recompute or tabulate.
        options: seed for slim; chunk, the number of weights evaluated at a time (None chooses), for recompute;
            bound, max_nodes, check_every and sample_bits for tabulate.

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
    "Tabulate",
    "TabulationSample",
    "build_strategy",
    "no_phases",
    "read_observation",
    "read_whole_step",
    "surface_axes",
    "surface_output",
    "surface_values",
]
