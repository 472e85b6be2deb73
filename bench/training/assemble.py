"""Joins a cell's model, quantized layers, optimizer and delayed update into what a training step needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from bench.config import (
    CellConfig,
    HypernetConfig,
    MethodConfig,
    OptimizerConfig,
    ProtocolConfig,
    StrategyConfig,
)
from bench.data.loader import normalise
from bench.errors import ConfigError
from bench.hypernets import FULLY_CONNECTED, build_hypernet
from bench.layers.base import IntegerLayer
from bench.layers.convert import Conversion, QuantSpec, quantize_model, quantized_layers
from bench.layers.dispatch import Paths
from bench.layers.norms import replace_norms
from bench.methods import METHODS, build_method
from bench.models import CUSTOM, build_model
from bench.models.custom import check_answer
from bench.optim import OPTIMIZERS, Optimizer, build_optimizer
from bench.optim.fixed_point import FixedPointSGD
from bench.quantizers import GRAD_QUANTIZERS, CyclicPrecision, GradQuantizer
from bench.seeding import global_stream, sub_seed, torch_generator
from bench.update import DelayedUpdate, build_strategy

if TYPE_CHECKING:
    from bench.data import AnyData

_SAMPLE_IMAGES = 16


@dataclass(slots=True, kw_only=True)
class Parts:
    """Everything one training step touches."""

    model: nn.Module
    conversion: Conversion | None  # None: a floating-point method
    optimizer: Optimizer  # of the parameters that step at once
    weights: list[nn.Parameter]  # of the quantized layers, in order
    delayed: DelayedUpdate | None  # MetaGrad's update of `weights`
    quantize_grads: list[GradQuantizer]  # Q on ∇W, one per weight; empty where it stays FP32 or a hypernetwork does it
    lr_factors: Callable[[], list[Tensor]] | None  # one per parameter of `optimizer`
    autocast_bf16: bool
    precision: CyclicPrecision | None = None  # the schedule of weights' and activations' bits; each step advances it


def build_parts(
    cell: CellConfig,
    data: AnyData,
    device: torch.device,
    *,
    initial_state: dict[str, Tensor] | None = None,
    paths: Paths | None = None,
) -> Parts:
    """Build a cell's parts on a device.

    Args:
        cell: the checked config.
        data: gives the model its input shape and classes.
        device: where to train.
        initial_state: floating-point state dict to start from; None keeps the seeded random weights.
        paths: what dispatch=auto chose before; what is not in it is chosen in the first step.

    Raises:
        ConfigError: a model, method, hypernetwork or strategy that does not exist or fit.
    """
    method = build_method(cell)
    with global_stream(cell.seed, "model_init"):
        model = build_model(
            cell.model.name, num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size,
            shortcut=cell.model.shortcut, factory=cell.model.factory,
        )  # fmt: skip
    if initial_state is not None:
        model.load_state_dict(initial_state)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # A few images show whether a user's network fits the data, and the converter which layers see negative inputs.
    sample = normalise(data.sample(_SAMPLE_IMAGES), data, device).permute(0, 3, 1, 2)
    if cell.model.name == CUSTOM:
        check_answer(cell.model.factory or "", model, sample, data.num_classes)
    conversion = None
    precision = _cyclic_precision(cell, num_images=data.num_train) if method.cyclic else None
    replace_norms(model, cell.method.norm)  # before the rest of them is made lean
    if method.low_bit:
        generator = torch_generator(cell.seed, "stochastic_rounding", device=device)
        conversion = quantize_model(model, _spec(cell), sample_input=sample, generator=generator, precision=precision)
    layers = quantized_layers(model) if conversion is not None else {}
    for name, layer in layers.items():
        layer.paths.update((paths or {}).get(name, {}))
    weights = [cast(nn.Parameter, layer.weight) for layer in layers.values()]
    delayed = None
    immediate = list(model.parameters())
    # UINT8's factor lowers the layer's learning rate: its weight's and its bias's.
    factor_of = {id(tensor): layer for layer in layers.values() for tensor in (layer.weight, layer.bias)}
    if cell.method.grad_quantizer == "hypernet":
        assert conversion is not None, "a hypernetwork's method is low-bit"
        delayed = _delayed_update(cell, device, weights, list(layers.values()), conversion.generator)
        delayed_ids = {id(weight) for weight in weights}
        immediate = [parameter for parameter in immediate if id(parameter) not in delayed_ids]
    quantize_grads: list[GradQuantizer] = []
    if conversion is not None and cell.method.grad_quantizer in GRAD_QUANTIZERS:
        for layer in layers.values():
            layer.grad_quantizer = _grad_quantizer(cell, conversion.generator, channels=len(layer.weight)).to(device)
            quantize_grads.append(layer.grad_quantizer)
    lr_factors = None
    if cell.method.error_quantizer == "uint8":
        one = torch.ones((), device=device)

        def lr_factors() -> list[Tensor]:
            return [factor_of[id(p)].lr_factor if id(p) in factor_of else one for p in immediate]

    return Parts(
        model=model,
        conversion=conversion,
        optimizer=_fixed_point_sgd(cell.optimizer, immediate, weights)
        if method.fixed_point_update
        else _optimizer(cell.optimizer, immediate),
        weights=weights,
        delayed=delayed,
        quantize_grads=quantize_grads,
        lr_factors=lr_factors,
        autocast_bf16=method.autocast_bf16,
        precision=precision,
    )


def check_training(cell: CellConfig) -> None:
    """Refuse an optimizer that does not exist, without building anything large.

    Raises:
        ConfigError: one sentence.
    """
    if cell.optimizer.name not in OPTIMIZERS:
        raise ConfigError(f"There is no optimizer {cell.optimizer.name!r}: choose one of {', '.join(OPTIMIZERS)}.")


def as_fp32(cell: CellConfig) -> CellConfig:
    """The FP32 cell of the same model, data, optimizer and protocol: the reference of every ratio."""
    return dataclasses.replace(
        without_hypernet(cell), variant_name="fp32", method=MethodConfig(name="fp32"), weight_bits=32,
        activation_bits=32, error_bits=32, grad_bits=32, edge_layers="same", dispatch="integer", compact=False,
    )  # fmt: skip


def without_hypernet(cell: CellConfig) -> CellConfig:
    """The same cell with the plain uniform quantizer on ∇W, or for MetaQuant the straight-through estimator.

    What the hypernetwork adds is the difference to it.
    """
    if cell.method.grad_quantizer != "hypernet":
        return cell
    method = dataclasses.replace(cell.method, name="uniform", grad_quantizer="uniform")
    if METHODS[cell.method.name].replaces_ste:
        method = dataclasses.replace(cell.method, name="ste", grad_quantizer="none")
    if cell.method.error_quantizer in ("dorefa", "uint8", "daint8"):
        method = dataclasses.replace(method, name=cell.method.error_quantizer)
    return dataclasses.replace(
        cell, method=method, hypernet=HypernetConfig(name="none"), strategy=StrategyConfig(name="none")
    )


def for_pretraining(cell: CellConfig) -> CellConfig:
    """The FP32 training that all cells of a model, data set and seed start from."""
    protocol = cell.protocol
    optimizer = OptimizerConfig(
        name="sgd", lr=protocol.pretrain_lr, momentum=0.9, weight_decay=protocol.pretrain_weight_decay,
        schedule=protocol.pretrain_schedule,
    )  # fmt: skip
    training = ProtocolConfig(
        batch_size=protocol.batch_size, augment=protocol.augment, epochs=max(1, protocol.pretrain_epochs),
        threads=protocol.threads,
    )  # fmt: skip
    # Only what the weights depend on: all other settings stay at their defaults, so that cells share them.
    return CellConfig(
        variant_name="pretrain", device=cell.device, seed=cell.seed, model=cell.model, data=cell.data,
        optimizer=optimizer, protocol=training, output_dir=cell.output_dir,
    )  # fmt: skip


def _spec(cell: CellConfig) -> QuantSpec:
    return QuantSpec(
        forward=cell.quantizer.name,
        weight_bits=cell.weight_bits,
        activation_bits=cell.activation_bits,
        error=cell.method.error_quantizer,
        error_bits=cell.error_bits,
        error_rounding=cell.method.error_rounding,
        error_granularity=cell.method.error_granularity,
        edge_layers=cell.edge_layers,
        dispatch=cell.dispatch,
        compact=cell.compact,
    )


def _optimizer(config: OptimizerConfig, parameters: list[nn.Parameter]) -> Optimizer:
    options: dict[str, Any] = {"momentum": config.momentum} if config.name == "sgd" else {"pi_prime": config.pi_prime}
    return build_optimizer(config.name, parameters, lr=config.lr, weight_decay=config.weight_decay, **options)


def _fixed_point_sgd(
    config: OptimizerConfig, parameters: list[nn.Parameter], weights: list[nn.Parameter]
) -> FixedPointSGD:
    return FixedPointSGD(
        parameters, lr=config.lr, weights=weights, momentum=config.momentum, weight_decay=config.weight_decay
    )


def _cyclic_precision(cell: CellConfig, *, num_images: int) -> CyclicPrecision:
    """The schedule over the whole fine-tuning, whichever part of it a pass runs."""
    low, cycles = cell.method.cycle_min_bits, cell.method.cycles
    assert low is not None, "checked with the method"
    assert cycles is not None, "checked with the method"
    steps = cell.protocol.epochs * (num_images // cell.protocol.batch_size)
    return CyclicPrecision(low, max(1, -(-steps // cycles)))


def _grad_quantizer(cell: CellConfig, generator: torch.Generator, *, channels: int | None = None) -> GradQuantizer:
    """Q on ∇W; behind a hypernetwork it is the uniform one (MetaGrad Eq. 7)."""
    name = "uniform" if cell.method.grad_quantizer == "hypernet" else cell.method.grad_quantizer
    return GradQuantizer(
        name, cell.grad_bits, rounding=cell.method.grad_rounding, generator=generator, channels=channels
    )


def _as_it_is(output: Tensor) -> Tensor:
    """No Q: MetaQuant's hypernetwork answers in full precision."""
    return output


def _delayed_update(
    cell: CellConfig,
    device: torch.device,
    weights: list[nn.Parameter],
    layers: list[IntegerLayer],
    generator: torch.Generator,
) -> DelayedUpdate:
    with global_stream(cell.seed, "hypernet_init"):
        layout: dict[str, Any] = {"state": cell.hypernet.state}
        if cell.hypernet.name in FULLY_CONNECTED:
            layout = {"depth": cell.hypernet.depth, "activation": cell.hypernet.activation}
        hypernet = build_hypernet(
            cell.hypernet.name,
            hidden=cell.hypernet.hidden,
            form=cell.hypernet.form,
            **layout,
        ).to(device)
    options: dict[str, dict[str, Any]] = {
        "slim": {"seed": sub_seed(cell.seed, "slim_layer")},
        "recompute": {"chunk": cell.strategy.chunk},
        "tabulate": {
            "bound": cell.strategy.bound,
            "sample_bits": None if METHODS[cell.method.name].replaces_ste else cell.grad_bits,
        },
    }
    uint8 = cell.method.error_quantizer == "uint8"
    replaces_ste = METHODS[cell.method.name].replaces_ste
    for layer in layers:
        layer.leaves_quantized_gradient = replaces_ste

    def factors(index: int, weight: Tensor) -> Tensor | None:
        quantizer = layers[index].weight_quantizer
        return None if quantizer is None else quantizer.factor(weight)

    return DelayedUpdate(
        weights,
        optimizer=_optimizer(cell.optimizer, weights),
        hypernet=hypernet,
        strategy=build_strategy(cell.strategy.name, **options.get(cell.strategy.name, {})),
        quantize=_as_it_is if replaces_ste else _grad_quantizer(cell, generator).quantize_,
        factors=factors if replaces_ste else None,
        meta_lr=cell.hypernet.meta_lr,
        lr_factors=(lambda: [layer.lr_factor for layer in layers]) if uint8 else None,
    )
