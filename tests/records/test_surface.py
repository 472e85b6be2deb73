from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bench.errors import RecordError
from bench.records.schema import HypernetSurface, SurfaceAxis
from bench.records.surface import is_finite, read_surface, write_surface

SURFACE = HypernetSurface(
    schema_version=1,
    axes=(SurfaceAxis(name="W", values=(-1.0, 0.0, 1.0)), SurfaceAxis(name="∇W", values=(-0.5, 0.5))),
    output="f",
    before=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    after=((1.0, 2.0, 3.0), (4.0, 5.0, 1 / 3)),
)


def test_a_surface_is_read_back_with_six_digits(tmp_path: Path) -> None:
    write_surface(tmp_path, SURFACE)
    rounded = dataclasses.replace(SURFACE, after=((1.0, 2.0, 3.0), (4.0, 5.0, 0.333333)))
    assert read_surface(tmp_path) == rounded
    with pytest.raises(RecordError, match="exists already"):
        write_surface(tmp_path, SURFACE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"before": [[0.1, 0.2]]}, "do not fit its axes"),
        ({"axes": []}, "has 0 axes"),
        ({"axes": [{"name": "W", "values": [1.0]}]}, "1 axes of"),
        ({"after": "x"}, "damaged"),
        ({"schema_version": 99, "after": "x"}, "schema version 99"),
    ],
)
def test_a_file_that_is_no_surface_is_one_sentence(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = write_surface(tmp_path, SURFACE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=words):
        read_surface(tmp_path)


def test_a_folder_without_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        read_surface(tmp_path)


def test_only_finite_surfaces_can_be_written() -> None:
    assert is_finite(SURFACE)
    assert not is_finite(dataclasses.replace(SURFACE, before=((0.1, float("nan"), 0.3), (0.4, 0.5, 0.6))))
