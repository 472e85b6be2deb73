"""Settings that are true or false: OmegaConf takes any whole number for one, and says nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from bench.config import CellConfig
from bench.errors import ConfigError

USERS_FILES = "command-line"  # provider of --config-dir
_DEFAULTS = CellConfig()
_WORDS = ("true", "false", "yes", "no", "y", "n", "on", "off", "1", "0")


class CheckedRepository(ConfigRepository):
    """Hydra's reader of config files, which refuses in a user's what would be taken for true."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Read a file.

        Raises:
            ConfigError: the file is the user's, and holds something else where true or false belongs.
        """
        result = super().load_config(config_path)
        if result is not None and result.provider == USERS_FILES and isinstance(result.config, DictConfig):
            file = config_path.removesuffix(".yaml")
            group = file.rpartition("/")[0].replace("/", ".")
            package = str(result.header.get("package") or "_group_").replace("_group_", group)
            values = OmegaConf.to_container(result.config, resolve=False)
            for key, value in _leaves(values, package.removeprefix("_global_").strip(".")):
                if is_flag(key) and not is_true_or_false(value):
                    said = "null" if value is None else value
                    raise ConfigError(
                        f"{file}.yaml has {key}: {said}, which is not possible: it must be true or false."
                    )
        return result


def is_flag(key: str) -> bool:
    """Whether a setting is one of true or false."""
    return isinstance(look_up(_DEFAULTS, key), bool)


def is_true_or_false(value: object) -> bool:
    """Whether a value says so, or names another setting that does."""
    text = str(value).strip("'\"").lower()
    return text in _WORDS or "${" in text


def look_up(cell: CellConfig, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    value: Any = cell
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, object]]:
    """Dotted keys with what stands there."""
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
