"""Processes that something else on the machine disturbed: told from the usual ones, and kept as they were.

While another program takes a core, FP32 steps may last nine times as long. Taken into the covariance of all, one such
process in thirty would make every drawn one noisy; left out, the drawn machine would be quieter than the real one. So
the usual processes are described without them, and they are drawn beside those, as often as they were seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

_FAR = 6.0  # robust standard deviations: usual processes with heavy tails reach them about once in a thousand
_FEWEST = 20  # processes, of which one may be told from the others
_NORMAL = 1.4826  # a normal's standard deviation over its median absolute deviation
_LEAST_SCALE = 1e-3  # of a logarithm: nearer to each other than that is equal


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """How one disturbed process stood beside the usual ones, in logarithms."""

    machine: float  # its FP32 step
    phases: list[float]  # each phase against its FP32 step
    unrest: float  # standard deviation of its FP32 steps over that of the usual processes' steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One real process of an equal run, in logarithms of ms."""

    run: int
    machine: float  # median FP32 step
    ratios: np.ndarray  # (K,) median of each phase over that
    steps: np.ndarray  # (n, K) phases around their medians
    fp32: np.ndarray  # (n,) FP32 steps around their median
    slope: float  # change of steps from start to end


def tell_apart(processes: Sequence[Process]) -> tuple[list[Process], list[Disturbance]]:
    """Split processes into usual and disturbed ones.

    Disturbed is whose FP32 step, phases or spread lie more than six robust standard deviations off the median; of
    fewer than twenty processes none is.
    """
    features = np.array([[process.machine, *process.ratios, _log_spread(process.fp32)] for process in processes])
    centre = np.median(features, axis=0)
    scale = np.maximum(_NORMAL * np.median(np.abs(features - centre), axis=0), _LEAST_SCALE)
    far = (np.abs(features - centre) > _FAR * scale).any(axis=1) & (len(processes) >= _FEWEST)
    usual = [process for process, is_far in zip(processes, far, strict=True) if not is_far]
    spread = float(np.std(np.concatenate([calm(process.fp32) for process in usual])))
    return usual, [
        Disturbance(
            machine=float(row[0]), phases=row[1:-1].tolist(), unrest=float(np.std(process.fp32)) / max(spread, 1e-9)
        )
        for process, row, is_far in zip(processes, features - centre, far, strict=True)
        if is_far
    ]  # fmt: skip


def draw_disturbed(
    disturbed: Sequence[Disturbance], share: float, num_phases: int, shape: tuple[int, int], rng: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the drawn processes are disturbed, and how.

    Args:
        disturbed: to choose from.
        share: of processes that are.
        num_phases: K.
        shape: cells and processes, (C, P).
        rng: numpy's generator.

    Returns:
        (C, P) shift of the machine and (C, P, K) of the phases, in logarithms; (C, P) factor of the steps' spread.
    """
    machine, phases, unrest = np.zeros(shape), np.zeros((*shape, num_phases)), np.ones(shape)
    if disturbed:
        struck, which = rng.random(shape) < share, rng.integers(len(disturbed), size=shape)
        machine[struck] = np.array([one.machine for one in disturbed])[which[struck]]
        phases[struck] = np.array([one.phases for one in disturbed])[which[struck]]
        unrest[struck] = np.array([one.unrest for one in disturbed])[which[struck]]
    return machine, phases, unrest


def calm(values: np.ndarray) -> np.ndarray:
    """Values, single ones that lie more than six robust standard deviations off the median taken back to there.

    Args:
        values: (n,) or (n, K), each column for itself.
    """
    centre = np.median(values, axis=0)
    reach = _FAR * np.maximum(_NORMAL * np.median(np.abs(values - centre), axis=0), _LEAST_SCALE)
    taken_back: np.ndarray = np.clip(values, centre - reach, centre + reach)
    return taken_back


def _log_spread(values: np.ndarray) -> float:
    return float(np.log(max(float(np.median(np.abs(values))), _LEAST_SCALE)))
