"""Synthetic records of the demo's eight cells, as large as measured ones: every part filled.

Their numbers are drawn, so they say nothing about any method; they are what ``tools.scale`` measures with.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from collections.abc import Iterator
from typing import Any

from bench.config import CellConfig, as_plain
from bench.records import schema
from bench.records.schema import MEMORY_CATEGORIES, RunRecord
from bench.stats import ratio_interval, summarize
from bench.units import Absent

#: variant -> (method, bits, hypernetwork's strategy, label); the bits are those of every operand that is quantized.
VARIANTS: dict[str, tuple[str, int, str, schema.Label]] = {
    "fp32": ("fp32", 32, "none", "float"), "ste_int4": ("ste", 4, "none", "emulated"),
    "uint8_int8": ("uint8", 8, "none", "integer"), "uint8_int4": ("uint8", 4, "none", "emulated"),
    "metagrad_int8_recompute": ("metagrad", 8, "recompute", "integer"),
    "metagrad_int4_retain": ("metagrad", 4, "retain", "emulated"),
    "metagrad_int4_slim": ("metagrad", 4, "slim", "emulated"),
    "metagrad_int4_recompute": ("metagrad", 4, "recompute", "emulated"),
}  # fmt: skip
LAYERS = ("conv1", *(f"blocks.{block}.conv{number}" for block in range(9) for number in (1, 2)), "fc")
GEMMS = ("fprop", "dgrad", "wgrad")
PHASES = ("data", "forward", "backward", "meta", "optimizer", "unattributed")
PIECES = ("quantize", "im2col", "gemm", "dequantize", "norm", "rest")
PROCESSES, STEPS, EPOCHS, SAMPLES = 3, 18, 12, 20
PROFILED_SEEDS = 5  # a profile is most of a record, and seeds of one cell differ little in theirs
_NO_PROFILE = "protocol.passes leaves the profile pass out"
_NO_GPU = Absent("the device is a CPU")


def template_records() -> tuple[RunRecord, ...]:
    """One record a variant; equal at every call."""
    return tuple(_record(variant, random.Random(number)) for number, variant in enumerate(VARIANTS))


def _record(variant: str, rng: random.Random) -> RunRecord:
    method, bits, strategy, label = VARIANTS[variant]
    hypernet = "none" if strategy == "none" else "dual_lstm_fc"
    backward = bits if method in {"uint8", "metagrad"} else 32
    facts = schema.MethodFacts(
        name=method, forward_quantizer="dorefa" if bits < 32 else "none", weight_bits=bits, activation_bits=bits,
        error_quantizer="none" if backward == 32 else "uint8", error_bits=backward, error_rounding="stochastic",
        grad_quantizer="none" if hypernet == "none" else "hypernet", grad_bits=32 if hypernet == "none" else bits,
        hypernet=hypernet, hypernet_form="residual", hidden=4 if hypernet != "none" else Absent("no hypernetwork"),
        strategy=strategy, optimizer="momentum", edge_layers="int8", dispatch="integer",
    )  # fmt: skip
    cell = as_plain(CellConfig(suite_name="demo", variant_name=variant, device="cpu", weight_bits=bits))
    step_ms = rng.uniform(12, 100)
    gemms = schema.GemmResult(
        integer_calls=dict.fromkeys(GEMMS, 20), float_calls=dict.fromkeys(GEMMS, 0), integer_share_pct=100.0,
        hypernet_float_macs=0 if hypernet == "none" else 33_000_000, label=label,
    )  # fmt: skip
    return RunRecord(
        schema_version=schema.SCHEMA_VERSION, key=f"{variant:0>16}"[-16:], suite="demo", variant=variant,
        model_name="resnet20", data_name="digits", seed=0, device="cpu", status="ok", reason="",
        started_at="2026-01-01T00:00:00+00:00", duration_s=rng.uniform(20, 30), code_version="0.1.0+synthetic",
        fingerprint="cpu-synthetic", cell=cell, environment=_environment(), method=facts, model=_model(label),
        data=schema.DataFacts(
            name="digits", synthetic=False, train_samples=1437, test_samples=360, image_shape=(1, 8, 8),
            num_classes=10, source="numbers drawn for measuring the tools", fingerprint="synthetic",
        ),
        accuracy=_accuracy(rng), timing=_timing(rng, step_ms), memory=_memory(rng, hypernet != "none"),
        hypernet=None if hypernet == "none" else schema.HypernetResult(
            num_parameters=133, amplification=rng.uniform(0.9, 1.1), cosine=rng.uniform(0.9, 1),
            zero_share_pct=rng.uniform(0, 50), meta_grad_norm=rng.uniform(0, 1e-6),
        ),
        gemms=gemms, missing={"hypernet": "this method has no hypernetwork"} if hypernet == "none" else {},
        notices=("The numbers of this record are synthetic: it measures the tools.",),
        profile=_profile(rng, "fp32" if bits == 32 else "int8"),
    )  # fmt: skip


def _environment() -> dict[str, Any]:
    return {
        "package": {"version": "0.1.0", "git_commit": {"reason": "synthetic"}, "git_dirty": {"reason": "synthetic"}},
        "cpu": {"model": "Synthetic CPU", "usable_cores": 2, "instruction_sets": ["avx2", "avx512_vnni"]},
        "device": {"kind": "cpu", "name": "Synthetic CPU", "driver": {"reason": "the device is a CPU"}},
    }


def _model(label: schema.Label) -> schema.ModelFacts:
    layers = tuple(
        schema.LayerFacts(
            name=name, kind="linear" if name == "fc" else "conv2d", quantized=True, reason="",
            weight_shape=(64, 64, 3, 3), weight_bits=8, activation_bits=8, error_bits=8, fprop=label, dgrad=label,
            wgrad=label, error="uint8, 8 bit, stochastic", error_quantizations=1,
            fprop_path="int_mm: dispatch=integer", dgrad_path="int_mm: dispatch=integer",
            wgrad_path="int_mm: dispatch=integer",
        )
        for name in LAYERS
    )  # fmt: skip
    return schema.ModelFacts(name="resnet20", num_parameters=269_434, num_quantized_weights=268_048, layers=layers)


def _accuracy(rng: random.Random) -> schema.AccuracyResult:
    curve = tuple(
        schema.EpochPoint(
            epoch=epoch, step=22 * epoch, seconds=0.6 * epoch * rng.uniform(0.9, 1.1), learning_rate=0.03 / epoch,
            train_loss=rng.uniform(0.5, 1) / epoch, test_accuracy_pct=100 - rng.uniform(5, 30) / epoch,
        )
        for epoch in range(1, EPOCHS + 1)
    )  # fmt: skip
    return schema.AccuracyResult(
        test_accuracy_pct=curve[-1].test_accuracy_pct, pretrained_accuracy_pct=99.0,
        final_train_loss=curve[-1].train_loss, epochs=EPOCHS, steps=22 * EPOCHS, curve=curve, losses_digest="0" * 64,
        weights_digest="0" * 64,
    )  # fmt: skip


def _timing(rng: random.Random, step_ms: float) -> schema.TimingResult:
    repeats = tuple(_repeat(rng, step_ms) for _ in range(PROCESSES))
    names = repeats[0].phases_ms
    return schema.TimingResult(
        batch_size=64, warmup_steps=2, repeats=repeats,
        step_ms=summarize([value for repeat in repeats for value in repeat.step_ms]),
        fp32_step_ms=summarize([value for repeat in repeats for value in repeat.fp32_step_ms]),
        time_vs_fp32=ratio_interval([r.step_ms for r in repeats], [r.fp32_step_ms for r in repeats], seed=0),
        phases_ms={name: summarize([v for r in repeats for v in r.phases_ms[name]]) for name in names},
        phase_share_pct=dict.fromkeys(names, 100 / len(names)),
    )  # fmt: skip


def _repeat(rng: random.Random, step_ms: float) -> schema.TimingRepeat:
    steps = tuple(step_ms * rng.lognormvariate(0, 0.03) for _ in range(STEPS))
    unknown = Absent("this system does not tell it (virtual machines usually do not)")
    device = schema.DeviceSeries(
        time_s=tuple(round(0.1 * index, 4) for index in range(SAMPLES)), power_w=unknown, clock_mhz=unknown,
        memory_clock_mhz=unknown, temperature_c=unknown, throttled=unknown, throttle_reasons=(), num_throttled=unknown,
        utilisation_pct=tuple(rng.uniform(90, 100) for _ in range(SAMPLES)), energy_j=unknown,
        process_bytes=tuple(float(rng.randrange(2**28, 2**29)) for _ in range(SAMPLES)),
    )  # fmt: skip
    return schema.TimingRepeat(
        step_ms=steps, fp32_step_ms=tuple(12.5 * rng.lognormvariate(0, 0.03) for _ in range(STEPS)),
        phases_ms={name: tuple(step / len(PHASES) for step in steps) for name in PHASES}, throttled=unknown,
        stopped_by="budget", half_width_pct=rng.uniform(0, 5), device=device,
        windows=tuple(
            schema.StepWindow(name=name, start_s=index * 0.1, end_s=index * 0.1 + 0.05, steps=3)
            for index, name in enumerate(("cell", "fp32") * (STEPS // 3))
        ),
    )  # fmt: skip


def _memory(rng: random.Random, has_hypernet: bool) -> schema.MemoryResult:
    def phase(name: str) -> schema.MemoryPhase:
        sizes = {category: rng.randrange(2**22) for category in MEMORY_CATEGORIES}
        return schema.MemoryPhase(
            phase=name, peak_bytes=sum(sizes.values()), categories=sizes, layer="conv1", allocator_bytes=_NO_GPU
        )

    phases = tuple(phase(name) for name in PHASES)
    peak = max(one.peak_bytes for one in phases)
    no_hypernet = Absent("this method has no hypernetwork")
    return schema.MemoryResult(
        peak_allocated_bytes=peak, peak_reserved_bytes=_NO_GPU, peak_process_bytes=peak + 2**28,
        peak_device_bytes=_NO_GPU, fp32_peak_allocated_bytes=peak // 2, fp32_peak_process_bytes=2**28,
        hypernet_extra_allocated_bytes=peak // 4 if has_hypernet else no_hypernet,
        hypernet_extra_process_bytes=peak // 5 if has_hypernet else no_hypernet, phases=phases,
        layers=tuple(
            schema.LayerMemory(
                name=name, kept_bytes=rng.randrange(2**20), forward_extra_bytes=rng.randrange(2**20),
                backward_extra_bytes=rng.randrange(2**20),
            )
            for name in LAYERS
        ),
    )  # fmt: skip


def _profile(rng: random.Random, kind: str) -> schema.ProfileResult:
    ceilings = schema.Ceilings(int8_gops=3261.0, fp32_gflops=328.3, bf16_gflops=1943.0, copy_gb_s=26.57)
    return schema.ProfileResult(ceilings=ceilings, cell=_side(rng, kind), fp32=_side(rng, "fp32"))


def _side(rng: random.Random, kind: str) -> schema.SideProfile:
    spans = tuple(
        schema.SpanTime(phase=phase, layer=layer, gemm="", piece=piece, span_ms=rng.uniform(0, 0.5))
        for layer in LAYERS
        for phase in ("forward", "backward")
        for piece in PIECES
    )
    products = tuple(
        schema.ProductWork(
            layer=layer, gemm=gemm, kind=kind, path="int_mm" if kind == "int8" else "float32", operations=18_874_368,
            num_bytes=2_865_040, product_ms=rng.uniform(0.05, 0.2), all_ms=rng.uniform(0.2, 0.5),
            gops=rng.uniform(50, 500), ceiling_share_pct=rng.uniform(1, 50), copy_share_pct=rng.uniform(1, 50),
        )
        for layer in LAYERS
        for gemm in GEMMS
    )  # fmt: skip
    work = tuple(
        schema.PhaseWork(
            phase=phase, layer=layer, operations={kind: 18_874_368}, num_bytes=2_865_040, time_ms=rng.uniform(0.1, 9),
            gops=rng.uniform(1, 50), ceiling_share_pct=rng.uniform(1, 50), copy_share_pct=rng.uniform(1, 50),
        )
        for phase in ("data", "forward", "backward", "meta", "optimizer")
        for layer in ("", *LAYERS)
    )  # fmt: skip
    operators = tuple(
        schema.OperatorTime(
            name=f"aten::operator_{rank}", calls=float(rank), self_ms=rng.uniform(0, 5), device_ms=_NO_GPU,
            share_pct=rng.uniform(0, 20),
        )
        for rank in range(10)
    )  # fmt: skip
    trace = schema.TraceResult(
        file=f"trace/{kind}.pt.trace.json.gz", steps=3, step_ms=rng.uniform(20, 40), operators=operators,
        kernels=_NO_GPU, tensor_core_share_pct=_NO_GPU,
    )  # fmt: skip
    return schema.SideProfile(
        plain_step_ms=(30.0, 31.0, 30.5), spanned_step_ms=(33.0, 34.0, 33.5), span_overhead_pct=9.8,
        unattributed_pct=1.3, phases_ms={name: rng.uniform(0.1, 9) for name in PHASES}, spans=spans,
        products=products, work=work, trace=trace,
    )  # fmt: skip


def varied_records(size: int, num_models: int) -> Iterator[RunRecord]:
    """So many records with other models, seeds, keys and times, one after another; one seed of five has profiles.

    Args:
        size: how many.
        num_models: that they are spread over, before the next seed.
    """
    templates = template_records()
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    for number in range(size):
        record = templates[number % len(templates)]
        model, seed = f"net{number // len(templates) % num_models:02d}", number // (len(templates) * num_models)
        cell = {**record.cell, "seed": seed, "model": {**record.cell["model"], "name": model}}
        if seed % PROFILED_SEEDS:
            record = dataclasses.replace(record, profile=None, missing={**record.missing, "profile": _NO_PROFILE})
        yield dataclasses.replace(
            record, key=f"{number:016x}", seed=seed, model_name=model, cell=cell,
            started_at=(start + dt.timedelta(minutes=number)).isoformat(),
        )  # fmt: skip
