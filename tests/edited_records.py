"""Records changed by hand, as a program that knows JSON and nothing of their seal would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_record(path: Path, change: Callable[[Any], None], *, keep_seal: bool = False) -> Path:
    """Rewrite a record's JSON.

    Args:
        path: of the record.
        change: of its content, in place.
        keep_seal: leave its SHA-256 as it was; otherwise the key is dropped, so that the record reads as unsealed.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not keep_seal:
        content.pop("sha256", None)
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
