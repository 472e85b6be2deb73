"""What the tests of the kernels verb measure: the smallest work, and ceilings that are round numbers."""

from __future__ import annotations

import dataclasses

from bench.profilers.ceilings import Ceilings
from tools.kernels.sides import Work

CEILINGS = Ceilings(int8_gops=1000.0, fp32_gflops=100.0, bf16_gflops=500.0, copy_gb_s=10.0)


def tiny_work(**changes: object) -> Work:
    work = Work(
        model="resnet20", factory=None, batch_size=2, image_size=8, dispatch="integer", device="cpu", threads=None
    )
    return dataclasses.replace(work, **changes)  # type: ignore[arg-type]
