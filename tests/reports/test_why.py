from __future__ import annotations

from collections.abc import Callable

from bench.records.schema import RunRecord
from reports.sections import build_sections
from reports.why import why_sentence


def test_the_sentence_sums_the_spans_of_the_fastest_low_bit_row_beside_fp32s(
    demo_records: Callable[..., list[RunRecord]], profiled: Callable[[RunRecord], RunRecord]
) -> None:
    (section,) = build_sections([profiled(record) for record in demo_records(["fp32", "uint8_int8"])])
    profile = section.records[-1].profile
    assert profile is not None

    def total(side: str, *pieces: str) -> float:
        return sum(span.span_ms for span in getattr(profile, side).spans if span.piece in pieces)

    sentence = why_sentence(section)
    assert sentence.startswith("In the profile of uint8_int8 (integer), products take ")
    shown = [word for word, unit in zip(sentence.split(), sentence.split()[1:], strict=False) if unit.startswith("ms")]
    around = total("cell", "quantize", "im2col", "dequantize")
    wanted = [total("cell", "gemm"), total("fp32", "gemm"), around]
    assert [float(text) for text in shown[:3]] == [float(f"{value:.3g}") for value in wanted]
    assert sentence.endswith("(batch 64, images of 1×8×8).")


def test_without_a_profile_nothing_is_said(demo_records: Callable[..., list[RunRecord]]) -> None:
    (section,) = build_sections(demo_records(["fp32", "uint8_int8"]))
    assert why_sentence(section) == ""
