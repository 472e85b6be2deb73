"""What a training leaves beside its record: flat tables of losses and of the hypernetwork, scalars for TensorBoard."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from bench.records.schema import HypernetPoint, RunRecord, TimingResult
from bench.records.write import write_atomic
from bench.units import Absent

# TensorBoard's own writer puts the host's name into the file name; a run folder is made to be shared.
EVENTS_NAME = "events.out.tfevents.metagrad-bench"


HYPERNET_FILE = "hypernet.csv"
DEVICE_FILE = "device.csv"
DEVICE_COLUMNS = (
    "power_w", "clock_mhz", "memory_clock_mhz", "temperature_c", "utilisation_pct", "process_bytes", "throttled",
)  # fmt: skip


def write_curves(
    folder: Path, record: RunRecord, losses: Sequence[float], hypernet: Sequence[HypernetPoint] = ()
) -> None:
    """Write ``training.csv`` (step, loss) and a TensorBoard event file into a run's folder.

    Where the hypernetwork was observed, also ``hypernet.csv``: a row per observed step and layer, an undefined figure
    (a gradient was not finite, or the layer's or what replaced it was zero) left empty. Where the device was watched
    while steps were timed, also ``device.csv``: a row per process and sample, an unknown value left empty.

    Args:
        folder: exists.
        record: its curve gives accuracy, learning rate and mean loss by epoch.
        losses: one per step, from the first.
        hypernet: observations in the order of the steps.

    Raises:
        RecordError: if a file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "loss"))
    writer.writerows((step, loss) for step, loss in enumerate(losses, start=1))
    write_atomic(folder / "training.csv", text.getvalue().encode(), replace=False)
    if hypernet:
        write_atomic(folder / HYPERNET_FILE, _hypernet_table(hypernet).encode(), replace=False)
    if record.timing is not None and any(repeat.device is not None for repeat in record.timing.repeats):
        write_atomic(folder / DEVICE_FILE, _device_table(record.timing).encode(), replace=False)
    write_atomic(folder / EVENTS_NAME, _events(record, losses), replace=False)


def _hypernet_table(points: Sequence[HypernetPoint]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [field.name for field in dataclasses.fields(HypernetPoint)]
    writer.writerow(columns)
    for point in points:
        values = [getattr(point, name) for name in columns]
        writer.writerow(["" if isinstance(value, Absent) else value for value in values])
    return text.getvalue()


def _device_table(timing: TimingResult) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # Not the process whose peak the memory pass reads: this one also holds FP32 beside the cell, and the data set.
    names = ["timing_process_bytes" if name == "process_bytes" else name for name in DEVICE_COLUMNS]
    writer.writerow(("repeat", "time_s", *names))
    for number, repeat in enumerate(timing.repeats):
        if repeat.device is None:
            continue
        count = len(repeat.device.time_s)
        columns = [getattr(repeat.device, name) for name in DEVICE_COLUMNS]
        filled = [(column,) * count if isinstance(column, Absent) else column for column in columns]
        for time_s, *values in zip(repeat.device.time_s, *filled, strict=True):
            writer.writerow((number, time_s, *("" if isinstance(value, Absent) else value for value in values)))
    return text.getvalue()


def _events(record: RunRecord, losses: Sequence[float]) -> bytes:
    # Imported here: TensorBoard's protocol buffers cost a third of a second.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)

    def add(tag: str, value: float | Absent, step: int, seconds: float) -> None:
        if not isinstance(value, Absent):
            scalar = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.write(Event(wall_time=seconds, step=step, summary=scalar).SerializeToString())

    writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
    for step, loss in enumerate(losses, start=1):
        add("loss/step", loss, step, 0.0)
    for point in record.accuracy.curve if record.accuracy is not None else ():
        add("loss/epoch", point.train_loss, point.step, point.seconds)
        add("accuracy/test_pct", point.test_accuracy_pct, point.step, point.seconds)
        add("learning_rate", point.learning_rate, point.step, point.seconds)
    for repeat in record.timing.repeats if record.timing is not None else ():
        for step, value in enumerate(repeat.step_ms, start=1):
            add("time/step_ms", value, step, 0.0)
    writer.flush()
    return stream.getvalue()
