"""One flat row per run, for CSV files and data frames: units in the column names, None where a value is not known."""

from __future__ import annotations

import dataclasses

from bench.records.schema import MEMORY_CATEGORIES, MemoryResult, MethodFacts, RunRecord, Summary, TimingResult
from bench.units import Absent

Value = str | int | float | bool | None
GEMMS = ("fprop", "dgrad", "wgrad")


def flat_row(record: RunRecord) -> dict[str, Value]:
    """Flatten a record into one row.

    Returns:
        The same columns in the same order for every record, but for the phases (``forward_ms`` ...), which are those
        that the run timed. An absent value or part is None; the record holds its reason.
    """
    row: dict[str, object] = {
        "suite": record.suite,
        "variant": record.variant,
        "model": record.model_name,
        "data": record.data_name,
        "seed": record.seed,
        "device": record.device,
        "status": record.status,
        "reason": record.reason,
        "started_at": record.started_at,
        "duration_s": record.duration_s,
        "code_version": record.code_version,
        "fingerprint": record.fingerprint,
        "key": record.key,
    }
    for field in dataclasses.fields(MethodFacts):
        row["method" if field.name == "name" else field.name] = getattr(record.method, field.name)
    model, data, accuracy, hypernet, gemms = (
        record.model, record.data, record.accuracy, record.hypernet, record.gemms,
    )  # fmt: skip
    row["num_parameters"] = model and model.num_parameters
    row["num_quantized_weights"] = model and model.num_quantized_weights
    row["synthetic"] = data.synthetic if data else None
    row["train_samples"] = data and data.train_samples
    row["test_samples"] = data and data.test_samples
    row["data_fingerprint"] = data and data.fingerprint
    for name in ("test_accuracy_pct", "pretrained_accuracy_pct", "final_train_loss", "epochs", "steps"):
        row[name] = accuracy and getattr(accuracy, name)
    row["losses_digest"] = accuracy and accuracy.losses_digest
    row |= _timing_columns(record.timing)
    row |= _memory_columns(record.memory)
    row["hypernet_num_parameters"] = hypernet and hypernet.num_parameters
    for name in ("amplification", "cosine", "zero_share_pct", "meta_grad_norm"):
        row[f"hypernet_{name}"] = hypernet and getattr(hypernet, name)
    for gemm in GEMMS:
        row[f"integer_{gemm}_calls"] = gemms and gemms.integer_calls.get(gemm, 0)
        row[f"float_{gemm}_calls"] = gemms and gemms.float_calls.get(gemm, 0)
    row["integer_share_pct"] = gemms and gemms.integer_share_pct
    row["gemm_label"] = gemms and gemms.label
    row["notices"] = "; ".join(record.notices)
    return {name: _plain(name, value) for name, value in row.items()}


def _memory_columns(memory: MemoryResult | None) -> dict[str, object]:
    """Totals, and what there was by category when the step held most."""
    totals = [
        field.name
        for field in dataclasses.fields(MemoryResult)
        if field.name not in ("phases", "phases_missing", "layers")
    ]
    columns: dict[str, object] = {name: memory and getattr(memory, name) for name in totals}
    columns |= {f"peak_{category}_bytes": None for category in MEMORY_CATEGORIES}
    if memory is not None and not isinstance(memory.phases, Absent):
        highest = max(memory.phases, key=lambda phase: phase.peak_bytes)
        columns |= {f"peak_{category}_bytes": held for category, held in highest.categories.items()}
    return columns


def _timing_columns(timing: TimingResult | None) -> dict[str, object]:
    names = ("batch_size", "warmup_steps", "timing_repeats")
    columns: dict[str, object] = dict.fromkeys(names)
    columns |= _summary_columns("step", timing.step_ms if timing else None)
    columns |= _summary_columns("fp32_step", timing.fp32_step_ms if timing else None)
    columns |= dict.fromkeys(("time_vs_fp32", "time_vs_fp32_low", "time_vs_fp32_high"))
    columns |= dict.fromkeys(("phase_mark_cost_pct", "throttled_steps", "step_energy_j", "fp32_step_energy_j"))
    if timing is None:
        return columns
    columns |= {
        "batch_size": timing.batch_size,
        "warmup_steps": timing.warmup_steps,
        "timing_repeats": len(timing.repeats),
        "time_vs_fp32": timing.time_vs_fp32.value,
        "time_vs_fp32_low": timing.time_vs_fp32.low,
        "time_vs_fp32_high": timing.time_vs_fp32.high,
        "phase_mark_cost_pct": timing.phase_mark_cost_pct and timing.phase_mark_cost_pct.value,
        "throttled_steps": timing.throttled_steps,
        "step_energy_j": timing.energy_j.get("step"),
        "fp32_step_energy_j": timing.energy_j.get("fp32_step"),
    }
    columns |= {f"{name}_ms": summary.median for name, summary in timing.phases_ms.items()}
    columns |= {f"{name}_share_pct": share for name, share in timing.phase_share_pct.items()}
    return columns


def _summary_columns(name: str, summary: Summary | None) -> dict[str, object]:
    return {
        f"{name}_ms": summary and summary.median,
        f"{name}_q1_ms": summary and summary.q1,
        f"{name}_q3_ms": summary and summary.q3,
    }


def _plain(name: str, value: object) -> Value:
    assert value is None or isinstance(value, (str, int, float, bool, Absent)), f"column {name} holds {value!r}"
    return None if isinstance(value, Absent) else value
