"""What a pass begins with: its device, the data and their batches, the FP32 weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.config import CellConfig
from bench.data import build_data, eval_batches, train_batches
from bench.data.loader import EvalStream, TrainStream
from bench.errors import DataError, system_reason
from bench.files import DamagedFileError
from bench.seeding import seed_globals
from bench.training.checkpoint import unseal_weights

if TYPE_CHECKING:
    from bench.data import AnyData


def use_device(cell: CellConfig, device: str) -> torch.device:
    """The device of that name, made ready: its number of threads, the global generators, the current GPU."""
    if cell.protocol.threads is not None:
        torch.set_num_threads(cell.protocol.threads)
    seed_globals(cell.seed)  # for a user's network that draws from them: dropout, for one
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    return where


def prepare(cell: CellConfig, device: str) -> tuple[torch.device, AnyData]:
    """The device, made ready, and the cell's data."""
    where = use_device(cell, device)
    config = cell.data
    data = build_data(
        config.name, root=config.root, download=config.download, image_size=config.image_size,
        train_limit=config.train_limit, test_limit=config.test_limit,
    )  # fmt: skip
    return where, data


def batches_of(cell: CellConfig, data: AnyData, device: torch.device) -> TrainStream:
    """The cell's training batches."""
    return train_batches(
        data, batch_size=cell.protocol.batch_size, seed=cell.seed, device=device, augment=cell.protocol.augment,
        workers=cell.data.workers,
    )  # fmt: skip


def eval_batches_of(cell: CellConfig, data: AnyData, device: torch.device) -> EvalStream:
    """The cell's test batches."""
    return eval_batches(data, batch_size=cell.protocol.batch_size, device=device, workers=cell.data.workers)


def endless(batches: TrainStream) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one epoch after the other."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def load_weights(weights: str | None) -> dict[str, Tensor] | None:
    """The state dict of the FP32 weights in a file; None where there is no file to start from.

    Raises:
        DataError: the file cannot be read.
    """
    return None if weights is None else read_weights(weights)["state"]


def read_weights(path: str) -> dict[str, Any]:
    """What pretraining left in a file: the state dict, its accuracy, its notices.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return unseal_weights(Path(path))
    except (DamagedFileError, OSError) as error:
        why = system_reason(error)
        raise DataError(
            f"the pretrained weights in {path} cannot be read ({why}): run again, which trains them anew."
        ) from error
