"""Training steps on shapes alone: the real step on torch's fake or meta tensors, which hold sizes and no numbers.

Every operator answers with a tensor of the right size and dtype, so the tracker sees the allocations of any batch size
in seconds and without the memory. Fake tensors stand for the CPU's, those on torch's ``meta`` device for a GPU's: there
the kernels cut their work as on a GPU. A number that the step reads from the device (a tabulated function's
error) is taken as 0. torch's fake kernels do not know oneDNN's LSTM workspace; its size is asked of the real operator
on a few rows.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench import native
from bench.kernels.selfcheck import trusted
from bench.kernels.workspace import clear_workspace
from bench.layers import quantized_layers
from bench.profilers.memory_categories import CategoryTracker
from bench.profilers.work import WorkCounter
from bench.training.assemble import Parts
from bench.training.drawn_layer import take_largest_layer
from bench.training.memory import track_steps
from bench.units import Absent

_aten = torch.ops.aten
_PROBE_ROWS = 1024
_STEPS = 2  # a hypernetwork's first whole step is the second


def track_shapes(
    parts: Parts,
    *,
    batch_size: int,
    image_shape: tuple[int, int, int],
    device: torch.device,
    lr: float,
    work: WorkCounter | None = None,
) -> CategoryTracker:
    """Track training steps of any batch size without computing or allocating them.

    Args:
        parts: of a cell, on the CPU; left as they are.
        batch_size: images a step.
        image_shape: (C, H, W).
        device: ``cpu``, or ``meta`` for how a GPU would run.
        lr: learning rate.
        work: counts the operators of the last step.

    Returns:
        The tracker, whose window has ended.
    """
    channels, height, width = image_shape
    counted = contextlib.nullcontext() if work is None else work
    lstm_bytes_a_row = _lstm_workspace_bytes(parts)
    clear_workspace()  # real buffers must not be taken for fake ones, nor the other way round
    try:
        # Fake tensors claim another device than theirs; those on ``meta`` need not, and are several times as fast.
        mode = FakeTensorMode(allow_non_fake_inputs=True) if device.type != "meta" else contextlib.nullcontext()
        with native.shapes_only(), mode, trusted(device):
            with _CopyShapes(device), _generators_on(device):
                shapes = copy.deepcopy(parts)
            for layer in quantized_layers(shapes.model).values():
                if layer.dispatch == "auto":
                    layer.dispatch = "integer"  # nothing can be timed here
            take_largest_layer(shapes)
            batches = [
                (
                    torch.empty(batch_size, height, width, channels, device=device).permute(0, 3, 1, 2),
                    torch.empty(batch_size, dtype=torch.int64, device=device),
                )
                for _ in range(_STEPS)
            ]
            shapes.model.train()
            with _PlainNumbers(lstm_bytes_a_row), counted:
                return track_steps(shapes, batches, lr, device, before_step=work.clear if work is not None else None)
    finally:
        clear_workspace()


def bound_hypernet_bytes(tracker: CategoryTracker, parts: Parts) -> int | Absent:
    """Most bytes that a hypernetwork can add to any peak of a step, from a tracked window on shapes.

    ψ with its gradients and Adam's moments, what f_ψ makes and keeps, and the pending gradients, at once.
    """
    if parts.delayed is None:
        return Absent("the method has no hypernetwork")
    psi_bytes = sum(parameter.nbytes for parameter in parts.delayed.hypernet.parameters())
    held = tracker.most_held(("hypernet_parameters", "hypernet_activations", "pending_gradients"))
    return held + 3 * psi_bytes


class _CopyShapes(TorchFunctionMode):
    """Lets ``copy.deepcopy`` make tensors without data, on a device, that share among them what the originals share."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                twin = self._twin(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
            return memo[id(tensor)]
        if func is Tensor.clone:  # how a parameter is copied
            return self._twin(args[0])
        return func(*args, **(kwargs or {}))

    def _twin(self, tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=self._device)


class _PlainNumbers(TorchDispatchMode):
    """Answers 0 where the step asks a device for a number, and knows the LSTM's workspace."""

    def __init__(self, lstm_bytes_a_row: float) -> None:
        super().__init__()
        self._lstm_bytes_a_row = lstm_bytes_a_row

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return False if dtype is torch.bool else 0.0 if dtype.is_floating_point else 0
        result = func(*args, **(kwargs or {}))
        if func is _aten.mkldnn_rnn_layer.default and torch.is_grad_enabled():
            rows = args[0].numel() // args[0].shape[-1]
            return (*result[:3], torch.empty(int(rows * self._lstm_bytes_a_row), dtype=torch.uint8))
        return result


class _MetaGenerator(torch.Generator):
    """A generator that says to be on the device where nothing is drawn; torch itself makes none there."""

    device = torch.device("meta")


@contextlib.contextmanager
def _generators_on(device: torch.device) -> Iterator[None]:
    """Copy generators as ones that fit the device."""
    build: Any = _MetaGenerator if device.type == "meta" else torch.Generator
    copyreg.dispatch_table[torch.Generator] = lambda generator: (build, ())
    try:
        yield
    finally:
        del copyreg.dispatch_table[torch.Generator]


def _lstm_workspace_bytes(parts: Parts) -> float:
    """Bytes a row that oneDNN's LSTM hands to autograd in the hypernetwork; 0 without one."""
    modules = parts.delayed.hypernet.modules() if parts.delayed is not None else ()
    sizes = [(module.input_size, module.hidden_size) for module in modules if isinstance(module, nn.LSTM)]
    if not sizes:
        return 0.0
    with _SeenWorkspace() as seen:
        nn.LSTM(*sizes[0])(torch.zeros(1, _PROBE_ROWS, sizes[0][0]))
    return seen.num_bytes / _PROBE_ROWS


class _SeenWorkspace(TorchDispatchMode):
    """Notes the size of the workspace; 0 where another implementation ran, whose tensors the tracker sees anyway."""

    num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _aten.mkldnn_rnn_layer.default:
            self.num_bytes = result[3].nbytes
        return result
