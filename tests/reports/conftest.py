"""A demo-like suite of records and a folder of them, for the report's tests."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.records.schema import (
    MEMORY_CATEGORIES,
    Ceilings,
    DeviceSeries,
    GemmResult,
    HypernetSurface,
    MemoryPhase,
    MethodFacts,
    OperatorTime,
    PhaseWork,
    ProductWork,
    ProfileResult,
    RunRecord,
    SideProfile,
    SpanTime,
    SurfaceAxis,
    TimingRepeat,
    TimingResult,
    TraceResult,
)
from bench.records.surface import write_surface
from bench.records.write import write_record
from bench.stats import ratio_interval, summarize
from bench.units import MEBIBYTE, Absent

NO_HYPERNET = "this method has no hypernetwork"


def _facts(name: str, bits: int, *, error: str = "none", grad: str = "none", strategy: str = "none") -> MethodFacts:
    meta = grad == "hypernet"
    return MethodFacts(
        name=name, forward_quantizer="none" if bits == 32 else "dorefa", weight_bits=bits, activation_bits=bits,
        error_quantizer=error, error_bits=32 if error == "none" else bits,
        error_rounding="none" if error == "none" else "stochastic", grad_quantizer=grad,
        grad_bits=32 if grad == "none" else bits, hypernet="dual_lstm_fc" if meta else "none",
        hypernet_form="residual" if meta else "none", hidden=4 if meta else Absent(reason="no hypernetwork"),
        strategy=strategy, optimizer="momentum", edge_layers="full" if bits == 32 else "same",
        dispatch="none" if bits == 32 else "integer",
    )  # fmt: skip


#: variant -> (facts, accuracy in percent, step in ms, peak in MiB, hypernetwork's MiB, phases in percent, label)
DEMO: dict[str, tuple[MethodFacts, float, float, float, float, tuple[float, ...], str]] = {
    "fp32": (_facts("fp32", 32), 98.33, 41.0, 61.0, 0.0, (1, 33, 60, 0, 5, 1), "float"),
    "ste_w4a4": (_facts("ste", 4), 97.5, 58.0, 66.0, 0.0, (1, 45, 48, 0, 5, 1), "emulated"),
    "uint8_int8": (_facts("uint8", 8, error="uint8"), 98.06, 37.5, 58.0, 0.0, (1, 36, 57, 0, 5, 1), "integer"),
    "uint8_int4": (_facts("uint8", 4, error="uint8"), 95.28, 47.0, 58.0, 0.0, (1, 36, 57, 0, 5, 1), "emulated"),
    "metagrad_int8_recompute": (
        _facts("metagrad", 8, error="uniform", grad="hypernet", strategy="recompute"),
        98.06, 71.0, 69.0, 8.5, (1, 20, 33, 39, 6, 1), "integer",
    ),
    "metagrad_int4_retain": (
        _facts("metagrad", 4, error="uniform", grad="hypernet", strategy="retain"),
        96.11, 118.0, 161.0, 98.0, (1, 13, 22, 58, 5, 1), "emulated",
    ),
    "metagrad_int4_slim": (
        _facts("metagrad", 4, error="uniform", grad="hypernet", strategy="slim"),
        95.83, 69.0, 82.0, 21.0, (1, 22, 37, 33, 6, 1), "emulated",
    ),
    "metagrad_int4_recompute": (
        _facts("metagrad", 4, error="uniform", grad="hypernet", strategy="recompute"),
        96.11, 80.0, 70.0, 8.7, (1, 19, 32, 42, 5, 1), "emulated",
    ),
}  # fmt: skip
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "reports"
PHASES = ("data", "forward", "backward", "meta", "optimizer", "unattributed")
ENVIRONMENT: dict[str, Any] = {
    "package": {"version": "0.1.0", "git_commit": "f00dcafe" * 5, "git_dirty": False},
    "python": {"version": "3.11.2"},
    "torch": {"version": "2.13.0+cpu", "threads": 2},
    "cpu": {"model": "Example CPU @ 2.0 GHz", "usable_cores": 2, "instruction_sets": ["avx2", "avx512_vnni"]},
    "device": {"kind": "cpu", "name": "Example CPU @ 2.0 GHz", "driver": {"reason": "the device is a CPU"}},
}


def timing(step_ms: float, fp32_ms: float, shares: Sequence[float], seed: int) -> TimingResult:
    """Plausible samples of three processes; the same seed gives the same numbers."""
    rng = random.Random(seed)
    repeats = []
    for _ in range(3):
        drift = rng.uniform(0.98, 1.02)
        steps = tuple(round(step_ms * drift * rng.lognormvariate(0, 0.03), 4) for _ in range(8))
        fp32 = tuple(round(fp32_ms * drift * rng.lognormvariate(0, 0.03), 4) for _ in range(8))
        phases = {n: tuple(round(s * p / 100, 5) for s in steps) for n, p in zip(PHASES, shares, strict=True) if p}
        absent = Absent(reason="no NVIDIA driver on this machine")
        repeats.append(TimingRepeat(step_ms=steps, fp32_step_ms=fp32, phases_ms=phases, throttled=absent))
    return TimingResult(
        batch_size=64, warmup_steps=2, repeats=tuple(repeats),
        step_ms=summarize([s for r in repeats for s in r.step_ms]),
        fp32_step_ms=summarize([s for r in repeats for s in r.fp32_step_ms]),
        time_vs_fp32=ratio_interval([r.step_ms for r in repeats], [r.fp32_step_ms for r in repeats], seed=0),
        phases_ms={n: summarize([s for r in repeats for s in r.phases_ms[n]]) for n in repeats[0].phases_ms},
        phase_share_pct={n: float(p) for n, p in zip(PHASES, shares, strict=True) if p},
    )  # fmt: skip


@pytest.fixture
def demo_records(make_record: Callable[..., RunRecord]) -> Callable[..., list[RunRecord]]:
    """Records like the demo suite's, for some variants, seeds and one machine."""

    def make(
        variants: Sequence[str] = tuple(DEMO),
        seeds: Sequence[int] = (0,),
        machine: str = "cpu-89abcdef",
        **changes: Any,
    ) -> list[RunRecord]:
        return [_demo_record(make_record, variant, seed, machine, changes) for variant in variants for seed in seeds]

    return make


def _demo_record(
    make_record: Callable[..., RunRecord], variant: str, seed: int, machine: str, changes: dict[str, Any]
) -> RunRecord:
    facts, accuracy_pct, step_ms, peak, extra, shares, label = DEMO[variant]
    base = make_record()
    assert base.accuracy is not None, "the example record is whole"
    assert base.memory is not None, "the example record is whole"
    shift = random.Random(seed * 1000 + len(variant)).choice((-0.28, 0.0, 0.28)) if seed else 0.0
    final = round(accuracy_pct + shift, 4)
    curve = tuple(
        dataclasses.replace(
            base.accuracy.curve[0], epoch=epoch, step=11 * epoch, seconds=11 * epoch * step_ms / 1000,
            train_loss=round(0.9 / epoch**1.4 + (98.5 - final) / 20, 5),
            test_accuracy_pct=round(final - 14 / epoch**2 + 14 / 16, 4) if epoch < 4 else final,
        )
        for epoch in range(1, 5)
    )  # fmt: skip
    mebibyte = 1024**2
    meta = facts.hypernet != "none"
    absent = Absent(reason=NO_HYPERNET)
    memory = dataclasses.replace(
        base.memory, peak_allocated_bytes=int(peak * mebibyte), fp32_peak_allocated_bytes=61 * mebibyte,
        peak_process_bytes=int((peak + 330) * mebibyte),
        hypernet_extra_allocated_bytes=int(extra * mebibyte) if meta else absent,
        hypernet_extra_process_bytes=int((extra * 0.8 + 2) * mebibyte) if meta else absent,
    )  # fmt: skip
    low_bit = facts.error_bits < 32
    integer = {"fprop": 22, "dgrad": 21, "wgrad": 22} if low_bit else {"fprop": 22 if facts.weight_bits < 32 else 0}
    gemms = GemmResult(
        integer_calls={"fprop": 0, "dgrad": 0, "wgrad": 0} | integer,
        float_calls={"fprop": 22 - integer["fprop"], "dgrad": 0 if low_bit else 21, "wgrad": 0 if low_bit else 22},
        integer_share_pct=100.0 if low_bit else 33.9 if facts.weight_bits < 32 else 0.0,
        hypernet_float_macs=24_124_320 if meta else 0,
        label=label,  # type: ignore[arg-type]
    )  # fmt: skip
    values: dict[str, Any] = {
        "key": f"{variant}-{seed}-{machine}", "variant": variant, "seed": seed, "fingerprint": machine,
        "environment": {**ENVIRONMENT, "device": {**ENVIRONMENT["device"], "name": f"Example CPU ({machine})"}},
        "cell": {"variant_name": variant, "seed": seed, "strategy": {"name": facts.strategy},
                 "weight_bits": facts.weight_bits, "protocol": {"epochs": 4, "batch_size": 64},
                 "optimizer": {"name": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4}},
        "started_at": f"2026-11-21T12:{len(variant):02d}:{seed:02d}+00:00",
        "method": facts, "timing": timing(step_ms, 41.0, shares, seed=len(variant) * 10 + seed), "memory": memory,
        "gemms": gemms,
        "accuracy": dataclasses.replace(
            base.accuracy, test_accuracy_pct=final, pretrained_accuracy_pct=98.06, epochs=4, steps=44, curve=curve,
            final_train_loss=curve[-1].train_loss,
        ),
        "hypernet": base.hypernet if meta else None,
        "missing": {} if meta else {"hypernet": NO_HYPERNET},
        "notices": ("INT4 runs in int8 containers (emulated)",) if label == "emulated" else (),
    }  # fmt: skip
    return make_record(**(values | changes))


@pytest.fixture
def write_runs(tmp_path: Path) -> Callable[[Sequence[RunRecord]], Path]:
    """Write records as run folders."""

    def write(records: Sequence[RunRecord]) -> Path:
        root = tmp_path / "runs"
        for index, record in enumerate(records):
            write_record(root / f"run-{index}", record, config_yaml="seed: 0\n")
        return root

    return write


@pytest.fixture
def one_process() -> Callable[[RunRecord], RunRecord]:
    """The record as one timing process would have left it, its doubtful interval included."""

    def cut(record: RunRecord) -> RunRecord:
        assert record.timing is not None, "only a timed record has processes"
        repeats = record.timing.repeats[:1]
        ratio = ratio_interval([r.step_ms for r in repeats], [r.fp32_step_ms for r in repeats], seed=0)
        return dataclasses.replace(
            record, timing=dataclasses.replace(record.timing, repeats=repeats, time_vs_fp32=ratio)
        )

    return cut


@pytest.fixture
def profiled() -> Callable[[RunRecord], RunRecord]:
    """The record with a profile pass: three layers' products, twelve spans, ten operators, beside its FP32 step."""

    def add(record: RunRecord) -> RunRecord:
        own = _side_profile("int8" if record.method.error_bits < 32 else "fp32", 1.0)
        ceilings = Ceilings(
            int8_gops=600.0, fp32_gflops=150.0, bf16_gflops=Absent(reason="no bf16 kernel"), copy_gb_s=20.0
        )
        profile = ProfileResult(ceilings=ceilings, cell=own, fp32=_side_profile("fp32", 3.0))
        return dataclasses.replace(record, profile=profile)

    return add


def _side_profile(kind: str, slowness: float) -> SideProfile:
    layers = ("conv1", "blocks.0.conv1", "fc")
    gemms = ("fprop", "dgrad", "wgrad")
    no_gpu = Absent(reason="no GPU")
    products = tuple(
        ProductWork(
            layer=layer, gemm=gemm, kind=kind, path="int_mm" if kind == "int8" else "float32",
            operations=10_000_000 * (i + 1), num_bytes=400_000 * (i + 1), product_ms=slowness * (0.11 + 0.1 * i),
            all_ms=slowness * (0.3 + 0.1 * i + 0.01 * j), gops=90.0 / slowness,
            ceiling_share_pct=15.0 / slowness, copy_share_pct=18.0 / slowness,
        )
        for i, layer in enumerate(layers)
        for j, gemm in enumerate(gemms)
        if (layer, gemm) != ("conv1", "dgrad")
    )  # fmt: skip
    spans = tuple(
        SpanTime(phase=phase, layer=layer, gemm="", piece=piece, span_ms=slowness * (i + 1) * share)
        for i, layer in enumerate(layers)
        for phase, piece, share in (
            ("forward", "gemm", 0.4), ("forward", "quantize", 0.2), ("backward", "gemm", 0.7),
            ("optimizer", "rest", 0.1),
        )
    )  # fmt: skip
    work = tuple(
        PhaseWork(
            phase=phase, layer="", operations={kind: count} if count else {}, num_bytes=3_000_000 + count // 10,
            time_ms=slowness * (5.0 + count / 1e8), gops=float(count) / 5e6, ceiling_share_pct=2.5 / slowness,
            copy_share_pct=30.0,
        )
        for phase, count in (("forward", 60_000_000), ("backward", 110_000_000), ("optimizer", 0))
    )  # fmt: skip
    operators = tuple(
        OperatorTime(
            name=f"aten::{kind}_{rank}", calls=float(rank), self_ms=slowness * (11 - rank) / 7, device_ms=no_gpu,
            share_pct=(11 - rank) * 1.5,
        )
        for rank in range(1, 11)
    )  # fmt: skip
    trace = TraceResult(
        file=f"trace_{kind}.json.gz", steps=3, step_ms=slowness * 30.5, operators=operators, kernels=no_gpu,
        tensor_core_share_pct=no_gpu,
    )  # fmt: skip
    return SideProfile(
        plain_step_ms=(20.0, 20.5), spanned_step_ms=(21.0, 21.5), span_overhead_pct=4.9, unattributed_pct=1.25,
        phases_ms={"forward": 8.0, "backward": 12.0}, spans=spans, products=products, work=work, trace=trace,
    )  # fmt: skip


@pytest.fixture
def without_results() -> dict[str, Any]:
    """Changes that leave a record without any measurement."""
    return dict.fromkeys(("accuracy", "timing", "memory", "hypernet", "gemms"))


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with its golden file, or write that anew under ``--update-golden``."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path.name} is missing: run pytest with --update-golden and read the file"
        assert text == path.read_text(encoding="utf-8"), f"{name} differs: if meant, run pytest with --update-golden"

    return check


@pytest.fixture
def with_categories() -> Callable[..., RunRecord]:
    """The record with its peak told apart, MiB by category; a smaller peak stands in another phase."""

    def make(record: RunRecord, **mebibytes: float) -> RunRecord:
        assert record.memory is not None
        sizes = {name: int(mebibytes.get(name, 0) * MEBIBYTE) for name in MEMORY_CATEGORIES}
        absent = Absent("only CUDA's allocator tells")
        top = MemoryPhase(
            phase="backward", peak_bytes=sum(sizes.values()), categories=sizes, layer="conv1", allocator_bytes=absent
        )
        small = dataclasses.replace(
            top, phase="forward", peak_bytes=1, categories={**dict.fromkeys(MEMORY_CATEGORIES, 0), "data": 1}
        )
        return dataclasses.replace(record, memory=dataclasses.replace(record.memory, phases=(small, top)))

    return make


@pytest.fixture
def with_device() -> Callable[..., RunRecord]:
    """The record with the same series in every timing process."""

    def make(record: RunRecord, **changes: object) -> RunRecord:
        assert record.timing is not None
        absent = Absent("not reported")
        series = DeviceSeries(
            time_s=(0.1, 0.2, 0.3), power_w=absent, clock_mhz=absent, memory_clock_mhz=absent, temperature_c=absent,
            utilisation_pct=absent, process_bytes=absent, throttled=absent, throttle_reasons=(), num_throttled=absent,
            energy_j=absent,
        )  # fmt: skip
        series = dataclasses.replace(series, **changes)  # type: ignore[arg-type]
        repeats = tuple(dataclasses.replace(repeat, device=series) for repeat in record.timing.repeats)
        return dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=repeats))

    return make


@pytest.fixture
def write_beside(tmp_path: Path) -> Callable[..., Path]:
    """A record's folder with what a hypernetwork leaves beside it: ``hypernet.csv`` and its surface."""

    def write(name: str, *, axes: int = 2, steps: Sequence[int] = (11, 22)) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        lines = ["step,layer,amplification,cosine,zero_share_pct,meta_grad_norm,interpolation_error"]
        for step in steps:
            for layer, amplification in (("a", 1.0), ("b", 2.0), ("c", 4.0)):
                cosine = "" if layer == "c" else "0.5"
                lines.append(f"{step},{layer},{amplification * step},{cosine},{step},0.1,")
        (folder / "hypernet.csv").write_text("\n".join(lines) + "\n")
        values = (-1.0, 0.0, 1.0)
        rows = 3 if axes == 2 else 1
        surface = HypernetSurface(
            schema_version=1, output="f/max|∇W|",
            axes=tuple(SurfaceAxis(name=n, values=values) for n in ("W/max|W|", "∇W/max|∇W|")[:axes]),
            before=tuple((-0.5, 0.0, 0.5) for _ in range(rows)),
            after=tuple((-0.5, 0.25, 1.0) for _ in range(rows)),
        )  # fmt: skip
        write_surface(folder, surface)
        return folder

    return write
