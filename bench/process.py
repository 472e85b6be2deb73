"""Runs one pass in a fresh process and waits for it without spinning.

A fork server that has imported the library, but never touched CUDA, keeps a fresh process cheap (tenths of a second).
What goes wrong in the child comes back as an outcome: the parent decides nothing by exception but Ctrl-C.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.errors import DivergedError, HardwareError, OutOfMemoryError, UserError
from bench.records.schema import Status

PRELOAD = ["bench.passes"]
ProgressSink = Callable[[dict[str, Any]], None]
_TERMINATE_GRACE_S = 5.0
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)  # a process's own doing
_OOM_MESSAGES = ("can't allocate memory", "out of memory", "not enough memory", "Cannot allocate memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOutcome:
    """How a pass ended; `value` is what it answered, also a partial answer of one that diverged."""

    status: Status
    reason: str
    value: Any
    traceback: str  # of a programming error, "" otherwise
    duration_s: float


def run_pass(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    *,
    limit_s: float,
    on_progress: ProgressSink,
    on_start: Callable[[int], None] = lambda pid: None,
) -> PassOutcome:
    """Call ``function(report=..., **arguments)`` in a fresh process.

    Args:
        function: a module-level function; its ``report`` argument takes progress as a dict.
        arguments: picklable keyword arguments.
        limit_s: seconds after which the process is ended.
        on_progress: called in this process with each progress dict.
        on_start: called in this process with the new process's id.

    Returns:
        The outcome; a child that ended without an answer is ``timed_out``, ``crashed``, ``killed`` or, where the
        kernel says so, ``out_of_memory``, with the reason.
    """
    started = time.monotonic()
    if multiprocessing.get_start_method(allow_none=True) not in (None, "fork", "spawn", "forkserver"):
        multiprocessing.set_start_method("forkserver", force=True)  # joblib's own would be handed to the child
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ours, theirs = context.Pipe(duplex=True)
    kills_before = _oom_kills()
    child = context.Process(target=_child_main, args=(theirs, function, arguments), daemon=True)
    try:
        with _neutral_start():
            child.start()
    except OSError as error:
        raise HardwareError(f"a process cannot be started ({error}); check TMPDIR and free memory.") from error
    theirs.close()
    assert child.pid is not None, "a started process has an id"
    on_start(child.pid)
    try:
        answer = _wait_for_answer(ours, child.sentinel, started + limit_s, on_progress)
        child.join(timeout=None if answer is _CRASHED else _TERMINATE_GRACE_S)
    finally:
        _end(child)
        ours.close()
    duration_s = time.monotonic() - started
    if answer is _TIMED_OUT:
        reason = f"took longer than protocol.pass_limit_s={limit_s:g} seconds and was ended"
        return PassOutcome(status="timed_out", reason=reason, value=None, traceback="", duration_s=duration_s)
    if answer is _CRASHED:
        status, reason = _explain_exit(child.exitcode, _oom_kills() > kills_before)
        return PassOutcome(status=status, reason=reason, value=None, traceback="", duration_s=duration_s)
    status, reason, value, trace = answer
    return PassOutcome(status=status, reason=reason, value=value, traceback=trace, duration_s=duration_s)


@contextlib.contextmanager
def _neutral_start() -> Iterator[None]:
    """Start children that import nothing of the working folder's: neither its torch.py nor its tools/ package.

    The fork server would have the folder first on its path, and each child would run the main script again.
    """
    main, variable = sys.modules["__main__"], "PYTHONSAFEPATH"
    before = os.environ.get(variable)
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    os.environ[variable] = "1"
    main.__spec__, main.__file__ = None, None
    try:
        yield
    finally:
        main.__spec__, main.__file__ = spec, file
        if before is None:
            os.environ.pop(variable)
        else:
            os.environ[variable] = before


_CRASHED = object()
_TIMED_OUT = object()


def _wait_for_answer(ours: Connection, sentinel: int, deadline: float, on_progress: ProgressSink) -> Any:
    while True:
        ready = wait([ours, sentinel], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            return _TIMED_OUT
        if ours in ready:
            try:
                kind, payload = ours.recv()
            except (EOFError, ConnectionResetError):
                return _CRASHED
            if kind == "answer":
                return payload
            on_progress(payload)
        elif not ours.poll():
            return _CRASHED


def _end(child: Any) -> None:
    """No child outlives its pass."""
    if child.is_alive():
        child.terminate()
        child.join(_TERMINATE_GRACE_S)
    if child.is_alive():
        child.kill()
        child.join()


def _child_main(connection: Connection, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
    try:
        value = function(report=_throttled(connection), **arguments)
        answer: tuple[Status, str, Any, str] = ("ok", "", value, "")
    except Exception as error:
        answer = classify(error)
    connection.send(("answer", answer))


def classify(error: Exception) -> tuple[Status, str, Any, str]:
    """Status, reason, partial value and traceback of what a pass raised."""
    partial = getattr(error, "partial", None)
    if isinstance(error, DivergedError):
        return "diverged", str(error), partial, ""
    if isinstance(error, OutOfMemoryError | MemoryError) or any(text in str(error) for text in _OOM_MESSAGES):
        return "out_of_memory", f"ran out of memory: {_first_line(error)}", partial, ""
    if isinstance(error, UserError):
        return "failed", str(error), partial, ""
    return "failed", f"{type(error).__name__}: {_first_line(error)}", partial, traceback.format_exc()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _throttled(connection: Connection, interval_s: float = 0.2) -> ProgressSink:
    last = 0.0

    def report(progress: dict[str, Any]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= interval_s:
            last = now
            connection.send(("progress", progress))

    return report


def _exit_with_parent(connection: Connection) -> None:
    """The parent never sends: the pipe turns readable only when the parent is gone."""
    connection.poll(None)
    os._exit(1)


def _explain_exit(exitcode: int | None, oom_killed: bool) -> tuple[Status, str]:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        if -exitcode == signal.SIGKILL and oom_killed:
            return "out_of_memory", "was killed by the kernel because the machine ran out of memory"
        status: Status = "crashed" if -exitcode in _FAULTS else "killed"
        return status, f"its process was ended by signal {name}"
    return "crashed", f"its process ended with exit code {exitcode} and no answer"


def _oom_kills() -> int:
    """How often the kernel has killed for memory since boot; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
