"""The FP32 weights that the cells of a model, data set and seed share: an earlier cell's, or trained now."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import passes
from bench.cell_folder import only_here
from bench.cell_passes import CellPasses
from bench.errors import system_reason
from bench.files import DamagedFileError, remove_leftovers
from bench.keys import weights_path
from bench.training.assemble import for_pretraining
from bench.training.checkpoint import unseal_weights


def find_or_train(runs: CellPasses, notices: list[str]) -> Path | None:
    """Their file, which one process at a time makes.

    Args:
        runs: the cell's passes; a pretraining that failed leaves its reason there.
        notices: takes what the record's reader must know.

    Returns:
        None if the file could not be made.
    """
    path = weights_path(for_pretraining(runs.cell), device_type=runs.device.split(":")[0])
    waiting = f"waiting: another run trains {path.name}"
    with only_here(path, on_wait=lambda: runs.progress.update(waiting)):
        remove_leftovers(path)
        stored = _stored(path, notices)
        if stored is not None:
            runs.progress.finish_pass()
        else:
            resume = path.with_name(f".{path.name}.resume")
            runs.run("pretraining", passes.pretrain_pass, target=str(path), resume=str(resume))
    if not path.is_file():
        return None
    with suppress(DamagedFileError, OSError):  # the passes that start from them say so
        stored = stored or unseal_weights(path)
        notices.extend(f"FP32 weights: {notice}" for notice in stored["notices"])
    return path


def _stored(path: Path, notices: list[str]) -> dict[str, Any] | None:
    """The shared weights, None where there are none; a damaged file is set aside and trained again."""
    try:
        return unseal_weights(path)
    except FileNotFoundError:
        return None
    except (DamagedFileError, OSError) as error:
        why = system_reason(error)
        notices.append(f"The FP32 weights {path.name} were damaged ({why}) and have been trained again.")
        with suppress(OSError):
            path.replace(path.with_name(f"{path.name}.damaged"))
        return None
