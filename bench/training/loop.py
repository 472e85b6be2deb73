"""The loop over epochs: learning rate, steps, evaluation, curve, checkpoints; stops where the loss is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from bench.config import OptimizerConfig
from bench.data.loader import EvalStream, TrainStream
from bench.errors import DivergedError, StoppedError
from bench.layers.convert import quantized_layers
from bench.optim import build_schedule
from bench.profilers.base import NO_PHASES
from bench.reporting import Report
from bench.training.assemble import Parts
from bench.training.checkpoint import Checkpoints, capture, restore
from bench.training.history import FitResult, History, all_finite
from bench.training.step import evaluate_batch, train_step
from bench.units import Absent


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
    checkpoints: Checkpoints | None = None,
) -> FitResult:
    """Train for some epochs, evaluating after each.

    Args:
        parts: the cell's parts, as they were built; trained in place.
        batches: the training data, seeded.
        test: the test data; None shows no accuracy.
        config: learning rate and schedule.
        epochs: how many.
        phase: name shown in the progress.
        report: takes progress, with what there is so far under ``partial`` whenever losses came from the device.
        observe_every: steps between two observations of the hypernetwork, beside the last step of each epoch.
        sample_every: steps between two comparisons of `tabulate` with the exact strategy, each observed, beside the
            last step of each epoch. Their time is no part of the curve's seconds.
        checkpoints: where to go on from and to save to; writing them is no part of the curve's seconds either.

    Raises:
        DivergedError: a loss that is not finite; its ``partial`` holds the FitResult up to there.
        StoppedError: `report` raised it; what is needed to go on has been saved.
    """
    schedule = build_schedule(config.schedule, milestones=config.milestones if config.schedule == "step" else ())
    steps_per_epoch = batches.steps_per_epoch
    total = epochs * steps_per_epoch
    history = History(layers=list(quantized_layers(parts.model)) if parts.delayed is not None else [])
    notices: tuple[str, ...] = ()
    done = 0
    earlier = checkpoints.newest() if checkpoints is not None else None
    if earlier is not None:
        done, state = earlier
        restore(parts, state["parts"])
        history.load_state_dict(state["history"])
        notices = (*state["notices"], f"The training was interrupted and went on after step {done} of {total}.")

    def so_far() -> FitResult:
        return history.result((*notices, *(checkpoints.notices if checkpoints is not None else ())))

    def save() -> None:
        history.drain(_sampling_s(parts))
        if checkpoints is not None:
            state = {"parts": capture(parts), "history": history.state_dict(), "notices": list(notices)}
            checkpoints.write(len(history.losses), state)

    def tell() -> None:
        report({"phase": phase, "done": done, "total": total, "partial": so_far()})

    # An epoch whose steps are done may still have to be evaluated.
    for epoch in range(len(history.curve), epochs):
        parts.model.train()
        history.start_clock(_sampling_s(parts))
        first = epoch * steps_per_epoch
        for index, (images, labels) in enumerate(batches.epoch(epoch, done - first), start=done - first):
            step = first + index
            lr = config.lr * schedule(step / total)
            if parts.delayed is not None:
                last = index == steps_per_epoch - 1
                parts.delayed.sample = last or (sample_every is not None and (step + 1) % sample_every == 0)
                due = observe_every is not None and (step + 1) % observe_every == 0
                parts.delayed.observe = due or last or parts.delayed.sample
            loss = train_step(parts, images, labels, lr, NO_PHASES)
            history.add(loss, parts.delayed.observation if parts.delayed is not None else None)
            done = step + 1
            step_ms = 1e3 * history.clock_s(_sampling_s(parts)) / len(history.undrained)
            try:
                report({"phase": phase, "done": done, "total": total, "step_ms": step_ms})
                if checkpoints is not None and checkpoints.due(epoch_end=index == steps_per_epoch - 1):
                    save()
                    tell()
                    history.start_clock(_sampling_s(parts))
            except StoppedError:
                save()
                raise
        history.drain(_sampling_s(parts))
        finite = all_finite(history.losses[first:])
        accuracy: float | Absent = Absent(_no_accuracy(finite))
        if test is not None and finite:
            try:
                accuracy = evaluate(parts, test, beat=lambda: report({"phase": f"evaluating after {phase}"}))
            except StoppedError:
                save()
                raise
        last_lr = config.lr * schedule((done - 1) / total)
        history.close_epoch(epoch + 1, first, last_lr, accuracy)
        tell()
        if not finite:
            index = next(index for index, value in enumerate(history.losses) if not math.isfinite(value))
            error = DivergedError(
                f"training diverged: the loss of step {index + 1} of {total} is {history.losses[index]}; "
                "a lower optimizer.lr or more bits may hold it."
            )
            error.partial = so_far()
            raise error
    return so_far()


def evaluate(parts: Parts, test: EvalStream, *, beat: Callable[[], None] = lambda: None) -> float:
    """Accuracy on a whole test set, in percent, with the committed weights.

    Args:
        parts: of the cell.
        test: the data.
        beat: called after each batch, to show that it goes on.
    """
    parts.model.eval()
    right = []
    for images, labels in test:
        right.append(evaluate_batch(parts, images, labels))
        beat()
    return 100.0 * float(torch.stack(right).sum()) / test.num_images


def _sampling_s(parts: Parts) -> float:
    return parts.delayed.sampling_s if parts.delayed is not None else 0.0


def _no_accuracy(finite: bool) -> str:
    return "synthetic data has no accuracy" if finite else "training diverged"
