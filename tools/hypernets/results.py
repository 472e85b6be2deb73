"""A case's figures: each strategy's update, the whole step, and their ratios, as values and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from bench.records.schema import Summary
from bench.units import Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one strategy takes for one update."""

    strategy: str
    num_weights: int
    update_ms: Summary
    extra_bytes: int | Absent  # peak beyond weights and gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """A training step with MetaGrad and with the plain quantizer."""

    batch_size: int
    metagrad_ms: Summary
    plain_ms: Summary
    grid_points: int  # of tabulate's grid in the timed steps, per axis
    metagrad_peak_bytes: int | Absent
    plain_peak_bytes: int | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """A case's figures, named as in ``--json``; ratios above 1 in `recompute_*` are in recompute's favour."""

    recompute_speedup: float
    recompute_memory_ratio: float | Absent
    tabulate_step_ratio: float  # MetaGrad's step over the plain quantizer's
    tabulate_extra_peak: float | Absent  # a share of the plain training's peak
    tabulate_extra_bytes_per_weight: float | Absent
    tabulate_same_codes: float  # share of all weights, at INT4
    tabulate_meta_gradient_error: float
    tabulate_grid_points: int  # per axis
    model: str
    hidden: int
    num_weights: int
    compared_num_weights: int  # at which recompute was compared with retain
    note: str  # why that is not all of them; "" where it is
    strategies: tuple[Cost, ...]
    step: StepCost


def as_plain_result(result: CaseResult) -> dict[str, Any]:
    """A case as JSON values; unknown ones are ``{"reason": "..."}``."""
    from bench.hardware.environment import to_plain

    plain: dict[str, Any] = to_plain(dataclasses.asdict(result))
    return plain
