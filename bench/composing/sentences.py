"""What Hydra and OmegaConf say about a configuration, as one sentence with the near misses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bench.composing.interpolations import explain_interpolation

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)


def explain(error: BaseException, files: Mapping[str, str] | None = None) -> str:
    """Hydra's and OmegaConf's messages as one sentence.

    Args:
        error: theirs.
        files: names and texts of a user's config files, to name the one that is to be mended.
    """
    if (sentence := explain_interpolation(error, files or {})) is not None:
        return sentence
    message = str(error).strip()
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and _first_line(cause) not in message:
        message = f"{_first_line(error).rstrip('.')}: {cause}" if message else str(cause)
    if not message:  # OmegaConf says nothing about some mappings
        message = f"The configuration cannot be composed ({type(cause or error).__name__}): check keys and values"
    lines = [line.strip() for line in message.splitlines()]
    key = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), "")
    dropped = ("object_type=", "reference_type=", "full_key:", "To append to your config use", "See https://")
    sentence = as_sentence(" ".join(line for line in lines if line and not line.startswith(dropped)))
    unknown = re.search(r"Key '(\w+)' (?:is )?not in '(\w+)'", sentence)
    if key and not re.search(rf"\b{re.escape(key)}\b", sentence):
        sentence = f"{sentence.rstrip('.')} (key {key})."
    if unknown:
        sentence += _near_keys(unknown.group(1), unknown.group(2))
    return sentence


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """One sentence for a name that does not exist, with near misses or the whole list."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}."
    return f"There is no {kind} {name!r}: {hint}"


def as_sentence(text: str) -> str:
    """A message on one line, with a capital and a full stop."""
    text = " ".join(text.split())
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _near_keys(key: str, type_name: str) -> str:
    """Near misses of a config key among the fields of the schema that refused it."""
    import bench.config as config

    schema = getattr(config, type_name, None)
    fields = list(getattr(schema, "__dataclass_fields__", {}))
    near = difflib.get_close_matches(key, fields, n=3)
    if near:
        return f" Did you mean {' or '.join(near)}?"
    return f" Known keys: {', '.join(fields)}." if fields else ""
