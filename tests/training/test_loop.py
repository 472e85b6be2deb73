from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.config import CellConfig
from bench.data.base import DataSet
from bench.data.loader import EvalBatches, TrainBatches
from bench.errors import DivergedError
from bench.training.assemble import build_parts
from bench.training.loop import FitResult, evaluate, fit
from bench.units import Absent

CPU = torch.device("cpu")
MakeCell = Callable[..., CellConfig]


def train(cell: CellConfig, data: DataSet, test: bool = True) -> FitResult:
    parts = build_parts(cell, data, CPU)
    batches = TrainBatches(data, batch_size=cell.protocol.batch_size, seed=cell.seed, device=CPU)
    held_out = EvalBatches(data, batch_size=64, device=CPU) if test else None
    return fit(
        parts,
        batches,
        held_out,
        cell.optimizer,
        epochs=cell.protocol.epochs,
        phase="training",
        report=lambda _: None,
        observe_every=cell.hypernet.observe_every,
    )


@pytest.mark.parametrize("variant", ["fp32", "uint8_int4", "metagrad_int4_slim", "metagrad_int8_recompute"])
def test_two_runs_of_a_seed_are_bitwise_equal_and_another_seed_is_not(
    variant: str, make_cell: MakeCell, digits: DataSet
) -> None:
    first, second = (train(make_cell(f"variant={variant}", "protocol.epochs=2"), digits) for _ in range(2))
    other = train(make_cell(f"variant={variant}", "protocol.epochs=2", "seed=1"), digits)
    assert first.losses == second.losses
    assert first.losses_digest == second.losses_digest
    assert [point.test_accuracy_pct for point in first.curve] == [point.test_accuracy_pct for point in second.curve]
    assert first.losses_digest != other.losses_digest


def test_the_curve_has_a_point_per_epoch_and_a_loss_per_step(make_cell: MakeCell, digits: DataSet) -> None:
    result = train(make_cell("variant=fp32", "protocol.epochs=3", "optimizer.schedule=cosine"), digits)
    assert [point.step for point in result.curve] == [3, 6, 9]
    assert len(result.losses) == 9
    assert result.curve[1].train_loss == pytest.approx(sum(result.losses[3:6]) / 3)
    rates = [point.learning_rate for point in result.curve]
    assert rates == sorted(rates, reverse=True)
    assert all(0 <= point.test_accuracy_pct <= 100 for point in result.curve)


def test_divergence_stops_with_a_sentence_and_keeps_the_curve(make_cell: MakeCell, digits: DataSet) -> None:
    with pytest.raises(DivergedError, match=r"training diverged: the loss of step \d+ of 15") as caught:
        train(make_cell("variant=fp32", "optimizer.lr=1e30", "protocol.epochs=5"), digits)
    partial = caught.value.partial
    assert 0 < len(partial.losses) <= 15
    assert isinstance(partial.curve[-1].test_accuracy_pct, Absent)


def test_synthetic_or_no_test_data_shows_no_accuracy(make_cell: MakeCell, digits: DataSet) -> None:
    result = train(make_cell("variant=fp32"), digits, test=False)
    assert isinstance(result.curve[0].test_accuracy_pct, Absent)


def test_the_last_epochs_last_step_is_observed(make_cell: MakeCell, digits: DataSet) -> None:
    observation = train(make_cell("variant=metagrad_int8_recompute"), digits).observation
    assert observation is not None
    assert observation.amplification.shape == (20,)
    assert torch.isfinite(observation.meta_gradient_norm)


def test_the_hypernetwork_is_observed_at_the_last_steps_and_every_so_many(make_cell: MakeCell, digits: DataSet) -> None:
    cell = make_cell("variant=metagrad_int4_recompute", "protocol.epochs=2", "hypernet.observe_every=2")
    often = train(cell, digits)
    assert sorted({point.step for point in often.hypernet}) == [2, 3, 4, 6], "3 steps an epoch"
    assert len(often.hypernet) == 4 * 20
    first, last = often.hypernet[0], often.hypernet[-20]
    assert first.layer == last.layer == "conv1"
    assert often.observation is not None
    assert last.amplification == pytest.approx(float(often.observation.amplification[0]))
    assert last.zero_share_pct == pytest.approx(100 * float(often.observation.zero_share[0]))
    assert last.meta_grad_norm == pytest.approx(float(often.observation.meta_gradient_norm))
    seldom = train(make_cell("variant=metagrad_int4_recompute", "protocol.epochs=2"), digits)
    assert sorted({point.step for point in seldom.hypernet}) == [3, 6]
    assert seldom.hypernet == tuple(point for point in often.hypernet if point.step in (3, 6))
    assert seldom.losses == often.losses, "observing changes nothing"
    assert train(make_cell("variant=fp32"), digits).hypernet == ()


def test_accuracy_counts_the_right_answers(make_cell: MakeCell, digits: DataSet) -> None:
    parts = build_parts(make_cell("variant=fp32"), digits, CPU)
    test = EvalBatches(digits, batch_size=50, device=CPU)
    parts.model.eval()
    with torch.no_grad():
        right = sum(int((parts.model(x).argmax(1) == y).sum()) for x, y in test)
    assert evaluate(parts, test) == pytest.approx(100 * right / 64)
