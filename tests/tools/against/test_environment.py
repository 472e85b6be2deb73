from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools.against import environment
from tools.against.environment import InstallError, make_environment, unmet_requirements

from .conftest import StandIn


def said(_: str) -> None:
    raise AssertionError("nothing is to be downloaded")


def test_an_environment_imports_the_tree_and_borrows_the_packages_that_are_here(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.project("msgspec>=0.1", version="7.0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))  # the real package's source
    python = make_environment(tmp_path / "env", stand_in.root, tell=said)
    asks = "import importlib.metadata as m, bench, msgspec; print(bench.__file__); print(m.version('metagrad-bench'))"
    out = subprocess.run(
        [python, "-P", "-c", asks], capture_output=True, text=True, check=True, env=environment.clean_variables()
    ).stdout.splitlines()
    assert out == [str(stand_in.root / "bench" / "__init__.py"), "7.0"]


def test_requirements_that_are_here_are_met_and_others_named_with_what_is_here() -> None:
    assert unmet_requirements(["torch>=2", "msgspec", 'nosuch; python_version < "3"']) == []
    assert unmet_requirements(["nosuch-distribution>=1"]) == ["nosuch-distribution>=1"]
    (unmet,) = unmet_requirements(["msgspec>=999"])
    assert unmet.startswith("msgspec>=999 (")


def test_a_tree_for_another_python_is_refused(stand_in: StandIn, tmp_path: Path) -> None:
    project = stand_in.root / "pyproject.toml"
    project.write_text(project.read_text().replace(">=3.11", ">=9"))
    with pytest.raises(InstallError, match=r"needs Python >=9 and this is 3\."):
        make_environment(tmp_path / "env", stand_in.root, tell=said)


def test_a_tree_that_asks_for_other_packages_is_installed_in_full_and_a_failure_is_one_sentence(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.project("nosuch-distribution-of-metagrad-bench>=1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    sentences: list[str] = []
    with pytest.raises(InstallError, match="pip cannot install the revision"):
        make_environment(tmp_path / "env", stand_in.root, tell=sentences.append)
    (sentence,) = sentences
    assert "does not satisfy nosuch-distribution-of-metagrad-bench>=1" in sentence
    assert (tmp_path / "env" / "bin" / "pip").exists()


def test_a_tree_that_does_not_import_is_refused(stand_in: StandIn, tmp_path: Path) -> None:
    (stand_in.root / "bench" / "__init__.py").write_text("import nosuch_module\n")
    with pytest.raises(InstallError, match=r"does not import \(ModuleNotFoundError: No module named 'nosuch_module'\)"):
        make_environment(tmp_path / "env", stand_in.root, tell=said)
