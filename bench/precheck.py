"""Checks every cell before the first one runs: names, combinations, data, device, output folder. Leaves nothing."""

from __future__ import annotations

import math
import os
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.config import CellConfig
from bench.data import DATASETS, check_data
from bench.errors import ConfigError, RecordError, is_ours, system_reason
from bench.hardware.probe import resolve_device
from bench.methods import build_method
from bench.models import CUSTOM, check_model
from bench.models.custom import build_custom, check_answer, said
from bench.seeding import global_stream
from bench.training.assemble import check_training

OPEN_FILES = 256
FEWEST_OPEN_FILES = 32  # with 16 no process can be started, with 32 a cell runs to its end


def check_cells(cells: Sequence[CellConfig], *, here: bool = True) -> None:
    """Refuse a command line in which any cell could not run.

    Args:
        cells: of the command line.
        here: whether they run on this machine; another one's devices are not known before a cell gets there.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    if here:
        _allow_open_files()
    seen: set[str] = set()
    for cell in cells:
        build_method(cell)
        check_training(cell)
        checks = (_check_device, _check_output, _check_model, _check_answer, _check_data)
        for check in checks if here else (_check_output, _check_model, _check_data):
            what = f"{check.__name__} {cell.device} {cell.output_dir} {cell.model} {cell.data}"
            if what not in seen:  # a suite's cells share most of it
                check(cell)
                seen.add(what)


def _allow_open_files() -> None:
    """Raise this process's limit where the system lets it; the passes inherit it.

    Raises:
        ConfigError: there are too few to start a pass with.
    """
    soft, hard = (math.inf if limit == resource.RLIM_INFINITY else limit for limit in _open_files())
    allowed = max(soft, min(hard, OPEN_FILES))
    if allowed < FEWEST_OPEN_FILES:
        raise ConfigError(
            f"A process may open {allowed:g} files here, and a run needs {FEWEST_OPEN_FILES}: `ulimit -n {OPEN_FILES}`."
        )
    if soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(allowed), _open_files()[1]))


def _open_files() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def _check_device(cell: CellConfig) -> None:
    resolve_device(cell.device)


def _check_model(cell: CellConfig) -> None:
    model = cell.model
    check_model(model.name, image_size=_image_size(cell), shortcut=model.shortcut, factory=model.factory)
    _build_users(cell)


def _check_answer(cell: CellConfig) -> None:
    """Try a user's network on images of the data's shape; one for a GPU may need its GPU, and is tried in its cell."""
    network, size = _build_users(cell) if resolve_device(cell.device).type == "cpu" else None, _image_size(cell)
    if network is None or size is None:
        return
    entry, factory = DATASETS[cell.data.name], cell.model.factory or ""
    images = torch.zeros(2, entry.in_channels, size, size)
    channels_last: dict[str, Any] = {"memory_format": torch.channels_last}  # as in training
    try:
        check_answer(factory, network.to(**channels_last), images.to(**channels_last), entry.num_classes)
    except Exception as error:  # the network is the user's and may raise anything
        if is_ours(error):
            raise
        raise ConfigError(
            f"model.factory={factory}: the network does not take {cell.data.name}'s images, float32 of shape "
            f"{tuple(images.shape)}: {said(error)}."
        ) from error


def _build_users(cell: CellConfig) -> nn.Module | None:
    """A user's network, as build_parts will, so that a factory that fails does so before anything is written."""
    entry, size, factory = DATASETS.get(cell.data.name), _image_size(cell), cell.model.factory
    if cell.model.name != CUSTOM or entry is None or size is None or factory is None:
        return None
    with global_stream(cell.seed, "model_init"):
        return build_custom(factory, num_classes=entry.num_classes, in_channels=entry.in_channels, image_size=size)


def _image_size(cell: CellConfig) -> int | None:
    entry = DATASETS.get(cell.data.name)
    if cell.data.image_size is None and entry is not None:
        return entry.image_size
    return cell.data.image_size


def _check_data(cell: CellConfig) -> None:
    config, batch_size = cell.data, cell.protocol.batch_size
    if config.train_limit is not None and config.train_limit < batch_size:
        raise ConfigError(
            f"protocol.batch_size={batch_size} is more than data.train_limit={config.train_limit} images."
        )
    check_data(config.name, root=config.root, download=config.download)


def _check_output(cell: CellConfig) -> None:
    """The folder, or the nearest that exists above it, can be written into."""
    output_dir = cell.output_dir
    if not output_dir:
        raise ConfigError("output_dir is empty: name the folder that records go to.")
    path = Path(output_dir).absolute() / cell.suite_name
    try:
        while not os.path.lexists(path):
            path = path.parent
        path.stat()
    except (OSError, ValueError) as error:
        reason = system_reason(error)
        raise RecordError(f"output_dir={output_dir[:200]} cannot be used ({reason}): choose another.") from error
    if not path.is_dir():
        raise RecordError(
            f"output_dir={output_dir} cannot be a folder, since {path} is a file: choose another output_dir."
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise RecordError(f"output_dir={output_dir} cannot be written, since {path} is not writable: choose another.")
    try:  # what answers for some file systems (/proc, an export that squashes root) is the attempt alone
        Path(tempfile.mkdtemp(prefix=".metagrad-bench-", dir=path)).rmdir()
    except OSError as error:
        raise RecordError(
            f"output_dir={output_dir} cannot be made, since no folder can be in {path} ({system_reason(error)}): "
            "choose another."
        ) from error
