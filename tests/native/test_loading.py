"""Where the compiled pieces cannot be had, the plain twins run and one sentence says why."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench import native
from bench.quantizers.uniform import uniform_codes
from bench.units import Absent

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


@pytest.fixture
def copier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A compiler that takes no time: it hands out the library that this machine has built already."""
    built = native._built()
    if isinstance(built, Absent):
        pytest.skip(built.reason)
    script = f'[ "$1" = --version ] && exit 0; while [ "$1" != -o ]; do shift; done; cp "{built._name}" "$2"'
    program(tmp_path / "bin", "cc", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


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


def test_a_compiler_whose_code_is_wrong_is_not_believed(copier, afresh, monkeypatch):
    monkeypatch.setattr(native, "_is_right", lambda found: False)
    assert "computes wrong codes" in afresh()
    assert not native.usable(CPU)


@pytest.mark.parametrize("damage", ["emptied", "cut off", "changed", "another file"])
def test_a_damaged_library_is_built_anew(copier, afresh, tmp_path, damage):
    library = native._build(native._compiler())
    assert cached(tmp_path) == [library]
    whole = library.read_bytes()
    damaged = {
        "emptied": b"", "cut off": whole[: len(whole) // 2], "changed": whole[:5000] + b"\xff" + whole[5001:],
        "another file": b"not a library at all",
    }  # fmt: skip
    library.write_bytes(damaged[damage])
    assert afresh().startswith("compiled by")
    assert library.read_bytes() == whole
    assert codes() == [-127, 25, 127]


def test_a_library_that_cannot_be_loaded_is_named_and_the_twins_run(afresh, monkeypatch, tmp_path):
    script = '[ "$1" = --version ] && exit 0; while [ "$1" != -o ]; do shift; done; echo "no library" > "$2"'
    program(tmp_path / "bin", "cc", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    said = afresh()
    assert said.startswith("plain torch: the compiled pieces cannot be loaded: ")
    assert "\n" not in said
    assert not native.usable(CPU)
    assert codes() == [-127, 25, 127]


@pytest.fixture
def no_cache(copier: None, afresh: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No folder can be made in the cache; the folder for temporary files is empty."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


def test_a_cache_that_cannot_be_written_is_done_without_and_every_process_finds_the_same_library(no_cache):
    built = []
    for _ in range(2):
        native._built.cache_clear()
        assert native.status().startswith("compiled by")
        assert codes() == [-127, 25, 127]
        built += no_cache.rglob("*.so")
        assert [folder.stat().st_mode & 0o777 for folder in no_cache.iterdir()] == [0o700]
    assert built[0] == built[1]
    assert len(built) == 2
    assert native.notice().startswith(f"The user's cache cannot be written, so the compiled pieces lie in {no_cache}")


@pytest.mark.parametrize("kind", ["open to others", "a link"])
def test_a_temporary_folder_that_others_could_have_filled_is_not_trusted(no_cache, tmp_path, kind):
    known = native._temporary_folder()
    if kind == "a link":
        known.rmdir()
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        known.symlink_to(tmp_path / "elsewhere")
    else:
        known.chmod(0o777)
    other = native._temporary_folder()
    assert other != known
    assert other.parent == no_cache
    assert other.stat().st_mode & 0o777 == 0o700


def test_without_any_folder_to_write_to_the_twins_run_and_say_so(no_cache, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(no_cache / "missing"))
    native._built.cache_clear()
    assert "could not build the compiled pieces: " in native.status()
    assert "No such file or directory" in native.status()
    assert codes() == [-127, 25, 127]
    assert isinstance(native.notice(), Absent)


def test_a_user_without_a_home_gets_no_folder_in_the_working_one(no_cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: Path("~/.cache") / name)
    native._built.cache_clear()
    assert native.status().startswith("compiled by")
    assert not (tmp_path / "~").exists()


def test_a_library_that_the_cache_holds_is_used_though_nothing_can_be_written(copier, afresh, monkeypatch, tmp_path):
    assert afresh().startswith("compiled by cc")
    assert native.notice() == Absent("the compiled pieces lie in the user's cache")
    (library,) = cached(tmp_path)
    monkeypatch.setattr(native, "_can_write", lambda folder: False)
    assert native._build(native._compiler()) == library


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
