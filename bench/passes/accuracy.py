"""Accuracy: the training itself, tested after it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from bench.config import CellConfig
from bench.errors import DivergedError
from bench.layers.dispatch import Paths
from bench.outcome import UNFINISHED, AccuracyAnswer, accuracy_answer, measure_surface, weights_digest
from bench.passes.inputs import batches_of, eval_batches_of, load_weights, prepare, read_weights
from bench.reporting import Report
from bench.training.assemble import build_parts
from bench.training.checkpoint import Checkpoints
from bench.training.loop import fit
from bench.units import Absent


def accuracy_pass(
    *,
    report: Report,
    cell: CellConfig,
    device: str,
    weights: str | None,
    paths: Paths | None = None,
    resume: tuple[str, str] | None = None,
) -> AccuracyAnswer:
    """Fine-tune from the pretrained weights (or train from random ones) and test.

    Args:
        report: takes progress; under ``partial`` an AccuracyAnswer of what there is so far.
        cell: the checked config.
        device: where to run.
        weights: the FP32 weights to start from.
        paths: what dispatch=auto chose in the check.
        resume: folder of the training's checkpoints and what they are of; None takes none.

    Raises:
        DivergedError: with an AccuracyAnswer of what there was in ``partial``.
    """
    where, data = prepare(cell, device)
    parts = build_parts(cell, data, where, initial_state=load_weights(weights), paths=paths)
    test = None if data.synthetic else eval_batches_of(cell, data, where)
    pretrained: float | Absent = Absent("training started from random weights")
    if weights is not None:
        stored = read_weights(weights)["accuracy_pct"]
        pretrained = Absent("synthetic data has no accuracy") if stored is None else stored
    sizes = [weight.numel() for weight in parts.weights]
    untrained = copy.deepcopy(parts.delayed.hypernet) if parts.delayed is not None else None

    def report_answer(progress: dict[str, Any]) -> None:
        so_far = progress.get("partial")
        if so_far is not None:
            answer = accuracy_answer(parts, so_far, pretrained, sizes)
            progress = progress | {"partial": dataclasses.replace(answer, accuracy_pct=UNFINISHED)}
        report(progress)

    checkpoints = None
    if resume is not None:
        checkpoints = Checkpoints(Path(resume[0]), owner=resume[1], every_s=cell.protocol.checkpoint_s)
    try:
        result = fit(
            parts, batches_of(cell, data, where), test, cell.optimizer,
            epochs=cell.protocol.epochs, phase="training", report=report_answer,
            observe_every=cell.hypernet.observe_every, sample_every=cell.strategy.sample_every, checkpoints=checkpoints,
        )  # fmt: skip
    except DivergedError as error:
        error.partial = accuracy_answer(parts, error.partial, pretrained, sizes)
        raise
    answer = accuracy_answer(parts, result, pretrained, sizes)
    answer = dataclasses.replace(answer, weights_digest=weights_digest(parts.model))
    return answer if untrained is None else dataclasses.replace(answer, surface=measure_surface(parts, untrained))
