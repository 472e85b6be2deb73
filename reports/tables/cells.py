"""One cell each: a value of a row as text, with its spread or reason, its label and where in the record it stands."""

from __future__ import annotations

import dataclasses

from bench.records.schema import Interval, MethodFacts, Summary
from bench.units import Absent, format_bytes, format_ms, format_percent
from reports.rows import Estimate, Ratio, Row
from reports.tables.model import Cell, absent_cell
from reports.text import ratio_text, signed

FLOAT_BITS = 32


def forward_cell(facts: MethodFacts) -> Cell:
    """Bits of weights and activations, and their quantizer."""
    if min(facts.weight_bits, facts.activation_bits) >= FLOAT_BITS:
        return Cell(text=_floating(facts))
    edges = "" if facts.edge_layers == "same" else f", edge layers {facts.edge_layers}"
    low = f"{facts.cycle_min_bits}–" if isinstance(facts.cycle_min_bits, int) else ""  # cyclic precision
    bits = f"W{low}{facts.weight_bits} A{low}{facts.activation_bits}"
    return Cell(text=bits, detail=f"{facts.forward_quantizer}{edges}")


def error_cell(facts: MethodFacts) -> Cell:
    """Bits, quantizer and rounding of the error signals."""
    if facts.error_bits >= FLOAT_BITS:
        return Cell(text=_floating(facts))
    widths = f"{facts.error_bits}–24" if facts.error_quantizer == "afp" else str(facts.error_bits)  # chosen per layer
    return Cell(text=f"{widths} bit", detail=f"{facts.error_quantizer}, {facts.error_rounding}")


def grad_cell(facts: MethodFacts) -> Cell:
    """Bits of the weight gradient and what makes it: a quantizer, or a hypernetwork with its form and strategy."""
    bits = _floating(facts) if facts.grad_bits >= FLOAT_BITS else f"{facts.grad_bits} bit"
    if facts.hypernet != "none":
        return Cell(text=bits, detail=f"{facts.hypernet}{hidden_text(facts)}, {facts.hypernet_form}, {facts.strategy}")
    return Cell(text=bits, detail=facts.grad_quantizer if facts.grad_bits < FLOAT_BITS else "")


def label_cell(row: Row) -> Cell:
    """Name of the row, what its figures are (emulated, synthetic), its seeds, and its status where it is not ok."""
    seeds = row.seeds if len(row.seeds) <= 5 else (*row.seeds[:4], "…")
    detail = f"{'seed' if len(row.seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    return Cell(text=row.label, detail=detail, chips=(*row.labels, *row.unfinished))


def trouble_reasons(row: Row) -> tuple[str, ...]:
    """Why cells of the row did not finish, each reason once."""
    return tuple(dict.fromkeys(record.reason for record in row.troubles if record.reason))


def ran_as_cell(row: Row) -> Cell:
    """What the low-bit products ran as."""
    label = row.ran_as
    if isinstance(label, Absent):
        return absent_cell(label)
    return Cell(text=label)


def estimate_cell(value: Estimate | Absent, *, source: str = "") -> Cell:
    """A mean over seeds with its interval and n."""
    if isinstance(value, Absent):
        return absent_cell(value)
    if value.n == 1:
        text = f"{value.value:.2f}"
        return Cell(text=text, detail="n = 1", value=value.value, source=source, unranked=True)
    if isinstance(value.interval, Absent):
        return Cell(text=f"{value.value:.2f}", detail=f"n = {value.n}", value=value.value)
    span = f"[{value.interval.low:.2f}, {value.interval.high:.2f}]"
    return Cell(text=f"{value.value:.2f}", detail=f"{span}, n = {value.n}", value=value.value)


def difference_cell(value: Estimate | Absent) -> Cell:
    """A difference in points, with its sign."""
    if isinstance(value, Absent):
        return absent_cell(value)
    detail = f"n = {value.n}"
    if isinstance(value.interval, Interval):
        detail = f"[{signed(value.interval.low)}, {signed(value.interval.high)}], {detail}"
    unranked = not isinstance(value.interval, Interval)
    return Cell(text=signed(value.value), detail=detail, value=value.value, unranked=unranked)


def summary_cell(value: Summary | Absent, *, source: str = "") -> Cell:
    """A median with its quartiles, in milliseconds; ``source`` is the summary's path in the record."""
    if isinstance(value, Absent):
        return absent_cell(value)
    detail = f"[{_bare(format_ms(value.q1))}, {_bare(format_ms(value.q3))}]"
    cell = Cell(text=format_ms(value.median), detail=detail, value=value.median)
    if not source:
        return cell
    return dataclasses.replace(cell, source=f"{source}.median", detail_sources=(f"{source}.q1", f"{source}.q3"))


def step_cell(row: Row) -> Cell:
    """The row's step time; of one process it is not ranked."""
    cell = summary_cell(row.step_ms, source="timing.step_ms")
    return dataclasses.replace(cell, unranked=row.timed_once)


def interval_cell(value: Ratio | Absent, *, source: str = "") -> Cell:
    """A ratio with its 95 % interval, or why it has none; ``source`` is the interval's path in the record."""
    if isinstance(value, Absent):
        return absent_cell(value)
    if isinstance(value.interval, Absent):
        detail = value.interval.reason
        middle = f"{source}.value" if source else ""
        return Cell(text=ratio_text(value.value), detail=detail, value=value.value, source=middle, unranked=True)
    detail = f"[{value.interval.low:.2f}, {value.interval.high:.2f}]"
    cell = Cell(text=ratio_text(value.value), detail=detail, value=value.value)
    if not source:
        return cell
    return dataclasses.replace(cell, source=f"{source}.value", detail_sources=(f"{source}.low", f"{source}.high"))


def bytes_cell(value: float | Absent, *, source: str = "") -> Cell:
    """Bytes in binary units."""
    if isinstance(value, Absent):
        return absent_cell(value)
    return Cell(text=format_bytes(value), value=value, source=source)


def hypernet_bytes_cell(row: Row, value: float | Absent, source: str) -> Cell:
    """What the hypernetwork adds; a dash where there is none."""
    return bytes_cell(value, source=source) if row.has_hypernet else Cell(text="–", empty=True)


def peak_cell(row: Row) -> Cell:
    """Peak allocated bytes, and how many times the FP32 step's they are."""
    cell = bytes_cell(row.peak_allocated_bytes, source="memory.peak_allocated_bytes")
    fp32, own = row.fp32_peak_allocated_bytes, row.peak_allocated_bytes
    if row.is_fp32 or isinstance(fp32, Absent) or isinstance(own, Absent) or fp32 <= 0:
        return cell
    return dataclasses.replace(cell, detail=f"{ratio_text(own / fp32)} FP32’s")


def phase_cell(row: Row, name: str) -> Cell:
    """A phase's median time, and its share of the mean step."""
    if isinstance(row.phases_ms, Absent):
        return absent_cell(row.phases_ms)
    if name not in row.phases_ms:
        return Cell(text="–", empty=True)
    cell = Cell(
        text=_bare(format_ms(row.phases_ms[name])), value=row.phases_ms[name],
        source=f"timing.phases_ms.{name}.median", unranked=row.timed_once,
    )  # fmt: skip
    if isinstance(row.phase_share_pct, Absent) or name not in row.phase_share_pct:
        return cell
    source = f"timing.phase_share_pct.{name}"
    return dataclasses.replace(cell, detail=format_percent(row.phase_share_pct[name]), detail_sources=(source,))


def retain_cells(row: Row) -> tuple[Cell, Cell, Cell, Cell, Cell]:
    """Step time, added memory (allocated, process), peak and accuracy against retain of the same setting."""
    against = row.against_retain
    dash = Cell(text="–", empty=True)
    if against is None:
        return (dash,) * 5
    if row.method.strategy == "retain":
        return (Cell(text="reference"),) * 5
    if isinstance(against, Absent):
        return (absent_cell(against), dash, dash, dash, dash)
    return (
        interval_cell(against.time),
        _ratio_cell(against.hypernet_extra_allocated),
        _ratio_cell(against.hypernet_extra_process),
        _ratio_cell(against.peak_allocated),
        difference_cell(against.accuracy_points),
    )


def _ratio_cell(value: float | Absent) -> Cell:
    return absent_cell(value) if isinstance(value, Absent) else Cell(text=ratio_text(value), value=value)


def count_cell(value: Summary | Absent) -> Cell:
    """How many steps a median stands on."""
    return (
        absent_cell(value)
        if isinstance(value, Absent)
        else Cell(text=f"{value.n:,}", value=value.n, source="timing.step_ms.n")
    )


def _floating(facts: MethodFacts) -> str:
    return "bf16" if facts.name == "bf16" else "FP32"


def hidden_text(facts: MethodFacts) -> str:
    """Print the hypernetwork's hidden size, "" without one."""
    return "" if isinstance(facts.hidden, Absent) else f" H={facts.hidden}"


def _bare(text: str) -> str:
    """The number without its unit."""
    return text.rsplit(" ", 1)[0]
