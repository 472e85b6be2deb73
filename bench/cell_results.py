"""From what a cell's passes answered to the parts of its record, and what a reader of it must know."""

from __future__ import annotations

from collections.abc import Mapping

from bench import native
from bench.config import FLOAT_BITS, CellConfig
from bench.outcome import AccuracyAnswer
from bench.passes import CheckAnswer, MemoryAnswer
from bench.profilers.base import PHASES
from bench.quantizers import PUBLISHED_FOR_ERRORS
from bench.records.schema import AccuracyResult, HypernetResult, MemoryResult
from bench.timing_summary import difference
from bench.units import Absent


def memory_result(own: MemoryAnswer, fp32: MemoryAnswer, without: MemoryAnswer | None) -> MemoryResult:
    """The record's memory part from the passes of the cell, of FP32 and, if it has one, without the hypernetwork."""
    extra: dict[str, int | Absent] = dict.fromkeys(
        ("allocated", "process", "code"), Absent(reason="the method has no hypernetwork")
    )
    if without is not None:
        cold = difference(own.peaks.peak_process_bytes, without.peaks.peak_process_bytes)
        grown = difference(own.grown_process_bytes, without.grown_process_bytes)
        allocated = difference(own.peaks.peak_allocated_bytes, without.peaks.peak_allocated_bytes)
        extra = {"allocated": allocated, "process": grown, "code": difference(cold, grown)}
    ran = {phase.phase for phase in own.profile.phases}
    missing = {
        "data": "batches are drawn before the steps, so that the data set is no part of their peaks",
        "meta": "the method has no hypernetwork",
    }
    return MemoryResult(
        peak_allocated_bytes=own.peaks.peak_allocated_bytes,
        peak_reserved_bytes=own.peaks.peak_reserved_bytes,
        peak_process_bytes=own.peaks.peak_process_bytes,
        peak_device_bytes=own.peaks.peak_device_bytes,
        fp32_peak_allocated_bytes=fp32.peaks.peak_allocated_bytes,
        fp32_peak_process_bytes=fp32.peaks.peak_process_bytes,
        hypernet_extra_allocated_bytes=extra["allocated"],
        hypernet_extra_process_bytes=extra["process"],
        hypernet_bound_bytes=own.hypernet_bound_bytes,
        hypernet_untouched_bytes=own.untouched_bytes if without is not None else extra["allocated"],
        hypernet_code_bytes=extra["code"],
        phases=own.profile.phases,
        phases_missing={name: missing.get(name, "nothing ran in it") for name in PHASES if name not in ran},
        layers=own.profile.layers,
        snapshot=own.snapshot,
    )


def accuracy_result(answer: AccuracyAnswer) -> AccuracyResult:
    """The record's accuracy part of a training that finished an epoch."""
    last = answer.fit.curve[-1]
    return AccuracyResult(
        test_accuracy_pct=answer.accuracy_pct,
        pretrained_accuracy_pct=answer.pretrained_pct,
        final_train_loss=last.train_loss,
        epochs=len(answer.fit.curve),
        steps=len(answer.fit.losses),
        curve=answer.fit.curve,
        losses_digest=answer.fit.losses_digest,
        weights_digest=answer.weights_digest,
        error_bits_used=answer.error_bits_used,
    )


def hypernet_result(
    cell: CellConfig, check: CheckAnswer, observed: Mapping[str, float | Absent], unseen: Absent
) -> HypernetResult:
    """The record's hypernetwork part.

    Args:
        cell: whose method has a hypernetwork.
        check: its size.
        observed: of the training's last observed step.
        unseen: why what is not in `observed` was not observed.
    """
    exact = cell.strategy.name != "tabulate"
    unsampled = Absent(reason="the strategy is exact") if exact else unseen
    return HypernetResult(
        num_parameters=check.hypernet_parameters,
        amplification=observed.get("amplification", unseen),
        cosine=observed.get("cosine", unseen),
        zero_share_pct=_percent(observed.get("zero_share", unseen)),
        meta_grad_norm=observed.get("meta_grad_norm", unseen),
        interpolation_error=observed.get("interpolation_error", unsampled),
        same_codes_pct=_percent(observed.get("same_codes", unsampled)),
        meta_angle_deg=observed.get("meta_angle_deg", unsampled),
    )


def cell_notices(check: CheckAnswer | None, cell: CellConfig, device: str) -> tuple[str, ...]:
    """Sentences about what ran in a cell otherwise than its settings alone say."""
    if check is None:
        return ()
    notices = []
    grad_quantizer, plain = cell.method.grad_quantizer, native.compiled()
    if check.gemms.label in ("integer", "emulated") and device == "cpu" and isinstance(plain, Absent):
        notices.append(
            f"The element-wise work around the products ran in plain torch, which is slower: {plain.reason}."
        )
    if cell.compact and cell.weight_bits != FLOAT_BITS:
        notices.append("compact: batch-norm's input was kept in bfloat16 for backward, which changes its gradient.")
    if check.gemms.label == "emulated":
        notices.append("INT4 values run in int8 containers (emulated): their speed is that of int8 products.")
    if check.gemms.label == "simulated":
        notices.append("Quantized values were multiplied in floating point (simulated).")
    if grad_quantizer in PUBLISHED_FOR_ERRORS:
        notices.append(f"The weight gradient is quantized by {grad_quantizer}, which was published for error signals.")
    if check.data.synthetic:
        notices.append("The data are synthetic: there is no accuracy to show.")
    return tuple(notices)


def _percent(share: float | Absent) -> float | Absent:
    return share if isinstance(share, Absent) else 100 * share
