"""Where the time of a layer goes: spans named by piece, layer and GEMM, recorded only where someone asks.

Pieces are ``quantize``, ``im2col`` (laying operands out for a product), ``gemm``, ``dequantize``, ``norm``,
``activation`` and ``pool``. Spans do not nest. Off, a span costs one comparison; on, it costs two clock readings, so
that a run with spans is never the run whose step time is reported.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

PIECES = ("quantize", "im2col", "gemm", "dequantize", "norm", "activation", "pool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One piece of work: ``layer`` and ``gemm`` (fprop, dgrad, wgrad) are "" where they do not apply."""

    piece: str
    layer: str
    gemm: str
    span_ms: float


@dataclass(slots=True)
class _Open:
    """A span while it runs; enters itself into the log when it ends."""

    log: _Log
    piece: str
    layer: str
    gemm: str
    start: Any = None

    def __enter__(self) -> None:
        self.start = self.log.now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.marks.append((self.piece, self.layer, self.gemm, self.start, self.log.now()))


class _Log:
    """Marks of the spans that ran; on CUDA events, which are read after the last of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, str, str, Any, Any]] = []

    def now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def spans(self) -> list[Span]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return [
            Span(piece=piece, layer=layer, gemm=gemm, span_ms=_between_ms(start, end))
            for piece, layer, gemm, start, end in self.marks
        ]


_log: _Log | None = None
_OFF: AbstractContextManager[None] = nullcontext()


def span(piece: str, *, layer: str = "", gemm: str = "") -> AbstractContextManager[None]:
    """Time the block as one of ``PIECES``, if spans are being recorded."""
    return _OFF if _log is None else _Open(_log, piece, layer, gemm)


@contextmanager
def record_spans(device: torch.device) -> Iterator[list[Span]]:
    """Record the spans of the block; the list is filled when it ends.

    Args:
        device: where the work runs: CUDA events there, the processor's clock elsewhere.
    """
    global _log
    outer, _log = _log, _Log(device)
    spans: list[Span] = []
    try:
        yield spans
    finally:
        log, _log = _log, outer
        spans.extend(log.spans())


def _between_ms(start: Any, end: Any) -> float:
    return float(start.elapsed_time(end)) if isinstance(start, torch.cuda.Event) else (end - start) / 1e6
