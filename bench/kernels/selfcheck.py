"""Once per process and device: ``torch._int_mm`` against int64 on full-range operands.

Source: docs/method.md section 2. Processors without VNNI or AMX, and some builds, were seen to saturate or to return
garbage; a wrong product must stop the run, not colour its results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bench.errors import HardwareError
from bench.kernels.int_mm import int_mm
from bench.kernels.reference import int_mm_reference

# Square and skewed; wgrad-like long reductions; sizes that need padding.
CHECKED_SHAPES = ((17, 8, 8), (64, 256, 64), (33, 27, 10), (144, 4096, 16), (1024, 144, 16))

_passed: set[torch.device] = set()


def check_device(device: torch.device | str, *, again: bool = False) -> None:
    """Compare the integer product with int64, the first time a device is seen.

    Args:
        device: where the products will run.
        again: repeat the check even if it passed before.

    Raises:
        HardwareError: if a single integer differs.
    """
    device = torch.device(device)
    if device in _passed and not again:
        return
    generator = torch.Generator().manual_seed(0)
    for m, k, n in CHECKED_SHAPES:
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator).to(device)
        b = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator).to(device)
        a[0], b[0] = -128, -128  # the largest sum
        a[1], b[1] = 127, 127
        wrong = int_mm(a, b.t(), layer="self-check").to(torch.int64) != int_mm_reference(a, b.t())
        if bool(wrong.any()):
            raise HardwareError(
                f"the int8 product on {device} is wrong in {int(wrong.sum())} of {m * n} sums of a {m}×{k}×{n} "
                "product; use dispatch=simulate or another device"
            )
    _passed.add(device)


@contextmanager
def trusted(device: torch.device) -> Iterator[None]:
    """Leave a device unchecked inside the block, where nothing is computed; it stays unchecked afterwards."""
    unchecked = device not in _passed
    _passed.add(device)
    try:
        yield
    finally:
        if unchecked:
            _passed.discard(device)
