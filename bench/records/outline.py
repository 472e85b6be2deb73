"""A record without its profile, which is most of it: that stays in the record's file until a part of it is asked for.

Of thousands of records a report shows the profiles of a few hundred, and a gate none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_type_hints

import msgspec

from bench.errors import RecordError
from bench.records.schema import ProfileResult, RunRecord

_NULL = b"null"
_PARTS = tuple(part.name for part in dataclasses.fields(ProfileResult))
_OTHERS = tuple(part.name for part in dataclasses.fields(RunRecord) if part.name != "profile")


class StoredProfileError(RecordError):
    """A profile that could not be read when it was asked for, although its record could be before."""


class StoredProfile(ProfileResult):
    """A profile that is read when one of its parts is asked for, once; equal to the same one read at once."""

    __slots__ = ("_read",)

    @classmethod
    def read_by(cls, read: Callable[[], ProfileResult]) -> StoredProfile:
        """A profile whose parts are those that ``read`` answers; it may raise ``StoredProfileError``."""
        profile = cls.__new__(cls)
        object.__setattr__(profile, "_read", read)
        return profile

    def __getattr__(self, name: str) -> Any:
        """A part that is not there yet; with it come the others."""
        if name not in _PARTS:
            raise AttributeError(f"a profile has no {name}")
        whole = self._read()
        for part in _PARTS:
            object.__setattr__(self, part, getattr(whole, part))
        return getattr(whole, name)

    def __eq__(self, other: object) -> bool:
        """Equal in all parts, whichever of both was read at once."""
        if not isinstance(other, ProfileResult):
            return NotImplemented
        return all(getattr(self, part) == getattr(other, part) for part in _PARTS)

    __hash__ = None  # type: ignore[assignment]  # it holds dictionaries, as any profile


def _outline_fields() -> list[tuple[str, Any, Any]]:
    """A record's fields, the profile as text whose JSON alone is checked."""
    parts = dataclasses.fields(RunRecord)
    assert all(part.default_factory is dataclasses.MISSING for part in parts), "a default is a value"
    hints = get_type_hints(RunRecord) | {"profile": msgspec.Raw}
    defaults = {part.name: part.default for part in parts} | {"profile": msgspec.Raw(_NULL)}
    return [(n, hints[n], msgspec.NODEFAULT if d is dataclasses.MISSING else d) for n, d in defaults.items()]


_decoder = msgspec.json.Decoder(msgspec.defstruct("_Outline", _outline_fields(), kw_only=True))


def decode_outline(data: bytes, read_profile: Callable[[str], ProfileResult]) -> RunRecord:
    """Decode a record but for its profile.

    Args:
        data: of a record that is known to be as it was written: nothing else vouches for the profile's values.
        read_profile: answers the profile, given the record's key.

    Raises:
        msgspec.MsgspecError: it is no record.
    """
    outline: Any = _decoder.decode(data)
    key, has_profile = outline.key, bytes(outline.profile) != _NULL
    profile = StoredProfile.read_by(lambda: read_profile(key)) if has_profile else None
    return RunRecord(**{name: getattr(outline, name) for name in _OTHERS}, profile=profile)
