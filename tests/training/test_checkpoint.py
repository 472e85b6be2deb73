from __future__ import annotations

import dataclasses
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.config import CellConfig
from bench.data.base import DataSet
from bench.data.loader import EvalBatches, TrainBatches
from bench.errors import StoppedError
from bench.files import DamagedFileError, write_sealed
from bench.seeding import globals_state, seed_globals, set_globals_state
from bench.training.assemble import Parts, build_parts
from bench.training.checkpoint import Checkpoints, seal_state, seal_weights, unseal_state, unseal_weights
from bench.training.history import FitResult
from bench.training.loop import fit

CPU = torch.device("cpu")
MakeCell = Callable[..., CellConfig]
SMALL = ("model=custom", "model.factory=tools.faults.nets:SmallNet", "protocol.batch_size=16", "protocol.epochs=3")
VARIANTS = (
    "fp32", "bf16", "ste_int4", "uint8_int4", "daint8_int4", "dorefa_int6", "uniform_int4", "sbm_int8", "wageubn_int8",
    "afp_int8", "cpt_int8", "fp4", "metagrad_int4_retain", "metagrad_int4_slim", "metagrad_int8_recompute",
    "metagrad_int8_tabulate", "metaquant_multi_fc_retain",
)  # fmt: skip


class StopAfter:
    """Takes progress; asks to stop at the end of one step, and after it at the next call."""

    def __init__(self, *steps: int) -> None:
        self.steps = set(steps)

    def __call__(self, progress: dict[str, Any]) -> None:
        if "step_ms" in progress and progress["done"] in self.steps:
            raise StoppedError


def train(
    cell: CellConfig, data: DataSet, checkpoints: Checkpoints | None = None, report: Any = lambda _: None
) -> tuple[FitResult, Parts]:
    seed_globals(7)
    parts = build_parts(cell, data, CPU)
    batches = TrainBatches(data, batch_size=cell.protocol.batch_size, seed=cell.seed, device=CPU)
    test = EvalBatches(data, batch_size=32, device=CPU)
    result = fit(
        parts, batches, test, cell.optimizer, epochs=cell.protocol.epochs, phase="training", report=report,
        observe_every=2, sample_every=3, checkpoints=checkpoints,
    )  # fmt: skip
    return result, parts


def checkpoints_in(folder: Path, every_s: float = 1e6) -> Checkpoints:
    return Checkpoints(folder, owner="a cell", every_s=every_s)


def assert_same(one: tuple[FitResult, Parts], other: tuple[FitResult, Parts]) -> None:
    """Bitwise: losses, curve but for its seconds, observations, every parameter and buffer, the random generators."""
    for name in ("losses", "losses_digest", "hypernet"):
        assert getattr(one[0], name) == getattr(other[0], name), name
    curves = [[dataclasses.replace(point, seconds=0.0) for point in result.curve] for result, _ in (one, other)]
    assert curves[0] == curves[1]
    states = [parts.model.state_dict() for _, parts in (one, other)]
    for name, value in states[0].items():
        same = torch.equal(value, states[1][name]) if isinstance(value, torch.Tensor) else value == states[1][name]
        assert same, name


@pytest.mark.parametrize(
    ("variant", "optimizer"),
    [*((name, "momentum") for name in VARIANTS), ("metagrad_int8_recompute", "adam"), ("fp32", "adam")],
)
def test_a_training_that_was_interrupted_ends_bitwise_like_one_that_was_not(
    variant: str, optimizer: str, make_cell: MakeCell, digits: DataSet, tmp_path: Path
) -> None:
    data = dataclasses.replace(digits, train_images=digits.train_images[:80], train_labels=digits.train_labels[:80])
    settings = () if variant.startswith("wageubn") else (f"optimizer={optimizer}",)
    cell = make_cell(f"variant={variant}", *SMALL, *settings)
    whole = train(cell, data)
    assert len(whole[0].losses) == 15
    for stop in (3, 10):  # within an epoch, and at an epoch's end
        with pytest.raises(StoppedError):
            train(cell, data, checkpoints_in(tmp_path), StopAfter(stop))
        assert checkpoints_in(tmp_path).newest()[0] == stop  # type: ignore[index]
    resumed = train(cell, data, checkpoints_in(tmp_path))
    assert_same(resumed, whole)
    assert whole[0].notices == ()
    assert [notice for notice in resumed[0].notices if "went on after step" in notice] == [
        "The training was interrupted and went on after step 3 of 15.",
        "The training was interrupted and went on after step 10 of 15.",
    ]


def test_checkpoints_are_taken_as_often_as_asked_and_the_last_two_are_kept(
    make_cell: MakeCell, digits: DataSet, tmp_path: Path
) -> None:
    cell = make_cell("variant=fp32", *SMALL)
    train(cell, digits, checkpoints_in(tmp_path / "always", every_s=0))
    assert sorted(path.name for path in (tmp_path / "always").iterdir()) == [
        "step-000000000035.ckpt",
        "step-000000000036.ckpt",
    ]
    train(cell, digits, checkpoints_in(tmp_path / "never"))
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "foreign", "folder"])
def test_a_damaged_checkpoint_is_left_for_the_one_before_and_said_so(
    damage: str, make_cell: MakeCell, digits: DataSet, tmp_path: Path
) -> None:
    cell = make_cell("variant=metagrad_int8_recompute", *SMALL)
    whole = train(cell, digits)
    with pytest.raises(StoppedError):
        train(cell, digits, checkpoints_in(tmp_path, every_s=0), StopAfter(20))
    older, newest = sorted(tmp_path.iterdir())
    content = newest.read_bytes()
    if damage == "folder":
        newest.unlink()
        newest.mkdir()
    else:
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        newest.write_bytes(
            {"cut": content[:-9], "bit": bytes(flipped), "empty": b"", "foreign": b"PK" + content}[damage]
        )
    resumed = train(cell, digits, checkpoints_in(tmp_path))
    assert_same(resumed, whole)
    left, went_on = sorted(resumed[0].notices, key=lambda text: "went on" in text)
    assert left.startswith(f"The checkpoint {newest.name} is damaged and was left for the one before")
    assert "went on after step 19 of 36" in went_on
    older.write_bytes(b"")
    assert_same(train(cell, digits, checkpoints_in(tmp_path)), whole), "without any, it starts over"


def test_a_checkpoint_of_another_cell_is_not_read(make_cell: MakeCell, digits: DataSet, tmp_path: Path) -> None:
    train(make_cell("variant=fp32", *SMALL), digits, checkpoints_in(tmp_path, every_s=0))
    assert Checkpoints(tmp_path, owner="another cell", every_s=0).newest() is None


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(target),)

    write_sealed(tmp_path / "plain.ckpt", pickle.dumps({"state": Attack()}, protocol=2))
    torch.save({"state": Attack()}, tmp_path / "zipped")
    write_sealed(tmp_path / "zipped.ckpt", (tmp_path / "zipped").read_bytes())
    for name in ("plain.ckpt", "zipped.ckpt"):
        with pytest.raises(DamagedFileError):
            unseal_state(tmp_path / name)
    assert not target.exists()


def test_fp32_weights_under_another_name_or_without_their_parts_are_damaged(tmp_path: Path) -> None:
    one, other = tmp_path / "resnet20-digits-seed0-aa.pt", tmp_path / "resnet20-digits-seed1-bb.pt"
    seal_weights(one, {"weight": torch.ones(2)}, accuracy_pct=98.5, notices=["a notice"])
    content = unseal_weights(one)
    assert content["state"]["weight"].tolist() == [1, 1]
    assert (content["accuracy_pct"], content["notices"]) == (98.5, ["a notice"])
    shutil.copy(one, other)
    with pytest.raises(DamagedFileError, match="under another name"):
        unseal_weights(other)
    seal_state(one, {"state": {}})
    with pytest.raises(DamagedFileError, match="no FP32 weights"):
        unseal_weights(one)


def test_a_disk_that_takes_no_checkpoint_is_said_and_stops_nothing(
    make_cell: MakeCell, digits: DataSet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    cell = make_cell("variant=fp32", *SMALL)
    done = train(cell, digits, checkpoints_in(tmp_path / "file" / "folder", every_s=0))
    assert_same(done, train(cell, digits))
    assert done[0].notices == ("Checkpoints of the training could not be written (Not a directory).",)


def test_the_global_generators_go_on_where_they_stood() -> None:
    def draw() -> list[float]:
        return [float(torch.rand(())), float(np.random.standard_normal()), random.gauss(0, 1), random.random()]

    seed_globals(3)
    draw()  # half a pair of normal numbers is kept for the next call
    state = globals_state()
    first = draw()
    seed_globals(4)
    set_globals_state(state)
    assert draw() == first
