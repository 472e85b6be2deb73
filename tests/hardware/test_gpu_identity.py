from __future__ import annotations

from collections.abc import Callable
from typing import Any

LOCK_NAMES = (
    "import json\n"
    "from bench.locks import lock_name\n"
    "print(json.dumps([lock_name('cpu'), lock_name('cuda:0'), lock_name('cuda:1')]))"
)


def test_a_gpus_lock_is_the_same_whatever_number_a_process_gives_it(under_driver: Callable[..., Any]) -> None:
    cpu, first, second = under_driver(LOCK_NAMES, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert cpu == "cpu"
    assert first != second
    turned = under_driver(LOCK_NAMES, CUDA_VISIBLE_DEVICES="1,0", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert turned == [cpu, second, first]
    alone = under_driver(LOCK_NAMES, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert alone[1] == second, "a scheduler's second GPU is not locked as the first"
    named = under_driver(LOCK_NAMES, CUDA_VISIBLE_DEVICES="GPU-2222", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert named[1] == second


def test_without_a_driver_that_tells_the_visible_number_is_the_name(under_driver: Callable[..., Any]) -> None:
    assert under_driver(LOCK_NAMES, "no_driver", CUDA_VISIBLE_DEVICES="3,5")[1:] == ["cuda-3", "cuda-5"]
    assert under_driver(LOCK_NAMES, "no_driver", CUDA_VISIBLE_DEVICES="0")[2] == "cuda-1"
