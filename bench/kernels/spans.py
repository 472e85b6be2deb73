"""Where the time of a layer goes: spans named by piece, layer and GEMM, recorded only where someone asks.

Pieces are ``quantize``, ``im2col`` (laying operands out for a product), ``gemm``, ``dequantize``, ``norm``,
``activation`` and ``pool``; the delayed update's are ``hypernet_forward`` and ``meta_gradient``. Spans of layers do not
nest. Off, a span costs one comparison; on, two clock readings, so that a run with spans is never the run whose step
time is reported.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch

PIECES = ("quantize", "im2col", "gemm", "dequantize", "norm", "activation", "pool")


class SpanSink(Protocol):
    """Whoever records spans."""

    def open_span(self, piece: str, layer: str, gemm: str) -> AbstractContextManager[None]:
        """Bound one span."""
        ...


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

    def open_span(self, piece: str, layer: str, gemm: str) -> AbstractContextManager[None]:
        return _Open(self, piece, layer, gemm)

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


_sink: SpanSink | None = None
_OFF: AbstractContextManager[None] = nullcontext()


def span(piece: str, *, layer: str = "", gemm: str = "") -> AbstractContextManager[None]:
    """Bound the block as one piece of work, if spans are being recorded."""
    return _OFF if _sink is None else _sink.open_span(piece, layer, gemm)


def recording() -> bool:
    """Whether somebody asks for spans: then work that is one call otherwise is done in two, to be told apart."""
    return _sink is not None


@contextmanager
def send_spans(sink: SpanSink) -> Iterator[None]:
    """Tell ``sink`` alone of the spans of the block."""
    global _sink
    outer, _sink = _sink, sink
    try:
        yield
    finally:
        _sink = outer


@contextmanager
def record_spans(device: torch.device) -> Iterator[list[Span]]:
    """Record the spans of the block; the list is filled when it ends.

    Args:
        device: where the work runs: CUDA events there, the processor's clock elsewhere.
    """
    log = _Log(device)
    spans: list[Span] = []
    try:
        with send_spans(log):
            yield spans
    finally:
        spans.extend(log.spans())


def _between_ms(start: Any, end: Any) -> float:
    return float(start.elapsed_time(end)) if isinstance(start, torch.cuda.Event) else (end - start) / 1e6
