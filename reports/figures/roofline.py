"""How far the products of a step are from what the device can do at best.

Source of the roofline: Williams, Waterman, Patterson, *Roofline*, CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from bench.records.schema import Ceilings, ProductWork
from bench.units import Absent
from reports.figures.profiles import GEMMS, profiled_rows, profiles_of, why_none
from reports.figures.row_style import FP32_GREY, RowStyles, row_styles
from reports.figures.style import (
    INK,
    NotDrawn,
    Sketch,
    legend_below,
    log_axis,
    panels,
    tag,
)
from reports.rows import Row, Section
from reports.text import clean_text

_MARKERS = {"fprop": "o", "dgrad": "s", "wgrad": "^"}
_CEILINGS = (("int8", "int8_gops", "INT8"), ("fp32", "fp32_gflops", "FP32"), ("bf16", "bf16_gflops", "bf16"))


def roofline(section: Section, styles: RowStyles | None = None) -> Sketch | NotDrawn:
    """Rate of every product over its arithmetic intensity, under the ceilings that the device reached at best."""
    key, topic, title = "roofline", "kernels", "Roofline"
    rows = profiled_rows(section)
    if not rows:
        return NotDrawn(key=key, topic=topic, title=title, reason=why_none(section))
    first = profiles_of(rows[0])[0]
    sides = [("FP32", first.fp32.products, FP32_GREY)]
    styles = styles or row_styles([section])
    names = {"FP32": dict.fromkeys(GEMMS, "FP32")}
    for row in rows:
        products = profiles_of(row)[0].cell.products
        sides.append((tag(row), products, styles[row.label].colour))
        names[tag(row)] = {gemm: _gemm_tag(row, products, gemm) for gemm in GEMMS}
    points = [(name, colour, _points(products)) for name, products, colour in sides]
    everything = [point for *_, by_gemm in points for of in by_gemm.values() for point in of]
    if not everything:
        return NotDrawn(key=key, topic=topic, title=title, reason="no product's time could be told")
    figure, axes = panels(section, 1, 1, height_in=4.6)
    ax = axes[0][0]
    for name, colour, by_gemm in points:
        for gemm, of in by_gemm.items():
            if of:
                ax.scatter(
                    *zip(*of, strict=True), s=26, marker=_MARKERS[gemm], facecolor=colour, alpha=0.8, edgecolor="none",
                    label=f"{names[name][gemm]}, {gemm}", zorder=3,
                )  # fmt: skip
    low, high = min(x for x, _ in everything) / 2, max(x for x, _ in everything) * 2
    told = _draw_ceilings(ax, first.ceilings, {p.kind for _, products, _ in sides for p in products}, low, high)
    log_axis(ax, "x")
    log_axis(ax, "y", (1.0, 3.0))
    ax.set_xlim(low, high)
    ax.set_xlabel("operations per byte")
    ax.set_ylabel("10⁹ operations a second")
    legend_below(figure, ax)
    medians = [
        f"{name} {np.median([y for of in by_gemm.values() for _, y in of]):.3g}"
        for name, _, by_gemm in points
        if any(by_gemm.values())
    ]
    caption = (
        "A point is one product of one layer (its shape says which), timed alone in steps with spans, lowest seed; the "
        "lines are what the device reached at best, measured on the spot: copying (slope) and large products (level). "
        f"FP32 as it ran beside {clean_text(rows[0].named)}."
    )
    alt = f"Rates of {len(everything)} products; medians in 10⁹ operations a second: {', '.join(medians)}. {told}"
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=alt, figure=figure)


def _gemm_tag(row: Row, products: Sequence[ProductWork], gemm: str) -> str:
    """The row's name with what this product ran as: with STE the backward ones are floating point."""
    integer = {product.kind == "int8" for product in products if product.gemm == gemm}
    if not isinstance(row.ran_as, str) or row.ran_as in ("simulated", "float") or integer <= {True}:
        return tag(row)
    ran = f"{row.ran_as} and float" if True in integer else "float"
    return tag(row).replace(f" · {row.ran_as}", f" · {ran}")


def _points(products: Sequence[ProductWork]) -> dict[str, list[tuple[float, float]]]:
    """By product: (operations per byte, 10**9 operations a second)."""
    points: dict[str, list[tuple[float, float]]] = {gemm: [] for gemm in GEMMS}
    for p in products:
        if p.gemm in points and p.num_bytes > 0 and p.operations > 0 and not isinstance(p.gops, Absent) and p.gops > 0:
            points[p.gemm].append((p.operations / p.num_bytes, p.gops))
    return points


def _draw_ceilings(ax: Axes, ceilings: Ceilings, kinds: set[str], low: float, high: float) -> str:
    """The roofs of the kinds that ran over the range of intensities, and what they are in words."""
    copy = ceilings.copy_gb_s
    told = [] if isinstance(copy, Absent) else [f"copying {copy:.4g} GB/s"]
    if not isinstance(copy, Absent):
        ax.annotate(told[0], (low, low * copy), xytext=(4, 9), textcoords="offset points", fontsize=7.5)
    for index, (kind, name, words) in enumerate(_CEILINGS):
        top = getattr(ceilings, name)
        if isinstance(top, Absent) or kind not in kinds:
            continue
        style = ("-", "--", ":")[index]
        ridge = low if isinstance(copy, Absent) else min(max(top / copy, low), high)
        ax.plot([ridge, high], [top] * 2, color=INK, linewidth=1.1, linestyle=style)
        if not isinstance(copy, Absent):
            ax.plot([low, ridge], [low * copy, min(ridge * copy, top)], color=INK, linewidth=1.1, alpha=0.6)
        ax.annotate(
            f"{words} {top:,.4g}", (high, top), xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=7.5
        )
        told.append(f"{words} {top:,.4g}·10⁹ operations a second")
    return f"Ceilings: {', '.join(told)}." if told else "No ceiling is known."
