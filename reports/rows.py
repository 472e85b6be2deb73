"""Records grouped into comparable sections and rows: seeds are aggregated, machines and code versions never are.

Definitions (docs/measuring.md): a section holds one suite, model, data set, device, machine, code version and batch
size; a row holds one configuration, its seeds together. Differences to FP32 pair equal seeds; ratios to another row
compare ``time_vs_fp32`` of both, since each was measured against FP32 steps in its own processes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records.schema import Interval, Label, MethodFacts, RunRecord, Summary
from bench.stats import mean_interval, ratio_interval, summarize
from bench.units import Absent
from reports.load import ONE_PROCESS, is_synthetic, leaves

PHASES = ("data", "forward", "backward", "meta", "optimizer", "unattributed")
POOLED_RESAMPLES = (
    400  # over several seeds; against 1000 an end moves by 4 % of the width on average (20 simulated rows)
)
_METHOD_ORDER = (
    "fp32", "bf16", "ste", "uniform", "dorefa", "uint8", "daint8", "sbm", "wageubn", "afp", "cpt", "fp4", "metaquant",
    "metagrad",
)  # fmt: skip
_STRATEGY_ORDER = ("none", "retain", "slim", "recompute", "tabulate")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds; the 95 % interval is absent where one seed gives none."""

    value: float
    interval: Interval | Absent
    n: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of step times; the 95 % interval is absent where one process gives none."""

    value: float
    interval: Interval | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstRetain:
    """A strategy beside the retained graph of the same configuration."""

    time: Ratio | Absent  # of step times
    peak_allocated: float | Absent  # ratio of peaks
    hypernet_extra_allocated: float | Absent  # ratio of what the hypernetwork adds to the peak
    hypernet_extra_process: float | Absent
    accuracy_points: Estimate | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One configuration on one machine, its seeds together."""

    label: str
    records: tuple[RunRecord, ...]  # one a seed, by seed
    accuracy: Estimate | Absent  # percent
    accuracy_vs_fp32: Estimate | Absent  # points
    step_ms: Summary | Absent
    fp32_step_ms: Summary | Absent
    time_vs_fp32: Ratio | Absent
    phases_ms: Mapping[str, float] | Absent
    phase_share_pct: Mapping[str, float] | Absent
    peak_allocated_bytes: float | Absent
    peak_process_bytes: float | Absent
    peak_reserved_bytes: float | Absent
    peak_device_bytes: float | Absent
    fp32_peak_allocated_bytes: float | Absent
    hypernet_extra_allocated_bytes: float | Absent
    hypernet_extra_process_bytes: float | Absent
    hypernet_bound_bytes: float | Absent
    against_retain: AgainstRetain | Absent | None  # None: no hypernetwork, so there are no strategies

    @property
    def first(self) -> RunRecord:
        """The record with the lowest seed."""
        return self.records[0]

    @property
    def method(self) -> MethodFacts:
        """Method facts, the same for all seeds."""
        return self.first.method

    @property
    def is_fp32(self) -> bool:
        """Whether this is the FP32 reference."""
        return self.method.name == "fp32"

    @property
    def is_low_bit(self) -> bool:
        """Whether any operand of a training GEMM has fewer than 16 bits."""
        facts = self.method
        return min(facts.weight_bits, facts.activation_bits, facts.error_bits, facts.grad_bits) < 16

    @property
    def has_hypernet(self) -> bool:
        """Whether a hypernetwork computes the weight gradient."""
        return self.method.hypernet != "none"

    @property
    def timed_once(self) -> bool:
        """Whether one process alone timed it: it is not ranked by time."""
        return isinstance(self.time_vs_fp32, Ratio) and isinstance(self.time_vs_fp32.interval, Absent)

    @property
    def ran_as(self) -> Label | Absent:
        """What the low-bit products ran as, by the kernels' own account."""
        for record in self.records:
            if record.gemms is not None:
                return record.gemms.label
        return Absent(reason=missing_reason(self.first, "gemms"))

    @property
    def troubles(self) -> tuple[RunRecord, ...]:
        """Records that did not finish."""
        return tuple(record for record in self.records if record.status != "ok")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the row's records."""
        return tuple(record.seed for record in self.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Rows that may be compared with each other."""

    suite: str
    model_name: str
    data_name: str
    device: str
    fingerprint: str
    code_version: str
    batch_size: str  # "" where the config names none
    rows: tuple[Row, ...]
    superseded: tuple[RunRecord, ...]  # an older measurement of a configuration and seed that was measured again

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """Records of all rows."""
        return tuple(record for row in self.rows for record in row.records)

    @property
    def fp32(self) -> Row | None:
        """The FP32 row, if there is one."""
        return next((row for row in self.rows if row.is_fp32), None)

    @property
    def synthetic(self) -> bool:
        """Whether the data is random."""
        return any(is_synthetic(record) for record in self.records)

    @property
    def on_gpu(self) -> bool:
        """Whether it ran on a CUDA device."""
        return self.device.startswith("cuda")


def build_sections(records: Iterable[RunRecord]) -> tuple[Section, ...]:
    """Group records into sections and rows; the largest section first.

    Args:
        records: any number of records of any suites, machines and seeds.
    """
    by_section: dict[tuple[str, ...], list[RunRecord]] = {}
    for r in records:
        key = (r.suite, r.model_name, r.data_name, r.device, r.fingerprint, r.code_version, _batch_size(r))
        by_section.setdefault(key, []).append(r)
    sections = [_build_section(key, members) for key, members in by_section.items()]
    return tuple(
        section
        for _, section in sorted(zip(by_section, sections, strict=True), key=lambda pair: (-len(pair[1].rows), pair[0]))
    )


def _batch_size(record: RunRecord) -> str:
    protocol = record.cell.get("protocol")
    if isinstance(protocol, dict) and "batch_size" in protocol:
        return str(protocol["batch_size"])
    return str(record.timing.batch_size) if record.timing is not None else ""


def machine_name(record: RunRecord) -> str:
    """The device as a reader knows it: the GPU's or CPU's name, else the machine's fingerprint."""
    for part, name in (("device", "name"), ("cpu", "model")):
        block = record.environment.get(part)
        if isinstance(block, dict) and isinstance(block.get(name), str) and block[name]:
            return str(block[name])
    return f"machine {record.fingerprint}"


def status_text(record: RunRecord) -> str:
    """The status in words (``out of memory``)."""
    return record.status.replace("_", " ")


def missing_reason(record: RunRecord, part: str) -> str:
    """Why a part of the record is not there; only the status where the cell's own trouble, told in its row, is why."""
    reason = record.missing.get(part)
    if reason and reason != record.reason:
        return reason
    return "not measured" if record.status == "ok" else status_text(record)


def _build_section(key: tuple[str, ...], records: Sequence[RunRecord]) -> Section:
    groups: dict[str, dict[int, RunRecord]] = {}
    superseded: list[RunRecord] = []
    # A cell that failed early knows no data content; it belongs to its other seeds unless contents do differ.
    contents = {record.data.fingerprint for record in records if record.data is not None}
    for record in sorted(records, key=lambda r: (r.started_at, r.key)):
        content = record.data.fingerprint if record.data is not None and len(contents) > 1 else ""
        seeds = groups.setdefault(_config_identity(record) + content, {})
        if record.seed in seeds:
            superseded.append(seeds[record.seed])
        seeds[record.seed] = record
    members = [tuple(seeds[seed] for seed in sorted(seeds)) for seeds in groups.values()]
    labels = _labels(members)
    rows = sorted((_build_row(group, label) for group, label in zip(members, labels, strict=True)), key=_row_order)
    references = [row for row in rows if row.is_fp32]
    rows = [
        dataclasses.replace(row, accuracy_vs_fp32=_accuracy_difference(row, _reference_of(row, references), "FP32"))
        for row in rows
    ]
    retained = {_twin_identity(row.first): row for row in rows if row.method.strategy == "retain"}
    rows = [dataclasses.replace(row, against_retain=_against_retain(row, retained)) for row in rows]
    suite, model_name, data_name, device, fingerprint, code_version, batch_size = key
    return Section(
        suite=suite, model_name=model_name, data_name=data_name, device=device, fingerprint=fingerprint,
        code_version=code_version, batch_size=batch_size, rows=tuple(rows), superseded=tuple(superseded),
    )  # fmt: skip


def _build_row(records: tuple[RunRecord, ...], label: str) -> Row:
    shares = _mean_mapping(records, lambda t: t.phase_share_pct)
    return Row(
        label=label,
        records=records,
        accuracy=_accuracy(records),
        accuracy_vs_fp32=Absent(reason="not compared yet"),
        step_ms=_summary(records, lambda repeat: repeat.step_ms, lambda t: t.step_ms),
        fp32_step_ms=_summary(records, lambda repeat: repeat.fp32_step_ms, lambda t: t.fp32_step_ms),
        time_vs_fp32=_time_vs_fp32(records),
        phases_ms=_mean_mapping(records, lambda t: {name: s.median for name, s in t.phases_ms.items()}),
        phase_share_pct=shares,
        peak_allocated_bytes=_largest(records, "peak_allocated_bytes"),
        peak_process_bytes=_largest(records, "peak_process_bytes"),
        peak_reserved_bytes=_largest(records, "peak_reserved_bytes"),
        peak_device_bytes=_largest(records, "peak_device_bytes"),
        fp32_peak_allocated_bytes=_largest(records, "fp32_peak_allocated_bytes"),
        hypernet_extra_allocated_bytes=_largest(records, "hypernet_extra_allocated_bytes"),
        hypernet_extra_process_bytes=_largest(records, "hypernet_extra_process_bytes"),
        hypernet_bound_bytes=_largest(records, "hypernet_bound_bytes"),
        against_retain=None,
    )


def _config_identity(record: RunRecord) -> str:
    """Everything that makes two records the same row: the composed config without its seed."""
    cell = {name: value for name, value in record.cell.items() if name != "seed"}
    return json.dumps([record.variant, dataclasses.astuple(record.method), cell], sort_keys=True, default=str)


def _twin_identity(record: RunRecord) -> str:
    """The same for all strategies of one configuration."""
    cell = {name: value for name, value in record.cell.items() if name not in {"seed", "variant_name", "strategy"}}
    method = dataclasses.replace(record.method, strategy="none")
    return json.dumps([dataclasses.astuple(method), cell], sort_keys=True, default=str)


def _reference_of(row: Row, references: Sequence[Row]) -> Row | None:
    """The FP32 row trained under the same protocol where there are several."""
    protocol = row.first.cell.get("protocol")
    same = [reference for reference in references if reference.first.cell.get("protocol") == protocol]
    return next(iter(same or references), None)


def _labels(groups: Sequence[tuple[RunRecord, ...]]) -> list[str]:
    """Variant names; where configurations share one, the settings that differ follow in brackets."""
    by_variant: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        by_variant.setdefault(group[0].variant, []).append(index)
    labels = [group[0].variant for group in groups]
    for variant, indices in by_variant.items():
        if len(indices) < 2:
            continue
        configs = [dict(leaves({k: v for k, v in groups[i][0].cell.items() if k != "seed"})) for i in indices]
        names = sorted(set().union(*configs))
        differing = [name for name in names if len({repr(config.get(name)) for config in configs}) > 1]
        for index, config in zip(indices, configs, strict=True):
            detail = ", ".join(f"{name}={config.get(name)}" for name in differing[:4]) or groups[index][0].key[:8]
            labels[index] = f"{variant} ({detail})"
    seen: Counter[str] = Counter()
    for index, label in enumerate(labels):
        seen[label] += 1
        labels[index] = label if seen[label] == 1 else f"{label} #{seen[label]}"
    return labels


def _row_order(row: Row) -> tuple[Any, ...]:
    facts = row.method
    method = _METHOD_ORDER.index(facts.name) if facts.name in _METHOD_ORDER else len(_METHOD_ORDER)
    strategy = _STRATEGY_ORDER.index(facts.strategy) if facts.strategy in _STRATEGY_ORDER else len(_STRATEGY_ORDER)
    return (
        method,
        facts.name,
        -facts.error_bits,
        -facts.grad_bits,
        -facts.weight_bits,
        facts.hypernet,
        strategy,
        row.label,
    )


def _accuracy(records: Sequence[RunRecord]) -> Estimate | Absent:
    if any(is_synthetic(record) for record in records):
        return Absent(reason="synthetic data")
    present = [record.accuracy.test_accuracy_pct for record in records if record.accuracy is not None]
    if not present:
        return Absent(reason=_why_none(records, "accuracy"))
    known = [value for value in present if not isinstance(value, Absent)]
    absent = [value for value in present if isinstance(value, Absent)]
    return _estimate(known) if known else absent[0]


def _estimate(values: Sequence[float]) -> Estimate:
    if len(values) < 2:
        return Estimate(value=values[0], interval=Absent(reason="one seed"), n=1)
    interval = mean_interval(values)
    if isinstance(interval, Absent):
        return Estimate(value=math.fsum(values) / len(values), interval=interval, n=len(values))
    return Estimate(value=interval.value, interval=interval, n=len(values))


def _accuracy_difference(row: Row, other: Row | None, name: str) -> Estimate | Absent:
    """Mean difference over the seeds that both rows have, trained for as many epochs."""
    if isinstance(row.accuracy, Absent):
        return row.accuracy
    if other is None:
        return Absent(reason=f"no {name} row beside it")
    if isinstance(other.accuracy, Absent):
        return Absent(reason=f"{name} has no accuracy: {other.accuracy.reason}")
    mine, theirs = _accuracy_by_seed(row), _accuracy_by_seed(other)
    shared = sorted(set(mine) & set(theirs))
    if not shared:
        return Absent(reason=f"no seed in common with {name}")
    if any(mine[seed][1] != theirs[seed][1] for seed in shared):
        return Absent(reason=f"{name} trained for {theirs[shared[0]][1]} epochs, this row for {mine[shared[0]][1]}")
    return _estimate([mine[seed][0] - theirs[seed][0] for seed in shared])


def _accuracy_by_seed(row: Row) -> dict[int, tuple[float, int]]:
    pairs: dict[int, tuple[float, int]] = {}
    for record in row.records:
        if record.accuracy is not None and not isinstance(record.accuracy.test_accuracy_pct, Absent):
            pairs[record.seed] = (record.accuracy.test_accuracy_pct, record.accuracy.epochs)
    return pairs


def _timed(records: Sequence[RunRecord]) -> list[Any]:
    return [record.timing for record in records if record.timing is not None]


def _why_none(records: Sequence[RunRecord], part: str) -> str:
    """The most frequent reason for a part that no record has."""
    reasons = Counter(missing_reason(record, part) for record in records)
    return reasons.most_common(1)[0][0]


def _summary(
    records: Sequence[RunRecord], samples: Callable[[Any], Sequence[float]], ready: Callable[[Any], Summary]
) -> Summary | Absent:
    timings = _timed(records)
    if not timings:
        return Absent(reason=_why_none(records, "timing"))
    if len(timings) == 1:
        return ready(timings[0])
    return summarize([value for timing in timings for repeat in timing.repeats for value in samples(repeat)])


def _time_vs_fp32(records: Sequence[RunRecord]) -> Ratio | Absent:
    timings = _timed(records)
    if not timings:
        return Absent(reason=_why_none(records, "timing"))
    repeats = [repeat for timing in timings for repeat in timing.repeats]
    if len(repeats) < 2:
        return Ratio(value=timings[0].time_vs_fp32.value, interval=Absent(reason=ONE_PROCESS))
    interval: Interval = timings[0].time_vs_fp32
    if len(timings) > 1:
        interval = ratio_interval(
            [r.step_ms for r in repeats], [r.fp32_step_ms for r in repeats], seed=0, resamples=POOLED_RESAMPLES
        )
    return Ratio(value=interval.value, interval=interval)


def _mean_mapping(
    records: Sequence[RunRecord], values: Callable[[Any], Mapping[str, float]]
) -> Mapping[str, float] | Absent:
    timings = _timed(records)
    if not timings:
        return Absent(reason=_why_none(records, "timing"))
    maps = [values(timing) for timing in timings]
    names = [*PHASES, *sorted({name for one in maps for name in one} - set(PHASES))]
    return {n: math.fsum(m.get(n, 0.0) for m in maps) / len(maps) for n in names if any(n in m for m in maps)}


def _largest(records: Sequence[RunRecord], name: str) -> float | Absent:
    """The largest of the seeds' peaks."""
    present = [getattr(record.memory, name) for record in records if record.memory is not None]
    if not present:
        return Absent(reason=_why_none(records, "memory"))
    known = [value for value in present if not isinstance(value, Absent)]
    absent = [value for value in present if isinstance(value, Absent)]
    return max(known) if known else absent[0]


def _against_retain(row: Row, retained: Mapping[str, Row]) -> AgainstRetain | Absent | None:
    if not row.has_hypernet:
        return None
    twin = retained.get(_twin_identity(row.first))
    if twin is None:
        return Absent(reason="no retain row of the same setting")
    return AgainstRetain(
        time=ratio_of_ratios(row.time_vs_fp32, twin.time_vs_fp32),
        peak_allocated=_ratio(row.peak_allocated_bytes, twin.peak_allocated_bytes),
        hypernet_extra_allocated=_ratio(row.hypernet_extra_allocated_bytes, twin.hypernet_extra_allocated_bytes),
        hypernet_extra_process=_ratio(row.hypernet_extra_process_bytes, twin.hypernet_extra_process_bytes),
        accuracy_points=_accuracy_difference(row, twin, "retain"),
    )


def ratio_of_ratios(one: Ratio | Absent, other: Ratio | Absent) -> Ratio | Absent:
    """Divide two independent ratios; their intervals add in quadrature on the log scale."""
    if isinstance(one, Absent):
        return one
    if isinstance(other, Absent):
        return other
    value = one.value / other.value
    mine, theirs = one.interval, other.interval
    if isinstance(mine, Absent):
        return Ratio(value=value, interval=mine)
    if isinstance(theirs, Absent):
        return Ratio(value=value, interval=theirs)
    if one is other:
        return Ratio(value=1.0, interval=Interval(value=1.0, low=1.0, high=1.0))
    below = math.hypot(math.log(mine.value / mine.low), math.log(theirs.high / theirs.value))
    above = math.hypot(math.log(mine.high / mine.value), math.log(theirs.value / theirs.low))
    return Ratio(
        value=value, interval=Interval(value=value, low=value * math.exp(-below), high=value * math.exp(above))
    )


def _ratio(one: float | Absent, other: float | Absent) -> float | Absent:
    if isinstance(one, Absent):
        return one
    if isinstance(other, Absent):
        return other
    if other <= 0:
        return Absent(reason="the retained graph added no measurable memory")
    if one < 0:
        return Absent(reason="no measurable memory added")
    return one / other
