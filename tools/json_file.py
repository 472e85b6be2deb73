"""The file that a verb's ``--json`` names: refused before anything is measured, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bench.errors import RecordError


def check_json_file(name: str) -> None:
    """Refuse a file that cannot be written.

    Raises:
        RecordError: it is a folder, or its folder is not there or may not be written to.
    """
    folder = Path(name).absolute().parent
    if Path(name).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise RecordError(f"--json {name} cannot be written: name a file in a folder that you may write to.")


def write_json_file(path: Path, document: dict[str, Any]) -> None:
    """Write a whole file or none; an earlier one is replaced.

    Raises:
        RecordError: it cannot be written.
    """
    from bench.records.text import pretty_json
    from bench.records.write import write_atomic

    write_atomic(path, pretty_json(json.dumps(document, ensure_ascii=False).encode()), replace=True)
