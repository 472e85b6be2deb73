"""The regression gate: entries of a candidate and of a baseline -> one verdict per cell and metric, with its reasons.

``compare(candidates, baselines, policy)`` is the one entry point; ``ratio_test`` judges one metric of one cell.
Statistics and thresholds are described in docs/gate.md.
"""

from bench.gating.comparison import Comparison, compare
from bench.gating.metrics import THRESHOLDS, Policy, Threshold
from bench.gating.ratio_test import RatioTest, ratio_test
from bench.gating.repeats import Repeats
from bench.gating.verdicts import CELL, Row, Verdict, exit_code, worst_first

__all__ = [
    "CELL", "THRESHOLDS", "Comparison", "Policy", "RatioTest", "Repeats", "Row", "Threshold", "Verdict", "compare",
    "exit_code", "ratio_test", "worst_first",
]  # fmt: skip
