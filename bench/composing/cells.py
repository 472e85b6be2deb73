"""From composed configs to checked cells."""

from __future__ import annotations

import dataclasses
import functools
import pickle
from collections.abc import Sequence
from typing import Any, cast, get_type_hints

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from bench.composing.groups import config_repository, fixed_keys, options
from bench.composing.search_path import hydra_loader
from bench.composing.sentences import CONFIG_ERRORS, explain
from bench.config import CellConfig
from bench.errors import ConfigError

CONFIG_NAME = "config"


def to_cell(config: DictConfig) -> CellConfig:
    """The composed config as a checked ``CellConfig``.

    Raises:
        ConfigError: a value out of range.
    """
    if not _is_of(CellConfig, config):  # else merging, seven milliseconds, would say it all once more
        known = {key: value for key, value in config.items() if key != "hydra"}
        config = cast(DictConfig, OmegaConf.merge(_schema(), known))
    return cast(CellConfig, OmegaConf.to_object(config))


def compose_variants(config_dir: str | None = None) -> dict[str, CellConfig]:
    """Every variant as the cell that it makes.

    Raises:
        ConfigError: one that cannot be composed.
    """
    variants = {}
    with hydra_loader(config_dir):
        for name in options("variant"):
            if name == "custom":
                continue
            try:
                variants[name] = to_cell(compose(config_name=CONFIG_NAME, overrides=[f"variant={name}"]))
            except (*CONFIG_ERRORS, ConfigError) as error:
                sentence = str(error) if isinstance(error, ConfigError) else explain(error)
                if f"variant/{name}" not in sentence:
                    sentence = f"variant/{name}.yaml: {sentence}"
                raise ConfigError(sentence) from error
    return variants


class Composer:
    """Composes a command's cells. Hydra takes 80 ms to read a cell's files: cells that choose the same share them."""

    def __init__(self, config_name: str) -> None:
        """Read nothing yet.

        Args:
            config_name: of the root file.
        """
        self.config_name = config_name
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        self.parse = functools.cache(lambda part: parser.parse_overrides([part])[0])  # jobs share most of their parts
        self.repository = config_repository()
        self.variants = set(options("variant"))
        self.bases: dict[tuple[str, ...], bytes] = {}  # pickled, which copies six times faster than deepcopy
        self.alone = functools.cache(self._alone)
        self.fixed_keys = functools.cache(fixed_keys)

    def compose(self, job: Sequence[str]) -> DictConfig:
        """One job's config: what its files say, then its plain values, as Hydra itself goes about it."""
        overrides = [self.parse(part) for part in job]
        values = [override for override in overrides if not self._chooses_a_file(override)]
        files = tuple(override.input_line or "" for override in overrides if override not in values)
        if files not in self.bases:
            self.bases[files] = pickle.dumps(compose(config_name=self.config_name, overrides=list(files)))
        config: DictConfig = pickle.loads(self.bases[files])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config

    def _chooses_a_file(self, override: Override) -> bool:
        if override.package is not None:
            return True
        return self.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)

    def _alone(self, variant: str) -> CellConfig:
        return to_cell(compose(config_name=self.config_name, overrides=[f"variant={variant}"]))


def _is_of(schema: Any, config: Any) -> bool:
    """Whether a config has a schema's type and its keys, neither more nor less, at every level."""
    if not OmegaConf.is_dict(config) or OmegaConf.get_type(config) != schema:
        return False
    types = _field_types(schema)
    return set(config) == types.keys() and all(
        _is_of(type_, config[name]) for name, type_ in types.items() if dataclasses.is_dataclass(type_)
    )


@functools.cache
def _field_types(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema)


@functools.cache
def _schema() -> DictConfig:
    return cast(DictConfig, OmegaConf.structured(CellConfig))  # 8 ms, and a sweep asks for each cell; merging copies it
