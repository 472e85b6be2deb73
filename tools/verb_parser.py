"""The argument parser that the command line's verbs begin with."""

from __future__ import annotations

import argparse


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
