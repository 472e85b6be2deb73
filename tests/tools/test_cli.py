from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from bench.app import parse_arguments, plan_cells
from bench.hardware import probe
from bench.hardware.probe import device_kinds
from bench.records.read import read_record
from tools.cli import VERBS, main
from tools.run import _with_devices, _with_threads

PROGRAM = [sys.executable, "-m", "tools.cli"]
ROOT = Path(__file__).parents[2]


def call(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run([*PROGRAM, *argv], capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([verb, "--help"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    text = capsys.readouterr().out
    assert code == 0
    assert f"metagrad-bench {verb}" in text
    assert "example" in text.lower()


def test_the_program_lists_its_verbs_and_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)
    assert main(["--version"]) == 0
    assert main([]) == 2


def test_an_unknown_verb_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runn"]) == 2
    assert "run, status, report, gate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (["suite=demo", "method=nonsense"], "nonsense"),
        (["suite=demo", "seed=abc"], "abc"),
        (["suite=demo", "nonsense=1"], "nonsense"),
        (["suite=demo", "data=fashion_mnist", "data.root=missing/data", "data.download=false"], "missing/data"),
        (["suite=demo", "model=vgg16", "data.image_size=2"], "vgg16"),
        (["model=custom"], "model.factory"),
        (["variant=custom", "method=ste"], "weight_bits"),
        (["variant=fp32", "output_dir=/proc/x"], "no folder can be in /proc"),
        (["variant=fp32", "protocol.batch_size=99999999999999999999"], "at most 1,048,576"),
        (["variant=fp32", "protocol.timing_processes=1000000000000"], "at most 1,000"),
        (["variant=fp32", "data.workers=100000"], "1 to 4,096"),
        (["variant=fp32", "protocol.passes=[timing,timing]"], "each once"),
        (["variant=fp32", "compact=7"], "true or false"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    override: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *override]) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert len(captured.err.strip().splitlines()) <= 6
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff\xfe", "variant/mine.yaml in --config-dir"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"# @package _global_\nseed: " + b"9" * 6000, "variant/mine.yaml in --config-dir"),
        (b"a:\n\t- 1", "variant/mine.yaml"),
        (b"# @package _global_\nseed: ${seed}", "variant/mine.yaml: seed holds ${seed}, which leads back to itself"),
        (b"# @package _global_\nseed: abc", "In 'variant/mine'"),
        (b"# @package _global_\nseed: -4", "variant/mine.yaml: seed=-4"),
        (b"seed: *nobody", "variant/mine.yaml"),
    ],
)
def test_a_damaged_variant_of_ones_own_is_named_in_a_sentence(
    content: bytes, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "variant").mkdir()
    (tmp_path / "variant" / "mine.yaml").write_bytes(content)
    assert main(["list", "variants", "--config-dir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["list", "--config-dir", ""], "empty path"),
        (["estimate", "gpu=h100", "--config-dir", ""], "empty path"),
        (["run", "variant=fp32", "--config-dir", ""], "empty path"),
        (["estimate", "gpu=h100", "--config-dir", "nowhere", "variant=fp32"], "nowhere is not a folder"),
    ],
)
def test_an_empty_path_is_refused_and_flags_may_stand_between_settings(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert named in capsys.readouterr().err


def test_an_output_that_is_ascii_or_closed_changes_no_answer(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "mine.yaml").write_text("# \u00e9\u2207\U0001f600\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    lists = [*PROGRAM, "list", "suites", "--config-dir", str(tmp_path)]
    text, as_json = (
        subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True).stdout
        for argv in (lists, [*lists, "--json"])
    )
    assert "\\u2207" in text
    assert {"name": "mine", "what": "\u00e9\u2207\U0001f600"} in json.loads(as_json)["suites"]
    closed = f"exec {shlex.join([*PROGRAM, 'run', 'variant=fp32', '--cfg', 'job'])} >&-"
    run = subprocess.run(closed, shell=True, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    "argv",
    [
        ["gate", "PATH", "--baseline", "PATH"],
        ["report", "PATH", "-o", "PATH"],
        ["status", "PATH"],
        ["baseline", "PATH", "-o", "PATH"],
        ["list", "--config-dir", "PATH"],
        ["run", "variant=fp32", "--config-dir", "PATH"],
        ["run", "variant=fp32", "output_dir=PATH"],
        ["kernels", "--json", "PATH"],
    ],
)
def test_a_path_that_is_too_long_is_one_sentence(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([part.replace("PATH", "x" * 3000) for part in argv]) == 2
    error = capsys.readouterr().err
    assert "File name too long" in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_real_command_line_refuses_like_the_function(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder", encoding="utf-8")
    cases = [
        (["run", "suite=demo", "method=nonsense"], "nonsense"),
        (["run", "suite=demo", "device=cuda:99"], "cuda:99"),
        (["run", "suite=demo", f"output_dir={blocker}/below"], "file"),
    ]
    for argv, named in cases:
        run = call(*argv, cwd=tmp_path)
        assert run.returncode == 2, run.stderr
        assert named in run.stderr
        assert run.stdout == ""
        assert len(run.stderr.strip().splitlines()) <= 6
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_truncated_data_set_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (root / f"{name}-ubyte").write_bytes(b"\x00\x00\x08\x03\x00\x00")
    run = call("run", "suite=demo", "data=fashion_mnist", f"data.root={root}", "data.download=false", cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    assert "ubyte" in run.stderr
    assert len(run.stderr.strip().splitlines()) <= 6
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_a_second_ctrl_c_while_an_interrupted_program_ends_changes_nothing(first: str, tmp_path: Path) -> None:
    script = (
        "import atexit, os, signal, sys, types\n"
        "from tools import cli\n"
        "verb = sys.modules['tools.listing'] = types.ModuleType('tools.listing')\n"
        "def interrupted(arguments):\n"
        f"    os.kill(os.getpid(), signal.{first})\n"
        "verb.main = interrupted\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "sys.argv[1:] = ['list']\n"
        "sys.exit(cli.main())\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 130
    assert run.stderr.splitlines() == ["metagrad-bench: Interrupted."]


def test_where_the_memory_does_not_suffice_a_verb_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(arguments: list[str]) -> int:
        raise MemoryError

    module = types.ModuleType("greedy_verb")
    module.main = fill  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "greedy_verb", module)
    for verb, code in (("report", 2), ("run", 1)):
        monkeypatch.setitem(VERBS, verb, ("greedy_verb", ""))
        assert main([verb]) == code
        said = capsys.readouterr().err
        assert said == "metagrad-bench: The memory does not suffice: name fewer folders or cells at a time.\n"


@pytest.mark.parametrize(
    ("verb", "promise"),
    [("run", "the same command goes on"), ("gate", "the command starts anew"), ("report", "Interrupted.")],
)
def test_an_interrupted_verb_promises_only_what_its_next_call_does(
    verb: str, promise: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    module = types.ModuleType("interrupted_verb")
    module.main = interrupted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "interrupted_verb", module)
    monkeypatch.setitem(VERBS, verb, ("interrupted_verb", ""))
    assert main([verb]) == 130
    err = capsys.readouterr().err
    assert promise in err
    assert ("goes on" in err) == (verb == "run")


def test_list_is_machine_readable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "suites", "gpus", "--json"]) == 0
    lists = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in lists["methods"]} == {
        "fp32", "bf16", "ste", "uniform", "dorefa", "uint8", "daint8", "sbm", "wageubn", "afp", "cpt", "fp4",
        "metaquant", "metagrad",
    }  # fmt: skip
    assert all(row["source"] for row in lists["methods"])
    assert {row["name"] for row in lists["suites"]} >= {"demo", "single"}
    assert len(lists["gpus"]) > 10
    assert all(value and value != "n/a" for row in lists["gpus"] for value in row.values()), "an n/a has its reason"


def test_variants_are_listed_with_the_formats_that_they_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "variants", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["variants"]}
    formats = {name: rows[name]["weights/activations/error signals/∇W"] for name in ("cpt_int8", "fp4", "afp_int8")}
    assert formats == {
        "cpt_int8": "int3-8/int3-8/int8/fp32",
        "fp4": "int4/int4/fp4/fp32",
        "afp_int8": "int8/int8/int8-24/fp32",
    }


def test_list_prints_every_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("suites", "variants", "models", "methods", "datasets", "gpus", "resnet20"))


def test_in_a_pipe_every_name_of_a_list_stands_whole_on_a_line_with_its_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["list", "variants", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (variant,) = (line.split() for line in lines if line.startswith("metaquant_multi_fc_h100_relu"))
    assert variant[1:7] == ["metaquant", "int1/fp32/fp32/fp32", "multi_fc,", "recompute", "A", "row"], (
        "its file's comment"
    )
    (method,) = (line for line in lines if line.startswith("metagrad "))
    assert method.rstrip().endswith("Eq. 2-13")


def test_all_devices_are_a_sweep_over_one_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "device_kinds", lambda: ("cpu", "cuda:0", "cuda:2"))
    argv = _with_devices(["suite=demo", "device=all", "seed=0"])
    cells = plan_cells(parse_arguments(argv)).cells
    assert {cell.device for cell in cells} == {"cpu", "cuda:0", "cuda:2"}
    assert len(cells) == 3 * len({cell.variant_name for cell in cells})
    one = plan_cells(parse_arguments(_with_devices(["variant=fp32", "device=all"])))
    assert [cell.device for cell in one.cells] == ["cpu", "cuda:0", "cuda:2"]
    monkeypatch.setattr(probe, "device_kinds", lambda: ("cpu",))
    assert _with_devices(["variant=fp32", "device=all"]) == ["variant=fp32", "device=cpu"]
    assert _with_devices(["variant=fp32", "device=cuda:1"]) == ["variant=fp32", "device=cuda:1"]


def test_threads_of_cells_side_by_side_are_those_of_one_wherever_the_flags_stand() -> None:
    plan = plan_cells(parse_arguments(_with_threads(["seed=1,2", "hydra/launcher=joblib", "--multirun"])))
    assert [cell.protocol.threads for cell in plan.cells] == [torch.get_num_threads()] * 2


def test_all_devices_of_this_machine_are_measured_and_named_in_their_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "run", "variant=fp32", "device=all", "data=synthetic", "protocol=tiny", "protocol.pretrain_epochs=0",
        "protocol.passes=[timing]", f"output_dir={tmp_path}", "progress=false",
    ]  # fmt: skip
    assert main(argv) == 0
    capsys.readouterr()
    records = [read_record(path) for path in sorted(tmp_path.rglob("record.json"))]
    assert {record.device for record in records} == set(device_kinds())
    assert len({record.fingerprint for record in records}) == len(records)
