from __future__ import annotations

import torch

from tests.tools.kernels.works import tiny_work
from tools.kernels.sides import build_side, make_batches


def test_all_sides_start_from_the_same_weights_and_see_the_same_images() -> None:
    work = tiny_work()
    images, labels = make_batches(work, torch.device("cpu"))[0]
    assert torch.equal(images, make_batches(work, torch.device("cpu"))[0][0])
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.shape == (2, 3, 8, 8)
    assert labels.shape == (2,)
    fp32, int4 = (build_side(name, work, images).model.state_dict() for name in ("fp32", "int4"))
    assert all(torch.equal(value, int4[key]) for key, value in fp32.items())
