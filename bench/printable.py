"""Texts of others (paths, settings, messages of libraries) as they may be printed."""

from __future__ import annotations

from pathlib import Path


def show_path(path: Path) -> str:
    """A path as it may be printed."""
    return show_text(str(path))


def show_text(text: str) -> str:
    """Escape the characters that a terminal would obey or cannot encode."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
