"""One pass at a time on a device, across processes, suites and launchers of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bench.errors import HardwareError

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
    # World-writable: the device is shared by all users of the machine, the lock has to be as well.
    lock = FileLock(folder / f"{device.replace(':', '-')}.lock", mode=0o666)
    try:
        folder.mkdir(mode=0o777, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire(timeout=-1 if wait_s is None else wait_s, poll_interval=_POLL_S)
    except Timeout as error:
        raise HardwareError(f"another pass holds {device}: wait until it is done.") from error
    except OSError as error:
        raise HardwareError(
            f"the lock of {device} in {folder} cannot be taken ({error.strerror or error}): make that a folder that "
            "everybody may write to, or set TMPDIR."
        ) from error
    try:
        yield
    finally:
        lock.release()
