"""What a record says of a cell's data and layers: which product of each layer ran as what, and why others did not."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

from bench.config import FLOAT_BITS
from bench.kernels.int_mm import GemmCall
from bench.layers.convert import quantized_layers
from bench.records.schema import DataFacts, Label, LayerFacts
from bench.training.assemble import Parts
from bench.units import Absent

if TYPE_CHECKING:
    from bench.data import AnyData


def integer_share_pct(layers: tuple[LayerFacts, ...], ran: dict[str, set[str]], macs: dict[str, int]) -> float:
    """Share of the layers' multiply-accumulates that ran as integers, in percent.

    Args:
        layers: of the model.
        ran: by kind of product, the layers in which it multiplied integers.
        macs: of one product of each layer.
    """
    integer = sum(macs[name] for names in ran.values() for name in names)
    total = sum(macs[layer.name] * (2 if isinstance(layer.dgrad, Absent) else 3) for layer in layers)
    return 100.0 * integer / total


def layer_facts(parts: Parts, calls: list[GemmCall]) -> tuple[LayerFacts, ...]:
    """Every convolution and linear layer in the model's order: what ran in it, or why it stayed in floating point.

    Args:
        parts: of the cell, after the steps in which ``calls`` ran.
        calls: the integer products that were logged.
    """
    without_dgrad = Absent("its input needs no gradient")
    # Asked after the steps: an adaptive quantizer's bits are those that it has come to.
    quantized = quantized_layers(parts.model)
    swapped = {name: layer.facts() for name, layer in quantized.items()}
    kept = {layer.name: layer.reason for layer in parts.conversion.kept} if parts.conversion else {}
    with_dgrad = {call.layer for call in calls if call.gemm == "dgrad"}
    table: list[LayerFacts] = []
    for name, module in parts.model.named_modules():
        if name in swapped:
            facts = swapped[name]
            skipped = facts.dgrad in ("integer", "emulated") and name not in with_dgrad
            first = facts.dgrad in ("float", "simulated") and not table
            table.append(
                LayerFacts(
                    name=name,
                    kind=facts.kind,
                    quantized=True,
                    reason="",
                    weight_shape=tuple(module.weight.shape),
                    weight_bits=facts.weight_bits,
                    activation_bits=facts.activation_bits,
                    error_bits=facts.error_bits,
                    fprop=cast(Label, facts.fprop),
                    dgrad=without_dgrad if skipped or first else cast(Label, facts.dgrad),
                    wgrad=cast(Label, facts.wgrad),
                    fprop_path=facts.fprop_path,
                    dgrad_path="" if skipped or first else facts.dgrad_path,
                    wgrad_path=facts.wgrad_path,
                    error=facts.error if facts.error_bits != FLOAT_BITS else "",
                    error_quantizations=min(facts.error_quantizations, 1 if skipped or first else 2),
                )
            )
        elif isinstance(module, nn.Conv2d | nn.Linear):
            table.append(
                LayerFacts(
                    name=name,
                    kind=type(module).__name__.lower(),
                    quantized=False,
                    reason=kept.get(name, "a floating-point method"),
                    weight_shape=tuple(module.weight.shape),
                    weight_bits=32,
                    activation_bits=32,
                    error_bits=32,
                    fprop="float",
                    dgrad="float" if table else without_dgrad,
                    wgrad="float",
                    error_quantizations=0,
                )
            )
    return tuple(table)


def data_facts(data: AnyData) -> DataFacts:
    """Which data set it is, and how large."""
    return DataFacts(
        name=data.name,
        synthetic=data.synthetic,
        train_samples=data.num_train,
        test_samples=data.num_test,
        image_shape=data.image_shape,
        num_classes=data.num_classes,
        source=data.source,
        fingerprint=data.fingerprint,
    )
