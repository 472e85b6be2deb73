"""Convergence: where training started and ended, and when it reached what the straight-through estimator reached."""

from __future__ import annotations

from statistics import fmean

from bench.records.schema import AccuracyResult, RunRecord
from bench.units import Absent
from reports.rows import Row, Section
from reports.tables.cells import estimate_cell, label_cell
from reports.tables.model import Cell, Column, Table, absent_cell, build_table
from reports.values import is_synthetic


def convergence_table(section: Section) -> Table:
    """Start, end and pace of training; against STE as MetaQuant's Figs. 5 to 15 do."""
    reference = next((row for row in section.rows if row.method.name == "ste"), None)
    columns: tuple[Column, ...] = (
        Column(key="method", header="Method", numeric=False),
        Column(key="epochs", header="Epochs"),
        Column(key="steps", header="Steps"),
        Column(key="seconds", header="Training time", unit="s, mean over seeds", best="low"),
        Column(key="start", header="Accuracy at the start", unit="%, pretrained FP32"),
        Column(key="end", header="Accuracy at the end", unit="%", best="high"),
        Column(key="loss", header="Last epoch’s loss", unit="training, mean over seeds", best="low"),
    )
    if reference is not None:
        columns += (Column(key="reaches_ste", header="Reaches STE’s end", unit="steps; s", best="low"),)
    rows = []
    for row in section.rows:
        trained = [record for record in row.records if record.accuracy is not None]
        if not trained:
            continue
        results = [record.accuracy for record in trained if record.accuracy is not None]
        cells: tuple[Cell, ...] = (
            label_cell(row),
            Cell(text=f"{results[0].epochs:,}", value=results[0].epochs, source="accuracy.epochs"),
            Cell(text=f"{results[0].steps:,}", value=results[0].steps, source="accuracy.steps"),
            _seconds_cell(results),
            _start_cell(trained[0]),
            estimate_cell(row.accuracy, source="accuracy.test_accuracy_pct"),
            _loss_cell(results),
        )
        if reference is not None:
            cells += (_reach_cell(row, reference),)
        rows.append((row, cells))
    caption = "One evaluation an epoch, so steps and seconds to a value count whole epochs."
    if reference is not None:
        caption += (
            " A row that starts above STE’s end, and still is there after its first epoch, has nothing to reach. The "
            "start is that of the FP32 weights, before anything is quantized."
        )
    return build_table("convergence", "Convergence", caption, columns, rows)


def _seconds_cell(results: list[AccuracyResult]) -> Cell:
    ends = [(len(result.curve) - 1, result.curve[-1].seconds) for result in results if result.curve]
    if not ends:
        return absent_cell(Absent(reason="no epoch was finished"))
    seconds = fmean(end for _, end in ends)
    return Cell(text=f"{seconds:.1f}", value=seconds, source=f"accuracy.curve[{ends[0][0]}].seconds", unranked=True)


def _start_cell(record: RunRecord) -> Cell:
    assert record.accuracy is not None, "only trained records are asked"
    start = record.accuracy.pretrained_accuracy_pct
    if is_synthetic(record):
        return absent_cell(Absent(reason="synthetic data"))
    if isinstance(start, Absent):
        return absent_cell(start)
    return Cell(text=f"{start:.2f}", value=start, source="accuracy.pretrained_accuracy_pct")


def _loss_cell(results: list[AccuracyResult]) -> Cell:
    known = [result.final_train_loss for result in results if not isinstance(result.final_train_loss, Absent)]
    if not known:
        absent = results[0].final_train_loss
        assert isinstance(absent, Absent), "a result without a loss says why"
        return absent_cell(absent)
    loss = fmean(known)
    source = "accuracy.final_train_loss" if len(results) == 1 else ""
    return Cell(text=f"{loss:.4g}", value=loss, source=source, unranked=len(known) == 1)


def _reach_cell(row: Row, reference: Row) -> Cell:
    """Mean steps until the test accuracy first was what STE's of the same seed is after its last epoch."""
    if row is reference:
        return Cell(text="reference")
    ends = {record.seed: _end_of(record) for record in reference.records}
    pairs = [(record, end) for record in row.records if (end := ends.get(record.seed)) is not None]
    if not pairs:
        return absent_cell(Absent(reason="no accuracy of STE with the same seed"))
    above = [(record, end) for record, end in pairs if _starts_above(record, end)]
    if above:
        return _above_cell(above, len(pairs))
    reached = [hit for record, end in pairs if (hit := _first_at(record, end)) is not None]
    if len(reached) < len(pairs):
        return Cell(
            text="not reached", detail="" if len(pairs) == 1 else f"by {len(pairs) - len(reached)} of n = {len(pairs)}"
        )
    steps, seconds = fmean(step for _, step, _ in reached), fmean(second for _, _, second in reached)
    at = f"accuracy.curve[{reached[0][0]}]"
    count = f"; n = {len(reached)}" if len(reached) > 1 else ""
    return Cell(
        text=f"{steps:,.0f}", detail=f"{seconds:.1f} s{count}", value=steps, source=f"{at}.step",
        detail_sources=(f"{at}.seconds",), unranked=len(reached) == 1,
    )  # fmt: skip


def _starts_above(record: RunRecord, accuracy_pct: float) -> bool:
    """Whether a training never was below an accuracy until after its first epoch."""
    start = record.accuracy.pretrained_accuracy_pct if record.accuracy is not None else None
    hit = _first_at(record, accuracy_pct)
    return isinstance(start, int | float) and start >= accuracy_pct and hit is not None and hit[0] == 0


def _above_cell(above: list[tuple[RunRecord, float]], count: int) -> Cell:
    """What stands where a row began above STE's end: that it did, from where, and whether it ended below."""
    record, end = above[0]
    assert record.accuracy is not None, "only trained records are compared"
    own = _end_of(record)
    if count > 1:
        return Cell(text="starts above it", detail=f"{len(above)} of n = {count}")
    ends_below = ", ends below it" if own is not None and own < end else ""
    return Cell(text="starts above it", detail=f"{record.accuracy.pretrained_accuracy_pct:.2f} %{ends_below}")


def _end_of(record: RunRecord) -> float | None:
    if record.accuracy is None or is_synthetic(record):
        return None
    end = record.accuracy.test_accuracy_pct
    return None if isinstance(end, Absent) else end


def _first_at(record: RunRecord, accuracy_pct: float) -> tuple[int, int, float] | None:
    """Position, step and seconds of the first epoch at or above an accuracy."""
    for index, point in enumerate(record.accuracy.curve if record.accuracy is not None else ()):
        if not isinstance(point.test_accuracy_pct, Absent) and point.test_accuracy_pct >= accuracy_pct:
            return index, point.step, point.seconds
    return None
