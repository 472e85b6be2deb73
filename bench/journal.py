"""Answers of a cell's finished passes, kept on the disk until its record is written.

A cell that was interrupted goes on with the first pass that has no answer. Each file is sealed, holds plain values and
says what pass, cell, code, machine and device it is of; what does not fit is measured again.
"""

from __future__ import annotations

import secrets
import shutil
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.errors import system_reason
from bench.files import DamagedFileError, read_sealed, write_sealed
from bench.process import PassOutcome
from bench.records.schema import FINISHED, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    owner: str
    name: str  # of the pass: of some a cell has several that answer alike
    status: Status
    reason: str
    duration_s: float
    value: msgspec.Raw


class Journal:
    """A folder with one file per finished pass, and room for the checkpoints of a training."""

    def __init__(self, folder: Path, *, owner: str) -> None:
        """Look at nothing yet.

        Args:
            folder: made with the first answer.
            owner: key of the cell and its device.
        """
        self.folder = folder
        self.owner = owner
        self.notices: list[str] = []  # what a reader of the record must know
        self.kept: list[str] = []  # passes whose answers are from an earlier run
        self.kept_s = 0.0  # what those passes took

    @property
    def checkpoints(self) -> Path:
        """Where the accuracy pass keeps its checkpoints."""
        return self.folder / "checkpoints"

    def read(self, name: str, function: Callable[..., Any]) -> PassOutcome | None:
        """What a pass answered in an earlier run; None where it has not come to its end.

        Args:
            name: of the pass within its cell.
            function: the pass, whose annotation says what it answers.
        """
        path = self._path(name)
        try:
            entry = msgspec.msgpack.decode(read_sealed(path), type=_Entry)
            if (entry.owner, entry.name) != (self.owner, name):
                return None
            value = msgspec.msgpack.decode(entry.value, type=typing.get_type_hints(function)["return"])
        except FileNotFoundError:
            return None
        except (OSError, DamagedFileError, msgspec.MsgspecError, RecursionError) as error:
            self._notice(f"The kept answer of the {name} pass is damaged, so the pass ran again", error)
            return None
        self.kept.append(name)
        self.kept_s += entry.duration_s
        return PassOutcome(
            status=entry.status, reason=entry.reason, value=value, traceback="", duration_s=entry.duration_s
        )

    def write(self, name: str, outcome: PassOutcome) -> None:
        """Keep an answer; a pass that did not come to its end leaves none. A full disk is noticed, not an error."""
        if outcome.status not in FINISHED:
            return
        entry = _Entry(
            owner=self.owner,
            name=name,
            status=outcome.status,
            reason=outcome.reason,
            duration_s=outcome.duration_s,
            value=msgspec.Raw(msgspec.msgpack.encode(outcome.value)),
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_sealed(self._path(name), msgspec.msgpack.encode(entry))
        except OSError as error:
            self._notice("Answers of finished passes could not be kept for a later run", error)

    def remove(self) -> None:
        """The record is written, or everything is to be measured anew; what cannot be deleted is left aside."""
        try:
            shutil.rmtree(self.folder)
        except FileNotFoundError:
            return
        except OSError as error:
            self.owner += f" {secrets.token_hex(8)}"  # nothing that still lies there is this owner's
            self._notice("What an earlier run had left could not be deleted and was left aside", error)

    def sittings(self) -> tuple[str, ...]:
        """A sentence where the cell was measured in more than one run."""
        if not self.kept:
            return ()
        return (f"Measured in several runs: {', '.join(self.kept)} stood from before an interruption.",)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.answer"

    def _notice(self, what: str, error: Exception) -> None:
        sentence = f"{what} ({system_reason(error).rstrip('.')})."
        if sentence not in self.notices:
            self.notices.append(sentence)
