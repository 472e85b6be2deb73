"""dispatch=auto: chosen once among paths that agree bit for bit, kept, restored, and left where they do not reach."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bench import native
from bench.kernels.int_mm import record_gemms
from bench.layers import QuantSpec, quantize_model
from bench.layers.dispatch import DIRECT, INT_MM, PathChoice, exact_floats, run_fastest

CPU = torch.device("cpu")


def layer_of(groups: int, bits: int, dispatch: str, error: str = "uniform") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Conv2d(16, 16, 3, padding=1, groups=groups))
    spec = QuantSpec(
        weight_bits=bits, activation_bits=bits, error=error, error_bits=4 if error == "fp4" else bits, dispatch=dispatch
    )
    quantize_model(model, spec)
    return model


def step(model: nn.Module) -> list[Tensor]:
    x = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = model(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
    results = [y.detach(), x.grad, *(parameter.grad for parameter in model.parameters())]
    model.zero_grad()
    return results


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("error", ["uniform", "dorefa", "fp4", "sbm"])
def test_every_path_gives_the_same_bits(groups, bits, error):
    if error == "sbm" and bits == 4:
        pytest.skip("SBM has more bits")
    auto = layer_of(groups, bits, "auto", error)
    expected = step(layer_of(groups, bits, "integer", error))
    first = step(auto)
    paths = auto[1].paths
    assert {"fprop", "dgrad", "wgrad"} <= set(paths)
    assert all("not bit-equal" not in choice.reason for choice in paths.values())
    names = {INT_MM, "float32", "float64", *([DIRECT] if groups == 16 and native.usable(CPU) else [])}
    for forced in names:
        auto[1].paths = {gemm: PathChoice(path=forced, reason="forced") for gemm in paths}
        for results in (first, step(auto)):
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(results, expected, strict=True)), forced


def test_choices_are_made_once_and_kept():
    model = layer_of(16, 8, "auto")
    step(model)
    kept = dict(model[1].paths)
    step(model)
    assert model[1].paths == kept
    restored = layer_of(16, 8, "auto")
    restored[1].paths = copy.deepcopy(kept)
    step(restored)
    assert restored[1].paths == kept


def test_the_fastest_of_the_agreeing_is_taken_and_the_first_defines_the_result():
    calls: list[str] = []

    def path(name: str, value: float):
        def run() -> Tensor:
            calls.append(name)
            return torch.tensor(value)

        return run

    chosen: dict[str, PathChoice] = {}
    result = run_fastest(chosen, "fprop", {INT_MM: path("a", 1.0), "float32": path("b", 2.0)})
    assert result.item() == 1.0
    assert chosen["fprop"].path == INT_MM
    assert chosen["fprop"].reason == "the only exact path; not bit-equal: float32"
    calls.clear()
    run_fastest(chosen, "fprop", {INT_MM: path("a", 1.0), "float32": path("b", 2.0)})
    assert calls == ["a"]


def test_a_grid_that_has_grown_past_the_chosen_path_takes_the_integer_product():
    chosen = {"fprop": PathChoice(path="float32", reason="earlier, with fewer bits")}
    assert run_fastest(chosen, "fprop", {INT_MM: lambda: torch.ones(1)}).item() == 1.0
    assert chosen["fprop"].path == INT_MM
    assert "float32 ran before (earlier, with fewer bits)" in chosen["fprop"].reason
    assert exact_floats(CPU, 2**24) == ("float32",)
    assert exact_floats(CPU, 2**24 + 1) == ("float64",)
    assert exact_floats(CPU, 2**53 + 1) == ()
    assert exact_floats(torch.device("cuda"), 1) == ()


def test_the_label_is_that_of_the_path_that_runs_also_after_a_fall_back():
    model = layer_of(1, 8, "auto")
    model[1].paths = {gemm: PathChoice(path="float32", reason="forced") for gemm in ("fprop", "dgrad", "wgrad")}
    step(model)
    facts = model[1].facts()
    assert (facts.fprop, facts.dgrad, facts.wgrad) == ("simulated",) * 3
    with record_gemms() as calls:  # a larger batch: wgrad's sums may pass 2^24
        model(torch.rand(32, 16, 8, 8).requires_grad_()).sum().backward()
    facts = model[1].facts()
    assert (facts.fprop, facts.dgrad, facts.wgrad) == ("simulated", "simulated", "integer")
    assert {(call.gemm, call.path) for call in calls} == {("fprop", "float32"), ("dgrad", "float32"), ("wgrad", INT_MM)}
    assert facts.wgrad_path == "int_mm: float32 ran before (forced), until sums grew past what is exact there"
