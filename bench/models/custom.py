"""A user's own network, named as ``package.module:function``.

The working folder is looked into last: a user's folder may hold a ``tools`` or ``tests`` of its own, and ours must keep
winning.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import ConfigError


class _LastFolder(MetaPathFinder):
    """Finds modules in a folder after all other finders.

    The last entry of ``sys.path`` would still come before an editable install's finder, and be handed to new processes:
    a user's own ``tools/`` would be taken for ours.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As ``sys.path`` would find a top-level module there."""
        return PathFinder.find_spec(fullname, [self.folder], target) if path is None else None


def import_factory(factory: str) -> Callable[..., Any]:
    """Import the function that makes a user's network, from the working folder where no other place has its module.

    Args:
        factory: ``package.module:function``; a class of type nn.Module is a function too.

    Raises:
        ConfigError: no colon, a module that is missing or fails to import, a missing or uncallable attribute.
    """
    key = f"model.factory={factory}"
    module_name, colon, attribute = factory.partition(":")
    names = [*module_name.split("."), attribute]
    if not colon or not all(name.isidentifier() for name in names):
        raise ConfigError(f"{key} is not of the form package.module:function.")
    folder = str(Path.cwd())
    if not any(isinstance(finder, _LastFolder) and finder.folder == folder for finder in sys.meta_path):
        sys.meta_path.append(_LastFolder(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's lines: a script without a main guard may end the process
        if isinstance(error, ModuleNotFoundError) and _is_part_of(error.name, module_name):
            raise ConfigError(
                f"{key}: there is no module {error.name} in the working folder {folder} or among installed packages."
            ) from error
        raise ConfigError(f"{key}: importing {module_name} failed with {said(error)}.") from error
    if not hasattr(module, attribute):
        place = getattr(module, "__file__", None) or "a folder without __init__.py"
        raise ConfigError(f"{key}: module {module_name} ({place}) has no {attribute}.")
    make = getattr(module, attribute)
    if not callable(make):
        raise ConfigError(f"{key}: {attribute} is a {type(make).__name__}, which cannot be called to make a network.")
    return make


def build_custom(factory: str, **offered: int) -> nn.Module:
    """Call a user's factory with those of the offered arguments that it takes.

    Args:
        factory: ``package.module:function``.
        offered: ``num_classes``, ``in_channels`` and ``image_size``.

    Returns:
        The user's module.

    Raises:
        ConfigError: as ``import_factory``; an argument that is not offered, an exception inside, no nn.Module returned.
    """
    key = f"model.factory={factory}"
    make = import_factory(factory)
    arguments = _arguments(make, offered, key)
    try:
        model = make(**arguments)
    except (Exception, SystemExit) as error:  # the user's function may raise anything, or end the process
        raise ConfigError(f"{key}: the call failed with {said(error)}.") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{key} returned a {type(model).__name__} and not a torch.nn.Module.")
    return model


def check_answer(factory: str, model: nn.Module, images: Tensor, num_classes: int) -> None:
    """Run a user's network once, in evaluation mode and without gradients, and look at what it returns.

    Args:
        factory: ``package.module:function``, for the sentence.
        model: what it made.
        images: (N, C, H, W) float32, normalised.
        num_classes: of the data.

    Raises:
        ConfigError: it returns anything but floating-point logits (N, classes). What the network itself raises passes
            through: its traceback belongs to the user.
    """
    key = f"model.factory={factory}"
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            answer = model(images)
    finally:
        for module, training in modes:
            module.training = training
    wanted = f"it must return one floating-point tensor of logits, ({len(images)}, {num_classes})"
    if not isinstance(answer, Tensor):
        raise ConfigError(f"{key}: the network returns a {type(answer).__name__} and not a tensor; {wanted}.")
    fits = answer.dim() == 2 and len(answer) == len(images) and answer.shape[1] >= num_classes
    if not (fits and answer.is_floating_point()):
        raise ConfigError(f"{key}: the network returns {answer.dtype} of shape {tuple(answer.shape)}; {wanted}.")


def _arguments(make: Callable[..., Any], offered: dict[str, int], key: str) -> dict[str, int]:
    """The offered arguments that a factory takes; none where a builtin does not tell."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return offered
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    demanded = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and (p not in named or p.name not in offered)
    ]
    if demanded:
        raise ConfigError(
            f"{key} demands {', '.join(demanded)}, and what is offered is {', '.join(offered)}: give the rest defaults."
        )
    return {p.name: offered[p.name] for p in named if p.name in offered}


def _is_part_of(missing: str | None, module_name: str) -> bool:
    """Whether the missing module is the one asked for or a package that holds it."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def said(error: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
