"""Whatever is typed ends in an exit code that the verb documents, and in no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.records.encoding import encode_record
from bench.records.schema import RunRecord
from tests.fuzz_lines import draw_line, make_files
from tools.cli import EXIT_CODES, VERBS, main

ROOT = Path(__file__).parents[1]
NUM_LINES = 300
REAL = range(0, NUM_LINES, 15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture
def files(folder: Path, make_record: Callable[..., RunRecord]) -> Path:
    if not (folder / "runs").exists():
        make_files(folder, encode_record(make_record()))
    return folder


def documented(argv: list[str]) -> tuple[int, ...]:
    return EXIT_CODES.get(argv[0], (0, 2)) if argv else (2,)


def exit_code(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as stop:  # argparse's own end
        return stop.code if isinstance(stop.code, int) else -1


def check_line(number: int, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    argv = draw_line(number, files)
    monkeypatch.setattr("bench.app.hydra_main", lambda: None)  # planned and checked in earnest, measured nowhere
    monkeypatch.chdir(files)
    code = exit_code(argv)
    captured = capsys.readouterr()
    assert code in documented(argv), (argv, code, captured.err)
    assert "Traceback" not in captured.err, (argv, captured.err)
    assert code in (0, 1) or captured.err.strip() or captured.out.strip(), (argv, "an error says what was wrong")


@pytest.mark.parametrize("number", range(NUM_LINES))
def test_an_odd_command_line_ends_in_a_documented_exit_code(
    number: int, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_line(number, files, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("number", REAL)
def test_twenty_of_them_do_as_real_commands(number: int, files: Path, tmp_path: Path) -> None:
    argv = draw_line(number, tmp_path)
    argv = [part.replace(str(tmp_path), str(files)) if "configs" not in part else part for part in argv]
    if argv[:1] == ["run"]:
        argv.append("method=nonsense")  # whatever else is right, nothing is measured
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "tools.cli", *argv]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, timeout=300, check=False)
    assert done.returncode in documented(argv), (argv, done.returncode, done.stderr)
    assert b"Traceback" not in done.stderr, (argv, done.stderr)


def test_every_verbs_exit_codes_are_documented_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(EXIT_CODES) == set(VERBS)
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, codes in EXIT_CODES.items():
        assert f"{verb:<10} {', '.join(map(str, codes))}" in text
        assert {0, 2, 130} <= set(codes)
