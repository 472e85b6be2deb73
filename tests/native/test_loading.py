"""Where the compiled pieces cannot be had, the plain twins run and one sentence says why."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench import native
from bench.quantizers.uniform import uniform_codes

CPU = torch.device("cpu")


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """A process that has not looked for a library yet, with an empty cache; returns what ``status`` says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native._built.cache_clear()
    native._compiler.cache_clear()
    yield native.status
    native._built.cache_clear()
    native._compiler.cache_clear()


def codes() -> list[int]:
    return uniform_codes(torch.tensor([-1.0, 0.2, 1.0]), torch.tensor(1.0), 8).codes.tolist()


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def cached(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.so"))


def test_without_a_compiler_the_twins_run(afresh, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert afresh() == "plain torch: no C compiler found (cc, gcc, clang); install gcc for a faster step"
    assert not native.usable(CPU)
    assert codes() == [-127, 25, 127]


def test_a_compiler_that_fails_is_quoted_in_one_line(afresh, monkeypatch, tmp_path):
    program(tmp_path / "bin", "cc", '[ "$1" = --version ] && exit 0; echo "pieces.c:1: error: out of luck" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert afresh() == "plain torch: cc could not build the compiled pieces: pieces.c:1: error: out of luck"
    assert codes() == [-127, 25, 127]
    assert cached(tmp_path) == []


def test_a_compiler_whose_code_is_wrong_is_not_believed(afresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_is_right", lambda found: False)
    if "no C compiler" in afresh():
        pytest.skip("this machine has no C compiler")
    assert "computes wrong codes" in native.status()
    assert not native.usable(CPU)


@pytest.mark.parametrize("rubbish", [b"", b"not a library at all"])
def test_a_damaged_library_is_named_and_the_twins_run(afresh, tmp_path, rubbish):
    compiler = native._compiler()
    if compiler is None:
        pytest.skip("this machine has no C compiler")
    library = native._build(compiler)
    assert cached(tmp_path) == [library]
    library.write_bytes(rubbish)
    said = afresh()
    assert said.startswith(f"plain torch: the compiled pieces cannot be loaded, delete {library} to build anew: ")
    assert "\n" not in said
    assert not native.usable(CPU)
    assert codes() == [-127, 25, 127]
    library.unlink()
    native._built.cache_clear()
    assert afresh().startswith("compiled by")


def test_a_cache_that_cannot_be_written_is_done_without(afresh, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    said = afresh()
    assert said.startswith(("compiled by", "plain torch: no C compiler"))
    assert codes() == [-127, 25, 127]


def test_the_twins_run_inside_disabled_and_the_pieces_again_after_it():
    before = native.usable(CPU)
    with native.disabled(), native.disabled():
        assert not native.usable(CPU)
    assert native.usable(CPU) == before
    assert not native.usable(torch.device("meta"))


def test_shapes_alone_call_nothing_and_point_nowhere():
    x = torch.ones(9)
    with native.shapes_only():
        if native.usable(CPU):
            assert native.pointer(x) == 0
            assert native.pointer(None) is None
            assert native.compiled().norm_backward() == 0.0
            assert native.compiled().act_codes() == 1.0
    assert native.pointer(x) == x.data_ptr()
