"""What comes from elsewhere is read, never executed: checkpoints, weights, downloads, archives, YAML, records."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.app import parse_arguments, plan_cells
from bench.data import fashion_mnist, place
from bench.data.cifar import CIFAR10, CIFAR100
from bench.errors import ConfigError, DataError
from bench.records.schema import RunRecord
from bench.records.write import write_record
from tools.cli import main

ROOT = Path(__file__).parents[1]
# Calls that execute or unpack what they are given, and where one may stand.
EXECUTING = {
    "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "yaml.load", "yaml.full_load",
    "yaml.unsafe_load", "joblib.load", "dill.load", "shutil.unpack_archive", "runpy.run_path", "runpy.run_module",
    "os.system", "os.popen",
}  # fmt: skip
OWN_BYTES = {("bench/composing/cells.py", "pickle.loads")}  # what the same object pickled, never a file
UNPACKING = {"extractall", "extract"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for folder in ("bench", "reports", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def test_nothing_executes_or_unpacks_what_it_reads() -> None:
    for place_, call in calls():
        name = dotted(call.func)
        allowed = (place_.split(":")[0], name) in OWN_BYTES
        assert name not in EXECUTING or allowed, f"{place_} calls {name}"
        assert name.rsplit(".", 1)[-1] not in UNPACKING, f"{place_} unpacks an archive to the disk"


def test_every_torch_load_takes_tensors_and_plain_values_only() -> None:
    loads = [(place_, call) for place_, call in calls() if dotted(call.func) == "torch.load"]
    assert loads
    for place_, call in loads:
        only = [keyword.value for keyword in call.keywords if keyword.arg == "weights_only"]
        assert len(only) == 1, place_
        assert isinstance(only[0], ast.Constant), place_
        assert only[0].value is True, place_


def test_every_download_has_a_checksum_and_another_file_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = [(place_, call) for place_, call in calls() if dotted(call.func) == "pooch.retrieve"]
    assert [place_.split(":")[0] for place_, _ in downloads] == ["bench/data/place.py"]
    assert all(dotted(call.args[1]) == "checksum" for _, call in downloads)
    for checksum in (CIFAR10.checksum, CIFAR100.checksum):
        assert len(checksum.removeprefix("md5:")) == 32
    assert all(len(part.archive_sha256) == 64 for part in fashion_mnist.PARTS)

    class Downloader:
        def __init__(self, **settings: object) -> None:
            pass

        def __call__(self, url: str, output_file: str, _: object) -> None:
            Path(output_file).write_bytes(b"something else")

    monkeypatch.setattr("pooch.HTTPDownloader", Downloader)
    with pytest.raises(DataError, match="not the file with sha256"):
        place.fetch(["https://example.org/file"], tmp_path / "file", f"sha256:{'0' * 64}")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    "line",
    [
        "seed: !!python/object/apply:os.mkdir [{target}]",
        "seed: !!python/object/new:os.mkdir [{target}]",
        "seed: !!python/name:os.mkdir",
        "protocol: {{passes: &a [*a]}}",
        "protocol: &a {{passes: *a}}",
    ],
)
def test_yaml_is_plain(line: str, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    (tmp_path / "variant").mkdir()
    text = f"# @package _global_\nvariant_name: mine\n{line.format(target=target)}\n"
    (tmp_path / "variant" / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        plan_cells(parse_arguments(["variant=mine", "--config-dir", str(tmp_path)]))
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("last", ["*a19", "{seed: *a19}"])
def test_a_few_lines_of_aliases_do_not_fill_the_memory(last: str, tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 20)), f"last: {last}"]
    (tmp_path / "variant").mkdir()
    (tmp_path / "variant" / "mine.yaml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"variant/mine\.yaml .* stands for more than 100,000 values"):
        plan_cells(parse_arguments(["variant=mine", "--config-dir", str(tmp_path)]))


def test_an_alias_that_stands_for_little_is_read(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    text = "# @package _global_\nsuite_name: mine\nseed: &seed 3\nprotocol: {warmup_steps: *seed}\n"
    (tmp_path / "suite" / "mine.yaml").write_text(text, encoding="utf-8")
    (cell,) = plan_cells(parse_arguments(["suite=mine", "--config-dir", str(tmp_path)])).cells
    assert (cell.seed, cell.protocol.warmup_steps) == (3, 3)


def test_a_report_shows_what_a_record_holds_and_runs_none_of_it(
    make_record: Callable[..., RunRecord], tmp_path: Path
) -> None:
    hostile = "<script>alert(1)</script>{{ 7*'7' }}{% for x in y %}"
    record = make_record(status="crashed", reason=hostile, notices=(hostile,), variant=f"v{hostile}")
    write_record(tmp_path / "runs" / "cell", record, config_yaml="seed: 0\n")
    assert main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "7777777" not in page
