"""The sentence on where a low-bit step's time goes beside FP32's, from the spans of its profile."""

from __future__ import annotations

import math

from bench.records.schema import SideProfile
from bench.units import format_ms
from reports.rows import Ratio, Row, Section

_AROUND = ("quantize", "im2col", "dequantize")  # what integer products need and floating-point ones do not
_HYPERNET = ("hypernet_forward", "meta_gradient")


def why_sentence(section: Section) -> str:
    """What products, the work around them and the rest take in the fastest low-bit row; empty without its profile."""
    timed = [
        (row.time_vs_fp32.value, row)
        for row in section.rows
        if row.is_low_bit and isinstance(row.time_vs_fp32, Ratio) and row.first.profile is not None
    ]
    if not timed:
        return ""
    row = min(timed, key=lambda pair: pair[0])[1]
    profile = row.first.profile
    assert profile is not None, "only rows with one are looked at"
    hypernet = _pieces_ms(profile.cell, _HYPERNET)
    adds = f", the hypernetwork {format_ms(hypernet)}" if hypernet else ""
    return (
        f"In the profile of {row.named}, products take {format_ms(_pieces_ms(profile.cell, ('gemm',)))} a step where "
        f"FP32’s take {format_ms(_pieces_ms(profile.fp32, ('gemm',)))}; quantizing, laying out and dequantizing add "
        f"{format_ms(_pieces_ms(profile.cell, _AROUND))}{adds}, and all else takes {format_ms(_rest_ms(profile.cell))} "
        f"where FP32’s takes {format_ms(_rest_ms(profile.fp32))}{_size(row)}."
    )


def _pieces_ms(side: SideProfile, pieces: tuple[str, ...]) -> float:
    return math.fsum(span.span_ms for span in side.spans if span.piece in pieces)


def _rest_ms(side: SideProfile) -> float:
    return math.fsum(span.span_ms for span in side.spans if span.piece not in ("gemm", *_AROUND, *_HYPERNET))


def _size(row: Row) -> str:
    """How large a step was: with more channels, pixels and samples products weigh more."""
    data, timing = row.first.data, row.first.timing
    if data is None or timing is None:
        return ""
    return f" (batch {timing.batch_size}, images of {'×'.join(map(str, data.image_shape))})"
