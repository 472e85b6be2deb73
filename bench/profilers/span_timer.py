"""Time of a step by phase, layer, product and piece: where ``PhaseTimer`` says backward, this says whose and of what.

Three sources enter one log of marks: the step's phases, the layers by hooks (``layer_scopes``), and spans around pieces
of work, which our layers set themselves (``kernels/spans``) and torch's are given (``float_spans``). Each interval
between two marks is charged to the innermost that was open, so that the pieces of a step add up to it. Marks are the
clock's of ``phase_timer``: on a GPU events, read after the steps. What all that costs is for the caller to measure,
against steps without it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench.kernels.spans import send_spans
from bench.layers.activation import LeanReLU
from bench.layers.fixed_point_norm import FixedPointBatchNorm2d
from bench.layers.pool import LeanMaxPool2d
from bench.layers.range_norm import RangeBatchNorm2d
from bench.profilers.base import UNATTRIBUTED
from bench.profilers.float_spans import float_spans
from bench.profilers.layer_scopes import LayerScopes
from bench.profilers.phase_timer import Clock, CudaClock, HostClock

REST = "rest"
WITHOUT_GEMM = ("norm", "activation", "pool")  # the phase says their direction
_PIECE_OF: dict[str, tuple[type[nn.Module], ...]] = {
    "norm": (_BatchNorm, nn.LayerNorm, nn.GroupNorm, RangeBatchNorm2d, FixedPointBatchNorm2d),
    "activation": (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardtanh, LeanReLU),
    "pool": (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, LeanMaxPool2d),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a moment of a step belongs."""

    phase: str
    layer: str
    gemm: str
    piece: str


def piece_of(module: nn.Module) -> str:
    """The piece that a module's own time is, where no span inside it says more."""
    return next((piece for piece, kinds in _PIECE_OF.items() if isinstance(module, kinds)), REST)


class PlaceObserver(Protocol):
    """Hears where a step stands, as a stack of places."""

    def step(self) -> AbstractContextManager[None]:
        """Bound one training step."""
        ...

    def enter(self, place: Place) -> None:
        """A phase, layer or piece begins; ``place`` holds what is known with those around it."""
        ...

    def leave(self) -> None:
        """The last that began has ended."""
        ...


class Places:
    """Phases, layers and spans of a step as one stack of places: the step's ``phases``, and for layers and spans."""

    def __init__(self, observer: PlaceObserver) -> None:
        """Tell an observer."""
        self._observer = observer
        self._open: list[Place] = []

    def step(self) -> AbstractContextManager[None]:
        """Bound one training step."""
        return self._observer.step()

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Bound a phase."""
        return _Inside(self, Place(name, "", "", REST))

    def open_span(self, piece: str, layer: str, gemm: str) -> AbstractContextManager[None]:
        """Bound a span; it belongs to the phase, and without a layer of its own to the layer, around it."""
        around = self._open[-1] if self._open else Place(UNATTRIBUTED, "", "", REST)
        return _Inside(self, Place(around.phase, layer or around.layer, "" if piece in WITHOUT_GEMM else gemm, piece))

    def begin_layer(self, name: str, module: nn.Module, direction: str) -> None:
        """See ``LayerObserver``."""
        phase = self._open[-1].phase if self._open else UNATTRIBUTED
        self.enter(Place(phase, name, "", piece_of(module)))

    def end_layer(self, name: str, module: nn.Module, direction: str) -> None:
        """See ``LayerObserver``."""
        self.leave()

    def enter(self, place: Place) -> None:
        """Begin."""
        self._open.append(place)
        self._observer.enter(place)

    def leave(self) -> None:
        """End the last that began."""
        self._open.pop()
        self._observer.leave()


@contextmanager
def watch_places(places: Places, model: nn.Module) -> Iterator[None]:
    """Tell ``places`` of the layers of a model and of the spans in them, floating-point products included."""
    with float_spans(model), LayerScopes(model, places), send_spans(places):
        yield


class SpanTimer:
    """Times places; use as the observer of ``Places``."""

    def __init__(self, device: torch.device, *, clock: Clock | None = None) -> None:
        """Choose the device's clock.

        Args:
            device: where the step runs.
            clock: another source of marks.
        """
        self._clock = clock or (CudaClock(device) if device.type == "cuda" else HostClock())
        self._steps: list[list[tuple[Place | None, Any]]] = []
        self._current: list[tuple[Place | None, Any]] = []

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Bound one training step; one that ends in an exception leaves no sample."""
        self._current = [(Place(UNATTRIBUTED, "", "", REST), self._clock.mark())]
        yield
        self._current.append((None, self._clock.mark()))
        self._steps.append(self._current)

    def enter(self, place: Place) -> None:
        """See ``PlaceObserver``."""
        self._current.append((place, self._clock.mark()))

    def leave(self) -> None:
        """See ``PlaceObserver``."""
        self._current.append((None, self._clock.mark()))

    def read(self) -> list[Counter[Place]]:
        """Milliseconds of each place in each step since the last ``read``; waits once for a GPU."""
        steps, self._steps = self._steps, []
        if steps:
            self._clock.settle(steps[-1][-1][1])
        charged = [self._charge(marks) for marks in steps]
        self._clock.release([mark for marks in steps for _, mark in marks])
        return charged

    def _charge(self, marks: list[tuple[Place | None, Any]]) -> Counter[Place]:
        charged: Counter[Place] = Counter()
        open_places: list[Place] = []
        for (place, start), (_, end) in itertools.pairwise(marks):
            if place is None:
                open_places.pop()
            else:
                open_places.append(place)
            charged[open_places[-1]] += self._clock.elapsed_ms(start, end)  # type: ignore[assignment]
        return charged


class _Inside:
    """Context of one place."""

    __slots__ = ("_place", "_places")

    def __init__(self, places: Places, place: Place) -> None:
        self._places = places
        self._place = place

    def __enter__(self) -> None:
        self._places.enter(self._place)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._places.leave()
