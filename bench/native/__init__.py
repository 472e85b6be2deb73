"""The compiled element-wise pieces of the CPU path: built once per machine, optional, checked before use.

``pieces.c`` is compiled by the system's C compiler into the user's cache (or, where that cannot be written, a folder of
the user's own among the temporary ones, and ``notice`` says so) and called through ctypes; torch's OpenMP
threads run it. Where there is no compiler, or another device computes, the plain torch twins run and ``status`` says
why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.units import Absent

SOURCE = Path(__file__).with_name("pieces.c")
COMPILERS = ("cc", "gcc", "clang")
# No contraction and no reassociation: the results are those of the torch twins, bit for bit.
FLAGS = (
    "-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-fopenmp", "-fwrapv", "-ffp-contract=off",
    "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
OPTIONAL_FLAGS = ("-mprefer-vector-width=512",)  # x86 only; GCC shies away from it by default
BUILD_LIMIT_S = 120
CACHE_FOLDER = "native"
_SEAL = b"metagrad-bench sealed 1 "
_SEAL_BYTES = len(_SEAL) + 64

_off = 0
_shapes = 0
_watcher: Callable[[Tensor], None] | None = None


class Geometry(ctypes.Structure):
    """Sizes of a gather; the fields of the C structure, all counts."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "n", "h", "w", "c", "c0", "cb",
            "row_start", "row_step", "row_count", "row_stride", "row_length",
            "col_start", "col_step", "col_count", "col_stride", "col_length",
            "pack", "row_pack",
        )
    ]  # fmt: skip


class Landing(ctypes.Structure):
    """Where a product's sums go and how they are weighted; the fields of the C structure."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                "n", "rows", "cols", "row_pack", "pack", "c", "pitch", "groups", "sums_pitch",
                "out_n", "out_row", "out_col",
            )
        ),
        ("factor", ctypes.c_int32),
        ("row_weight", ctypes.c_int32),
    ]  # fmt: skip


class Sequel(ctypes.Structure):
    """What is done with a block of a dense output right after it has landed; the fields of the C structure."""

    _fields_ = [
        ("block_rows", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("residual", "gate", "means", "squares", "x", "halves", "mean", "sums", "dots")
        ),
        ("values", ctypes.c_int64),
    ]  # fmt: skip


class Job(ctypes.Structure):
    """One product of fprop or dgrad: what it gathers and where its sums land; the fields of the C structure."""

    _fields_ = [
        ("read", Geometry),
        ("landing", Landing),
        ("source", ctypes.c_void_p),
        ("patches", ctypes.c_void_p),
        ("depth", ctypes.c_int64),
        ("pad", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("acc", "row_sums", "columns", "places", "out", "scale", "bias", "bits")),
        ("scale_per_channel", ctypes.c_int64),
        ("first_bit", ctypes.c_int64),
        ("then", ctypes.c_void_p),
    ]


@contextmanager
def disabled() -> Iterator[None]:
    """Run the plain torch twins inside the block: for comparison, and where tensors have no memory to point at."""
    global _off
    _off += 1
    try:
        yield
    finally:
        _off -= 1


class _Nothing:
    """A library whose functions do nothing: for tensors that have sizes and no memory."""

    def __getattr__(self, name: str) -> Callable[..., float]:
        return lambda *arguments: 1.0 if name in ("act_codes", "norm_codes", "weight_codes") else 0.0


@contextmanager
def shapes_only() -> Iterator[None]:
    """Allocate as the compiled pieces do inside the block, but call nothing: for torch's fake tensors."""
    global _shapes
    _built()  # its check needs tensors with memory
    _shapes += 1
    try:
        yield
    finally:
        _shapes -= 1


def usable(device: torch.device) -> bool:
    """Whether the compiled pieces run on this device, now."""
    return device.type == "cpu" and not _off and not isinstance(compiled(), Absent)


def status() -> str:
    """One sentence on what runs the element-wise work on this machine's CPU."""
    found = pieces(torch.device("cpu"))
    return f"plain torch: {found.reason}" if isinstance(found, Absent) else f"{found} for this processor, checked"


def notice() -> str | Absent:
    """One sentence where the compiled pieces could not be kept in the user's cache; else why there is none."""
    found = _built()
    if isinstance(found, Absent):
        return found
    folder = Path(found._name).parent
    if folder.name == CACHE_FOLDER:
        return Absent("the compiled pieces lie in the user's cache")
    return (
        f"The user's cache cannot be written, so the compiled pieces lie in {folder} and are built again after it is "
        "cleaned: set XDG_CACHE_HOME to a folder that can be written."
    )


def pieces(device: torch.device) -> str | Absent:
    """What a record says of the element-wise work on ``device``: who compiled it, or why torch's operators run."""
    if device.type != "cpu":
        return Absent("the pieces are compiled for CPUs; torch's own operators run on this device")
    found = _built()
    return found if isinstance(found, Absent) else f"compiled by {Path(_compiler() or 'cc').name}"


@contextmanager
def watch_operands(watcher: Callable[[Tensor], None]) -> Iterator[None]:
    """Call ``watcher`` with every tensor that is handed to a compiled piece inside the block, as often as it is."""
    global _watcher
    outer, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = outer


def pointer(tensor: Tensor | None, index: int = 0) -> int | None:
    """Address of a contiguous tensor's value at ``index``."""
    if tensor is None:
        return None
    if _watcher is not None:
        _watcher(tensor)
    if _shapes:
        return 0
    return tensor.data_ptr() + index * tensor.element_size() if index else tensor.data_ptr()


def compiled() -> Any:
    """The compiled library, or an ``Absent`` that says why there is none."""
    return _Nothing() if _shapes and not isinstance(_built(), Absent) else _built()


@functools.cache
def _built() -> ctypes.CDLL | Absent:
    """Compiled the first time a machine asks."""
    compiler = _compiler()
    if compiler is None:
        return Absent(reason=f"no C compiler found ({', '.join(COMPILERS)}); install gcc for a faster step")
    try:
        path = _build(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        return Absent(reason=f"{Path(compiler).name} could not build the compiled pieces: {_last_line(error)}")
    try:
        found = ctypes.CDLL(str(path))
        _declare(found)
    except (OSError, AttributeError) as error:  # a file system without execution, a library that it needs is missing
        return Absent(reason=f"the compiled pieces cannot be loaded: {_last_line(error)}")
    return found if _is_right(found) else Absent(reason=f"what {Path(compiler).name} built computes wrong codes")


@functools.cache
def _compiler() -> str | None:
    return next((path for path in map(shutil.which, COMPILERS) if path is not None), None)


def _build(compiler: str) -> Path:
    """Compile into the user's cache, unless this source was compiled there for this processor and compiler.

    Raises:
        OSError: no folder can be written, or the compiler cannot be started.
        subprocess.SubprocessError: the compiler fails or takes too long.
    """
    import platformdirs

    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    identity = "\n".join((SOURCE.read_text(), *FLAGS, *OPTIONAL_FLAGS, version, platform.machine(), _processor()))
    name = f"native-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    cache = platformdirs.user_cache_path("metagrad-bench") / CACHE_FOLDER
    if _is_whole(cache / name):
        return cache / name
    folder = cache if _can_write(cache) else _temporary_folder()
    target = folder / name
    if _is_whole(target):
        return target
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(made), "-lm"]
        wide = [compiler, *FLAGS, *OPTIONAL_FLAGS, str(SOURCE), "-o", str(made), "-lm"]
        if subprocess.run(wide, capture_output=True, timeout=BUILD_LIMIT_S, check=False).returncode:
            subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=True)
        made.write_bytes(_sealed(made.read_bytes()))
        made.replace(target)  # processes that have loaded the earlier one keep it
    return target


def _sealed(library: bytes) -> bytes:
    """A library with its SHA-256 behind it, where the loader does not read."""
    return library + _SEAL + hashlib.sha256(library).hexdigest().encode()


def _is_whole(path: Path) -> bool:
    """Whether a file is what was built: one that was cut off may load, and end the process when it is called."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return data == _sealed(data[:-_SEAL_BYTES])


def _can_write(folder: Path) -> bool:
    if not folder.is_absolute():  # nobody's home: it would be made where the user happens to work
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # the mode alone tells nothing to root, nor of a read-only disk
            return True
    except OSError:
        return False


def _temporary_folder() -> Path:
    """Where the cache cannot be written: one folder for all of this user's processes, or one that nobody else can know.

    What lies there is loaded and run, so it must be the user's own and closed to others.
    """
    folder = Path(tempfile.gettempdir()) / f"metagrad-bench-native-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix="metagrad-bench-native-"))
    return folder


def _processor() -> str:
    """What the compiler's -march=native looks at: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines[:40] if line.startswith(("model", "flags", "Features", "CPU part")))


def _declare(found: ctypes.CDLL) -> None:
    p, n, f, i = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    pad, geometry, landing = ctypes.c_int8, ctypes.POINTER(Geometry), ctypes.POINTER(Landing)
    sequel, job, d = ctypes.POINTER(Sequel), ctypes.POINTER(Job), ctypes.c_double
    signatures: dict[str, tuple[object, ...]] = {
        "uniform_codes": (p, p, n, f, f, p, f, f),
        "weight_backward": (p, p, n),
        "code_columns": (p, p, n, n, n, n, n),
        "gather_images": (job, n, n),
        "land_images": (job, n, n),
        "next_images": (job, n, n, n, n),
        "patch_sums": (p, p, geometry, n, pad),
        "land": (p, p, landing, p, p, p, p, i, p, p, n, sequel),
        "turn": (p, p, n, n),
        "wgrad_lines": (p, p, p, geometry, n, pad, i),
        "channel_sums": (p, p, n, n),
        "fold_wgrad": (p, p, n, n, n, n, n, n, n, n, n, i),
        "land_wgrad": (p, p, n, n, n, p, p, p, i),
        "weight_lines": (p, p, n, n, n, geometry, n),
        "turn_weight": (p, p, n, n, n, n, n, n, n, n, n, n),
        "depthwise_land": (p, p, p, geometry, pad, n, p, landing, p, p, p, i, p, p, n, sequel),
        "depthwise_wgrad": (p, p, p, geometry, pad),
        "norm_stats": (p, n, n, p, p),
        "norm_apply": (p, p, n, n, p, p, p, p),
        "norm_factors": (p, p, n, n, d, p, p, p, p, p, p, p, p, f),
        "norm_sums": (p, p, p, p, p, n, n, p, p, p),
        "norm_slopes": (p, p, n, n, p, p, p, p, p, p, p),
        "join_stats": (p, p, n, n, n, p, p),
        "join_sums": (p, p, n, n, p, p),
        "pack_nibbles": (p, p, n),
        "unpack_nibbles": (p, p, n),
        "rectify": (p, p, p, n, f),
        "rectify_backward": (p, p, p, n),
        "max_pool": (p, p, p, geometry),
        "max_pool_backward": (p, p, p, geometry),
        "pad_shortcut": (p, p, n, n, n, n, n, n),
        "pad_shortcut_backward": (p, p, n, n, n, n, n, n, i),
        "table_read": (p, n, n, p, p, f, f, p, p, f, i, f, p, n),
        "table_scatter": (p, n, n, n, p, p, f, f, p, p, f, n),
    }
    found.act_codes.argtypes = (p, p, p, n, f, f)
    found.act_codes.restype = i
    found.weight_codes.argtypes, found.weight_codes.restype = (p, p, p, n, f, f), i
    found.norm_codes.argtypes = (p, p, p, p, n, n, p, p, p, p, p, f, p, f, f)
    found.norm_codes.restype = i
    found.norm_backward.argtypes = (p, p, p, p, p, n, n, p, p, p, p)
    found.norm_backward.restype = f
    for name, arguments in signatures.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None


def _is_right(found: ctypes.CDLL) -> bool:
    """A small check against torch: a compiler that broke rounding must not colour results."""
    x = torch.linspace(-1.5, 1.5, 1003)
    codes = torch.empty(1003, dtype=torch.int8)
    found.uniform_codes(x.data_ptr(), codes.data_ptr(), 1003, 127.0, 1.25, None, 0.0, 0.0)
    return torch.equal(codes, torch.mul(x, 127.0).div_(1.25).round_().clamp_(-127, 127).to(torch.int8))


def _last_line(error: Exception) -> str:
    """What went wrong, without folders: records and ``doctor`` print it."""
    output = getattr(error, "stderr", None) or str(error)
    lines = [line for line in str(output).splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line), lines[-1] if lines else type(error).__name__)
    return re.sub(r"[^\s'\"(]*/", "", told)
