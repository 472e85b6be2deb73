"""`under_driver(script, mode)` runs a script under the fake NVIDIA driver and returns the JSON that it printed."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAKE = runpy.run_path(str(Path(__file__).parents[1] / "fakes" / "nvml" / "build.py"))


@pytest.fixture(scope="session")
def under_driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    run: Callable[..., Any] = FAKE["make_runner"](tmp_path_factory)
    return run
