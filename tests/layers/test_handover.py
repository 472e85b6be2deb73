"""What modules hand over to each other changes no value, goes where a trace proves it, and not where somebody looks."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from bench import native
from bench.layers import QuantSpec, integer_conv, quantize_model
from bench.layers.handover import CODES, PENDING, STATISTICS, take
from bench.layers.join import AddReLU, LeanAddReLU
from bench.layers.norm import LeanBatchNorm2d
from bench.layers.shortcut import PadShortcut
from bench.models.resnet import BasicBlock, make_shortcut

COMPILED = native.usable(torch.device("cpu"))
pytestmark = pytest.mark.skipif(not COMPILED, reason=native.status())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(channels: int, kernel: int = 3, groups: int = 1, relu: type[nn.Module] = nn.ReLU, stride: int = 1) -> list:
    conv = nn.Conv2d(channels, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), relu()]


def chain() -> nn.Module:
    return nn.Sequential(*unit(16), *unit(16), *unit(16, stride=2), nn.Conv2d(16, 4, 1))


def odd_chain() -> nn.Module:
    return nn.Sequential(*unit(7), *unit(7, 1), nn.Conv2d(7, 3, 3))


def depthwise() -> nn.Module:
    return nn.Sequential(*unit(24, 1, relu=nn.ReLU6), *unit(24, 3, 24, nn.ReLU6), *unit(24, 1))


def blocks(option: str, channels: int = 8, second: int = 16) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        steps = [(channels, channels, 1), (channels, channels, 1), (channels, second, 2), (second, second, 1)]
        parts = [BasicBlock(a, b, stride, make_shortcut(option, a, b, stride)) for a, b, stride in steps]
        return nn.Sequential(*unit(channels), *parts)

    return make


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (3, 16, 8, 8)),
    "odd chain": (odd_chain, (3, 7, 5, 9)),
    "depthwise": (depthwise, (2, 24, 8, 8)),
    "blocks A": (blocks("A"), (3, 8, 8, 8)),
    "blocks B": (blocks("B"), (3, 8, 8, 8)),
    "wide blocks": (blocks("B", 40, 72), (2, 40, 9, 7)),
}

INPUT_SEEDS = {"wide blocks": 5}  # where the usual one's input leaves a value at the edge of two codes


def made(name: str, **spec) -> tuple[nn.Module, Tensor]:
    make, shape = NETS[name]
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.mul_(0.3).add_(random(module.num_features) * 0.1)  # most values below 1, not all
            module.bias.data.add_(0.2)
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(INPUT_SEEDS.get(name, 1)))
    x = x.contiguous(memory_format=torch.channels_last)
    quantize_model(model, QuantSpec(**{"error": "uniform", "error_bits": 8, **spec}), sample_input=x)
    return model.train(), x


def watched(model: nn.Module) -> nn.Module:
    """The same with a hook on every module, so that nothing is handed over but what a convolution sums up."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module.register_forward_hook(lambda *_: None)
    return twin


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    (y.square().mean() + (y * random(*y.shape, seed=3)).mean()).backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in model.parameters()), *model.buffers()]


def agree(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.isfinite().all()
        distance = (mine.double() - other.double()).norm()
        assert distance <= tolerance * other.double().norm() + 1e-7


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("dispatch", ["integer", "auto", "simulate"])
@pytest.mark.parametrize("name", NETS)
def test_a_step_is_the_same_with_and_without_handing_over(name, dispatch, compact):
    model, x = made(name, dispatch=dispatch, compact=compact)
    twin = watched(model)
    plain = copy.deepcopy(model)
    for _ in range(2):  # dispatch=auto chooses in the first
        for each in (model, twin, plain):
            each.zero_grad()
        ours, theirs = step(model, x), step(twin, x)
        with native.disabled():
            torchs = step(plain, x)
        # sums in another order: a value at the edge of two codes may fall to the other side
        agree(ours, theirs, 1e-2)
        agree(ours, torchs, 2e-2)


@pytest.mark.parametrize("name", NETS)
def test_the_forward_pass_is_the_same_bit_for_bit_once_the_sums_are(name):
    model, x = made(name)
    twin = watched(model)
    assert torch.equal(model(x), twin(x))


def seen(model: nn.Module, x: Tensor, key: str) -> list[str]:
    """Names of the modules whose output carries something, found without a hook or a forward of their own."""
    found = []
    names = {id(module): name for name, module in model.named_modules()}
    kinds = {type(module) for module in model.modules() if type(module).forward is not nn.Module.forward}
    with contextlib.ExitStack() as patches:
        for kind in kinds:

            def forward(self: nn.Module, *inputs: Tensor, own=kind.forward) -> Tensor:
                y = own(self, *inputs)
                if take(y, key) is not None:
                    found.append(names[id(self)])
                return y

            patches.enter_context(mock.patch.object(kind, "forward", forward))
        model(x)
    return found


def test_codes_norms_and_statistics_are_handed_over_where_the_trace_proves_it():
    model, x = made("blocks A")
    writers = {"1", *(f"{block}.bn1" for block in range(3, 7)), "3.relu2", "4.relu2", "5.relu2"}
    found = set(seen(copy.deepcopy(model), x, CODES))
    assert {name for name in found if isinstance(model.get_submodule(name), LeanBatchNorm2d | LeanAddReLU)} == writers
    joins = [name for name, module in model.named_modules() if isinstance(module, LeanAddReLU)]
    assert joins == ["3.relu2", "4.relu2", "5.relu2", "6.relu2"]
    assert [model.get_submodule(name).hands_gradient_over for name in joins] == [
        True
    ] * 4  # the third through its padding shortcut
    assert set(seen(copy.deepcopy(model), x, PENDING)) == {f"{block}.bn2" for block in range(3, 7)}
    convolutions = [name for name, module in model.named_modules() if getattr(module, "feeds_norm", False)]
    assert set(seen(copy.deepcopy(model), x, STATISTICS)) == set(convolutions)
    assert len(convolutions) == 9


def test_an_activation_that_convolutions_alone_read_keeps_no_floats():
    model, x = made("chain")
    saved: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.setdefault(t.data_ptr(), t), lambda t: t):
        y = model(x)
    assert y.requires_grad
    flags = [tensor for tensor in saved.values() if tensor.dtype == torch.uint8]
    # the clip and the ReLU of an activation share one mask: three activations and the input
    assert sum(tensor.numel() for tensor in flags) == (x.numel() + 2 * x.numel() + x.numel() // 4) // 8


@pytest.mark.parametrize("at", ["1", "2", "3"])
def test_a_hook_that_comes_later_sees_floats(at):
    model, x = made("chain")
    expected = step(copy.deepcopy(model), x)
    values = []
    model.get_submodule(at).register_forward_hook(lambda _, inputs, y: values.extend((inputs[0], y)))
    agree(step(model, x), expected, 1e-2)
    assert all(value.isfinite().all() for value in values)


def test_anomaly_detection_takes_nothing_for_an_error():
    model, x = made("blocks A")
    expected = step(copy.deepcopy(model), x)
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        agree(step(model, x), expected, 1e-2)


def test_a_value_that_is_not_finite_makes_the_output_not_finite():
    for name in NETS:
        model, x = made(name)
        x[0, 1, 0, 0] = math.inf
        assert not model(x).isfinite().all(), name


def test_a_copy_and_a_pickle_compute_the_same():
    model, x = made("blocks B")
    expected = step(copy.deepcopy(model), x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(step(other, x), expected, strict=True))
        norm = next(module for module in other.modules() if isinstance(module, LeanBatchNorm2d))
        assert norm.readers.layers[0] in list(other.modules())  # its own readers, not the first model's


class Forked(nn.Module):
    """A block whose intermediate goes elsewhere too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = unit(8)
        self.conv2, self.bn2, _ = unit(8)
        self.join, self.how = AddReLU(), how
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.relu1(self.bn1(self.conv1(x)))
        second = self.bn2(self.conv2(first))
        if self.how == "shortcut read elsewhere":
            return self.last(self.join(second, first)) + first.mean()
        if self.how == "norm read elsewhere":
            return self.last(self.join(second * 1, first)) + second.mean()
        if self.how == "norm joined as a shortcut":
            return self.last(self.join(first * 1, second))
        if self.how == "broadcast":
            return self.last(self.join(second, first.mean((2, 3), keepdim=True)))
        if self.how == "activation returned":
            return self.last(self.join(second, first)), first
        return self.last(self.join(second, first))


@pytest.mark.parametrize(
    ("how", "gradient"),
    [
        ("plain", True),
        ("shortcut read elsewhere", False),
        ("norm read elsewhere", True),
        ("norm joined as a shortcut", False),
        ("broadcast", False),
        ("activation returned", False),
    ],
)
def test_a_fork_in_the_graph_is_respected(how, gradient):
    torch.manual_seed(0)
    model = Forked(how)
    x = torch.rand(3, 8, 8, 8)
    quantize_model(model, QuantSpec(error="uniform", error_bits=8), sample_input=x)
    assert model.join.hands_gradient_over == gradient
    outputs = []
    for each in (model, watched(model)):
        leaf = x.clone().requires_grad_()
        y = each(leaf)
        sum(part.square().mean() for part in (y if isinstance(y, tuple) else (y,))).backward()
        outputs.append([leaf.grad, *(parameter.grad for parameter in each.parameters())])
    agree(*outputs, 1e-2)


class Padded(nn.Module):
    """A block of two stages whose padding shortcut, or what it reads, goes elsewhere too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv0, self.bn0, self.relu0 = unit(8)
        self.conv1, self.bn1, self.relu1 = unit(8, stride=2)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.shortcut, self.join, self.last = PadShortcut(4, 2), AddReLU(), nn.Conv2d(12, 4, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        first = self.relu0(self.bn0(self.conv0(x)))
        shortcut = self.shortcut(first)  # before the layers that it bypasses: backward reaches these first
        if self.how == "shortcut called twice":
            shortcut = shortcut + self.shortcut(first)
        y = self.join(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(first))))), shortcut)
        more = {"output read elsewhere": shortcut, "input read elsewhere": first}.get(self.how)
        return self.last(y) if more is None else self.last(y) + more.mean()


@pytest.mark.parametrize("how", ["plain", "shortcut called twice", "output read elsewhere", "input read elsewhere"])
@pytest.mark.parametrize("dispatch", ["integer", "simulate"])
def test_a_padding_shortcut_hands_its_gradient_on_only_where_it_is_alone(how, dispatch):
    torch.manual_seed(0)
    model = Padded(how)
    x = torch.rand(3, 8, 9, 7)
    quantize_model(model, QuantSpec(error="uniform", error_bits=8, dispatch=dispatch), sample_input=x)
    assert model.join.hands_gradient_over == (how == "plain")
    outputs = []
    for each in (model, watched(model)):
        leaf = x.clone().requires_grad_()
        with mock.patch.object(integer_conv, "add_padded", wraps=integer_conv.add_padded) as handed:
            each(leaf).square().mean().backward()
        assert handed.call_count == (each is model and how == "plain")
        outputs.append([leaf.grad, *(parameter.grad for parameter in each.parameters())])
    agree(*outputs, 1e-2)


def test_gradients_asked_for_twice_or_in_part_are_the_same():
    model, x = made("blocks A")
    weights = list(model.parameters())
    loss = model(x).square().mean()
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    second = torch.autograd.grad(loss, weights, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    some = torch.autograd.grad(loss, weights[-4:], retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(some, first[-4:], strict=True))
    last = torch.autograd.grad(loss, weights)
    assert all(torch.equal(one, other) for one, other in zip(last, first, strict=True))
