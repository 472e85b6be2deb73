"""The Hydra application: registers the schema, composes and checks every cell first, then lets Hydra run them.

Hydra exits 1 for every configuration mistake, prints more than a sentence and writes its own files before it has
composed all jobs. So ``plan_cells`` composes each job through the same loader beforehand and turns what goes wrong into
one ``ConfigError``; ``hydra_main`` runs only what has passed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.resources
import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import hydra
import yaml
from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config import CellConfig
from bench.errors import ConfigError

CONFIG_PATH = "pkg://suites"
CONFIG_NAME = "config"
GROUPS = (
    "suite", "variant", "preset", "model", "data", "method", "quantizer", "hypernet", "strategy", "optimizer",
    "protocol",
)  # fmt: skip
CONFIG_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
_LONGEST_MESSAGE = 600  # a message of Hydra's may quote a whole file
_LONGEST_FILE_BYTES, _MOST_VALUES = 2**20, 100_000  # of a configuration file
_ALIAS = re.compile(r"\*\w")
PASSTHROUGH = ("cfg", "info", "hydra_help", "shell_completion")  # Hydra's own questions: nothing runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one command line is going to run."""

    cells: tuple[CellConfig, ...]
    jobs: tuple[tuple[str, ...], ...]  # overrides that make each cell alone
    sweep: bool
    launcher: str  # basic, joblib, ray, submitit_slurm, …

    @property
    def here(self) -> bool:
        """Whether the cells run on this machine."""
        return self.launcher not in ("ray", "submitit_slurm")


def register() -> None:
    """Put the typed root schema and our launchers' settings into Hydra's ConfigStore."""
    Plugins.instance()  # looks for plugins first, since theirs would replace ours
    importlib.import_module("hydra_plugins.metagrad_launchers.submitit_launcher").store()
    ConfigStore.instance().store(name="cell", node=CellConfig, provider="metagrad-bench")


@hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name=CONFIG_NAME)
def hydra_main(config: DictConfig) -> str:
    """One Hydra job: one cell. Returns the record's status; a failing cell does not raise."""
    from bench.cell import run_cell

    cell = to_cell(config)
    with contextlib.suppress(OSError):  # the sweeper's own copy names the working folder; each run keeps its config
        (Path(cell.output_dir) / cell.suite_name / "multirun.yaml").unlink()
    return run_cell(cell).status


def to_cell(config: DictConfig) -> CellConfig:
    """The composed config as a checked ``CellConfig``.

    Raises:
        ConfigError: a value out of range.
    """
    if not _is_of(CellConfig, config):  # else merging, seven milliseconds, would say it all once more
        known = {key: value for key, value in config.items() if key != "hydra"}
        config = cast(DictConfig, OmegaConf.merge(_schema(), known))
    return cast(CellConfig, OmegaConf.to_object(config))


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


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's own arguments; a wrong flag is a ConfigError instead of an exit."""
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise ConfigError(f"{_sentence(message)} See `metagrad-bench run --help`.")

    parser.error = refuse  # type: ignore[method-assign,assignment]
    return parser.parse_args(list(argv))


def plan_cells(args: argparse.Namespace) -> Plan:
    """Compose every cell of a command line, in the order in which Hydra will run them.

    Raises:
        ConfigError: an unknown name or key, a wrong type, a value out of range, a refused override.
    """
    with _hydra_loader(args.config_dir):
        try:
            return _plan(args)
        except OverrideParseException as error:
            raise ConfigError(f"Cannot read {error.override!r}: write key=value, as in seed=1.") from error
        except (*CONFIG_ERRORS, OSError, ValueError, RecursionError) as error:
            raise ConfigError(explain(error)[:_LONGEST_MESSAGE]) from error


def group_options(group: str, config_dir: str | None = None) -> list[str]:
    """Names that a config group offers, ours and those of ``config_dir``."""
    with _hydra_loader(config_dir):
        return _options(group)


def group_files(group: str, config_dir: str | None = None) -> dict[str, str]:
    """Names that a config group offers, each with the first sentence of its file's comment."""
    with _hydra_loader(config_dir):
        folders = [source.path for source in _repository().get_sources() if source.scheme() in ("pkg", "file")]
        summaries = {}
        for name in _options(group):
            texts = (_read_config_file(folder, f"{group}/{name}.yaml") for folder in folders)
            summaries[name] = next((_first_comment(text) for text in texts if text is not None), "")
        return summaries


def compose_variants(config_dir: str | None = None) -> dict[str, CellConfig]:
    """Every variant as the cell that it makes."""
    with _hydra_loader(config_dir):
        names = [name for name in _options("variant") if name != "custom"]
        return {name: to_cell(compose(config_name=CONFIG_NAME, overrides=[f"variant={name}"])) for name in names}


def explain(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages as one sentence."""
    message = str(error).strip()
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and _first_line(cause) not in message:
        message = f"{_first_line(error).rstrip('.')}: {cause}" if message else str(cause)
    if not message:  # OmegaConf says nothing about some mappings
        message = f"The configuration cannot be composed ({type(cause or error).__name__}): check keys and values"
    lines = [line.strip() for line in message.splitlines()]
    dropped = ("object_type=", "reference_type=", "full_key:", "To append to your config use", "See https://")
    sentence = _sentence(" ".join(line for line in lines if line and not line.startswith(dropped)))
    unknown = re.search(r"Key '(\w+)' (?:is )?not in '(\w+)'", sentence)
    if unknown:
        sentence += _near_keys(unknown.group(1), unknown.group(2))
    return sentence


def _plan(args: argparse.Namespace) -> Plan:
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(args.overrides))
    task = [override for override in overrides if not override.key_or_group.startswith("hydra")]
    _check_group_choices(task)
    _refuse_suite_sweep(task)
    config_name = args.config_name or CONFIG_NAME
    fixed_choices = [override.input_line or "" for override in overrides if not override.is_sweep_override()]
    settings = compose(config_name=config_name, overrides=fixed_choices, return_hydra_config=True).hydra
    swept = any(override.is_sweep_override() for override in task)
    sweep = bool(args.multirun) or (settings.mode is not None and settings.mode.name == "MULTIRUN")
    if swept and not sweep:
        keys = ", ".join(override.key_or_group for override in task if override.is_sweep_override())
        raise ConfigError(f"{keys} lists several values: add --multirun to run each of them.")
    launcher = str(settings.runtime.choices.get("hydra/launcher", "basic"))
    if launcher != "basic" and not sweep:
        raise ConfigError(f"hydra/launcher={launcher} runs the cells of a sweep: add --multirun.")
    jobs = _jobs(loader, settings, args.overrides) if sweep else [[override.input_line or "" for override in task]]
    user_keys = [(override.key_or_group, override) for override in task]
    composer = _Composer(config_name)
    cells = []
    for job in jobs:
        choices = dict(part.lstrip("+~").split("=", 1) for part in job if "=" in part)
        _refuse_fixed_keys(choices.get("variant", "custom"), user_keys, composer)
        _refuse_preset_groups(choices.get("preset", "none"), user_keys, composer)
        cell = to_cell(composer.compose(job))
        variant = choices.get("variant", cell.variant_name)
        if cell.variant_name != variant and not cell.variant_name.startswith(f"{variant}_"):
            raise ConfigError(
                f"variant/{variant}.yaml says variant_name={cell.variant_name}: name it like its file, "
                "so that its rows carry the label that was asked for; more may follow after a _."
            )
        _refuse_changed_labels(cell, variant, composer)
        cells.append(cell)
    if not cells:
        raise ConfigError("The sweep is empty: name at least one variant.")
    return Plan(cells=tuple(cells), jobs=tuple(map(tuple, jobs)), sweep=sweep, launcher=launcher)


class _Composer:
    """Composes a command's cells. Hydra takes 80 ms to read a cell's files: cells that choose the same share them."""

    def __init__(self, config_name: str) -> None:
        self.config_name = config_name
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        self.parse = functools.cache(lambda part: parser.parse_overrides([part])[0])  # jobs share most of their parts
        self.repository = _repository()
        self.variants = set(_options("variant"))
        self.bases: dict[tuple[str, ...], bytes] = {}  # pickled, which copies six times faster than deepcopy
        self.alone = functools.cache(self._alone)
        self.fixed_keys = functools.cache(_fixed_keys)

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


def _jobs(loader: Any, settings: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """Overrides of each job, as Hydra's basic sweeper makes them, and ours; another's are not known beforehand."""
    sweeper = str(settings.sweeper.get("_target_", ""))
    if not sweeper.endswith(("BasicSweeper", "CheckedSweeper")):
        raise ConfigError(
            f"The sweeper {sweeper} decides its cells while it runs, so they cannot be checked first: "
            "use hydra/sweeper=basic."
        )
    params = [f"{key}={value}" for key, value in (settings.sweeper.params or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *overrides])
    task = [override for override in parsed if not override.key_or_group.startswith("hydra")]
    return [job for batch in BasicSweeper.split_arguments(task, None) for job in batch]


def _check_group_choices(overrides: Sequence[Override]) -> None:
    """An unknown choice of a group is refused by name, with the near misses."""
    for override in overrides:
        group = override.key_or_group
        if group not in GROUPS:
            continue
        known = _options(group)
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
        for value in values:
            if str(value).strip("'\"") not in known:
                raise ConfigError(unknown_name(group, str(value), known))


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """One sentence for a name that does not exist, with near misses or the whole list."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}."
    return f"There is no {kind} {name!r}: {hint}"


def _refuse_suite_sweep(overrides: Sequence[Override]) -> None:
    for override in overrides:
        if override.key_or_group == "suite" and override.is_sweep_override():
            raise ConfigError(
                "suite= takes one suite at a time, since each brings its own sweep: run them one after another."
            )


def _refuse_fixed_keys(variant: str, user_keys: Sequence[tuple[str, Override]], composer: _Composer) -> None:
    """A key that the variant fixes cannot be overridden beside it: the row's label would lie."""
    if variant == "custom":
        return
    fixed = composer.fixed_keys(variant)
    for key, _ in user_keys:
        if key in ("variant", "suite"):
            continue
        clash = next((name for name in fixed if key == name or name.startswith(f"{key}.")), None)
        if clash:
            raise ConfigError(
                f"{key}= cannot be set beside variant={variant}, which fixes it: its label would lie; "
                "use variant=custom and name the parts, or write a variant of your own (--config-dir)."
            )


def _refuse_preset_groups(preset: str, user_keys: Sequence[tuple[str, Override]], composer: _Composer) -> None:
    """A preset's numbers belong to the model that it names; single numbers may be overridden beside it."""
    groups = [name for name in composer.fixed_keys(preset, group="preset") if name in GROUPS]
    clash = next((key for key, _ in user_keys if key in groups), None)
    if clash:
        raise ConfigError(
            f"{clash}= cannot be set beside preset={preset}, whose numbers are meant for the {clash} that it names: "
            "choose another preset, or preset=none."
        )


def _refuse_changed_labels(cell: CellConfig, variant: str, composer: _Composer) -> None:
    """What a suite's body or sweep sets must not change what a variant's label says either."""
    if variant == "custom" or variant not in composer.variants:
        return
    alone = composer.alone(variant)
    for key in composer.fixed_keys(variant):
        if key == "variant_name":  # may name settings that the variant leaves open
            continue
        ours, theirs = _look_up(cell, key), _look_up(alone, key)
        if not dataclasses.is_dataclass(theirs) and ours != theirs:
            raise ConfigError(
                f"{key}={ours} stands beside variant={variant}, which fixes {key}={theirs}: its label would lie; "
                "take it out of the suite, or write a variant of your own (--config-dir)."
            )


def _look_up(cell: CellConfig, key: str) -> Any:
    value: Any = cell
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def _fixed_keys(name: str, *, group: str = "variant") -> list[str]:
    """Keys and groups that a variant's or preset's file sets, with the keys that the chosen groups' files set."""
    repository = _repository()
    result = repository.load_config(f"{group}/{name}")
    if result is None:
        raise ConfigError(unknown_name(group, name, _options(group)))
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


def _repository() -> IConfigRepository:
    return cast(ConfigLoaderImpl, GlobalHydra.instance().config_loader()).repository


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


def _options(group: str) -> list[str]:
    loader = GlobalHydra.instance().config_loader()
    return list(loader.get_group_options(group, results_filter=ObjectType.CONFIG))


@contextmanager
def _hydra_loader(config_dir: str | None) -> Iterator[None]:
    """The same search path that ``hydra.main`` will use, without running anything."""
    register()
    search_path = create_config_search_path(CONFIG_PATH)
    if config_dir is not None:
        folder = Path(config_dir).absolute()
        if not folder.is_dir():
            raise ConfigError(
                f"--config-dir {config_dir} is not a folder: name the one that holds your suite/ or variant/."
            )
        _refuse_shadows(folder)
        _refuse_bombs(folder)
        search_path.prepend(provider="command-line", path=f"file://{folder}", anchor="schema")
    GlobalHydra.instance().clear()
    try:
        Hydra.create_main_hydra2(task_name="metagrad-bench", config_search_path=search_path)
        yield
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
    files = [*folder.glob("*.yaml"), *(path for group in GROUPS for path in (folder / group).rglob("*.yaml"))]
    for path in filter(Path.is_file, files):
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


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Values of a YAML node with every alias in it written out; infinite where one holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _near_keys(key: str, type_name: str) -> str:
    """Near misses of a config key among the fields of the schema that refused it."""
    import bench.config as config

    schema = getattr(config, type_name, None)
    fields = list(getattr(schema, "__dataclass_fields__", {}))
    near = difflib.get_close_matches(key, fields, n=3)
    if near:
        return f" Did you mean {' or '.join(near)}?"
    return f" Known keys: {', '.join(fields)}." if fields else ""


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."
