"""The products of a step, layer by layer: their times, integer against FP32, and how far from the device's limits.

Source of the roofline: Williams, Waterman, Patterson, *Roofline*, CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from bench.records.schema import Ceilings, ProductWork, ProfileResult
from bench.units import Absent
from reports.figures.style import (
    INK,
    NotDrawn,
    Sketch,
    legend_below,
    log_axis,
    panels,
    row_colours,
    shorten,
    tag,
)
from reports.rows import Row, Section
from reports.text import clean_text, plural

GEMMS = ("fprop", "dgrad", "wgrad")
MAX_ROWS = 3  # beside FP32
MAX_LAYERS = 40
_FP32 = "#6a6a6a"
_MARKERS = {"fprop": "o", "dgrad": "s", "wgrad": "^"}
_CEILINGS = (("int8", "int8_gops", "INT8"), ("fp32", "fp32_gflops", "FP32"), ("bf16", "bf16_gflops", "bf16"))


def layer_times(section: Section) -> Sketch | NotDrawn:
    """Time of fprop, dgrad and wgrad of every layer: FP32 beside one row of each combination of bits."""
    key, topic, title = "layers", "kernels", "Products by layer, against FP32"
    rows = profiled_rows(section)
    if not rows:
        return NotDrawn(key=key, topic=topic, title=title, reason=_why_none(section))
    reference = profile_of(rows[0])
    assert reference is not None, "profiled rows have a profile"
    layers = _layers(reference.fp32.products)
    shown = _largest(layers, reference.fp32.products)
    figure, axes = panels(section, 1, len(GEMMS), height_in=1.6 + 0.17 * len(shown), sharey=True)
    colours = row_colours(section.rows)
    places = {layer: place - 0.1 * len(rows) for place, layer in enumerate(shown)}
    totals: dict[str, list[str]] = {gemm: [] for gemm in GEMMS}
    for ax, gemm in zip(axes[0], GEMMS, strict=True):
        total = _draw_times(ax, reference.fp32.products, gemm, places, (_FP32, "|"), "FP32")
        totals[gemm].append(f"FP32 {total:.4g} ms")
        for number, row in enumerate(rows, start=1):
            profile = profile_of(row)
            assert profile is not None, "profiled rows have a profile"
            above = {layer: place + 0.2 * number for layer, place in places.items()}
            total = _draw_times(ax, profile.cell.products, gemm, above, colours[row.label], tag(row))
            totals[gemm].append(f"{row.label} {total:.4g} ms")
        ax.set_title(gemm)
        ax.set_xlabel("ms")
        ax.set_xlim(left=0)
        ax.grid(visible=True, axis="y", alpha=0.5)
    axes[0][0].set_yticks(range(len(shown)), [shorten(clean_text(layer), 28) for layer in shown], fontsize=7)
    axes[0][0].set_ylim(len(shown) - 0.4, -0.6)
    legend_below(figure, axes[0][0], 2)
    caption = (
        "The marker is the product with quantizing, laying out and dequantizing for it, the line reaches down to the "
        f"product alone. One row of each combination of bits; FP32 as measured beside {clean_text(rows[0].label)}. In "
        "steps with spans, which are slower than those timed elsewhere."
    )
    if len(shown) < len(layers):
        caption += f" The {len(shown)} slowest of {len(layers)} layers."
    sums = "; ".join(f"{gemm}: {', '.join(told)}" for gemm, told in totals.items())
    alt = f"Time of the products of {plural(len(shown), 'layer')}, sums by product: {sums}."
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=alt, figure=figure)


def roofline(section: Section) -> Sketch | NotDrawn:
    """Rate of every product over its arithmetic intensity, under the ceilings that the device reached at best."""
    key, topic, title = "roofline", "kernels", "Roofline"
    rows = profiled_rows(section)
    if not rows:
        return NotDrawn(key=key, topic=topic, title=title, reason=_why_none(section))
    first = profile_of(rows[0])
    assert first is not None, "profiled rows have a profile"
    sides = [("FP32", first.fp32.products, _FP32)]
    names = {"FP32": dict.fromkeys(GEMMS, "FP32")}
    colours = row_colours(section.rows)
    for row in rows:
        profile = profile_of(row)
        assert profile is not None, "profiled rows have a profile"
        sides.append((tag(row), profile.cell.products, colours[row.label][0]))
        names[tag(row)] = {gemm: _gemm_tag(row, profile.cell.products, gemm) for gemm in GEMMS}
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
        "A point is one product of one layer, timed alone in steps with spans; the lines are what the device reached "
        "at best, measured on the spot: copying (slope) and large products (level)."
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


def profile_of(row: Row) -> ProfileResult | None:
    """The profile of the lowest seed that has one."""
    return next((record.profile for record in row.records if record.profile is not None), None)


def profiled_rows(section: Section) -> list[Row]:
    """Low-bit rows with a profile, the first of each combination of bits."""
    rows: dict[tuple[int, int], Row] = {}
    for row in section.rows:
        if row.is_low_bit and profile_of(row) is not None:
            rows.setdefault((row.method.weight_bits, row.method.error_bits), row)
    return list(rows.values())[:MAX_ROWS]


def _why_none(section: Section) -> str:
    for row in section.rows:
        for record in row.records:
            if "profile" in record.missing and row.is_low_bit:
                return record.missing["profile"]
    return "no low-bit row was profiled"


def _layers(products: Sequence[ProductWork]) -> list[str]:
    return list(dict.fromkeys(product.layer for product in products))


def _largest(layers: Sequence[str], products: Sequence[ProductWork]) -> list[str]:
    """The layers that take longest, in the model's order."""
    times = dict.fromkeys(layers, 0.0)
    for product in products:
        if not isinstance(product.all_ms, Absent):
            times[product.layer] += product.all_ms
    kept = set(sorted(layers, key=lambda layer: -times[layer])[:MAX_LAYERS])
    return [layer for layer in layers if layer in kept]


def _draw_times(
    ax: Axes,
    products: Sequence[ProductWork],
    gemm: str,
    places: dict[str, float],
    style: tuple[str, str],
    label: str,
) -> float:
    """One side's times of one product; answers their sum over the layers shown, ms."""
    colour, marker = style
    known = [
        (places[p.layer], p.product_ms, p.all_ms)
        for p in products
        if p.gemm == gemm and p.layer in places and not isinstance(p.all_ms, Absent)
    ]
    for place, alone, whole in known:
        if not isinstance(alone, Absent) and alone < whole:
            ax.plot([alone, whole], [place] * 2, color=colour, linewidth=1.1, alpha=0.7)
    size = 36 if marker == "|" else 16
    at = [place for place, *_ in known]
    ax.scatter([whole for *_, whole in known], at, s=size, marker=marker, color=colour, label=label, zorder=3)
    return sum(whole for *_, whole in known)


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
