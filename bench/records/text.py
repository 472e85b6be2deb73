"""How JSON is laid out here, and the SHA-256 that a record's text carries."""

from __future__ import annotations

import hashlib
import re

import msgspec

_NUMBER_LIST = re.compile(rb"\[\n[\s\d.eE+,-]*\n\s*\]")  # a JSON string holds no raw line break
_END, _SEAL_LINE = b"\n}\n", b',\n  "sha256": "%s"'
_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n\}\n\Z')
_SEAL_BYTES, _SEAL_KEY = 128, b'"sha256"'  # more than it takes; what it is called


def pretty_json(data: bytes) -> bytes:
    """Indent JSON by two spaces, but leave each list of numbers on one line; ends with a line break."""
    indented = msgspec.json.format(data, indent=2)
    return _NUMBER_LIST.sub(lambda found: b"[" + b" ".join(found[0][1:-1].split()) + b"]", indented) + b"\n"


def sealed(data: bytes) -> bytes:
    """A record's text with its SHA-256 as the last key: a digit that changed on the disk would still be a number."""
    assert data.endswith(_END), "a record is an indented object"
    return data.removesuffix(_END) + _SEAL_LINE % hashlib.sha256(data).hexdigest().encode() + _END


def is_as_written(data: bytes) -> bool | None:
    """Whether a record's text holds the right SHA-256 of its content; None where it holds none, as older records do.

    A program that reads JSON and writes it again lays it out in its own way: then the content is laid out as it was
    written, and has to give the same SHA-256.
    """
    seal = _SEAL.search(data, max(0, len(data) - _SEAL_BYTES))
    if seal is not None:
        digest = hashlib.sha256(memoryview(data)[: seal.start()])
        digest.update(_END)
        return digest.hexdigest().encode() == seal[1]
    if _SEAL_KEY not in data:
        return None
    try:
        content = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # whoever decodes it as a record says what is wrong
    if not isinstance(content, dict) or "sha256" not in content:
        return None
    told = content.pop("sha256")
    try:
        text = pretty_json(msgspec.json.encode(content))
    except OverflowError:  # an integer that no record holds
        return False
    return hashlib.sha256(text).hexdigest() == told
