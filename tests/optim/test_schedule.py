from __future__ import annotations

import pytest

from bench.errors import ConfigError
from bench.optim import build_schedule


def test_step_divides_at_each_milestone() -> None:
    schedule = build_schedule("step", milestones=(0.3, 0.6, 0.9))
    factors = [schedule(epoch / 100) for epoch in (0, 29, 30, 59, 60, 90, 100)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001, 0.001])


def test_cosine_falls_from_one_to_zero() -> None:
    schedule = build_schedule("cosine")
    assert [schedule(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])


def test_constant_stays() -> None:
    assert [build_schedule("constant")(p) for p in (0.0, 0.4, 1.0)] == [1.0, 1.0, 1.0]


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="choose one of: constant, step, cosine"):
        build_schedule("linear")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        build_schedule("step", milestones=(30, 60))
    with pytest.raises(ConfigError, match="needs milestones"):
        build_schedule("step")
    with pytest.raises(ConfigError, match="cosine schedule has no milestones"):
        build_schedule("cosine", milestones=(0.5,))
    with pytest.raises(AssertionError, match="share of training"):
        build_schedule("cosine")(1.5)
