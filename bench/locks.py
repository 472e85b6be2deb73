"""One pass at a time on a device, across processes, suites and launchers of this machine.

A GPU is told by its own identity: a scheduler shows each of its jobs one GPU, and all of them call it ``cuda:0``.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from bench.errors import HardwareError, system_reason
from bench.hardware.probe import open_nvml
from bench.units import Absent

_POLL_S = 0.2


@contextmanager
def device_lock(
    device: str, *, on_wait: Callable[[], None] = lambda: None, wait_s: float | None = None
) -> Iterator[None]:
    """Hold the machine-wide lock of a device (``cpu``, ``cuda:0``); waits as long as another pass holds it.

    Args:
        device: name of the device.
        on_wait: called once if the lock is taken.
        wait_s: seconds to wait at most; None waits for any time.

    Raises:
        HardwareError: the lock cannot be taken, or not within ``wait_s``.
    """
    folder = Path(tempfile.gettempdir()) / "metagrad-bench-locks"
    name = lock_name(device)
    # World-writable: the device is shared by all users of the machine, the lock has to be as well.
    lock = FileLock(folder / f"{name}.lock", mode=0o666)
    try:
        _make_shared(folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire(timeout=-1 if wait_s is None else wait_s, poll_interval=_POLL_S)
    except Timeout as error:
        raise HardwareError(f"another pass holds {device}: wait until it is done.") from error
    except OSError as error:
        raise HardwareError(
            f"the lock of {device} in {folder} cannot be taken ({system_reason(error)}): make that a folder that "
            "everybody may write to, or set TMPDIR."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _make_shared(folder: Path) -> None:
    """A folder that every user may make files in, whatever the umask of the first, and delete none of another's."""
    try:
        folder.mkdir()
    except FileExistsError:
        return
    folder.chmod(0o1777)


def lock_name(device: str) -> str:
    """Name of a device's lock, the same in every process of the machine whatever CUDA_VISIBLE_DEVICES shows it.

    Args:
        device: ``cpu`` or ``cuda:N``.
    """
    if not device.startswith("cuda"):
        return device
    index = int(device.partition(":")[2] or 0)
    gpu = open_nvml(torch.device("cuda", index))
    digest = gpu if isinstance(gpu, Absent) else gpu.digest()
    if not isinstance(digest, Absent):
        return f"cuda-{digest}"
    shown = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    return f"cuda-{re.sub(r'[^0-9A-Za-z-]', '-', shown[index]) if index < len(shown) else index}"
