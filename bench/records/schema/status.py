"""How a cell's measuring ended."""

from __future__ import annotations

from typing import Literal

Status = Literal["ok", "diverged", "out_of_memory", "timed_out", "killed", "crashed", "failed"]

# Best first.
STATUSES: tuple[Status, ...] = ("ok", "diverged", "out_of_memory", "timed_out", "killed", "crashed", "failed")
FINISHED: tuple[Status, ...] = ("ok", "diverged")  # results; a cell of any other status is measured again
STATUS_VERBS: dict[Status, str] = {  # what a cell did, in a sentence
    "ok": "finished", "diverged": "diverged", "out_of_memory": "ran out of memory", "timed_out": "took too long",
    "killed": "was killed", "crashed": "crashed", "failed": "failed",
}  # fmt: skip
