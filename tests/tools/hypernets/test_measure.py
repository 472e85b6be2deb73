from __future__ import annotations

from tools.hypernets import measure
from tools.hypernets.measure import fitting_stride
from tools.hypernets.passes import MemoryAnswer, Work


def test_what_does_not_fit_is_compared_at_a_tenth_or_less() -> None:
    assert fitting_stride(1, needed_bytes=60, free_bytes=100) == 1
    assert fitting_stride(1, needed_bytes=80, free_bytes=100) == 10
    assert fitting_stride(50, needed_bytes=8000, free_bytes=100) == 50_000


def test_retain_that_does_not_fit_is_said_and_leaves_the_whole_to_the_others() -> None:
    def run(function: object, *, work: Work, name: str) -> MemoryAnswer:
        assert (name, work.stride) == ("retain", 100)
        return MemoryAnswer(num_weights=100, extra_bytes=10**6, free_bytes=10**9)

    whole = Work(model="resnet20", hidden=100, stride=1, device="cpu")
    compared, note = measure._fitting(whole, run)  # type: ignore[arg-type]
    assert compared.stride == 10, "2.7 GB of 1 GB free, 270 MB at a tenth"
    assert "retain does not fit: it would take about 2.5" in note
    assert "1 in 10 weights" in note
