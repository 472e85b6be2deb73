"""Which path a layer's product takes: the integer product always, or the fastest among paths that agree bit for bit.

Paths: ``int_mm`` (the integer product through ``torch._int_mm``), ``direct`` (integer sums without a matrix product,
for depthwise kernels), ``float32`` and ``float64`` (floating-point products of the integers, exact while sums stay
below 2²⁴ and 2⁵³). On a CPU only: a GPU's floating-point products may round (TF32) or transform (Winograd).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.kernels.depthwise import DIRECT
from bench.kernels.int_mm import unlogged

INT_MM, FLOAT32, FLOAT64 = "int_mm", "float32", "float64"
INTEGER_PATHS = (INT_MM, DIRECT)
EXACT_FLOAT32, EXACT_FLOAT64 = 2**24, 2**53
_TIMED_RUNS = 2
_HOPELESS = 4  # times the best one's time

Result = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathChoice:
    """The path of one product, and why it is taken."""

    path: str
    reason: str


Paths = dict[str, dict[str, PathChoice]]  # by layer and product


def run_fastest(chosen: dict[str, PathChoice], gemm: str, paths: Mapping[str, Callable[[], Result]]) -> Result:
    """Run a product by the path chosen for it; the first time, run all, time those that agree, and choose.

    Args:
        chosen: the layer's choices by product, filled here.
        gemm: fprop, dgrad or wgrad.
        paths: by name, each without side effects; the first one defines the result.
    """
    if gemm in chosen:
        known = chosen[gemm]
        if known.path not in paths:
            # Longer sums, or a grid that has grown since; from now on the one path that is always there.
            known = chosen[gemm] = PathChoice(
                path=INT_MM,
                reason=f"{known.path} ran before ({known.reason}), until sums grew past what is exact there",
            )
        return paths[known.path]()
    times_ms: dict[str, float] = {}
    unequal = []
    expected: Result | None = None
    with unlogged():
        for name, path in paths.items():
            result, once_ms = _timed(path)  # cold, so that only what is far behind is given up after it
            if expected is None:
                expected = result
            elif not _equal(result, expected):
                unequal.append(name)
                continue
            best_ms = min(times_ms.values(), default=math.inf)
            again = () if once_ms > _HOPELESS * best_ms else range(_TIMED_RUNS)
            times_ms[name] = min([once_ms, *(_timed(path)[1] for _ in again)])
    best = min(times_ms, key=times_ms.__getitem__)
    told = ", ".join(f"{name} {spent:.3g} ms" for name, spent in times_ms.items())
    reason = f"fastest of {told}" if len(times_ms) > 1 else "the only exact path"
    if unequal:
        reason += f"; not bit-equal: {', '.join(unequal)}"
    chosen[gemm] = PathChoice(path=best, reason=reason)
    return paths[best]()


def choices_of(chosen: Mapping[str, PathChoice], gemm: str) -> tuple[PathChoice, ...]:
    """The choices of a product, one for each of its grids."""
    return tuple(choice for name, choice in chosen.items() if name.split(",")[0] == gemm)


def ran_as_integer(path: str) -> bool:
    """Whether a logged or chosen path multiplied integers; the others multiplied their values in floating point."""
    return path.startswith(INTEGER_PATHS)


def part_name(gemm: str, part: int) -> str:
    """A product's name in the choices: error signals on several grids have one product each."""
    return gemm if part == 0 else f"{gemm}, grid {part + 1}"


def exact_floats(device: torch.device, bound: int) -> tuple[str, ...]:
    """Floating-point paths whose sums of at most ``bound`` are exact."""
    if device.type != "cpu" or bound > EXACT_FLOAT64:
        return ()
    return (FLOAT32,) if bound <= EXACT_FLOAT32 else (FLOAT64,)


def _timed(path: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = path()
    return result, (time.perf_counter() - start) * 1e3


def _equal(result: Result, expected: Result) -> bool:
    if isinstance(result, Tensor) and isinstance(expected, Tensor):
        return torch.equal(result, expected)
    return all(torch.equal(one, other) for one, other in zip(result, expected, strict=True))
