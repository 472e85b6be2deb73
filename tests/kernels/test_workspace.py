"""Reused buffers: one memory per name, borders that stay."""

from __future__ import annotations

import torch

from bench.kernels import workspace

CPU = torch.device("cpu")


def test_requests_of_one_name_share_memory_that_grows_to_the_largest():
    workspace.clear_workspace()
    small = workspace.scratch("probe", (4, 5), torch.int8, CPU)
    assert sum(buffer.nbytes for buffer in workspace.buffers()) == 20
    large = workspace.scratch("probe", (10, 10), torch.int8, CPU)
    assert sum(buffer.nbytes for buffer in workspace.buffers()) == 100
    again = workspace.scratch("probe", (4, 5), torch.int8, CPU)
    assert again.data_ptr() == large.data_ptr() != small.data_ptr()
    assert workspace.scratch("other", (1,), torch.int8, CPU).data_ptr() != again.data_ptr()


def test_a_border_is_written_once_and_kept():
    workspace.clear_workspace()
    frame = workspace.bordered(("probe", 1), (3, 3), -128, CPU)
    frame[1, 1] = 5
    assert workspace.bordered(("probe", 1), (3, 3), -128, CPU).tolist() == [
        [-128, -128, -128],
        [-128, 5, -128],
        [-128, -128, -128],
    ]
    assert workspace.bordered(("probe", 1), (3, 3), 0, CPU).eq(0).all()


def test_what_is_made_of_buffers_is_made_again_once_one_has_moved():
    workspace.clear_workspace()
    made = []

    def make() -> int:
        made.append(workspace.scratch("probe", (4,), torch.int8, CPU).data_ptr())
        return made[-1]

    assert workspace.derived("key", make) == workspace.derived("key", make)
    assert len(made) == 1
    larger = workspace.scratch("probe", (400,), torch.int8, CPU)
    assert workspace.derived("key", make) == larger.data_ptr()
    workspace.clear_workspace()
    workspace.derived("key", make)
    assert len(made) == 3
