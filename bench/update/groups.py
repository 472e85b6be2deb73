"""All layers' weights as one sequence, cut into groups whose buffers stay in a CPU's cache. Ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.update.grid import COPIES


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring weights of one layer, and where they stand in their group."""

    layer: int
    part: slice  # of the layer, in the order of ``layout.flat``
    place: slice  # of the group


def group_limit(device: torch.device) -> int:
    """Places in a group: on a CPU so many that their buffers stay in its second-level cache; on a GPU few launches."""
    return 2**16 if device.type == "cpu" else 2**22


def groups(layers: Sequence[Tensor]) -> Iterator[tuple[int, list[Piece]]]:
    """All layers' weights as one sequence, cut into groups: how many places a group has, and its pieces.

    Only the last group may have a few more places than weights, to be shared evenly among threads.
    """
    limit = group_limit(layers[0].device)
    pieces: list[Piece] = []
    filled = 0
    for index, layer in enumerate(layers):
        start = 0
        while start < layer.numel():
            count = min(layer.numel() - start, limit - filled)
            pieces.append(Piece(index, slice(start, start + count), slice(filled, filled + count)))
            start, filled = start + count, filled + count
            if filled == limit:
                yield filled, pieces
                pieces, filled = [], 0
    if pieces:
        yield -(-filled // COPIES) * COPIES, pieces


def places_buffer(layers: Sequence[Tensor]) -> Tensor:
    """(places, 2) zeros for the largest group; the second column stays zero for a core of one input."""
    total = min(sum(layer.numel() for layer in layers), group_limit(layers[0].device))
    return layers[0].new_zeros(-(-total // COPIES) * COPIES, 2)
