"""The fake driver for this room: ``under_driver(script, mode)`` runs a script under it and returns what it printed."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BUILD = runpy.run_path(str(Path(__file__).parents[1] / "fakes" / "nvml" / "build.py"))


@pytest.fixture(scope="session")
def under_driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    compiler = BUILD["find_compiler"]()
    if compiler is None:
        pytest.skip("needs a C compiler to build the fake NVIDIA driver library")
    folder = tmp_path_factory.mktemp("nvml")
    new = BUILD["compile_fake"](compiler, folder / "new")
    old = BUILD["compile_fake"](compiler, folder / "old", "OLD_DRIVER")

    def run(script: str, mode: str = "", *, old_driver: bool = False, **variables: str) -> Any:
        return json.loads(BUILD["run_python"](["-c", script], old if old_driver else new, mode, **variables))

    return run
