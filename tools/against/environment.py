"""An environment of its own for one source tree: the packages that are here where they satisfy it, else installed ones.

A fresh virtual environment sees the tree first and then, by a ``.pth`` file, the folders that this process imports
from: nothing is downloaded, and two revisions with the same dependencies run on the very same torch. Where a tree asks
for other versions than are here, pip installs it in full, within its own constraints.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from bench.errors import UserError
from bench.keys import DISTRIBUTION
from bench.printable import show_text

_INSTALL_LIMIT_S = 3600
_WHERE = "import bench, pathlib, tools; print(pathlib.Path(bench.__file__).parents[1])"


class InstallError(UserError):
    """A source tree that cannot be installed."""


def make_environment(folder: Path, source: Path, *, tell: Callable[[str], None]) -> Path:
    """Install a source tree into a new virtual environment.

    Args:
        folder: of the environment; made here.
        source: folder of the tree's ``pyproject.toml``; it must stay as long as the environment is used.
        tell: takes a sentence where packages have to be downloaded.

    Returns:
        The environment's Python.

    Raises:
        InstallError: the tree wants another Python, or pip cannot install it; the reason is in the message.
    """
    project = _read_project(source)
    wanted = str(project.get("requires-python", ""))
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        raise InstallError(
            f"The revision needs Python {wanted} and this is {platform.python_version()}: call metagrad-bench from one "
            "that suits both."
        )
    unmet = unmet_requirements(project.get("dependencies", []))
    python = folder / "bin" / "python"
    try:
        # Linked, not copied: equal for both sides, and made in a tenth of a second.
        venv.EnvBuilder(symlinks=True, with_pip=bool(unmet)).create(folder)
        if not unmet:
            _borrow(folder, source, project)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InstallError(f"No environment can be made in {folder} ({error}): free space, or set TMPDIR.") from error
    if unmet:
        tell(
            f"this environment does not satisfy {', '.join(unmet[:4])}{', ...' if len(unmet) > 4 else ''}: "
            "installing an own one, which may download gigabytes"
        )
        _install(python, source)
    _check_import(python, source)
    return python


def unmet_requirements(requirements: Sequence[str]) -> list[str]:
    """Those of a project's requirements, as it writes them, that the borrowed folders do not satisfy."""
    unmet = []
    places = list(map(str, borrowed_folders()))
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        found = next(iter(importlib.metadata.distributions(name=requirement.name, path=places)), None)
        if found is None:
            unmet.append(text)
        elif not requirement.specifier.contains(found.version, prereleases=True):
            unmet.append(f"{text} ({found.version} is here)")
    return unmet


def borrowed_folders() -> list[Path]:
    """Folders of packages that this process imports from: without the standard library's and without our own source."""
    paths = sysconfig.get_paths()
    standard = {Path(paths[name]) for name in ("stdlib", "platstdlib")}
    standard |= {folder / "lib-dynload" for folder in standard}
    here = Path(__file__).parents[2]
    folders = []
    for entry in dict.fromkeys(sys.path):
        folder = Path(entry or os.curdir).resolve()
        is_source = folder == here and (folder / "pyproject.toml").is_file()  # a checkout, no site-packages
        if folder.is_dir() and not is_source and folder not in standard and folder.name in _SITE_NAMES:
            folders.append(folder)
    return folders


_SITE_NAMES = ("site-packages", "dist-packages")  # the script's own folder or PYTHONPATH's is no place of packages


def clean_variables() -> dict[str, str]:
    """This process's environment without what would import other code than the environment's own."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {key: value for key, value in os.environ.items() if key not in dropped}


def _borrow(folder: Path, source: Path, project: dict[str, Any]) -> None:
    """Lay the tree and the borrowed folders on the environment's path, and the tree's own metadata before all."""
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    lines = [str(source.resolve()), *map(str, borrowed_folders())]
    (site / "metagrad_bench_revision.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    version = str(project.get("version", "0"))
    metadata = site / f"{DISTRIBUTION.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    text = f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version}\n"
    (metadata / "METADATA").write_text(text, encoding="utf-8")


def _install(python: Path, source: Path) -> None:
    constraints = source / "constraints.txt"
    within = ["--constraint", str(constraints)] if constraints.is_file() else []
    command = [
        str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *within,
        "--editable", str(source),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_INSTALL_LIMIT_S, check=False,
            env=clean_variables(), cwd=source,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"pip took longer than {_INSTALL_LIMIT_S} s to install the revision: try again.") from error
    if done.returncode != 0:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        said = reasons[0] if reasons else f"exit code {done.returncode}"
        reason = show_text(said.removeprefix("ERROR:").strip().rstrip("."))
        raise InstallError(f"pip cannot install the revision ({reason}): see its pyproject.toml and constraints.txt.")


def _check_import(python: Path, source: Path) -> None:
    """Make sure that the environment runs the tree's code and no other copy that lies on its path."""
    command = [str(python), "-P", "-c", _WHERE]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=120, check=False, env=clean_variables()
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise InstallError(f"The revision does not import ({show_text(lines[-1]) if lines else 'no reason given'}).")
    found = Path(done.stdout.strip())
    if found.resolve() != source.resolve():
        raise InstallError(f"The environment imports {found} in the place of {source}: unset what puts it there.")


def _read_project(source: Path) -> dict[str, Any]:
    try:
        project: dict[str, Any] = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError) as error:
        raise InstallError(f"The pyproject.toml of {source} cannot be read ({error}).") from error
    return project
