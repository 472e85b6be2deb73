"""The sides that ``metagrad-bench kernels`` compares: ways to train one network, and how each is built.

A side is one way to train the same network: FP32 or bf16 autocast, eager or compiled, FP32 with the engine's
batch-norm, ReLU and pooling, or INT8 or INT4 with and without ``compact``. All sides start from the same weights, see
the same synthetic images and take ``bench.training.step``'s step: gradients set to None, forward, cross-entropy,
backward, SGD with momentum. See docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.data.synthetic import IN_CHANNELS, MEAN, NUM_CLASSES, STD
from bench.layers.convert import QuantSpec, quantize_model, quantized_layers
from bench.layers.dispatch import Paths
from bench.layers.lean import make_lean
from bench.models import build_model
from bench.optim import build_optimizer
from bench.seeding import global_stream, torch_generator
from bench.training.assemble import Parts

NUM_BATCHES = 4  # so that a few dozen steps do not learn one batch by heart
LEARNING_RATE, MOMENTUM = 1e-3, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to train the network."""

    bits: int = 32  # of weights, activations and error signals
    autocast_bf16: bool = False
    compiled: bool = False
    compact: bool = False
    lean: bool = False  # the engine's batch-norm, ReLU and pooling around FP32 convolutions


SIDES: dict[str, Side] = {
    "fp32": Side(),
    "bf16": Side(autocast_bf16=True),
    "fp32_compiled": Side(compiled=True),
    "bf16_compiled": Side(autocast_bf16=True, compiled=True),
    "fp32_lean": Side(lean=True),
    "int8": Side(bits=8),
    "int4": Side(bits=4),
    "int8_compact": Side(bits=8, compact=True),
    "int4_compact": Side(bits=4, compact=True),
}
WIDTHS = ("int8", "int4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """From what every process builds the same sides."""

    model: str  # a key of MODELS, or custom
    factory: str | None  # package.module:function of a custom one
    batch_size: int
    image_size: int
    dispatch: str
    device: str
    threads: int | None  # None: as many as torch takes
    paths: Mapping[str, Paths] = field(default_factory=dict)  # by width, where dispatch=auto has chosen


def prepare(work: Work) -> torch.device:
    """Set this process's threads and device."""
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    where = torch.device(work.device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    return where


def make_batches(work: Work, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Synthetic images, (N, 3, H, H) float32 channels-last of mean 0 and deviation 1, with random labels, (N,)."""
    generator = torch_generator(0, "synthetic_data")
    shape = (work.batch_size, IN_CHANNELS, work.image_size, work.image_size)
    batches = []
    for _ in range(NUM_BATCHES):
        images = (torch.rand(shape, generator=generator) - MEAN[0]) / STD[0]
        labels = torch.randint(NUM_CLASSES, (work.batch_size,), generator=generator)
        batches.append((images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)))
    return batches


def build_side(name: str, work: Work, images: Tensor) -> Parts:
    """A side's network, in training mode on the device of its images, with its optimizer.

    Args:
        name: a key of ``SIDES``.
        work: which network.
        images: a batch that shows the converter which layers see negative inputs.
    """
    side = SIDES[name]
    with global_stream(0, "model_init"):
        model = build_model(
            work.model, num_classes=NUM_CLASSES, in_channels=IN_CHANNELS, image_size=work.image_size,
            factory=work.factory,
        )  # fmt: skip
    model.to(device=images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    conversion = None
    if side.bits < 32:
        spec = QuantSpec(
            forward="dorefa", weight_bits=side.bits, activation_bits=side.bits, error="uniform", error_bits=side.bits,
            dispatch=work.dispatch, compact=side.compact,
        )  # fmt: skip
        conversion = quantize_model(model, spec, sample_input=images)
        for layer, module in quantized_layers(model).items():
            module.paths.update(work.paths.get(name.removesuffix("_compact"), {}).get(layer, {}))
    elif side.lean:
        make_lean(model)
    model.train()
    optimizer = build_optimizer(
        "sgd", list(model.parameters()), lr=LEARNING_RATE, weight_decay=0.0, momentum=MOMENTUM
    )  # fmt: skip
    return Parts(
        model=torch.compile(model) if side.compiled else model,  # type: ignore[arg-type]
        conversion=conversion,
        optimizer=optimizer,
        weights=[],
        delayed=None,
        quantize_grads=[],
        lr_factors=None,
        autocast_bf16=side.autocast_bf16,
    )
