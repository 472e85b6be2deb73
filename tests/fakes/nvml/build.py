"""Compile the fake driver and run Python scripts under it; loaded by the rooms' conftest files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")
CHECKOUT = Path(__file__).resolve().parents[3]


def find_compiler() -> str | None:
    return next((path for name in ("cc", "gcc", "g++", "clang") if (path := shutil.which(name))), None)


def compile_fake(compiler: str, folder: Path, *defines: str) -> Path:
    folder.mkdir(parents=True)
    library = folder / "libnvidia-ml.so.1"
    flags = ["-x", "c", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", *(f"-D{name}" for name in defines)]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
    return folder


def run_python(arguments: Sequence[str], library_folder: Path, mode: str, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "FAKE_NVML"))}
    environment = {**kept, "LD_LIBRARY_PATH": str(library_folder), "FAKE_NVML": mode, **variables}
    result = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
