"""What must not stand in texts that are made to be sent: whose machine it was, and where."""

from __future__ import annotations

import re
import socket
from functools import cache

_HOME = re.compile(
    r"(?:/(?:[\w.-]+/)*(?:home|Users)/[^/\s:;,'\"<>|]+|(?<![\w/.])/root(?=[/\s:;,'\"]|$)|\b[A-Za-z]:\\Users\\[^\\\s:;,'\"]+)"
)
_GPU_ID = re.compile(r"\b(GPU|gpu|MIG|mig)-[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b")


def without_places(text: str) -> str:
    """A text without home folders and GPUs' serial numbers."""
    if "/" in text or "\\" in text:
        text = _HOME.sub("~", text)
    return _GPU_ID.sub(r"\1-…", text) if "-" in text else text


def without_host(text: str) -> str:
    """A text without this machine's name, which only this machine can tell from other words."""
    return _own_name().sub("(this host)", text)


@cache
def _own_name() -> re.Pattern[str]:
    full = socket.gethostname()
    names = sorted({full, full.partition(".")[0]} - {"", "localhost"}, key=len, reverse=True)
    own = "|".join(map(re.escape, names)) or r"(?!)"
    # with whoever is named before it, as in user@host; never a part of a longer word
    return re.compile(rf"(?<![\w.-])(?:[\w.-]+@)?(?:{own})(?![\w-]|\.\w)")
