"""Fixtures shared by all rooms: a record to vary, one thread, the fake NVIDIA driver, the one skip sentence."""

from __future__ import annotations

import atexit
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

from bench.records.schema import (
    SCHEMA_VERSION,
    AccuracyResult,
    DataFacts,
    EpochPoint,
    GemmResult,
    HypernetResult,
    Interval,
    LayerFacts,
    MemoryResult,
    MethodFacts,
    ModelFacts,
    RunRecord,
    Summary,
    TimingRepeat,
    TimingResult,
)
from bench.units import Absent
from tests.fakes.nvml.build import make_runner

# One thread: the products in tests are small, and threads of several workers on few cores slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell ignores Ctrl-C for what it starts in the background, and children inherit that: tests send them Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Device locks lie in the temporary folder: tests wait neither for a suite that runs on this machine nor for each other.
_TEMPORARY = tempfile.mkdtemp(prefix="mgb-")
os.environ["TMPDIR"] = tempfile.tempdir = _TEMPORARY
atexit.register(shutil.rmtree, _TEMPORARY, ignore_errors=True)

# Examples are the same in every run, and none has to be done in Hypothesis's 200 ms: the machine may be busy.
hypothesis.settings.register_profile("ours", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ours")

NO_GPU = "needs an NVIDIA GPU that torch can use"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let golden files be written anew: ``pytest --update-golden``, then read the difference."""
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files anew from what the code gives"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests with the one sentence where there is no GPU."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    """Small tensors run fastest on one thread; a test that takes more leaves none of them to the next.

    What a test draws without a seed of its own is the same whichever tests its worker ran before.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def under_driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`under_driver(script, mode)` runs a script under the fake NVIDIA driver and returns the JSON that it printed."""
    return make_runner(tmp_path_factory)


@pytest.fixture
def make_record() -> Callable[..., RunRecord]:
    """A whole, plausible record; keyword arguments replace its fields."""

    def make(**changes: Any) -> RunRecord:
        return dataclasses.replace(_metagrad_int4_record(), **changes)

    return make


def _metagrad_int4_record() -> RunRecord:
    step_ms = ((101.0, 99.0, 100.0, 102.0), (100.0, 98.0, 103.0, 100.0), (99.0, 101.0, 100.0, 100.0))
    fp32_ms = ((20.0, 20.5, 19.5, 20.0), (20.0, 21.0, 20.0, 19.0), (20.0, 20.0, 20.2, 19.8))
    phases = {
        "data": 1.0,
        "forward": 30.0,
        "backward": 40.0,
        "meta": 20.0,
        "optimizer": 8.0,
        "unattributed": 1.0,
    }
    repeats = tuple(
        TimingRepeat(
            step_ms=steps,
            fp32_step_ms=references,
            phases_ms={name: tuple(step * share / 100 for step in steps) for name, share in phases.items()},
            throttled=Absent(reason="no NVIDIA driver on this machine"),
        )
        for steps, references in zip(step_ms, fp32_ms, strict=True)
    )
    layers = (
        LayerFacts(
            name="conv1", kind="conv2d", quantized=True, reason="", weight_shape=(16, 1, 3, 3), weight_bits=4,
            activation_bits=4, error_bits=4, fprop="emulated", dgrad=Absent(reason="its input needs no gradient"),
            wgrad="emulated",
        ),
        LayerFacts(
            name="fc", kind="linear", quantized=True, reason="", weight_shape=(10, 64), weight_bits=4,
            activation_bits=4, error_bits=4, fprop="emulated", dgrad="emulated", wgrad="emulated",
        ),
    )  # fmt: skip
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        key="0123456789abcdef",
        suite="demo",
        variant="metagrad_int4_recompute",
        model_name="resnet20",
        data_name="digits",
        seed=0,
        device="cpu",
        status="ok",
        reason="",
        started_at="2026-11-21T12:00:00+00:00",
        duration_s=21.5,
        code_version="0.1.0+0123abcd",
        fingerprint="cpu-89abcdef",
        cell={"variant_name": "metagrad_int4_recompute", "seed": 0, "hypernet": {"name": "dual_lstm_fc", "hidden": 4}},
        environment={
            "device": "cpu",
            "torch": {"version": "2.13.0+cpu"},
            "cpu": {"model": "Example CPU", "cores": 2},
            "driver": {"reason": "no NVIDIA driver on this machine"},
        },
        method=MethodFacts(
            name="metagrad", forward_quantizer="dorefa", weight_bits=4, activation_bits=4, error_quantizer="uniform",
            error_bits=4, error_rounding="stochastic", grad_quantizer="hypernet", grad_bits=4, hypernet="dual_lstm_fc",
            hypernet_form="residual", hidden=4, strategy="recompute", optimizer="momentum", edge_layers="same",
            dispatch="integer",
        ),
        model=ModelFacts(name="resnet20", num_parameters=269_434, num_quantized_weights=268_048, layers=layers),
        data=DataFacts(
            name="digits", synthetic=False, train_samples=1437, test_samples=360, image_shape=(1, 8, 8),
            num_classes=10, source="scikit-learn load_digits", fingerprint="feedc0de",
        ),
        accuracy=AccuracyResult(
            test_accuracy_pct=95.0, pretrained_accuracy_pct=98.0, final_train_loss=0.12, epochs=2, steps=22,
            curve=(
                EpochPoint(epoch=1, step=11, seconds=1.5, learning_rate=0.01, train_loss=0.5, test_accuracy_pct=90.0),
                EpochPoint(epoch=2, step=22, seconds=3.0, learning_rate=0.01, train_loss=0.12, test_accuracy_pct=95.0),
            ),
            losses_digest="00ff",
        ),
        timing=TimingResult(
            batch_size=128, warmup_steps=2, repeats=repeats,
            step_ms=Summary(median=100.0, q1=99.0, q3=101.0, n=12),
            fp32_step_ms=Summary(median=20.0, q1=19.95, q3=20.05, n=12),
            time_vs_fp32=Interval(value=5.0, low=4.9, high=5.1),
            phases_ms={name: Summary(median=share, q1=share, q3=share, n=12) for name, share in phases.items()},
            phase_share_pct=phases,
        ),
        memory=MemoryResult(
            peak_allocated_bytes=40 * 1024**2, peak_reserved_bytes=Absent(reason="only CUDA's allocator reserves"),
            peak_process_bytes=400 * 1024**2, peak_device_bytes=Absent(reason="the device is a CPU"),
            fp32_peak_allocated_bytes=30 * 1024**2, fp32_peak_process_bytes=380 * 1024**2,
            hypernet_extra_allocated_bytes=3 * 1024**2, hypernet_extra_process_bytes=5 * 1024**2,
        ),
        hypernet=HypernetResult(
            num_parameters=133, amplification=1.02, cosine=0.999, zero_share_pct=60.0, meta_grad_norm=0.01
        ),
        gemms=GemmResult(
            integer_calls={"fprop": 2, "dgrad": 1, "wgrad": 2}, float_calls={"fprop": 0, "dgrad": 0, "wgrad": 0},
            integer_share_pct=100.0, hypernet_float_macs=1_000_000, label="emulated",
        ),
        missing={},
        notices=("INT4 runs in int8 containers (emulated)",),
    )  # fmt: skip
