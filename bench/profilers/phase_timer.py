"""Time of a training step by phase: raw samples in ms, exclusive, and what no phase claimed.

On a CPU the clock is ``perf_counter_ns``. On a GPU a mark is a CUDA event recorded on the current stream: nothing
synchronises inside a step, and ``read`` waits once for the last event of the window. A phase on a GPU is thus the time
between two points of the stream: kernels that it launched, and the gaps in which the stream waited for the host.
A phase inside another is taken off the outer one, so that phases and the unattributed rest add up to the step.
"""

from __future__ import annotations

import itertools
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch

from bench.profilers.base import UNATTRIBUTED


class Clock(Protocol):
    """A source of marks; ``settle`` makes the marks so far readable, ``release`` gives them back."""

    def mark(self) -> Any:
        """Remember now."""
        ...

    def settle(self, last: Any) -> None:
        """Wait until ``last`` and every mark before it has happened."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two settled marks."""
        ...

    def release(self, marks: list[Any]) -> None:
        """Take back marks that nobody will read again."""
        ...


class HostClock:
    """The CPU's monotonic clock, in nanoseconds."""

    def mark(self) -> int:
        """Remember now."""
        return time.perf_counter_ns()

    def settle(self, last: int) -> None:
        """Nothing to wait for: a mark is already a number."""

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two marks."""
        return (end - start) / 1e6

    def release(self, marks: list[int]) -> None:
        """Nothing to give back."""


class CudaClock:
    """CUDA events on the current stream, reused from window to window (creating one costs more than recording it)."""

    def __init__(self, device: torch.device) -> None:
        """Time a device's current stream.

        Args:
            device: a CUDA device.
        """
        self._device = device
        self._spare: list[torch.cuda.Event] = []

    def mark(self) -> torch.cuda.Event:
        """Record an event; returns at once."""
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self, last: torch.cuda.Event) -> None:
        """Wait for the stream to reach the last event."""
        last.synchronize()

    def elapsed_ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Milliseconds between two events, resolution about half a microsecond."""
        return float(start.elapsed_time(end))

    def release(self, marks: list[torch.cuda.Event]) -> None:
        """Keep the events for the next window."""
        self._spare.extend(marks)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSamples:
    """Raw samples of one window, one number a step, in milliseconds."""

    step_ms: tuple[float, ...]
    phases_ms: dict[str, tuple[float, ...]]  # exclusive; unattributed last; the phases of a step sum to its step_ms

    @property
    def unattributed_pct(self) -> float:
        """Share of the window's time that no phase claimed, in percent; 0 for a window without steps."""
        total = sum(self.step_ms)
        return 100 * sum(self.phases_ms[UNATTRIBUTED]) / total if total else 0.0


class PhaseTimer:
    """Times steps and their phases; the same object serves every window of a pass.

    Inside a step it only appends marks; all arithmetic waits for ``read``. A step that ends in an exception leaves no
    sample.
    """

    def __init__(self, device: torch.device, *, clock: Clock | None = None) -> None:
        """Choose the device's clock.

        Args:
            device: where the step runs.
            clock: another source of marks.
        """
        self._clock = clock or (CudaClock(device) if device.type == "cuda" else HostClock())
        self._steps: list[list[tuple[str | None, Any]]] = []
        self._current: list[tuple[str | None, Any]] | None = None

    def step(self) -> AbstractContextManager[None]:
        """Bound one training step; steps do not nest."""
        return _Step(self)

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Bound a phase of the running step."""
        return _Phase(self, name)

    def read(self) -> PhaseSamples:
        """Return the samples since the last ``read`` and start a new window; waits once for a GPU."""
        assert self._current is None, "read() belongs between steps, not inside one"
        steps, self._steps = self._steps, []
        if steps:
            self._clock.settle(steps[-1][-1][1])
        charged = [self._charge(marks) for marks in steps]
        names = list(dict.fromkeys(name for phases in charged for name in phases if name != UNATTRIBUTED))
        samples = PhaseSamples(
            step_ms=tuple(self._clock.elapsed_ms(marks[0][1], marks[-1][1]) for marks in steps),
            phases_ms={name: tuple(phases.get(name, 0.0) for phases in charged) for name in [*names, UNATTRIBUTED]},
        )
        self._clock.release([mark for marks in steps for _, mark in marks])
        return samples

    def _charge(self, marks: list[tuple[str | None, Any]]) -> dict[str, float]:
        """Give each interval between neighbouring marks to the innermost phase that was open in it."""
        charged: dict[str, float] = {}
        open_phases: list[str] = [UNATTRIBUTED]
        for (name, start), (_, end) in itertools.pairwise(marks):
            if name is None:
                open_phases.pop()
            else:
                open_phases.append(name)
            charged[open_phases[-1]] = charged.get(open_phases[-1], 0.0) + self._clock.elapsed_ms(start, end)
        return charged


class _Step:
    """Context of one step: its first mark opens ``unattributed``, its last closes the step."""

    __slots__ = ("_timer",)

    def __init__(self, timer: PhaseTimer) -> None:
        self._timer = timer

    def __enter__(self) -> None:
        assert self._timer._current is None, "a step was started inside another"
        self._timer._current = [(UNATTRIBUTED, self._timer._clock.mark())]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timer = self._timer
        marks, timer._current = timer._current, None
        assert marks is not None, "a step ended that had not begun"
        if kind is None:
            marks.append((None, timer._clock.mark()))
            timer._steps.append(marks)


class _Phase:
    """Context of one phase: a mark that opens its name and one that closes it."""

    __slots__ = ("_name", "_timer")

    def __init__(self, timer: PhaseTimer, name: str) -> None:
        self._timer = timer
        self._name = name

    def __enter__(self) -> None:
        current = self._timer._current
        assert current is not None, f"phase {self._name} began outside a step"
        current.append((self._name, self._timer._clock.mark()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        current = self._timer._current
        assert current is not None, f"phase {self._name} outlived its step"
        current.append((None, self._timer._clock.mark()))
