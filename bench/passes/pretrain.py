"""Pretraining: the FP32 weights that the cells of a model, data set and seed share."""

from __future__ import annotations

from pathlib import Path

from bench.config import CellConfig
from bench.errors import RecordError, system_reason
from bench.passes.inputs import batches_of, eval_batches_of, prepare
from bench.reporting import Report
from bench.training.assemble import build_parts, for_pretraining
from bench.training.checkpoint import Checkpoints, seal_weights
from bench.training.loop import evaluate, fit
from bench.units import Absent


def pretrain_pass(*, report: Report, cell: CellConfig, device: str, target: str, resume: str) -> float | Absent:
    """Train the FP32 model from random weights and leave its state dict and notices at `target`, sealed.

    Args:
        report: takes progress.
        cell: any of the cells that start from these weights.
        device: where to train.
        target: file of the weights.
        resume: folder of the training's checkpoints.

    Returns:
        Its test accuracy in percent; absent for synthetic data.
    """
    path = Path(target)
    checkpoints = Checkpoints(Path(resume), owner=path.name, every_s=cell.protocol.checkpoint_s)
    cell = for_pretraining(cell)
    where, data = prepare(cell, device)
    parts = build_parts(cell, data, where)
    test = eval_batches_of(cell, data, where)
    result = fit(
        parts, batches_of(cell, data, where), None, cell.optimizer,
        epochs=cell.protocol.epochs, phase="pretraining FP32", report=_without_partial(report), checkpoints=checkpoints,
    )  # fmt: skip
    assert result.losses, "pretraining ran no step"
    accuracy: float | Absent = Absent("synthetic data has no accuracy")
    if not data.synthetic:
        accuracy = evaluate(parts, test, beat=lambda: report({"phase": "evaluating FP32"}))
    state = {name: value.detach().cpu().contiguous() for name, value in parts.model.state_dict().items()}
    accuracy_pct = None if isinstance(accuracy, Absent) else accuracy
    try:
        seal_weights(path, state, accuracy_pct=accuracy_pct, notices=result.notices)
    except OSError as error:
        raise RecordError(
            f"the FP32 weights cannot be written to {path.parent}: {system_reason(error)}; free space or choose "
            "another output_dir."
        ) from error
    checkpoints.remove()
    return accuracy


def _without_partial(report: Report) -> Report:
    """A sink for a training whose result so far nobody keeps."""
    return lambda progress: report({key: value for key, value in progress.items() if key != "partial"})
