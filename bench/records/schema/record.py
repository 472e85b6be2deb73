"""The record of one cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.records.schema.facts import DataFacts, GemmResult, MethodFacts, ModelFacts
from bench.records.schema.memory import MemoryResult
from bench.records.schema.profile import ProfileResult
from bench.records.schema.status import Status
from bench.records.schema.timing import TimingResult
from bench.records.schema.training import AccuracyResult, HypernetResult

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One cell on one machine, measured once; written atomically and never edited."""

    schema_version: int
    key: str  # content of config, code version and environment
    suite: str
    variant: str
    model_name: str
    data_name: str
    seed: int
    device: str  # cpu, cuda:0
    status: Status
    reason: str  # why it is not ok, "" otherwise
    started_at: str  # UTC, ISO 8601
    duration_s: float
    code_version: str
    fingerprint: str  # of what makes timings comparable on this machine
    cell: dict[str, Any]  # the composed config, without paths
    environment: dict[str, Any]
    method: MethodFacts
    model: ModelFacts | None
    data: DataFacts | None
    accuracy: AccuracyResult | None
    timing: TimingResult | None
    memory: MemoryResult | None
    hypernet: HypernetResult | None
    gemms: GemmResult | None
    missing: dict[str, str]  # for each part above that is None: the reason
    notices: tuple[str, ...] = ()  # what a reader must know: fallbacks, emulation, thread limits
    profile: ProfileResult | None = None  # None and not in `missing`: written before there was this pass
