from __future__ import annotations

import pytest

from bench.profilers.base import NO_PHASES, PHASES, UNATTRIBUTED


def test_the_silent_observer_accepts_any_step_and_swallows_no_error() -> None:
    with NO_PHASES.step(), NO_PHASES("forward"), NO_PHASES("quantize"):
        pass
    with pytest.raises(KeyError, match="seen"), NO_PHASES.step(), NO_PHASES("forward"):
        raise KeyError("seen")


def test_the_silent_observer_allocates_nothing_per_phase() -> None:
    assert NO_PHASES("forward") is NO_PHASES("backward") is NO_PHASES.step()


def test_the_rest_is_not_a_phase_that_a_step_names() -> None:
    assert UNATTRIBUTED not in PHASES
