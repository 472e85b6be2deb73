"""Of which code and machine figures are: what a run that goes on must share with the one before."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

CODE = ("bench", "hydra_plugins", "reports", "suites", "tools")


def code_digest() -> str:
    """Twelve hex digits over the sources and configurations."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".yaml", ".c", ".cpp", ".j2"):
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, Python."""
    from bench.hardware.environment import usable_cores
    from bench.hardware.probe import cpu_name

    return {"cpu": cpu_name(), "cores": usable_cores(), "python": platform.python_version()}


def write_json(path: Path, value: Any) -> None:
    """Replace a file by readable JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def put_between(page: str, begin: str, end: str, text: str) -> str:
    """A page with a text in the place between two of its lines, whatever stood there."""
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    assert found, f"the page has no line {begin.strip()}"
    assert found_end, f"the page has no line {end.strip()}"
    return f"{before}{begin}{text}{end}{after}"
