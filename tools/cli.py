"""``metagrad-bench`` and its verbs: the one place that turns errors into a sentence and an exit code."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

from bench.errors import STORAGE_ERRORS, ExitCode, UserError, system_reason
from tools.output import say

# verb -> (module with main(argv) -> int, one line)
VERBS = {
    "run": ("tools.run", "measure a suite, or one cell (a Hydra application)"),
    "status": ("tools.status", "cells of running and finished suites: queued, running, stopped, done, failed"),
    "report": ("tools.report", "write report.html, report.md, figures and tables from run folders"),
    "gate": ("tools.gate", "compare run folders with a baseline and answer with an exit code"),
    "baseline": ("tools.baseline", "write a baseline for the gate from run folders"),
    "estimate": ("tools.estimate", "memory, largest batch and step time of a suite on a GPU that is not here"),
    "doctor": ("tools.doctor.verb", "what this machine can do, and what would spoil a measurement"),
    "kernels": ("tools.kernels.verb", "INT8 and INT4 training steps against FP32 and bf16, layer by layer"),
    "hypernets": ("tools.hypernets.verb", "what the hypernetwork costs, by strategy and within a training step"),
    "list": ("tools.listing", "suites, variants, presets, models, methods and their parts, datasets, GPUs known"),
}
EXIT_CODES = {
    "run": (0, 1, 2, 130),
    "status": (0, 2, 6, 130),
    "report": (0, 2, 6, 130),
    "gate": (0, 1, 2, 3, 4, 5, 6, 130),
    "baseline": (0, 2, 6, 130),
    "estimate": (0, 2, 130),
    "doctor": (0, 2, 130),
    "kernels": (0, 1, 2, 130),
    "hypernets": (0, 1, 2, 130),
    "list": (0, 2, 130),
}
INTERRUPTED = {
    "run": "Interrupted; what had been measured is kept, and the same command goes on.",
    "gate": "Interrupted before there was a verdict; given again, the command starts anew.",
}
_MEASURING = ("run", "kernels", "hypernets")  # what they measured may have been written all the same
# What a path itself can be to blame for; an error that names none is not the user's.
_PATH_ERRORS = (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP, errno.ENOTDIR)
_LONGEST_PATH_SHOWN = 100
_NO_MEMORY = "The memory does not suffice: name fewer folders or cells at a time."
_NO_WORKING_FOLDER = "The working folder is not there any more: change into one that is."
HELP = """usage: metagrad-bench VERB [arguments]

Benchmarks of complete quantized training: speed, memory and accuracy, integer GEMMs forward and backward.

verbs (each has --help):
{verbs}

example:
  metagrad-bench run suite=demo
  metagrad-bench report out/demo -o out/demo

exit codes:
  0    done; doctor: also where something would spoil a measurement
  1    run, kernels, hypernets: something failed or ran out of memory; gate: something regressed, failed or is missing
  2    wrong usage or bad input, said in a sentence
  3    gate: inconclusive
  4    gate: there is no baseline yet
  5    gate: not comparable
  6    gate, report, baseline, status: nothing was measured
  130  interrupted
of each verb:
{codes}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; answers the exit code. A mistake of the user is one sentence, a programming error a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's end is like Ctrl-C: children go, records stay
        _let_print()
    try:
        code = _answer(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # or a full disk would show only when Python ends
        return code
    except UserError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        if argv is None:  # the process ends: another Ctrl-C has nothing left to stop, and would only change the code
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        return _complain(INTERRUPTED.get(arguments[0] if arguments else "", "Interrupted."), ExitCode.INTERRUPTED)
    except MemoryError as error:
        error.__traceback__ = None  # what filled the memory goes with its frames
        return _complain(_NO_MEMORY, _failure_of(arguments))
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is wrong, and Python must not complain when it flushes.
        _forget_output()
        return ExitCode.OK
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich's own end where the reader went away
            return ExitCode.OK
        raise
    except OSError as error:
        if error.errno in _PATH_ERRORS and isinstance(error.filename, str):
            return _complain(
                f"{_shorten(error.filename)} cannot be opened ({system_reason(error)}): name another path."
            )
        code = _failure_of(arguments)
        if not _has_working_folder():  # gone while the verb was at work
            return _complain(_NO_WORKING_FOLDER, code)
        if error.errno not in (*STORAGE_ERRORS, errno.EBADF):
            raise
        _forget_output()
        return _complain(f"The output cannot be written ({system_reason(error)}).", code)


def _answer(arguments: Sequence[str]) -> int:
    """Run the verb, or answer what is asked of the program itself."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {verb:<9} {line}" for verb, (_, line) in VERBS.items())
        codes = "\n".join(f"  {verb:<10} {', '.join(map(str, codes))}" for verb, codes in EXIT_CODES.items())
        print(HELP.format(verbs=verbs, codes=codes), end="")
        return ExitCode.OK if arguments else ExitCode.USAGE
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version  # slow to load, and Ctrl-C would meet nobody yet who answers it

        print(f"metagrad-bench {version('metagrad-bench')}")
        return ExitCode.OK
    verb, *rest = arguments
    if verb not in VERBS:
        raise UserError(f"There is no verb {verb!r}: use one of {', '.join(VERBS)} (see metagrad-bench --help).")
    _check_working_folder()
    return int(importlib.import_module(VERBS[verb][0]).main(rest))


def _let_print() -> None:
    """Argparse, Hydra and rich print too: closed streams lead nowhere, letters that one lacks are escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  as above; kept open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _failure_of(arguments: Sequence[str]) -> ExitCode:
    """What a fault of the machine ends a verb with."""
    return ExitCode.FAILED if arguments and arguments[0] in _MEASURING else ExitCode.USAGE


def _check_working_folder() -> None:
    if not _has_working_folder():
        raise UserError(_NO_WORKING_FOLDER)


def _has_working_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109  pathlib takes a while to load
    except OSError:
        return False
    return True


def _shorten(path: str) -> str:
    return path if len(path) <= _LONGEST_PATH_SHOWN else f"{path[: _LONGEST_PATH_SHOWN - 3]}..."


def _forget_output() -> None:
    """Let what is still to be flushed go nowhere."""
    if sys.stdout is None:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(sentence: str, code: int = ExitCode.USAGE) -> int:
    say(sentence)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
