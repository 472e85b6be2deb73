"""The check: self-check of the integer GEMM, one counted training step, facts of model and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from bench.config import CellConfig
from bench.kernels.int_mm import record_gemms
from bench.kernels.selfcheck import check_device
from bench.layers.convert import quantized_layers
from bench.layers.dispatch import Paths
from bench.methods import build_method
from bench.passes.inputs import batches_of, prepare
from bench.profilers.base import NO_PHASES
from bench.profilers.gemm_count import FloatProductCounter, integer_layers, record_layer_macs
from bench.records.schema import DataFacts, GemmResult, Label, ModelFacts
from bench.reporting import Report
from bench.training.assemble import build_parts
from bench.training.facts import data_facts, integer_share_pct, layer_facts
from bench.training.step import train_step


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckAnswer:
    """Facts that every record of the cell carries."""

    model: ModelFacts
    data: DataFacts
    gemms: GemmResult
    hypernet_parameters: int
    paths: Paths  # what dispatch=auto chose; empty otherwise


def check_pass(*, report: Report, cell: CellConfig, device: str) -> CheckAnswer:
    """Self-check the integer GEMM, convert the model, count the products of one training step.

    Raises:
        HardwareError: the device's integer product is wrong.
    """
    report({"phase": "self-check"})
    where, data = prepare(cell, device)
    if build_method(cell).low_bit and cell.dispatch != "simulate":
        check_device(where)
    parts = build_parts(cell, data, where)
    batches = batches_of(cell, data, where)
    parts.model.train()
    floats = FloatProductCounter()
    with record_layer_macs(parts.model) as macs:
        train_step(parts, *batches.batch(0, 0), cell.optimizer.lr, NO_PHASES)  # a hypernetwork first acts in the second
        with record_gemms() as calls, floats:
            train_step(parts, *batches.batch(0, batches.steps_per_epoch - 1), cell.optimizer.lr, floats.phases)
    ran = integer_layers(calls)
    low_bits = [bits for bits in (cell.weight_bits, cell.activation_bits, cell.error_bits) if bits < 32]
    layers = layer_facts(parts, calls)
    labels_ran = {label for layer in layers for label in (layer.fprop, layer.wgrad)}
    label = next((name for name in ("emulated", "integer", "simulated") if name in labels_ran), "float")
    assert not calls or low_bits, "integer products ran in a floating-point cell"
    return CheckAnswer(
        model=ModelFacts(
            name=cell.model.name,
            num_parameters=sum(parameter.numel() for parameter in parts.model.parameters()),
            num_quantized_weights=sum(weight.numel() for weight in parts.weights),
            layers=layers,
        ),
        data=data_facts(data),
        gemms=GemmResult(
            integer_calls={kind: len(names) for kind, names in ran.items()},
            float_calls=floats.calls,
            integer_share_pct=integer_share_pct(layers, ran, macs),
            hypernet_float_macs=floats.hypernet_macs,
            label=cast(Label, label),
        ),
        hypernet_parameters=sum(p.numel() for p in parts.delayed.hypernet.parameters()) if parts.delayed else 0,
        paths={name: dict(layer.paths) for name, layer in quantized_layers(parts.model).items() if layer.paths},
    )
