"""What the config groups offer, and what the files of a choice set."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from bench.composing.search_path import hydra_loader
from bench.composing.sentences import unknown_name
from bench.errors import ConfigError


def group_options(group: str) -> list[str]:
    """Names that a config group of ours offers."""
    with hydra_loader(None):
        return options(group)


def group_files(group: str, config_dir: str | None) -> dict[str, str]:
    """Names that a group offers, with those of ``config_dir``, each with the first sentence of its file's comment."""
    with hydra_loader(config_dir):
        folders = [source.path for source in config_repository().get_sources() if source.scheme() in ("pkg", "file")]
        summaries = {}
        for name in options(group):
            texts = (_read_config_file(folder, f"{group}/{name}.yaml") for folder in folders)
            summaries[name] = next((_first_comment(text) for text in texts if text is not None), "")
        return summaries


def options(group: str) -> list[str]:
    """Names that a config group offers on the current search path."""
    loader = GlobalHydra.instance().config_loader()
    return list(loader.get_group_options(group, results_filter=ObjectType.CONFIG))


def config_repository() -> IConfigRepository:
    """What reads the config files that the current search path finds."""
    return cast(ConfigLoaderImpl, GlobalHydra.instance().config_loader()).repository


def fixed_keys(name: str, *, group: str = "variant") -> list[str]:
    """Keys and groups that a variant's or preset's file sets, with the keys that the chosen groups' files set.

    Raises:
        ConfigError: there is no such file.
    """
    repository = config_repository()
    result = repository.load_config(f"{group}/{name}")
    if result is None:
        raise ConfigError(unknown_name(group, name, options(group)))
    body = OmegaConf.to_container(cast(DictConfig, result.config), resolve=False)
    fixed = list(_flat_keys(cast(Mapping[str, Any], body)))
    for default in result.defaults_list or []:
        chosen = getattr(default, "group", None)
        if not chosen:
            continue
        part_group = str(chosen).lstrip("/")
        fixed.append(part_group)
        part = repository.load_config(f"{part_group}/{getattr(default, 'value', None)}")
        if part is not None:
            part_body = OmegaConf.to_container(cast(DictConfig, part.config), resolve=False)
            fixed.extend(f"{part_group}.{key}" for key in _flat_keys(cast(Mapping[str, Any], part_body)))
    return fixed


def _flat_keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if key == "defaults":
            continue
        if isinstance(value, dict):
            yield from _flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _read_config_file(folder: str, name: str) -> str | None:
    root = importlib.resources.files(folder) if "/" not in folder else Path(folder)
    path = root.joinpath(name)
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _first_comment(text: str) -> str:
    """The comment at a file's top, without Hydra's package line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines)
