"""The loop over epochs: learning rate, steps, evaluation, curve; stops where training leaves the finite numbers."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bench.config import OptimizerConfig
from bench.data.loader import EvalStream, TrainStream
from bench.errors import DivergedError
from bench.layers.convert import quantized_layers
from bench.optim import build_schedule
from bench.profilers.base import NO_PHASES
from bench.records.schema import NOT_SAMPLED, EpochPoint, HypernetPoint
from bench.training.assemble import Parts
from bench.training.step import evaluate_batch, train_step
from bench.units import Absent
from bench.update import Observation, read_observation

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What a training left: every step's loss and a point per epoch."""

    losses: tuple[float, ...]
    curve: tuple[EpochPoint, ...]
    observation: Observation | None  # of the hypernetwork at the last observed step
    losses_digest: str
    hypernet: tuple[HypernetPoint, ...] = ()  # every observed step, a point per layer


def fit(
    parts: Parts,
    batches: TrainStream,
    test: EvalStream | None,
    config: OptimizerConfig,
    *,
    epochs: int,
    phase: str,
    report: Report,
    observe_every: int | None = None,
    sample_every: int | None = None,
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
        observe_every: steps between two observations of the hypernetwork, beside the last step of each epoch.
        sample_every: steps between two comparisons of `tabulate` with the exact strategy, each observed, beside the
            last step of each epoch. Their time is no part of the curve's seconds.

    Raises:
        DivergedError: a loss that is not finite; its ``partial`` holds the FitResult up to there.
    """
    schedule = build_schedule(config.schedule, milestones=config.milestones if config.schedule == "step" else ())
    steps_per_epoch = batches.steps_per_epoch
    total = epochs * steps_per_epoch
    losses: list[float] = []
    curve: list[EpochPoint] = []
    observation: Observation | None = None
    points: list[HypernetPoint] = []
    layers = list(quantized_layers(parts.model)) if parts.delayed is not None else []
    training_s = 0.0
    for epoch in range(epochs):
        started, sampled_s = time.perf_counter(), _sampling_s(parts)
        parts.model.train()
        epoch_losses: list[Tensor] = []
        observed: list[tuple[int, Observation]] = []  # left on the device until the epoch's end
        lr = config.lr
        for index, (images, labels) in enumerate(batches.epoch(epoch)):
            step = epoch * steps_per_epoch + index
            lr = config.lr * schedule(step / total)
            if parts.delayed is not None:
                last = index == steps_per_epoch - 1
                parts.delayed.sample = last or (sample_every is not None and (step + 1) % sample_every == 0)
                due = observe_every is not None and (step + 1) % observe_every == 0
                parts.delayed.observe = due or last or parts.delayed.sample
            epoch_losses.append(train_step(parts, images, labels, lr, NO_PHASES))
            if parts.delayed is not None and parts.delayed.observation is not None:
                observed.append((step + 1, parts.delayed.observation))
            step_ms = 1e3 * (time.perf_counter() - started - (_sampling_s(parts) - sampled_s)) / (index + 1)
            report({"phase": phase, "done": step + 1, "total": total, "step_ms": step_ms})
        values = torch.stack(epoch_losses).tolist()  # waits for the device
        training_s += time.perf_counter() - started - (_sampling_s(parts) - sampled_s)
        losses.extend(values)
        for step, observation in observed:
            points.extend(_hypernet_points(step, observation, layers))
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
            error.partial = _result(losses, curve, observation, points)
            raise error
    return _result(losses, curve, observation, points)


def evaluate(parts: Parts, test: EvalStream) -> float:
    """Accuracy on a whole test set, in percent, with the committed weights."""
    parts.model.eval()
    right = [evaluate_batch(parts, images, labels) for images, labels in test]
    return 100.0 * float(torch.stack(right).sum()) / test.num_images


def _sampling_s(parts: Parts) -> float:
    return parts.delayed.sampling_s if parts.delayed is not None else 0.0


def _no_accuracy(finite: bool) -> str:
    return "synthetic data has no accuracy" if finite else "training diverged"


def _hypernet_points(step: int, observation: Observation, layers: list[str]) -> list[HypernetPoint]:
    """An observation as one point per layer; waits for the device."""
    seen = read_observation(observation, layers)
    by_layer = {key: cast(dict[str, float | Absent], seen[key]) for key in ("amplification", "cosine", "zero_share")}
    norm = cast(float | Absent, seen["meta_gradient_norm"])
    same = cast(dict[str, float], seen.get("same_codes", {}))
    points = []
    for layer in layers:
        zeros = by_layer["zero_share"][layer]
        points.append(
            HypernetPoint(
                step=step,
                layer=layer,
                amplification=by_layer["amplification"][layer],
                cosine=by_layer["cosine"][layer],
                zero_share_pct=zeros if isinstance(zeros, Absent) else 100 * zeros,
                meta_grad_norm=norm,
                interpolation_error=cast(float | Absent, seen.get("interpolation_error", NOT_SAMPLED)),
                same_codes_pct=100 * same[layer] if layer in same else NOT_SAMPLED,
                meta_angle_deg=cast(float | Absent, seen.get("meta_angle_deg", NOT_SAMPLED)),
            )
        )
    return points


def _result(
    losses: list[float], curve: list[EpochPoint], observation: Observation | None, points: list[HypernetPoint]
) -> FitResult:
    digest = hashlib.sha256(np.asarray(losses, dtype=np.float32).tobytes()).hexdigest()
    return FitResult(
        losses=tuple(losses), curve=tuple(curve), observation=observation, losses_digest=digest, hypernet=tuple(points)
    )
