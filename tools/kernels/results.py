"""A network's figures: sides' samples, saved bytes and peaks, compared width by width, and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.records.schema import Interval, Summary
from bench.units import Absent
from tools.json_file import write_json_file

if TYPE_CHECKING:
    from bench.profilers.ceilings import Ceilings
    from tools.kernels.layers import WidthDetail
    from tools.kernels.passes import SavedBytes, StepTimes

REFERENCES = ("fp32", "bf16", "fp32_compiled", "bf16_compiled")
NOT_COMPILED = Absent("--no-compile was given")
LEAN_MEANING = (
    "FP32 convolutions with this engine's batch-norm, ReLU and pooling: how much of INT8's and INT4's ratio is those "
    "kernels, not integer products"
)
INTERVAL_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SideTimes:
    """A side's training steps."""

    step_ms: Summary
    samples_ms: tuple[float, ...]
    phases_ms: dict[str, Summary]  # forward, backward, optimizer, and what lies between
    first_step_s: float  # compiling, planning and choosing paths included
    from_compile_cache: bool | Absent  # whether torch.compile found an earlier run's code


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanResult:
    """How much of a width's ratio comes from the kernels around its products."""

    meaning: str
    step_vs_fp32: float
    interval: Interval  # 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthResult:
    """One width against the references; a ratio below 1 is in the low-bit side's favour."""

    label: str  # what its products are: integer, emulated, simulated, float
    step_vs_fp32: float
    step_vs_bf16: float
    step_vs_fp32_compiled: float | Absent
    step_vs_bf16_compiled: float | Absent
    step_vs_fp32_compact: float  # the step with `compact` against eager FP32
    intervals: dict[str, Interval | Absent]  # 95 %, of the ratios of steps
    saved_vs_fp32: float
    saved_vs_fp32_compact: float
    peak_vs_fp32: float | Absent
    peak_vs_fp32_compact: float | Absent
    detail: WidthDetail


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """Everything that is measured of one network."""

    model: str
    batch: int
    image_size: int
    images: str
    dispatch: str
    device: str
    threads: int
    steps: dict[str, SideTimes | Absent]  # by side
    saved: dict[str, SavedBytes]
    peak_bytes: dict[str, int | Absent]
    peak_meaning: str
    ceilings: Ceilings
    fp32_lean: LeanResult
    int8: WidthResult
    int4: WidthResult
    notices: tuple[str, ...]


def side_times(side: str, times: StepTimes) -> SideTimes | Absent:
    """A side's times, or why there are none."""
    from bench.stats import summarize

    if side not in times.step_ms:
        return times.absent.get(side, NOT_COMPILED)
    return SideTimes(
        step_ms=summarize(times.step_ms[side]),
        samples_ms=times.step_ms[side],
        phases_ms={phase: summarize(samples) for phase, samples in times.phases_ms[side].items()},
        first_step_s=times.first_step_s[side],
        from_compile_cache=times.from_compile_cache.get(side, Absent("not compiled as a whole")),
    )


def compare_width(
    width: str,
    times: StepTimes,
    saved: dict[str, SavedBytes],
    peaks: dict[str, int | Absent],
    detail: WidthDetail,
) -> WidthResult:
    """One width against the references: ratios of medians, of bytes saved and of peaks.

    Args:
        width: int8 or int4.
        times: samples of all sides, taken in turn.
        saved: bytes kept for backward, by side.
        peaks: peak bytes, by side.
        detail: its table.
    """
    compact = f"{width}_compact"
    intervals = {f"step_vs_{reference}": _step_ratio(width, reference, times) for reference in REFERENCES}
    intervals["step_vs_fp32_compact"] = _step_ratio(compact, "fp32", times)
    ratios: dict[str, Any] = {
        key: found if isinstance(found, Absent) else found.value for key, found in intervals.items()
    }  # fmt: skip
    return WidthResult(
        label=times.labels[width],
        intervals=intervals,
        saved_vs_fp32=saved[width].total_bytes / saved["fp32"].total_bytes,
        saved_vs_fp32_compact=saved[compact].total_bytes / saved["fp32"].total_bytes,
        peak_vs_fp32=_ratio(peaks[width], peaks["fp32"]),
        peak_vs_fp32_compact=_ratio(peaks[compact], peaks["fp32"]),
        detail=detail,
        **ratios,
    )


def compare_lean(times: StepTimes) -> LeanResult:
    """FP32 with the engine's batch-norm, ReLU and pooling against plain FP32.

    Args:
        times: samples of all sides, taken in turn.
    """
    found = _step_ratio("fp32_lean", "fp32", times)
    assert isinstance(found, Interval), "both sides run eagerly, so they always run"
    return LeanResult(meaning=LEAN_MEANING, step_vs_fp32=found.value, interval=found)


def as_plain_result(result: ModelResult) -> dict[str, Any]:
    """A network's figures as JSON values; unknown ones are ``{"reason": "..."}``.

    The table of a width stands flat beside its ratios: ``int8.layers``, ``int8.pieces_ms``.
    """
    from bench.hardware.environment import to_plain

    plain: dict[str, Any] = to_plain(dataclasses.asdict(result))
    for width in ("int8", "int4"):
        plain[width] |= plain[width].pop("detail")
    return plain


def write_json(path: Path, results: dict[str, ModelResult], *, quick: bool, environment: dict[str, Any]) -> None:
    """Write a whole file or none: one network's figures at the top level, several under their names.

    Raises:
        RecordError: it cannot be written.
    """
    plain = {name: as_plain_result(result) for name, result in results.items()}
    document: dict[str, Any] = dict(*plain.values()) if len(plain) == 1 else dict(plain)
    versions = {
        "metagrad_bench": environment["package"]["version"],
        "git_commit": environment["package"]["git_commit"],
        "python": environment["python"]["version"],
        "torch": environment["torch"]["version"],
    }
    document |= {"quick": quick, "versions": versions, "environment": environment}
    write_json_file(path, document)


def _step_ratio(numer: str, denom: str, times: StepTimes) -> Interval | Absent:
    from bench.stats import ratio_interval

    if denom not in times.step_ms:
        return times.absent.get(denom, NOT_COMPILED)
    return ratio_interval([times.step_ms[numer]], [times.step_ms[denom]], seed=INTERVAL_SEED)


def _ratio(numer: int | Absent, denom: int | Absent) -> float | Absent:
    if isinstance(numer, Absent):
        return numer
    if isinstance(denom, Absent):
        return denom
    return numer / denom if denom > 0 else Absent("FP32's peak did not rise")
