from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.errors import RecordError
from bench.records.find import find_records
from bench.records.outline import StoredProfileError
from bench.records.read import read_record
from bench.records.schema import Ceilings, ProfileResult, RunRecord, SideProfile, SpanTime
from bench.records.text import sealed
from bench.records.write import write_record
from bench.units import Absent
from tests.edited_records import edit_record

MakeRecord = Callable[..., RunRecord]
SPAN = SpanTime(phase="forward", layer="conv1", gemm="", piece="gemm", span_ms=0.4375)
SIDE = SideProfile(
    plain_step_ms=(20.0, 20.5), spanned_step_ms=(21.0, 21.5), span_overhead_pct=4.9, unattributed_pct=1.25,
    phases_ms={"forward": 8.0}, spans=(SPAN,), products=(), work=(), trace=None,
)  # fmt: skip
PROFILE = ProfileResult(
    ceilings=Ceilings(int8_gops=600.0, fp32_gflops=150.0, bf16_gflops=Absent("no bf16 kernel"), copy_gb_s=20.0),
    cell=SIDE, fp32=dataclasses.replace(SIDE, unattributed_pct=2.5),
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path, make_record: MakeRecord) -> Path:
    """A record with a profile, as `run` writes it."""
    return write_record(tmp_path / "run", make_record(profile=PROFILE), config_yaml="")


def found(path: Path) -> RunRecord:
    ((item,), problems) = find_records([path])
    assert problems == []
    return item.record


def test_a_found_records_profile_stays_in_its_file_until_a_part_of_it_is_asked_for(path: Path) -> None:
    whole = read_record(path)
    one, other, third, never = (found(path) for _ in range(4))
    assert one.profile is not None
    assert one.profile.cell == PROFILE.cell, "read from the file"
    path.unlink()
    assert one.profile == PROFILE, "and kept"
    assert one == whole
    assert whole == one
    assert never.profile is not None
    with pytest.raises(StoredProfileError, match=r"record\.json cannot be read: No such file"):
        assert never.profile.ceilings
    path.write_bytes(msgspec.json.encode(dataclasses.replace(whole, key="another run")))
    with pytest.raises(StoredProfileError, match="changed while it was in use; give the command again"):
        assert other.profile != PROFILE
    path.write_bytes(msgspec.json.encode(dataclasses.replace(whole, profile=None)))
    with pytest.raises(StoredProfileError, match="changed while it was in use"):
        repr(third)


def test_a_profile_that_stays_in_its_file_is_worth_any_other(path: Path) -> None:
    assert found(path).profile != dataclasses.replace(PROFILE, fp32=SIDE)
    assert found(path).profile != "a profile"
    assert msgspec.json.encode(found(path)) == msgspec.json.encode(read_record(path))
    profile = found(path).profile
    assert isinstance(profile, ProfileResult)
    assert dataclasses.replace(profile, fp32=SIDE) == dataclasses.replace(PROFILE, fp32=SIDE)
    assert pickle.loads(pickle.dumps(found(path))).profile == PROFILE
    assert copy.deepcopy(found(path)).profile == PROFILE
    with pytest.raises(AttributeError, match="a profile has no trace"):
        _ = profile.trace  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.cell = SIDE  # type: ignore[misc]


def test_a_copy_with_a_profile_counts_once(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path.parent, tmp_path / "again")
    records, problems = find_records([tmp_path])
    assert [item.path.parent.name for item in records] == ["again"]
    assert problems == []


@pytest.mark.parametrize("with_seal", [True, False])
def test_a_record_whose_profile_is_damaged_is_named(path: Path, with_seal: bool) -> None:
    if with_seal:
        path.write_bytes(path.read_bytes().replace(b"0.4375", b"0.4376"))
        message = "its SHA-256 differs"
    else:
        edit_record(path, lambda content: content["profile"]["cell"]["spans"][0].update(span_ms="soon"))
        message = r"profile\.cell\.spans\[0\]\.span_ms"
    records, problems = find_records([path])
    assert records == []
    assert problems[0].path == path
    with pytest.raises(RecordError, match=message):
        raise RecordError(problems[0].reason)


def test_a_sealed_profile_that_is_none_is_told_when_it_is_asked_for_or_at_once(path: Path) -> None:
    content = json.loads(path.read_text())
    del content["sha256"], content["profile"]["cell"]["spans"][0]["phase"]
    path.write_bytes(sealed(json.dumps(content, indent=2).encode() + b"\n"))
    record = found(path)
    assert record.key == content["key"]
    with pytest.raises(StoredProfileError, match="is damaged: Object missing required field `phase`"):
        _ = record.profile.cell  # type: ignore[union-attr]
    records, problems = find_records([path], check_profiles=True)
    assert records == []
    assert "missing required field `phase`" in problems[0].reason
