"""Runs one pass in a fresh process and waits for it without spinning.

A fork server that has imported the library, but never touched CUDA, keeps a fresh process cheap (tenths of a second).
What goes wrong in the child comes back as an outcome: the parent decides nothing by exception but Ctrl-C, upon which
the child is asked to stop at the end of its step. A child ends with its parent, whichever way that ends: the pipe tells
it, and where it is too busy to listen the kernel ends it with the fork server.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.errors import DivergedError, OutOfMemoryError, StoppedError, UserError
from bench.records.schema import FINISHED, Status
from bench.reporting import Report

# The second is imported by the first dispatch mode of a process: a second each, in every pass that tracks or counts.
PRELOAD = ["bench.passes", "torch._dynamo"]
STOPPING = "stopping at the end of this step (Ctrl-C again: at once)"
_EXIT_GRACE_S = 5.0
_STOP_GRACE_S = 60.0  # for the rest of a step and its checkpoint
_PASS_SIGNALS = {signal.SIGINT, signal.SIGTERM}  # meant for the parent, which decides what becomes of a pass
_LONGEST_WAIT_S = 10.0  # at a time, so that a stop of this process is seen as one
_OVERSLEPT_S = 2.0
_REPORT_S = 0.2  # between two messages of progress
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)  # a process's own doing
_OOM_MESSAGES = ("can't allocate memory", "out of memory", "not enough memory", "Cannot allocate memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOutcome:
    """How a pass ended; `value` is what it answered, or what it had reported of it before it diverged or ended."""

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
    limit_name: str = "protocol.pass_limit_s",
    silence_limit_s: float = math.inf,
    on_progress: Report,
    on_start: Callable[[int], None] = lambda pid: None,
) -> PassOutcome:
    """Call ``function(report=..., **arguments)`` in a fresh process.

    Args:
        function: a module-level function; its ``report`` argument takes progress as a dict, in which ``partial`` is
            the answer so far (or what makes it); ``report`` raises StoppedError where the pass should stop.
        arguments: picklable keyword arguments.
        limit_s: seconds after which the process is ended.
        limit_name: the setting that says so.
        silence_limit_s: seconds without any progress after which the process is ended too.
        on_progress: called in this process with each progress dict.
        on_start: called in this process with the new process's id.

    Returns:
        The outcome; a child that ended without an answer is ``timed_out``, ``crashed``, ``killed`` or, where the
        kernel says so, ``out_of_memory``, with the reason.

    Raises:
        KeyboardInterrupt: Ctrl-C; the pass has stopped at the end of its step, or was ended by the second.
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
            _start_fork_server()
            child.start()
    except (OSError, EOFError) as error:
        reason = f"has no process: none can be started ({error}); check TMPDIR and free memory"
        return PassOutcome(status="failed", reason=reason, value=None, traceback="", duration_s=0.0)
    finally:
        theirs.close()
    assert child.pid is not None, "a started process has an id"
    listener = _Listener(ours, child.sentinel, on_progress)
    try:
        on_start(child.pid)
        answer = listener.wait(started + limit_s, silence_limit_s)
        if answer is _CRASHED:
            child.join()  # for its exit code
        elif answer not in (_TOO_LONG, _SILENT):
            child.join(_EXIT_GRACE_S)
    except KeyboardInterrupt:
        listener.stop()
        raise
    finally:
        _end(child)
        ours.close()
    duration_s = time.monotonic() - started
    status: Status = "timed_out"
    trace, value = "", listener.partial
    if answer is _TOO_LONG:
        reason = f"took longer than {limit_name}={limit_s:g} seconds and was ended"
    elif answer is _SILENT:
        reason = f"was ended after protocol.silence_limit_s={silence_limit_s:g} seconds without a sign of progress"
    elif answer is _CRASHED:
        status, reason = _explain_exit(child.exitcode, _oom_kills() > kills_before)
    else:
        status, reason, final, trace = answer
        value = listener.partial if final is None and status not in FINISHED else final
    return PassOutcome(status=status, reason=reason, value=value, traceback=trace, duration_s=duration_s)


def _start_fork_server() -> None:
    """Start it deaf to Ctrl-C, or one in its first second would end it with a traceback; signals here only wait."""
    resource_tracker.ensure_running()  # or starting the server would start it, which unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASS_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


_CRASHED, _TOO_LONG, _SILENT = object(), object(), object()


class _Listener:
    """The parent's end of the pipe: progress, the answer so far, the answer."""

    def __init__(self, ours: Connection, sentinel: int, on_progress: Report) -> None:
        self.ours, self.sentinel, self.on_progress = ours, sentinel, on_progress
        self.partial: Any = None

    def wait(self, deadline: float, silence_s: float) -> Any:
        """The answer, or why there is none."""
        heard = time.monotonic()
        while True:
            limit, began = min(deadline, heard + silence_s), time.monotonic()
            timeout_s = max(0.0, min(limit - began, _LONGEST_WAIT_S))
            ready = wait([self.ours, self.sentinel], timeout=timeout_s)
            waited_s = time.monotonic() - began
            if waited_s - timeout_s > _OVERSLEPT_S:
                # Who sleeps much longer than asked was stopped (Ctrl-Z), most likely with the pass: it does not count.
                # When in the wait that was is not known, so none of it counts.
                deadline, heard = deadline + waited_s, heard + waited_s
            elif not ready and time.monotonic() >= limit:
                return _TOO_LONG if limit == deadline else _SILENT
            if self.ours in ready:
                try:
                    kind, payload = self.ours.recv()
                except (EOFError, OSError):
                    return _CRASHED
                if kind == "answer":
                    return payload
                heard = time.monotonic()
                self.partial = payload.pop("partial", self.partial)
                self.on_progress(payload)
            elif ready and not self.ours.poll():
                return _CRASHED

    def stop(self) -> None:
        """Ask the child to stop and wait until it has; what it still sends may be cut and is not read."""
        with contextlib.suppress(OSError):
            self.ours.send("stop")
        self.on_progress({"phase": STOPPING})
        deadline = time.monotonic() + _STOP_GRACE_S
        with contextlib.suppress(OSError):
            while wait([self.ours], timeout=max(0.0, deadline - time.monotonic())):
                if not os.read(self.ours.fileno(), 2**16):
                    return


def _end(child: Any) -> None:
    """No child outlives its pass; what it was writing is written whole or not at all."""
    if child.is_alive():
        child.kill()
        child.join()


def _child_main(connection: Connection, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    for number in _PASS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASS_SIGNALS)
    _end_with_fork_server()
    stopping = threading.Event()
    threading.Thread(target=_listen, args=(connection, stopping), daemon=True).start()
    try:
        value = function(report=_reporter(connection, stopping), **arguments)
        answer: tuple[Status, str, Any, str] = ("ok", "", value, "")
    except StoppedError:
        return  # the parent knows: it has asked
    except Exception as error:  # whatever the pass raised: the parent gets it, a programming error with its traceback
        answer = classify(error)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent was interrupted as this started
        connection.send(("answer", answer))


def _end_with_fork_server() -> None:
    """Let the kernel end this process with the fork server, which ends with the parent: also while nothing listens."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        # The server lives as long as anybody holds this end of its pipe, and hands it to each of its children.
        os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


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


def _reporter(connection: Connection, stopping: threading.Event) -> Report:
    """Sends progress a few times a second, a ready partial answer always; raises where the pass should stop."""
    last = 0.0

    def report(progress: dict[str, Any]) -> None:
        nonlocal last
        if stopping.is_set():
            raise StoppedError
        now, partial = time.monotonic(), progress.get("partial")
        if now - last >= _REPORT_S or not (partial is None or callable(partial)):
            last = now
            ready = {"partial": partial()} if callable(partial) else {}
            connection.send(("progress", progress | ready))

    return report


def _listen(connection: Connection, stopping: threading.Event) -> None:
    """The parent sends one thing only, that the pass should stop; the pipe ends when the parent is gone."""
    try:
        while connection.recv() == "stop":
            stopping.set()
    except (EOFError, OSError):
        os._exit(1)


def _explain_exit(exitcode: int | None, oom_killed: bool) -> tuple[Status, str]:
    if exitcode is not None and exitcode < 0:
        name = _signal_name(-exitcode)
        if -exitcode == signal.SIGKILL and oom_killed:
            return "out_of_memory", "was killed by the kernel because the machine ran out of memory"
        status: Status = "crashed" if -exitcode in _FAULTS else "killed"
        return status, f"its process was ended by signal {name}"
    return "crashed", f"its process ended with exit code {exitcode} and no answer"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of most real-time signals Python knows no name
        return f"{number}"


def _oom_kills() -> int:
    """How often the kernel has killed for memory since boot; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
