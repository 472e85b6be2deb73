"""A record as JSON and back: finite numbers, valid Unicode and plain values only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import msgspec

from bench.errors import RecordError
from bench.records.schema import RunRecord
from bench.records.text import pretty_json

_decoder = msgspec.json.Decoder(RunRecord)


def encode_record(record: RunRecord) -> bytes:
    """Encode a record as indented JSON, a list of numbers to a line; ``Absent`` reads ``{"reason": ...}``.

    Raises:
        RecordError: if a number is not finite or a text is no Unicode; the message names the field.
    """
    _check_values(record, "$")
    data = pretty_json(msgspec.json.encode(record))
    try:
        _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise AssertionError(f"a record must read back: {error}") from error
    return data


def decode_record(data: bytes) -> RunRecord:
    """Decode a record; its schema version may be any.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: it is no record.
    """
    return _decoder.decode(data)


def _check_values(value: Any, field: str) -> None:
    """Walk a record; what JSON would silently change is refused with its field's name."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RecordError(f"{field} of the record is not valid Unicode: {value!a}.")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RecordError(f"{field} of the record is {value}, and a record holds finite numbers only.")
    elif dataclasses.is_dataclass(value):
        for part in dataclasses.fields(value):
            _check_values(getattr(value, part.name), f"{field}.{part.name}")
    elif isinstance(value, dict):
        for name, item in value.items():
            assert isinstance(name, str), f"{field} has the key {name!r}, not a text"
            _check_values(name, field)
            _check_values(item, f"{field}.{name}")
    elif isinstance(value, (list, tuple)):
        if all(map(_is_finite_float, value)):  # samples, by the thousand
            return
        for index, item in enumerate(value):
            _check_values(item, f"{field}[{index}]")
    else:
        assert value is None or isinstance(value, (bool, int)), f"{field} is a {type(value).__name__}, no plain value"


def _is_finite_float(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)
