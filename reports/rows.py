"""What a report compares: sections of rows, a row being one configuration with its seeds together.

Definitions (docs/measuring.md): a section holds one suite, model, data set, device, machine, code version and batch
size; a row holds one configuration, its seeds together. Differences to FP32 pair equal seeds; ratios to another row
compare ``time_vs_fp32`` of both, since each was measured against FP32 steps in its own processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.records.schema import Interval, Label, MethodFacts, RunRecord, Summary
from bench.units import Absent
from reports.values import is_synthetic

PHASES = ("data", "forward", "backward", "meta", "optimizer", "unattributed")


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
    hypernet_code_bytes: float | Absent
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
    def labels(self) -> tuple[str, ...]:
        """How the row's figures came about: what low-bit products ran as, and random data; they stand beside each."""
        ran_as = (self.ran_as,) if self.is_low_bit and isinstance(self.ran_as, str) else ()
        return (*ran_as, "synthetic") if any(map(is_synthetic, self.records)) else ran_as

    @property
    def named(self) -> str:
        """Its label, how its figures came about and which seeds they lack (``x (emulated, 1 of 3 seeds diverged)``)."""
        told = (*self.labels, *self.unfinished)
        return f"{self.label} ({', '.join(told)})" if told else self.label

    @property
    def troubles(self) -> tuple[RunRecord, ...]:
        """Records that did not finish."""
        return tuple(record for record in self.records if record.status != "ok")

    @property
    def unfinished(self) -> tuple[str, ...]:
        """What became of the seeds that did not finish; () where all did: means are then of the others alone."""
        statuses = sorted({status_text(record) for record in self.troubles})
        if len(self.troubles) in (0, len(self.records)):
            return tuple(statuses)
        return (f"{len(self.troubles)} of {len(self.records)} seeds {' or '.join(statuses)}",)

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
