"""One seed -> an independent sub-seed for every source of randomness, and a mode in which a GPU repeats itself.

A sub-seed is a pure function of (seed, stream, indices): numpy's ``SeedSequence`` with the stream's name as spawn key,
whose mixing is frozen by numpy's compatibility policy. So no stream moves when another draws more or less, and what a
stream gives at (epoch, step) can be had again without replaying what came before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch

STREAMS = {
    "torch": "torch's global generators, on every device",
    "numpy": "numpy's old global generator",
    "python": "the generator of Python's `random`",
    "model_init": "initial weights of the network",
    "hypernet_init": "initial weights of the hypernetwork",
    "loader_order": "order of the training images; index: epoch",
    "augmentation": "crops and flips; index: epoch",
    "stochastic_rounding": "dither of the stochastic quantizers",
    "slim_layer": "the layer that the slim strategy draws each step",
    "synthetic_data": "pixels and labels of the synthetic data set",
}
# cuBLAS repeats itself only with a workspace of fixed size, read when its handle is made (CUDA, cuBLAS section 2.1.4).
CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_WORKSPACE = ":4096:8"


def sub_seed(seed: int, stream: str, *indices: int) -> int:
    """Seed of one stream, and of one position in it if indices are given.

    Args:
        seed: the run's seed, 0 or more.
        stream: a key of ``STREAMS``.
        indices: a position such as an epoch, each from 0 to 2^32 - 1.

    Returns:
        An integer below 2^63, which torch takes on every device. (torch's CPU generator uses its lower 32 bits.)
    """
    low, high = _sequence(seed, stream, *indices).generate_state(2, np.uint32)
    return (int(high) & 0x7FFFFFFF) << 32 | int(low)


def torch_generator(seed: int, stream: str, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of its own for one stream, on the device that will draw from it."""
    return torch.Generator(device=device).manual_seed(sub_seed(seed, stream, *indices))


def numpy_generator(seed: int, stream: str, *indices: int) -> np.random.Generator:
    """A numpy generator of its own for one stream."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, stream, *indices)))


def seed_globals(seed: int) -> None:
    """Seed the global generators of torch (every device), numpy and Python, each with its own stream.

    Our code draws from named streams only; this is for a user's model that draws from the global ones.
    """
    torch.manual_seed(sub_seed(seed, "torch"))
    np.random.seed(sub_seed(seed, "numpy") % 2**32)
    random.seed(sub_seed(seed, "python"))


def globals_state() -> dict[str, Any]:
    """Where the global generators of torch (CPU and every GPU in use), numpy and Python stand, as plain values."""
    name, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, list(words), gauss],
    }


def set_globals_state(state: dict[str, Any]) -> None:
    """Put the global generators where ``globals_state`` found them; GPUs that are not there any more are left out."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


@contextlib.contextmanager
def global_stream(seed: int, stream: str) -> Iterator[None]:
    """Let torch's global CPU generator be one stream inside the block, and as it was afterwards.

    For code that only knows the global generator, above all ``nn.init``: build on the CPU inside
    ``with global_stream(seed, "model_init"):`` and the weights are the same on every device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(sub_seed(seed, stream))
        yield


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Make torch repeat itself bitwise inside the block, then restore what was set.

    Chooses deterministic algorithms (an operator that has none raises torch's RuntimeError with its name), switches
    cuDNN's autotuning off and fixes cuBLAS's workspace, which counts only where no CUDA product ran before in this
    process. Does not fill fresh memory, which torch would do by default and which costs time. On the CPU a run repeats
    itself for the same number of threads.
    """
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    mode = torch.get_deterministic_debug_mode()
    before = (cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory)
    workspace = os.environ.get(CUBLAS_VARIABLE)
    try:
        os.environ[CUBLAS_VARIABLE] = CUBLAS_WORKSPACE
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = True, False, False
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before
        if workspace is None:
            os.environ.pop(CUBLAS_VARIABLE, None)
        else:
            os.environ[CUBLAS_VARIABLE] = workspace


def _sequence(seed: int, stream: str, *indices: int) -> np.random.SeedSequence:
    assert stream in STREAMS, f"no stream named {stream!r}; known: {', '.join(STREAMS)}"
    assert seed >= 0, f"a seed is 0 or more, not {seed}"
    assert all(0 <= index < 2**32 for index in indices), f"indices must fit 32 bits: {indices}"
    digest = hashlib.sha256(stream.encode()).digest()
    name = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))
    return np.random.SeedSequence(entropy=seed, spawn_key=(*name, *indices))
