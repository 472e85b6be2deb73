"""The loop over epochs: learning rate, steps, evaluation, curve; stops where training leaves the finite numbers."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.config import OptimizerConfig
from bench.data.loader import EvalBatches, TrainBatches
from bench.errors import DivergedError
from bench.optim import build_schedule
from bench.profilers.base import NO_PHASES
from bench.records.schema import EpochPoint
from bench.training.assemble import Parts
from bench.training.step import evaluate_batch, train_step
from bench.units import Absent
from bench.update import Observation

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What a training left: every step's loss and a point per epoch."""

    losses: tuple[float, ...]
    curve: tuple[EpochPoint, ...]
    observation: Observation | None  # of the hypernetwork at the last observed step
    losses_digest: str


def fit(
    parts: Parts,
    batches: TrainBatches,
    test: EvalBatches | None,
    config: OptimizerConfig,
    *,
    epochs: int,
    phase: str,
    report: Report,
) -> FitResult:
    """Train for some epochs, evaluating after each.

    Args:
        parts: the cell's parts; trained in place.
        batches: the training data, seeded.
        test: the test data; None shows no accuracy.
        config: learning rate and schedule.
        epochs: how many.
        phase: name shown in the progress.
        report: takes progress.

    Raises:
        DivergedError: a loss that is not finite; its ``partial`` holds the FitResult up to there.
    """
    schedule = build_schedule(config.schedule, milestones=config.milestones if config.schedule == "step" else ())
    steps_per_epoch = batches.steps_per_epoch
    total = epochs * steps_per_epoch
    losses: list[float] = []
    curve: list[EpochPoint] = []
    observation: Observation | None = None
    training_s = 0.0
    for epoch in range(epochs):
        started = time.perf_counter()
        parts.model.train()
        epoch_losses: list[Tensor] = []
        lr = config.lr
        for index, (images, labels) in enumerate(batches.epoch(epoch)):
            step = epoch * steps_per_epoch + index
            lr = config.lr * schedule(step / total)
            if parts.delayed is not None:
                parts.delayed.observe = index == steps_per_epoch - 1
            epoch_losses.append(train_step(parts, images, labels, lr, NO_PHASES))
            step_ms = 1e3 * (time.perf_counter() - started) / (index + 1)
            report({"phase": phase, "done": step + 1, "total": total, "step_ms": step_ms})
        values = torch.stack(epoch_losses).tolist()  # waits for the device
        training_s += time.perf_counter() - started
        losses.extend(values)
        if parts.delayed is not None:
            observation = parts.delayed.observation
        finite = all(math.isfinite(value) for value in values)
        accuracy = evaluate(parts, test) if test is not None and finite else Absent(_no_accuracy(finite))
        curve.append(
            EpochPoint(
                epoch=epoch + 1,
                step=len(losses),
                seconds=training_s,
                learning_rate=lr,
                train_loss=float(np.mean(values)) if finite else Absent("the loss is not finite"),
                test_accuracy_pct=accuracy,
            )
        )
        if not finite:
            first = next(index for index, value in enumerate(losses) if not math.isfinite(value))
            error = DivergedError(
                f"training diverged: the loss of step {first + 1} of {total} is {losses[first]}; "
                "a lower optimizer.lr or more bits may hold it."
            )
            error.partial = _result(losses, curve, observation)
            raise error
    return _result(losses, curve, observation)


def evaluate(parts: Parts, test: EvalBatches) -> float:
    """Accuracy on a whole test set, in percent, with the committed weights."""
    parts.model.eval()
    right = [evaluate_batch(parts, images, labels) for images, labels in test]
    return 100.0 * float(torch.stack(right).sum()) / test.num_images


def _no_accuracy(finite: bool) -> str:
    return "synthetic data has no accuracy" if finite else "training diverged"


def _result(losses: list[float], curve: list[EpochPoint], observation: Observation | None) -> FitResult:
    digest = hashlib.sha256(np.asarray(losses, dtype=np.float32).tobytes()).hexdigest()
    return FitResult(losses=tuple(losses), curve=tuple(curve), observation=observation, losses_digest=digest)
