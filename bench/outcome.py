"""What a training leaves beside its curve: accuracy, the last observed step, the weights' digest, f_psi's surface."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from bench.hypernets import Hypernet, layer_scales
from bench.layers.convert import quantized_layers
from bench.quantizers import AdaptiveQuantizer
from bench.records.schema import SCHEMA_VERSION, HypernetSurface, SurfaceAxis
from bench.records.surface import is_finite
from bench.training.assemble import Parts
from bench.training.history import FitResult
from bench.units import Absent
from bench.update import TabulationSample, read_whole_step, surface_axes, surface_output, surface_values
from bench.update.tabulate import widest

UNFINISHED = Absent("the training did not come to its end")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyAnswer:
    """What the training left; `accuracy_pct` is absent for synthetic data."""

    fit: FitResult
    accuracy_pct: float | Absent
    pretrained_pct: float | Absent
    observed: dict[str, float | Absent]
    error_bits_used: dict[str, dict[str, int]]  # by layer and width, where the method chooses the width
    weights_digest: str | Absent = UNFINISHED
    surface: HypernetSurface | None = None  # of the hypernetwork; None without one, or where it is not finite


def measure_surface(parts: Parts, untrained: Hypernet) -> HypernetSurface | None:
    """f_psi as it was before the training and is after it, over the last step's ranges; None if it cannot be told.

    Args:
        parts: of the cell, trained.
        untrained: its hypernetwork before that.
    """
    delayed = parts.delayed
    assert delayed is not None, "only a method with a hypernetwork has a surface"
    if delayed.pending is None:
        return None
    scales = [layer_scales(g, w.detach()) for g, w in zip(delayed.pending, delayed.params, strict=True)]
    half = delayed.hypernet.half_widths(widest(scales))
    tables = [surface_values(hypernet, half).tolist() for hypernet in (untrained, delayed.hypernet)]
    before, after = (tuple(tuple(row) for row in table) for table in tables)
    surface = HypernetSurface(
        schema_version=SCHEMA_VERSION,
        axes=tuple(SurfaceAxis(name=name, values=tuple(v)) for name, v in surface_axes(delayed.hypernet, half)),
        output=surface_output(delayed.hypernet),
        before=before,
        after=after,
    )
    return surface if is_finite(surface) else None


def accuracy_answer(
    parts: Parts, result: FitResult, pretrained: float | Absent, layer_sizes: list[int]
) -> AccuracyAnswer:
    """What the accuracy pass answers, of a training that has ended or of one so far.

    Args:
        parts: of the cell.
        result: of its training.
        pretrained: test accuracy of the FP32 weights that it started from.
        layer_sizes: weights of each quantized layer.
    """
    observed: dict[str, float | Absent] = {}
    if result.observation is not None:
        for key in ("amplification", "cosine", "zero_share"):
            values = getattr(result.observation, key)
            finite = values[values.isfinite()]
            observed[key] = (
                float(finite.mean())
                if finite.numel()
                else Absent("no layer's gradient and what replaced it were finite and above zero")
            )
        observed |= read_whole_step(result.observation)
        if result.observation.tabulation is not None:
            observed["same_codes"] = _same_codes(result.observation.tabulation, layer_sizes)
    return AccuracyAnswer(
        fit=_without_tensors(result),
        accuracy_pct=result.curve[-1].test_accuracy_pct if result.curve else Absent("no epoch was finished"),
        pretrained_pct=pretrained,
        observed=observed,
        error_bits_used={
            name: {str(bits): steps for bits, steps in layer.error_quantizer.steps_at_bits.items()}
            for name, layer in quantized_layers(parts.model).items()
            if isinstance(layer.error_quantizer, AdaptiveQuantizer)
        },
    )


def _same_codes(sample: TabulationSample, layer_sizes: list[int]) -> float | Absent:
    """The share of all weights whose code by `tabulate` is that of the exact strategy."""
    if sample.same_codes is None:
        return Absent("nothing is rounded after the hypernetwork")
    shares = sample.same_codes.tolist()
    return float(sum(size * share for size, share in zip(layer_sizes, shares, strict=True)) / sum(layer_sizes))


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted((*model.named_parameters(), *model.named_buffers())):
        digest.update(f"|{name} {value.dtype} {tuple(value.shape)}|".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_tensors(result: FitResult) -> FitResult:
    return dataclasses.replace(result, observation=None)
