"""The file that a verb's ``--json`` names: refused before anything is measured, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import RecordError, UserError
from tools.stderr import say


def check_json_file(name: str) -> None:
    """Refuse a file that cannot be written.

    Raises:
        RecordError: it is a folder, or its folder is not there or may not be written to.
    """
    folder = Path(name).absolute().parent
    if Path(name).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise RecordError(f"--json {name} cannot be written: name a file in a folder that you may write to.")


@contextmanager
def writing_measured(name: str | None, results: Mapping[str, object], write: Callable[[], None]) -> Iterator[None]:
    """Write the file at the end of the block, also where it fails or is interrupted after some results are there.

    Args:
        name: of ``--json``; none: nothing is written.
        results: what has been measured, filled within the block.
        write: writes them.

    Raises:
        UserError: the block's own, with a sentence on what was kept; or the file cannot be written.
    """
    try:
        yield
    except BaseException as error:
        if not (name and results):
            raise
        write()
        kept = f"{name} holds what was measured before: {', '.join(results)}."
        if isinstance(error, UserError):
            raise type(error)(f"{error} {kept}") from error
        say(kept)
        raise
    if name:
        write()


def write_json_file(path: Path, document: dict[str, Any]) -> None:
    """Write a whole file or none; an earlier one is replaced.

    Raises:
        RecordError: it cannot be written.
    """
    from bench.records.text import pretty_json
    from bench.records.write import write_atomic

    write_atomic(path, pretty_json(json.dumps(document, ensure_ascii=False).encode()), replace=True)
