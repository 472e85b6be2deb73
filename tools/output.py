"""Printing that holds whatever standard output is: a log in ASCII, a reader that went away, a full disk, nothing."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from bench.errors import RecordError, system_reason

if TYPE_CHECKING:
    from rich.console import Console

TABLE_COLUMNS = 170  # where no terminal says how wide it is


def emit(text: str) -> None:
    """Print; a reader who goes away early, or an output that is closed, changes nothing about the exit code.

    Raises:
        RecordError: if the output cannot be written.
    """
    if sys.stdout is None:  # Python found standard output closed when it started
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise RecordError(
            f"The output cannot be written: {system_reason(error)}; free space or print elsewhere."
        ) from error


def emit_json(text: str) -> None:
    """Print JSON; where the output knows fewer letters, the others are written as JSON escapes them.

    Raises:
        RecordError: if the output cannot be written.
    """
    if not knows_unicode():  # outside of strings JSON has none
        text = "".join(letter if letter.isascii() else json.dumps(letter)[1:-1] for letter in text)
    emit(text)


def table_console() -> Console:
    """Prints tables on standard output: as wide as its terminal, else so wide that hardly a cell is broken."""
    from rich.console import Console

    return Console() if sys.stdout is not None and sys.stdout.isatty() else Console(width=TABLE_COLUMNS)


def knows_unicode() -> bool:
    """Whether standard output can print lines and letters beyond ASCII."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
