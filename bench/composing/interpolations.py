"""What is wrong with a ``${...}`` in a configuration, where it stands, and what to write instead."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from bench.config import CellConfig

_REMEDY = "write ${seed} for the value of a setting, ${oc.env:NAME} for an environment variable"


def explain_interpolation(error: BaseException, files: Mapping[str, str]) -> str | None:
    """One sentence on an interpolation that stands for nothing; None if the error is of another kind.

    Args:
        error: of OmegaConf, or one of Hydra's that it caused.
        files: names and texts of a user's config files, to find the one that holds it.
    """
    found = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if not isinstance(found, InterpolationResolutionError | GrammarParseError):
        return None
    message = " ".join(str(found.msg or found).split("\n", 1)[0].split())
    key = str(found.full_key or "")
    if isinstance(found, InterpolationKeyError) and (name := _between(message, r"key '(.*)' not found")):
        what, wrong = f"${{{name}}}", "names no setting"
        near = _near(name)
        remedy = f"did you mean {' or '.join(f'${{{other}}}' for other in near)}?" if near else f"{_REMEDY}."
    elif variable := _between(message, r"Environment variable '(.*)' not found"):
        what, wrong = f"${{oc.env:{variable}}}", "names an environment variable that is not set"
        remedy = f"set it, or write ${{oc.env:{variable},VALUE}} for what holds where it is not."
    elif isinstance(found, UnsupportedInterpolationType) and (name := _between(message, r"type (\S+)")):
        what, wrong, remedy = f"${{{name}:", "asks for what there is not", f"{_REMEDY}."
    elif "Recursive" in message:
        what, wrong, remedy = f"${{{key}}}", "leads back to itself", "give it a value of its own."
    elif name := _between(message, r"dereferencing interpolation '(\$\{.*?\})': (?=.)"):
        what, wrong = name, f"does not fit ({message.partition(': ')[2]})"
        remedy = "name a setting of that kind, or write a value."
    else:
        what, wrong, remedy = "${", f"cannot be read ({message.rstrip('.')})", f"{_REMEDY}."
    return f"{_place(key, what, files)} holds {_closed(what)}, which {wrong}: {remedy}"


def _place(key: str, what: str, files: Mapping[str, str]) -> str:
    """The setting, and the user's file in which that stands."""
    holding = [name for name, text in files.items() if what in re.sub(r"\$\{\s*([^}]*?)\s*\}", r"${\1}", text)]
    where = f" in {' or '.join(holding)}" if holding else ""
    return f"{key or 'A setting'}{where}"


def _closed(what: str) -> str:
    return what if what.endswith("}") else f"{what}...}}"


def _between(message: str, pattern: str) -> str | None:
    match = re.search(pattern, message)
    return match.group(1) if match else None


def _near(name: str) -> list[str]:
    """Settings that are called like it, in a group or not."""
    keys = list(_keys(CellConfig))
    last = {key.rpartition(".")[2]: key for key in reversed(keys)}
    close = difflib.get_close_matches(name, keys, n=3)
    return close or [last[part] for part in difflib.get_close_matches(name.rpartition(".")[2], last, n=3)]


def _keys(kind: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default_factory):
            yield from _keys(field.default_factory, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"
