"""The products of a step, layer by layer: each row against the FP32 step of its own processes.

Times of two processes differ by a few per cent for reasons that are neither's (where its memory lies, the clock), as
much as some rows differ from FP32: so rows are shown as ratios within their processes, FP32 alone in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from matplotlib.axes import Axes

from bench.records.schema import ProductWork, ProfileResult
from bench.units import Absent
from reports.figures.profiles import GEMMS, profiled_rows, profiles_of, why_none
from reports.figures.row_style import FP32_GREY, RowStyle, RowStyles, row_styles
from reports.figures.style import INK, NotDrawn, Sketch, legend_below, log_axis, panels, shorten, tag, wants_log
from reports.rows import Row, Section
from reports.text import clean_text, plural, ratio_text

MAX_LAYERS = 40
LOG_ABOVE = 8  # largest over smallest ratio
_FP32_MARKERS = {"fprop": "o", "dgrad": "s", "wgrad": "^"}
Place = tuple[str, str]  # layer, product


def layer_times(section: Section, styles: RowStyles | None = None) -> Sketch | NotDrawn:
    """FP32's fprop, dgrad and wgrad of every layer in ms, and one row of each combination of bits as ratios to them."""
    key, topic, title = "layers", "kernels", "Products by layer, against FP32"
    rows = profiled_rows(section)
    if not rows:
        return NotDrawn(key=key, topic=topic, title=title, reason=why_none(section))
    everyone = [profile for row in section.rows for profile in profiles_of(row)]
    fp32 = _pooled(_times(profile.fp32.products) for profile in everyone)
    layers = list(dict.fromkeys(layer for profile in everyone for layer in _layers(profile.fp32.products)))
    shown = _largest(layers, fp32)
    figure, axes = panels(section, 1, 1 + len(GEMMS), height_in=1.6 + 0.17 * len(shown), sharey=True)
    styles = styles or row_styles([section])
    heights = {layer: float(place) for place, layer in enumerate(shown)}
    _draw_fp32(axes[0][0], fp32, heights)
    totals = {gemm: [f"FP32 {_sum_ms(fp32, gemm, shown):.4g} ms"] for gemm in GEMMS}
    for ax, gemm in zip(axes[0][1:], GEMMS, strict=True):
        ax.axvline(1.0, color=INK, linewidth=0.8, linestyle=":")
        drawn: list[float] = []
        for number, row in enumerate(rows):
            offset = 0.2 * (number - (len(rows) - 1) / 2)
            drawn += _draw_ratios(ax, row, gemm, {of: at + offset for of, at in heights.items()}, styles[row.label])
            total = _total_ratio(profiles_of(row), gemm, shown)
            totals[gemm] += [f"{row.named} {ratio_text(total)}"] if total is not None else []
        if wants_log(drawn, LOG_ABOVE):
            log_axis(ax, "x")
        else:
            ax.set_xlim(left=0)
        ax.set_title(gemm)
        ax.set_xlabel("ratio to FP32")
        ax.grid(visible=True, axis="y", alpha=0.5)
    axes[0][0].set_yticks(range(len(shown)), [shorten(clean_text(layer), 28) for layer in shown], fontsize=7)
    axes[0][0].set_ylim(len(shown) - 0.4, -0.6)
    legend_below(figure, axes[0][1], 3)
    processes = f"{len(everyone)} processes" if len(everyone) > 1 else "one process"
    caption = (
        f"Left: FP32’s products (○ fprop, □ dgrad, △ wgrad), median and range over {processes}. "
        "Right: each row’s product against the same product of FP32 in the row’s own process; "
        "the marker is the product with quantizing, laying out and dequantizing for it, the line reaches down to "
        "the product alone. One row of each combination of bits, the median over its seeds. In steps with spans, which "
        "are slower than those timed elsewhere."
    )
    if len(shown) < len(layers):
        caption += f" The {len(shown)} slowest of {len(layers)} layers."
    sums = "; ".join(f"{gemm}: {', '.join(told)}" for gemm, told in totals.items())
    alt = f"Products of {plural(len(shown), 'layer')}, their sums, rows as ratios to FP32 in their own process: {sums}."
    return Sketch(key=key, topic=topic, title=title, caption=caption, alt=alt, figure=figure)


def _layers(products: Sequence[ProductWork]) -> list[str]:
    return list(dict.fromkeys(product.layer for product in products))


def _times(products: Sequence[ProductWork]) -> dict[Place, float]:
    """Times of the products with what is done for them, ms; unknown ones are left out."""
    return {(p.layer, p.gemm): p.all_ms for p in products if not isinstance(p.all_ms, Absent)}


def _pooled(times: Iterable[Mapping[Place, float]]) -> dict[Place, list[float]]:
    pooled: dict[Place, list[float]] = {}
    for one in times:
        for place, value in one.items():
            pooled.setdefault(place, []).append(value)
    return pooled


def _largest(layers: Sequence[str], fp32: Mapping[Place, list[float]]) -> list[str]:
    """The layers that take FP32 longest, in the model's order."""
    totals = {layer: sum(median(values) for (of, _), values in fp32.items() if of == layer) for layer in layers}
    kept = set(sorted(layers, key=lambda layer: -totals[layer])[:MAX_LAYERS])
    return [layer for layer in layers if layer in kept]


def _sum_ms(fp32: Mapping[Place, list[float]], gemm: str, shown: Sequence[str]) -> float:
    return sum(median(values) for (layer, of), values in fp32.items() if of == gemm and layer in shown)


def _draw_fp32(ax: Axes, fp32: Mapping[Place, list[float]], heights: Mapping[str, float]) -> None:
    for number, (gemm, marker) in enumerate(_FP32_MARKERS.items()):
        found = ((layer, values) for (layer, of), values in fp32.items() if of == gemm and layer in heights)
        known = [(heights[layer] + 0.2 * (number - 1), values) for layer, values in found]
        for height, values in known:
            ax.plot([min(values), max(values)], [height] * 2, color=FP32_GREY, linewidth=1.1, alpha=0.7)
        ax.scatter(
            [median(values) for _, values in known], [height for height, _ in known], s=14, marker=marker,
            facecolor="none", edgecolor=FP32_GREY, zorder=3,
        )  # fmt: skip
    ax.set_title("FP32")
    ax.set_xlabel("ms")
    ax.set_xlim(left=0)
    ax.grid(visible=True, axis="y", alpha=0.5)


def _draw_ratios(ax: Axes, row: Row, gemm: str, heights: Mapping[str, float], style: RowStyle) -> list[float]:
    """One row's ratios of one product; answers what was drawn."""
    whole = _pooled(map(_ratios, profiles_of(row)))
    alone = _pooled(map(_ratios_alone, profiles_of(row)))
    points = [(median(whole[layer, gemm]), at, layer) for layer, at in heights.items() if (layer, gemm) in whole]
    drawn = [ratio for ratio, *_ in points]
    for ratio, at, layer in points:
        least = alone.get((layer, gemm))
        if least is not None and median(least) < ratio:
            ax.plot([median(least), ratio], [at] * 2, color=style.colour, linewidth=1.1, alpha=0.7)
            drawn.append(median(least))
    ax.scatter(
        [ratio for ratio, *_ in points], [at for _, at, _ in points], s=16, marker=style.marker, color=style.colour,
        label=tag(row), zorder=3,
    )  # fmt: skip
    return drawn


def _ratios(profile: ProfileResult) -> dict[Place, float]:
    """A row's products over FP32's of the same process."""
    fp32 = _times(profile.fp32.products)
    return {place: value / fp32[place] for place, value in _times(profile.cell.products).items() if fp32.get(place)}


def _ratios_alone(profile: ProfileResult) -> dict[Place, float]:
    """The products alone over FP32's with what is done for them: how far down a marker's line reaches."""
    fp32 = _times(profile.fp32.products)
    alone = {(p.layer, p.gemm): p.product_ms for p in profile.cell.products if not isinstance(p.product_ms, Absent)}
    return {place: value / fp32[place] for place, value in alone.items() if fp32.get(place)}


def _total_ratio(profiles: Sequence[ProfileResult], gemm: str, shown: Sequence[str]) -> float | None:
    """Sum of a row's products over the sum of FP32's in the same process, over layers that both know."""
    ratios = []
    for profile in profiles:
        own, fp32 = _times(profile.cell.products), _times(profile.fp32.products)
        both = [place for place in own if place in fp32 and place[1] == gemm and place[0] in shown]
        if base := sum(fp32[place] for place in both):
            ratios.append(sum(own[place] for place in both) / base)
    return median(ratios) if ratios else None
