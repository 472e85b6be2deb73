"""Damages what a killed suite left on the disk, as a failing one would: cut off, a bit turned, emptied."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

HOW: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[: max(1, 2 * len(data) // 3)],
    "turned a bit": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "emptied": lambda data: b"",
}
# What a run reads again; a checkpoint is the newest of its folder.
KINDS = {
    "checkpoint": "**/.*.resume/**/step-*.ckpt",
    "answer": "**/.*.resume/*.answer",
    "weights": "pretrained/*.pt",
    "record": "faults/*/record.json",
}


def damage_something(output: Path, random_: random.Random) -> tuple[str, Path] | None:
    """Damage one file, the kind drawn first so that rare ones come up too; answers kind and file, None without any.

    Args:
        output: a folder of runs, nobody running in it.
        random_: draws kind, file and way.
    """
    kinds = list(KINDS)
    random_.shuffle(kinds)
    for kind in kinds:
        paths = sorted(output.glob(KINDS[kind]))
        if kind == "checkpoint":
            newest = {path.parent: path for path in paths}  # the last of each folder
            paths = sorted(newest.values())
        if paths:
            path = random_.choice(paths)
            way = random_.choice(sorted(HOW))
            path.write_bytes(HOW[way](path.read_bytes()))
            return kind, path
    return None
