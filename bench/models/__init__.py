"""Floating-point networks by name: the ``MODELS`` table, ``build_model``, and a user's own network.

Every convolution and linear layer is a module of its own, so that a converter can swap it. The table reads without
importing torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

CUSTOM = "custom"
SHORTCUTS = ("A", "B")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One line of the table: what the network is, where it is from, how it is built, what it accepts."""

    summary: str
    source: str
    build: Callable[..., nn.Module]  # (num_classes, in_channels, image_size, shortcut)
    min_image_size: int  # pixels
    has_shortcut_option: bool = False  # whether A or B is a choice


def _cifar_resnet(depth: int) -> ModelEntry:
    def build(*, num_classes: int, in_channels: int, image_size: int, shortcut: str) -> nn.Module:
        from bench.models.resnet import CifarResNet

        return CifarResNet(depth, num_classes=num_classes, in_channels=in_channels, shortcut=shortcut)

    return ModelEntry(
        summary=f"CIFAR ResNet, {depth} layers, 16 to 64 channels, shortcuts A (no weights) or B (1x1 convolution)",
        source="He et al., Deep Residual Learning, arXiv 1512.03385, section 4.2",
        build=build,
        min_image_size=8,
        has_shortcut_option=True,
    )


def _build_vgg16(*, num_classes: int, in_channels: int, image_size: int, shortcut: str) -> nn.Module:
    from bench.models.vgg import Vgg16

    return Vgg16(num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def _build_mobilenet_v2(*, num_classes: int, in_channels: int, image_size: int, shortcut: str) -> nn.Module:
    from bench.models.mobilenet_v2 import MobileNetV2

    return MobileNetV2(num_classes=num_classes, in_channels=in_channels)


def _build_resnet18(*, num_classes: int, in_channels: int, image_size: int, shortcut: str) -> nn.Module:
    from bench.models.resnet_imagenet import ImageNetResNet18

    return ImageNetResNet18(num_classes=num_classes, in_channels=in_channels)


MODELS: dict[str, ModelEntry] = {
    **{f"resnet{depth}": _cifar_resnet(depth) for depth in (20, 32, 44, 56, 110)},
    "vgg16": ModelEntry(
        summary="VGG-16 for small images: 13 convolutions with batch-norm, one linear layer",
        source="Simonyan and Zisserman, arXiv 1409.1556, configuration D; batch-norm and one classifier as is usual on CIFAR",  # noqa: E501
        build=_build_vgg16,
        min_image_size=8,
    ),
    "mobilenet_v2": ModelEntry(
        summary="MobileNetV2 for small images: depthwise convolutions, stride 1 in the stem and the second stage",
        source="Sandler et al., arXiv 1801.04381, table 2; strides as is usual on CIFAR",
        build=_build_mobilenet_v2,
        min_image_size=8,
    ),
    "resnet18": ModelEntry(
        summary="ResNet-18 for ImageNet: 7x7 stem with stride 2, 64 to 512 channels",
        source="He et al., Deep Residual Learning, arXiv 1512.03385, table 1",
        build=_build_resnet18,
        min_image_size=32,
    ),
}
CUSTOM_SUMMARY = "your own network: model=custom model.factory=package.module:function"


def check_model(name: str, *, image_size: int | None = None, shortcut: str = "A", factory: str | None = None) -> None:
    """Refuse what ``build_model`` would refuse before it builds; imports a user's factory and leaves calling to it.

    Args:
        name: a key of ``MODELS``, or ``custom``.
        image_size: height and width of the images in pixels; none: not checked.
        shortcut: ``A`` or ``B``; B only for the CIFAR ResNets.
        factory: ``package.module:function``, for ``custom`` only.

    Raises:
        ConfigError: one sentence with the name or key at fault and what is possible.
    """
    if name == CUSTOM:
        if factory is None:
            raise ConfigError("model=custom needs model.factory=package.module:function, which returns your network.")
        from bench.models.custom import import_factory

        import_factory(factory)
    elif name not in MODELS:
        raise ConfigError(_unknown(name))
    elif factory is not None:
        raise ConfigError(f"model.factory={factory} goes with model=custom only, and the model is {name}.")
    if shortcut not in SHORTCUTS:
        raise ConfigError(f"model.shortcut={shortcut} is not possible: it must be A or B.")
    if shortcut != "A" and (name == CUSTOM or not MODELS[name].has_shortcut_option):
        able = ", ".join(key for key, entry in MODELS.items() if entry.has_shortcut_option)
        raise ConfigError(f"model.shortcut={shortcut} is a choice of {able} only, and the model is {name}.")
    if name != CUSTOM and image_size is not None and image_size < MODELS[name].min_image_size:
        least = MODELS[name].min_image_size
        raise ConfigError(
            f"model={name} needs images of {least}x{least} pixels or more, not {image_size}x{image_size}: "
            f"set data.image_size={least}."
        )


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    shortcut: str = "A",
    factory: str | None = None,
) -> nn.Module:
    """Build a network on the CPU in float32, its weights drawn from torch's global generator.

    Args:
        name: a key of ``MODELS``, or ``custom``.
        num_classes: size of the output.
        in_channels: channels of the images.
        image_size: height and width of the images in pixels.
        shortcut: ``A`` or ``B``, for the CIFAR ResNets.
        factory: ``package.module:function`` for ``custom``; called with those of ``num_classes``, ``in_channels`` and
            ``image_size`` that it takes.

    Returns:
        A module from (N, in_channels, image_size, image_size) float32 to (N, num_classes) float32.

    Raises:
        ConfigError: an unknown name, an option that the model does not have, a factory that cannot be used.
    """
    check_model(name, image_size=image_size, shortcut=shortcut, factory=factory)
    if name == CUSTOM:
        from bench.models.custom import build_custom

        assert factory is not None, "check_model demands a factory"
        return build_custom(factory, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return MODELS[name].build(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, shortcut=shortcut
    )


def _unknown(name: str) -> str:
    known = [*MODELS, CUSTOM]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"There is no model named {name}: {hint}known are {', '.join(known)}."
