"""Checkpoints of a training: all that the next step depends on, sealed by SHA-256, the last two kept.

A run resumed from one on the same CPU ends bitwise like one that was never interrupted. A checkpoint loads as tensors
and plain values only (``weights_only``): nothing in it is executed. One that is damaged is left for the one before.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import shutil
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.errors import system_reason
from bench.files import LEFTOVER_SUFFIX, DamagedFileError, read_sealed, write_sealed
from bench.seeding import globals_state, set_globals_state
from bench.training.assemble import Parts

KEPT = 2
EPOCH_SHARE = 0.1  # of the interval has to have passed for a checkpoint at an epoch's end
_NAME = re.compile(r"step-(\d{12})\.ckpt")
# What torch.load raises for bytes that are no state: a class that it does not allow, no archive, a broken pickle.
_READER_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError, struct.error,
)  # fmt: skip


def capture(parts: Parts) -> dict[str, Any]:
    """The state between two steps: model with its quantizers, optimizers, delayed update, random generators."""
    return {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "delayed": None if parts.delayed is None else parts.delayed.state_dict(),
        "rounding": None if parts.conversion is None else parts.conversion.generator.get_state(),
        "globals": globals_state(),
    }


def restore(parts: Parts, state: dict[str, Any]) -> None:
    """Put freshly built parts of the same cell where `capture` found them."""
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    if parts.delayed is not None:
        parts.delayed.load_state_dict(state["delayed"])
    if parts.conversion is not None:
        parts.conversion.generator.set_state(state["rounding"])
    set_globals_state(state["globals"])


def seal_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values as a sealed file.

    Raises:
        OSError: it cannot be written.
    """
    stream = io.BytesIO()
    torch.save(state, stream)
    write_sealed(path, stream.getvalue())


def unseal_state(path: Path) -> dict[str, Any]:
    """Read a sealed file of tensors, on the CPU, and plain values.

    Raises:
        DamagedFileError: it is not what was written, or holds more than tensors and plain values.
        OSError: it cannot be read.
    """
    content = read_sealed(path)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _READER_ERRORS as error:
        raise DamagedFileError(f"it holds more than tensors ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise DamagedFileError("it holds no state")
    return state


def seal_weights(
    path: Path, state: dict[str, torch.Tensor], *, accuracy_pct: float | None, notices: Sequence[str]
) -> None:
    """Write the FP32 weights that cells start from; they say which file they are, so that no other passes for it.

    Args:
        path: of the file, whose name tells model, data, seed and pretraining.
        state: of the model, on the CPU.
        accuracy_pct: its test accuracy; None for synthetic data.
        notices: what a reader of a record must know of the training.

    Raises:
        OSError: it cannot be written.
    """
    seal_state(path, {"owner": path.name, "state": state, "accuracy_pct": accuracy_pct, "notices": list(notices)})


def unseal_weights(path: Path) -> dict[str, Any]:
    """What ``seal_weights`` wrote to this very path: ``state``, ``accuracy_pct``, ``notices``.

    Raises:
        DamagedFileError: it is not what was written, holds more than tensors and plain values, or is another's.
        OSError: it cannot be read.
    """
    content = unseal_state(path)
    if content.keys() != {"owner", "state", "accuracy_pct", "notices"}:
        raise DamagedFileError("it holds no FP32 weights")
    if content["owner"] != path.name:
        raise DamagedFileError("it was written under another name")
    return content


class Checkpoints:
    """The last two checkpoints of one training, in a folder of their own."""

    def __init__(self, folder: Path, *, owner: str, every_s: float) -> None:
        """Look at nothing yet.

        Args:
            folder: made with the first checkpoint.
            owner: what they are of; checkpoints of another owner are not read.
            every_s: seconds from one to the next; 0 takes one after every step.
        """
        self.folder = folder
        self.owner = owner
        self.every_s = every_s
        self.notices: list[str] = []  # what a reader of the result must know
        self._last_s = time.monotonic()

    def due(self, *, epoch_end: bool = False) -> bool:
        """Whether the next one should be taken now; at an epoch's end sooner."""
        return time.monotonic() - self._last_s >= self.every_s * (EPOCH_SHARE if epoch_end else 1.0)

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Keep a state and drop all but the last two; a disk that takes none is noticed and no reason to stop.

        Args:
            step: steps done.
            state: tensors and plain values.
        """
        path = self.folder / f"step-{step:012d}.ckpt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            seal_state(path, {"owner": self.owner, "step": step, "state": state})
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            self._notice("Checkpoints of the training could not be written", system_reason(error))
        else:
            for older in self._paths()[KEPT:]:
                with contextlib.suppress(OSError):
                    older.unlink()
        self._last_s = time.monotonic()

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Steps done and state of the newest that is whole; None where there is none."""
        for path in self._paths():
            try:
                content = unseal_state(path)
                if content["owner"] != self.owner:
                    with contextlib.suppress(OSError):
                        path.unlink()  # with more steps than ours it would count as one of the last two
                    continue
                return int(content["step"]), content["state"]
            except (DamagedFileError, KeyError, TypeError, ValueError) as error:
                self._notice(f"The checkpoint {path.name} is damaged and was left for the one before", error)
            except OSError as error:
                self._notice(f"The checkpoint {path.name} could not be read", system_reason(error))
        return None

    def remove(self) -> None:
        """The training is over, or to begin anew: delete them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        """The checkpoints, newest first; what a killed writer left is deleted."""
        try:
            paths = sorted(self.folder.iterdir(), reverse=True)
        except OSError:
            return []
        for path in paths:
            if path.suffix == LEFTOVER_SUFFIX:
                with contextlib.suppress(OSError):
                    path.unlink()
        return [path for path in paths if _NAME.fullmatch(path.name)]

    def _notice(self, what: str, why: object) -> None:
        sentence = f"{what} ({str(why).rstrip('.')})."
        if sentence not in self.notices:
            self.notices.append(sentence)
