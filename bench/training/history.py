"""What a training has left so far: losses, curve, what the hypernetwork did; part of every checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import numpy as np
import torch
from torch import Tensor

from bench.records.schema import NOT_SAMPLED, EpochPoint, HypernetPoint
from bench.units import Absent
from bench.update import Observation, TabulationSample, read_observation


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What a training left: every step's loss and a point per epoch."""

    losses: tuple[float, ...]
    curve: tuple[EpochPoint, ...]
    observation: Observation | None  # of the hypernetwork at the last observed step
    losses_digest: str
    hypernet: tuple[HypernetPoint, ...] = ()  # every observed step, a point per layer
    notices: tuple[str, ...] = ()  # resumed, from where; checkpoints that could not be written or read


@dataclass(slots=True, kw_only=True)
class History:
    """Grows with the steps; losses and observations stay on the device until `drain`, which waits for it."""

    layers: list[str]  # that a hypernetwork serves
    losses: list[float] = field(default_factory=list)
    curve: list[EpochPoint] = field(default_factory=list)
    points: list[HypernetPoint] = field(default_factory=list)
    observation: Observation | None = None
    training_s: float = 0.0
    undrained: list[Tensor] = field(default_factory=list)
    observed: list[tuple[int, Observation]] = field(default_factory=list)
    started: float = 0.0
    uncounted_s: float = 0.0

    def start_clock(self, uncounted_s: float) -> None:
        """Count seconds from now on, less what `uncounted_s` grows by."""
        self.started, self.uncounted_s = time.perf_counter(), uncounted_s

    def clock_s(self, uncounted_s: float) -> float:
        """Seconds since the clock was started."""
        return time.perf_counter() - self.started - (uncounted_s - self.uncounted_s)

    def add(self, loss: Tensor, observation: Observation | None) -> None:
        """One more step."""
        self.undrained.append(loss)
        if observation is not None:
            self.observed.append((len(self.losses) + len(self.undrained), observation))

    def drain(self, uncounted_s: float) -> None:
        """Bring what is on the device here, and add the clock's seconds to the training's."""
        if self.undrained:
            self.losses.extend(torch.stack(self.undrained).tolist())  # waits for the device
            self.training_s += self.clock_s(uncounted_s)
        for step, observation in self.observed:
            self.observation = observation
            self.points.extend(hypernet_points(step, observation, self.layers))
        self.undrained, self.observed = [], []
        self.start_clock(uncounted_s)

    def close_epoch(self, epoch: int, first: int, lr: float, accuracy: float | Absent) -> None:
        """Add an epoch's point.

        Args:
            epoch: 1-based.
            first: index of its first step.
            lr: learning rate of its last step.
            accuracy: on the test data, percent.
        """
        values = self.losses[first:]
        self.curve.append(
            EpochPoint(
                epoch=epoch,
                step=len(self.losses),
                seconds=self.training_s,
                learning_rate=lr,
                train_loss=float(np.mean(values)) if all_finite(values) else Absent("the loss is not finite"),
                test_accuracy_pct=accuracy,
            )
        )

    def result(self, notices: tuple[str, ...] = ()) -> FitResult:
        """As a frozen value."""
        digest = hashlib.sha256(np.asarray(self.losses, dtype=np.float32).tobytes()).hexdigest()
        return FitResult(
            losses=tuple(self.losses),
            curve=tuple(self.curve),
            observation=self.observation,
            losses_digest=digest,
            hypernet=tuple(self.points),
            notices=notices,
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; everything has been drained."""
        assert not self.undrained, "drain before saving"
        seen = None if self.observation is None else _shallow(self.observation)
        if seen is not None and seen["tabulation"] is not None:
            seen["tabulation"] = _shallow(seen["tabulation"])
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "curve": msgspec.to_builtins(self.curve),
            "points": msgspec.to_builtins(self.points),
            "observation": seen,
            "training_s": self.training_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.losses = state["losses"].tolist()
        self.curve = msgspec.convert(state["curve"], list[EpochPoint])
        self.points = msgspec.convert(state["points"], list[HypernetPoint])
        seen = state["observation"]
        if seen is not None:
            sample = seen["tabulation"]
            self.observation = Observation(**seen | {"tabulation": sample and TabulationSample(**sample)})
        self.training_s = float(state["training_s"])


def all_finite(values: list[float]) -> bool:
    """Whether every loss is a number."""
    return all(math.isfinite(value) for value in values)


def hypernet_points(step: int, observation: Observation, layers: list[str]) -> list[HypernetPoint]:
    """An observation as one point per layer; waits for the device."""
    seen = read_observation(observation, layers)
    by_layer = {key: cast(dict[str, float | Absent], seen[key]) for key in ("amplification", "cosine", "zero_share")}
    norm = cast(float | Absent, seen["meta_grad_norm"])
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


def _shallow(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, tensors and all."""
    return {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
