"""Identities: of a cell (content of config, code and environment), of its folder, of shared FP32 weights."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
from pathlib import Path
from typing import Any

from bench.config import CellConfig, as_plain
from bench.data.imagenet import NAME as IMAGENET
from bench.data.imagenet import classes_digest
from bench.models.custom import import_factory

DISTRIBUTION = "metagrad-bench"


@functools.cache
def code_version() -> str:
    """Version and a digest of this package's source files, the same from a checkout and from a wheel."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    return f"{version}+{digest.hexdigest()[:8]}"


def cell_key(cell: CellConfig, *, fingerprint: str) -> str:
    """Sixteen hex digits over the cell's config, the code and the environment's fingerprint."""
    content = {"cell": as_plain(cell), "code": code_version(), "environment": fingerprint}
    return _digest(content | _own_model(cell) | _own_data(cell))[:16]


def cell_folder(cell: CellConfig, key: str) -> Path:
    """Where a cell's record lies: ``out/<suite>/<variant>-<model>-<data>-seed<n>-<key>``."""
    name = f"{cell.variant_name}-{cell.model.name}-{cell.data.name}-seed{cell.seed}{_key_part(key)}"
    return Path(cell.output_dir) / cell.suite_name / name


def is_folder_of(name: str, key: str) -> bool:
    """Whether a folder of that name is the one of the cell of that key: a record copied elsewhere is not."""
    return name.endswith(_key_part(key))


def _key_part(key: str) -> str:
    return f"-{key[:10]}"


def weights_path(pretraining: CellConfig, *, device_type: str) -> Path:
    """Where the FP32 weights lie that cells of the same model, data, seed and pretraining share."""
    plain = as_plain(pretraining)
    for label in ("suite_name", "variant_name", "device"):
        plain.pop(label)
    content = {"cell": plain, "code": code_version(), "device": device_type}
    digest = _digest(content | _own_model(pretraining) | _own_data(pretraining))[:16]
    name = f"{pretraining.model.name}-{pretraining.data.name}-seed{pretraining.seed}-{digest}.pt"
    return Path(pretraining.output_dir) / "pretrained" / name


def _own_model(cell: CellConfig) -> dict[str, str]:
    """Digest of the file that holds a user's network: another network is another cell, whatever its name."""
    if cell.model.factory is None:
        return {}
    make = inspect.unwrap(import_factory(cell.model.factory))
    try:
        source = inspect.getsourcefile(make)
    except TypeError:  # a built-in, or an object that no file defines
        source = None
    content = Path(source).read_bytes() if source is not None else cell.model.factory.encode()
    return {"model_source": hashlib.sha256(content).hexdigest()}


def _own_data(cell: CellConfig) -> dict[str, str]:
    """Digest of a user's classes: only `imagenet` may hold any, the other data sets have a checksum or a seed."""
    if cell.data.name != IMAGENET:
        return {}
    return {"data_classes": classes_digest(None if cell.data.root is None else Path(cell.data.root))}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
