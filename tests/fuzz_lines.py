"""Command lines and config files drawn from a grammar of what exists, what nearly exists and what makes no sense."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any

from bench.composing.search_path import GROUPS
from bench.config import CellConfig

VALUES = (
    "", "null", "~", "0", "1", "-1", "3.5", "1e400", "nan", "-inf", "true", "no", "[]", "{}", "[1,2]", "{a:1}",
    "[1,2", "{a",
    "a b", "a=b", "'q'", "'", '"', "\\", "x,y", "1,2,3", "range(0,3)", "choice(1,x)", "interval(0,1)", "glob(*)",
    "sort(1,2)",
    "shuffle(1,2)", "${seed}", "${nope}", "${oc.env:NOPE}", "${oc.env:HOME}", "${", "???", "auto", "cpu", "cuda:9",
    "all",
    "../x", "/dev/null", "/proc/1/mem", "é", "\u202e", "日本", "😀", "\t", "\n", "0x10", "1_0", "9" * 30, "x" * 3000,
    "!!python/object:os.system", "%s", "{0}", "$HOME", "@here", "a@b", "a/b", "a.b.c", "-", "--", "=", ":", "fp32",
    "metagrad_int4_slim", "ste_int8", "resnet20", "digits", "none", "tiny", "demo", "\udcff",
)  # fmt: skip
ODD_KEYS = (
    "", "=", ".", "a", "model.", ".name", "model.name.x", "model@x", "optimizer@y.z", "é", "hydra", "hydra.job.name",
    "hydra.run.dir", "hydra.sweep.dir", "hydra.mode", "hydra.verbose", "hydra.sweeper.params",
    "hydra.sweeper.max_batch_size",
    "hydra/launcher", "hydra/sweeper", "hydra.launcher.n_jobs", "hydra/job_logging", "hydra.searchpath",
    "hydra.job.chdir",
    "hydra.output_subdir", "hydra.launcher._target_", "hydra.sweeper._target_", "hydra.callbacks", "defaults",
    "_target_",
)  # fmt: skip
FLAGS: tuple[tuple[str, ...], ...] = (
    ("-m",), ("--multirun",), ("--cfg", "job"), ("--cfg", "x"), ("--cfg",), ("--info", "all"), ("--info", "x"),
    ("--resolve",),
    ("--package", "model"), ("--config-name", "nope"), ("--config-name", "config"), ("--config-path", "/nope"),
    ("--config-dir", "/nope"), ("--config-dir", ""), ("--experimental-rerun", "/nope"), ("--nonsense",), ("-x",),
    ("--hydra-help",), ("--run",), ("-sc", "x"), ("--version",), ("--",),
)  # fmt: skip
YAML = (
    "", "[]", "a", "- a\n- b", "{", "a: b: c", "\t", "a: &x [*x]", "? [a]\n: b", "seed: 1", "seed: abc",
    "weight_bits: 9",
    "variant_name: VARIANT", "variant_name: [1]", "suite_name: ''", "suite_name: ../up", "model: resnet20",
    "model: null",
    "defaults: 3", "defaults: [nope]", "defaults: [{override /model: nope}]",
    "defaults: [{override /method: ste}, _self_]",
    "defaults: [SUITE]", "hydra: {mode: MULTIRUN, sweeper: {params: {variant: 'fp32,ste_int4'}}}", "hydra: 3",
    "hydra: {mode: NOPE}", "hydra: {sweeper: {params: {seed: 'range(0,3)'}}, mode: MULTIRUN}",
    "hydra: {sweeper: {params: 3}}",
    "x: !!python/object/apply:os.system ['true']", "1: 2", "~: 1", "? \n: x", "seed: ${nope}", "seed: ${seed}",
    "output_dir: null",
    "protocol: {passes: [nope]}", "é: 1", "\ufeffseed: 1", "---\nseed: 1\n---\nseed: 2", "seed: 2026-01-01", "a: 'b",
)  # fmt: skip
FILES: dict[str, bytes] = {
    "empty.json": b"", "cut.json": b'{"schema_version": 1,', "list.json": b"[]",
    "other.json": b'{"a": 1}', "bytes": bytes(range(256)),
    "deep.json": b"[" * 5000, "newer.json": b'{"schema_version": 999, "key": "x", "entries": []}', "null.json": b"null",
    "few.json": b'{"schema_version": 1, "key": "x"}', "nan.json": b'{"schema_version": NaN}',
}  # fmt: skip


def leaf_keys(kind: Any = CellConfig, prefix: str = "") -> list[str]:
    """Every key of the configuration."""
    keys = []
    for field in dataclasses.fields(kind):
        inner = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
        keys += leaf_keys(inner, f"{prefix}{field.name}.") if inner is not None else [f"{prefix}{field.name}"]
    return keys


KEYS = [*leaf_keys(), *GROUPS, *ODD_KEYS]


def make_files(folder: Path, good_record: bytes) -> None:
    """Folders and files for the lines to name: a whole record, damaged ones, an odd folder, a link in a circle."""
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / "record.json").write_bytes(content)
    (folder / "good" / "one").mkdir(parents=True)
    (folder / "good" / "one" / "record.json").write_bytes(good_record)
    changed = json.loads(good_record) | {"schema_version": "1", "seed": "x"}
    (folder / "runs" / "typed").mkdir()
    (folder / "runs" / "typed" / "record.json").write_text(json.dumps(changed), encoding="utf-8")
    (folder / "loop").mkdir()
    (folder / "loop" / "again").symlink_to(folder / "loop")
    (folder / "none").mkdir()
    (folder / "é 😀").mkdir()


def draw_line(number: int, folder: Path) -> list[str]:
    """The line of that number, always the same; config files that it names are written into the folder."""
    rng = Random(number)
    verb = rng.choices(
        (
            "run",
            "report",
            "gate",
            "baseline",
            "status",
            "list",
            "estimate",
            "doctor",
            "kernels",
            "hypernets",
            "",
            "run",
        ),
        (14, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 4),
    )[0]
    if verb == "run":
        return ["run", *_run_arguments(rng, folder, number)]
    if verb == "":
        return [rng.choice(VALUES) for _ in range(rng.randint(0, 2))]
    return [verb, *_other_arguments(rng, verb, folder)]


def _run_arguments(rng: Random, folder: Path, number: int) -> list[str]:
    arguments = []
    if rng.random() < 0.4:
        arguments += _own_files(rng, folder / f"configs{number}", number)
    for _ in range(rng.randint(0, 4)):
        prefix = rng.choice(("", "", "", "", "+", "++", "~"))
        key = rng.choice(KEYS)
        arguments.append(f"{prefix}{key}={rng.choice(VALUES)}" if rng.random() < 0.93 else f"{prefix}{key}")
    if rng.random() < 0.4:
        arguments[rng.randint(0, len(arguments)) :] = rng.choice(FLAGS)
    return arguments


def _own_files(rng: Random, configs: Path, number: int) -> list[str]:
    """A config folder with a suite and a variant out of a few odd pieces."""
    chosen = []
    for group in ("suite", "variant"):
        name = f"mine{number}"
        (configs / group).mkdir(parents=True)
        pieces = [rng.choice(YAML) for _ in range(rng.randint(1, 3))]
        head = "# @package _global_\n" if rng.random() < 0.8 else ""
        text = head + "\n".join(pieces).replace("VARIANT", name).replace("SUITE", name)
        content = text.encode() if rng.random() < 0.9 else bytes(rng.randrange(256) for _ in range(40))
        (configs / group / f"{name}.yaml").write_bytes(content)
        if rng.random() < 0.7:
            chosen.append(f"{group}={name}")
    return ["--config-dir", str(configs), *chosen]


def _other_arguments(rng: Random, verb: str, folder: Path) -> list[str]:
    places = [*FILES, "runs", "good", "loop", "none", "é 😀", "missing", "runs/typed", ""]
    place = lambda: str(folder / rng.choice(places))  # noqa: E731
    value = lambda: rng.choice(VALUES)  # noqa: E731
    options: dict[str, list[list[str]]] = {
        "report": [["-o", str(folder / "report")], ["-o", str(folder / "bytes")], ["-o"], ["--nope"]],
        "gate": [["--baseline", place()], ["--baseline", place()], ["--thresholds", place()], ["--json"], ["--nope",
        value()],
                 ["--explain", value()]],
        "baseline": [["-o", str(folder / "none" / "b.json")], ["-o", place()], ["--nope"]],
        "status": [["--json"], ["--once"], ["--every", value()], ["--nope"]],
        "list": [["--json"], ["--config-dir", place()], ["methods"], ["gpus"], ["nope"]],
        "estimate": [["gpu=h100"], ["gpu=nope"], ["batch=0"], ["batch=x"], ["suite=nope"], ["--nope"],
        ["variant=nope"]],
        "doctor": [["--nope"], ["--help"], ["--json", "x"]],
        "kernels": [["--help"], ["--nope"], ["--model", "nope"], ["--batch", "0"], ["--device", "cuda:9"]],
        "hypernets": [["--help"], ["--nope"], ["--case", "nope"], ["--device", "cuda:9"]],
    }  # fmt: skip
    arguments = [part for choice in rng.sample(options[verb], rng.randint(1, 2)) for part in choice]
    if verb in ("report", "gate", "baseline", "status"):
        arguments = [*(place() for _ in range(rng.randint(0, 2))), *arguments]
    if verb in ("doctor", "kernels", "hypernets"):
        arguments.append(rng.choice(("--nonsense", "--help")))  # never measures
    if verb == "estimate":
        arguments.append(rng.choice(("nonsense", "seed=x", "device=cuda", "method=nope")))
    if rng.random() < 0.2:
        arguments.append(value())
    return arguments
