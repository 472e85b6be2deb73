"""What the parts of a record share: summaries, intervals, labels, and why something is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.units import Absent

NOT_RECORDED = Absent("not recorded by the version that wrote this")
NOT_SAMPLED = Absent("not sampled in this step")
Label = Literal["integer", "emulated", "simulated", "float"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A sample's middle and spread, in the unit that the field's name carries."""

    median: float
    q1: float
    q3: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float
