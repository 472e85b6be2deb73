"""The passes of a cell, each a module-level function that runs in a fresh process and answers plain, frozen values.

check: self-check of the integer GEMM, one counted training step, facts of model and data.
pretrain: the FP32 weights that the cells of a model, data set and seed share.
timing: blocks of the cell's steps alternating with blocks of FP32 steps.
memory: peaks of a few steps. profile: a few steps by layer and product, and a trace. accuracy: the training itself.
"""

from __future__ import annotations

from bench.passes.accuracy import accuracy_pass
from bench.passes.check import CheckAnswer, check_pass
from bench.passes.memory import MemoryAnswer, memory_pass
from bench.passes.pretrain import pretrain_pass
from bench.passes.profile import ceilings_pass, profile_pass
from bench.passes.timing import timing_pass

__all__ = [
    "CheckAnswer",
    "MemoryAnswer",
    "accuracy_pass",
    "ceilings_pass",
    "check_pass",
    "memory_pass",
    "pretrain_pass",
    "profile_pass",
    "timing_pass",
]
