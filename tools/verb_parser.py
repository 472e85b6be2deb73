"""The argument parser that the command line's verbs begin with."""

from __future__ import annotations

import argparse
from pathlib import Path


def verb_parser(verb: str, *, description: str, epilog: str, usage: str | None = None) -> argparse.ArgumentParser:
    """A parser without arguments yet.

    Args:
        verb: as the command line calls it.
        description: what it does; its line breaks stay.
        epilog: examples and exit codes; its line breaks stay.
        usage: in the place of argparse's own.
    """
    return argparse.ArgumentParser(
        prog=f"metagrad-bench {verb}",
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def given_path(text: str) -> Path:
    """A path of the command line; an empty one, as an unset variable leaves it, would be the working folder.

    Raises:
        argparse.ArgumentTypeError: it is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("an empty path names nothing: is a variable unset?")
    return Path(text)
