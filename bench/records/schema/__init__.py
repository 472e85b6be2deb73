"""What one run leaves behind: ``RunRecord`` and its parts, frozen, versioned, plain values with units in their names.

A value that could not be known is ``Absent(reason)``; in JSON it reads ``{"reason": "..."}`` where the number would
stand. A whole part that a run does not have is None, with its reason in ``RunRecord.missing`` under the part's name.
Nothing in these files formats, logs or saves itself: ``records/write.py`` saves, ``reports/`` formats.
"""

from __future__ import annotations

from bench.records.schema.facts import DataFacts, GemmResult, LayerFacts, MethodFacts, ModelFacts
from bench.records.schema.memory import MEMORY_CATEGORIES, LayerMemory, MemoryPhase, MemoryResult
from bench.records.schema.profile import (
    Ceilings,
    KernelTime,
    OperatorTime,
    PhaseWork,
    ProductWork,
    ProfileResult,
    SideProfile,
    SpanTime,
    TraceResult,
)
from bench.records.schema.record import SCHEMA_VERSION, RunRecord
from bench.records.schema.status import FINISHED, STATUS_VERBS, STATUSES, Status
from bench.records.schema.timing import DeviceSeries, Series, StepWindow, TimingRepeat, TimingResult
from bench.records.schema.training import (
    AccuracyResult,
    EpochPoint,
    HypernetPoint,
    HypernetResult,
    HypernetSurface,
    SurfaceAxis,
)
from bench.records.schema.values import NOT_RECORDED, NOT_SAMPLED, Interval, Label, Summary

__all__ = [
    "DataFacts",
    "GemmResult",
    "LayerFacts",
    "MethodFacts",
    "ModelFacts",
    "MEMORY_CATEGORIES",
    "LayerMemory",
    "MemoryPhase",
    "MemoryResult",
    "Ceilings",
    "KernelTime",
    "OperatorTime",
    "PhaseWork",
    "ProductWork",
    "ProfileResult",
    "SideProfile",
    "SpanTime",
    "TraceResult",
    "SCHEMA_VERSION",
    "RunRecord",
    "FINISHED",
    "STATUS_VERBS",
    "STATUSES",
    "Status",
    "DeviceSeries",
    "Series",
    "StepWindow",
    "TimingRepeat",
    "TimingResult",
    "AccuracyResult",
    "EpochPoint",
    "HypernetPoint",
    "HypernetResult",
    "HypernetSurface",
    "SurfaceAxis",
    "NOT_RECORDED",
    "NOT_SAMPLED",
    "Interval",
    "Label",
    "Summary",
]
