"""What a training step may say to whoever times it, and the observer that does nothing.

A step writes ``with phases("forward"):`` and never asks whether somebody listens; with ``NO_PHASES`` that costs two
empty calls.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

# The step-level phases of a record, in the order of a step; a timer adds UNATTRIBUTED, what lies between them.
PHASES = ("data", "forward", "backward", "meta", "optimizer")
UNATTRIBUTED = "unattributed"


class Phases(Protocol):
    """Marks a step and the phases inside it; phases nest, and each is charged only its own time."""

    def step(self) -> AbstractContextManager[None]:
        """Bound one training step."""
        ...

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Bound one phase of the running step; a name may occur several times in a step."""
        ...


class _Nothing:
    """A context that does nothing; one instance serves every phase."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class NoPhases:
    """The observer that is there when nobody measures."""

    __slots__ = ()

    def step(self) -> AbstractContextManager[None]:
        """Do nothing around a step."""
        return _NOTHING

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Do nothing around a phase."""
        return _NOTHING


_NOTHING = _Nothing()
NO_PHASES = NoPhases()
