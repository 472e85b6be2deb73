"""Where configurations are found: the package's own, and a user's folder, which is looked through first."""

from __future__ import annotations

import importlib
import importlib.resources
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from bench.composing.flags import USERS_FILES, CheckedRepository
from bench.composing.sentences import CONFIG_ERRORS, explain
from bench.config import CellConfig
from bench.errors import ConfigError

CONFIG_PATH = "pkg://suites"
GROUPS = (
    "suite", "variant", "preset", "model", "data", "method", "quantizer", "hypernet", "strategy", "optimizer",
    "protocol",
)  # fmt: skip
_LONGEST_FILE_BYTES, _MOST_VALUES = 2**20, 100_000  # of a configuration file
_LONGEST_MESSAGE = 600  # a message of Hydra's may quote a whole file
_BAD_INPUT = (*CONFIG_ERRORS, OSError, ValueError, RecursionError)  # what reading and composing a configuration raise
_ALIAS = re.compile(r"\*\w")


def register() -> None:
    """Put the typed root schema and our launchers' settings into Hydra's ConfigStore."""
    Plugins.instance()  # looks for plugins first, since theirs would replace ours
    importlib.import_module("hydra_plugins.metagrad_launchers.submitit_launcher").store()
    ConfigStore.instance().store(name="cell", node=CellConfig, provider="metagrad-bench")


@contextmanager
def hydra_loader(config_dir: str | None) -> Iterator[None]:
    """The same search path that ``hydra.main`` will use, without running anything.

    Args:
        config_dir: a user's folder of configurations, or None.

    Raises:
        ConfigError: it is no folder, or holds what is refused; inside, a configuration that cannot be composed.
    """
    register()
    search_path = create_config_search_path(CONFIG_PATH)
    if config_dir is not None:
        if not config_dir:  # would be the working folder
            raise ConfigError("--config-dir is given an empty path: is a variable unset?")
        folder = Path(config_dir).absolute()
        if not folder.is_dir():
            raise ConfigError(
                f"--config-dir {config_dir} is not a folder: name the one that holds your suite/ or variant/."
            )
        _refuse_shadows(folder)
        _refuse_bombs(folder)
        search_path.prepend(provider=USERS_FILES, path=f"file://{folder}", anchor="schema")
    GlobalHydra.instance().clear()
    try:
        made = Hydra.create_main_hydra2(task_name="metagrad-bench", config_search_path=search_path)
        cast(ConfigLoaderImpl, made.config_loader).repository = CheckedRepository(search_path)
        yield
    except OverrideParseException as error:
        raise ConfigError(f"Cannot read {error.override!r}: write key=value, as in seed=1.") from error
    except _BAD_INPUT as error:
        damaged = None if config_dir is None else _find_damaged(Path(config_dir).absolute(), error)
        files = {} if config_dir is None else _read_files(Path(config_dir).absolute())
        raise ConfigError(damaged or explain(error, files)[:_LONGEST_MESSAGE]) from error
    finally:
        GlobalHydra.instance().clear()


def _refuse_shadows(folder: Path) -> None:
    """Hydra takes the first file of a name, ours: a user's file of that name would be left out in silence."""
    ours = importlib.resources.files("suites")
    for path in sorted(folder.glob("*/*.yaml")):
        name = path.relative_to(folder).as_posix()
        if path.parent.name in GROUPS and ours.joinpath(name).is_file():
            raise ConfigError(f"{name} in --config-dir {folder} has the name of a built-in one: give it another name.")


def _refuse_bombs(folder: Path) -> None:
    """OmegaConf copies what an alias stands for: some lines of aliases of aliases would fill the memory."""
    for path in _config_files(folder):
        name = path.relative_to(folder).as_posix()
        if path.stat().st_size > _LONGEST_FILE_BYTES:
            raise ConfigError(
                f"{name} in --config-dir {folder} is longer than {_LONGEST_FILE_BYTES:,} bytes: shorten it."
            )
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader) if _ALIAS.search(text) else None
            num_values = 0.0 if root is None else _count_values(root, {})
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue  # Hydra says what is wrong with a file that is asked for
        if num_values > _MOST_VALUES:
            raise ConfigError(
                f"{name} in --config-dir {folder} stands for more than {_MOST_VALUES:,} values, since its aliases "
                "(*name) are copied where they stand: write out what is meant."
            )


def _config_files(folder: Path) -> Iterator[Path]:
    files = [*folder.glob("*.yaml"), *(path for group in GROUPS for path in (folder / group).rglob("*.yaml"))]
    return filter(Path.is_file, files)


def _read_files(folder: Path) -> dict[str, str]:
    """Texts of a user's files that can be read, by their names in the folder."""
    texts = {}
    for path in _config_files(folder):
        with suppress(OSError, ValueError):
            texts[path.relative_to(folder).as_posix()] = path.read_text(encoding="utf-8")
    return texts


def _find_damaged(folder: Path, error: Exception) -> str | None:
    """A sentence about the file whose reading fails with that error, where the error itself names none."""
    if not isinstance(error, UnicodeDecodeError | RecursionError) and type(error) is not ValueError:
        return None
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    for path in _config_files(folder):
        try:
            OmegaConf.load(path)
        except _BAD_INPUT as found:
            if type(found) is type(error):
                name = path.relative_to(folder).as_posix()
                return f"{name} in --config-dir {folder} cannot be read ({reason}): mend it, or take it out."
    return None


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Values of a YAML node with every alias in it written out; infinite where one holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]
