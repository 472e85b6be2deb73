"""Learning-rate schedules as pure functions of progress, the share of training done, from 0 to 1.

Source: docs/method.md section 6 (÷10 at milestones; cosine for VGG and MobileNetV2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from bench.errors import ConfigError

STEP_FACTOR = 0.1  # at each milestone


def constant_factor(progress: float) -> float:
    """1 throughout."""
    assert 0.0 <= progress <= 1.0, f"progress is a share of training, got {progress}"
    return 1.0


def step_factor(progress: float, *, milestones: Sequence[float]) -> float:
    """``STEP_FACTOR`` to the number of milestones reached; a milestone is the progress at which it takes effect."""
    assert 0.0 <= progress <= 1.0, f"progress is a share of training, got {progress}"
    return STEP_FACTOR ** sum(progress >= milestone for milestone in milestones)


def cosine_factor(progress: float) -> float:
    """(1 + cos(π·progress))/2: from 1 to 0 along half a cosine."""
    assert 0.0 <= progress <= 1.0, f"progress is a share of training, got {progress}"
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[..., float]] = {"constant": constant_factor, "step": step_factor, "cosine": cosine_factor}


def build_schedule(name: str, *, milestones: Sequence[float] = ()) -> Callable[[float], float]:
    """The schedule of that name: progress in 0..1 to a factor of the base learning rate.

    Args:
        name: constant, step or cosine.
        milestones: shares of training at which ``step`` multiplies by ``STEP_FACTOR``.

    Raises:
        ConfigError: for an unknown name, milestones outside 0..1, step without and the others with milestones.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"unknown schedule {name!r}; choose one of: {', '.join(SCHEDULES)}.")
    if name != "step":
        if milestones:
            raise ConfigError(f"the {name} schedule has no milestones; leave them out or choose step.")
        return SCHEDULES[name]
    if not milestones or any(not 0.0 < milestone < 1.0 for milestone in milestones):
        raise ConfigError(
            f"the step schedule needs milestones as shares of training between 0 and 1, got {list(milestones)}."
        )
    return partial(step_factor, milestones=tuple(milestones))
