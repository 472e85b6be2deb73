"""Sentences on standard error, as every verb prints them."""

from __future__ import annotations

import contextlib
import sys


def say(sentence: str) -> None:
    """Print one sentence under the program's name; an error stream that is closed or full ends nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(f"metagrad-bench: {sentence}", file=sys.stderr)
