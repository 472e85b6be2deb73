"""Mistakes of the user and faults of the machine, each said in one sentence, with the exit code they end in.

Programming errors are not here: they keep their traceback.
"""

from __future__ import annotations

import enum
import errno
from typing import Any

# What a disk answers that is full, over its quota, read-only, broken or away.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
_PACKAGE = __file__.removesuffix("errors.py")  # without pathlib, which is much to load before Ctrl-C is answered
_MISTAKES = (AssertionError, AttributeError, LookupError, NameError, TypeError)
_HANDING_ON = ("__torch_function__", "__torch_dispatch__")  # ours by their place, but the call they make is not


class ExitCode(enum.IntEnum):
    """Exit codes of ``metagrad-bench``; each verb documents the ones it uses."""

    OK = 0
    FAILED = 1  # run: a cell did not finish (failed, crashed, ...); gate: something regressed, failed or went missing
    USAGE = 2  # wrong arguments, configuration, data, an unreadable record or baseline
    INCONCLUSIVE = 3  # gate: cannot tell
    NO_BASELINE = 4  # gate: the baseline file does not exist
    NOT_COMPARABLE = 5  # gate: fingerprints differ
    NOTHING_MEASURED = 6  # gate, report, baseline: there was nothing to compare
    INTERRUPTED = 130  # Ctrl-C


class UserError(Exception):
    """Something a user can mend; ``str(error)`` is one sentence: what was wrong and what to do."""

    exit_code: ExitCode = ExitCode.USAGE
    partial: Any = None  # what had been measured before it was raised


class ConfigError(UserError):
    """A configuration that cannot be run: an unknown name, a wrong type, a value out of range."""


class DataError(UserError):
    """A data set that is missing, truncated or not what its checksum says."""


class ShapeError(UserError):
    """Operands whose shapes, dtypes or layouts the integer kernels refuse."""


class HardwareError(UserError):
    """A device that is not there or computes wrong integers."""


class RecordError(UserError):
    """A record, baseline or folder of records that cannot be read or written."""


class NoBaselineError(RecordError):
    """The baseline file does not exist yet."""

    exit_code = ExitCode.NO_BASELINE


class NothingMeasuredError(RecordError):
    """There is no measurement to report or compare."""

    exit_code = ExitCode.NOTHING_MEASURED


class OutOfMemoryError(UserError):
    """A device or the host ran out of memory during a pass."""

    exit_code = ExitCode.FAILED


class StoppedError(Exception):
    """A pass was asked to stop; ``report`` raises it at the end of a step."""


class WorkerError(UserError):
    """A launcher's worker that is not there, or ended without a record."""

    exit_code = ExitCode.FAILED


class DivergedError(UserError):
    """Training left the finite numbers; a result, recorded as status ``diverged``."""

    exit_code = ExitCode.OK


def system_reason(error: Exception) -> str:
    """The system's own words for an error, without the path that it repeats."""
    return str(getattr(error, "strerror", None) or error)


def is_ours(error: BaseException) -> bool:
    """Whether an exception is a programming error of this package, or a ``UserError`` of its own.

    Where a user's network runs anything may be raised. What a line of ours raises there that no input should make it
    raise is a mistake in it all the same; torch's RuntimeError in a call of ours may be the network's doing.
    """
    if not isinstance(error, (UserError, *_MISTAKES)):
        return False
    places = []
    at = error.__traceback__
    while at is not None:
        places.append(at.tb_frame.f_code)
        at = at.tb_next
    while places and places[-1].co_name in _HANDING_ON:
        places.pop()
    return bool(places) and places[-1].co_filename.startswith(_PACKAGE)
