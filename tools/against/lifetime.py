"""How long a command lives: never longer than who started it, however that ends."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def ending_with_parent() -> Callable[[], None] | None:
    """What a new process has to call before it becomes a command, so that the kernel sends it SIGTERM with our death.

    Returns:
        For ``preexec_fn`` of a Popen; none where the system knows no such thing.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # looked up here: after a fork no library may be loaded
    return None if prctl is None else lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """While inside, SIGTERM and a terminal that is closed are like Ctrl-C, so that everything is taken away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    for number in _ENDING:
        handler = signal.getsignal(number)
        if handler not in (None, signal.SIG_IGN):  # who ignores one, as nohup does, goes on ignoring it
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
