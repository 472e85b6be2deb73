"""Runs a benchmark verb's passes, each in a fresh process under the device's lock; a failure is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench.errors import OutOfMemoryError, UserError

if TYPE_CHECKING:
    from bench.progress import SuiteProgress

LIMIT_S = 7200.0


class PassRunner:
    """Calls a pass in a fresh process and answers what it returned."""

    def __init__(self, device: str, progress: SuiteProgress, *, if_out_of_memory: str) -> None:
        """Choose the device.

        Args:
            device: as torch names it; its lock is held while a pass runs.
            progress: told about each pass.
            if_out_of_memory: what a user may do then, the end of a sentence.
        """
        self.device = device
        self.progress = progress
        self.if_out_of_memory = if_out_of_memory

    def __call__(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Run one pass.

        Args:
            function: of a module's top level, taking ``report`` and the arguments.
            arguments: picklable.

        Raises:
            OutOfMemoryError: the pass ran out of memory.
            UserError: the pass said in a sentence what was wrong, or its process was ended.
            RuntimeError: anything else, with the pass's traceback.
        """
        from bench.locks import device_lock
        from bench.process import run_pass

        def show(update: dict[str, Any]) -> None:
            self.progress.update(**update)

        def wait() -> None:
            self.progress.update(f"waiting: another pass holds {self.device}")

        with device_lock(self.device, on_wait=wait):
            outcome = run_pass(function, arguments, limit_s=LIMIT_S, on_progress=show)
        self.progress.finish_pass()
        if outcome.status == "ok":
            return outcome.value
        what = function.__name__.replace("_", " ")
        if outcome.status == "out_of_memory":
            raise OutOfMemoryError(f"The {what} {outcome.reason}: {self.if_out_of_memory}.")
        if not outcome.traceback:
            raise UserError(f"The {what} failed: {outcome.reason}")
        raise RuntimeError(f"the {what} failed: {outcome.reason}\n{outcome.traceback}")
