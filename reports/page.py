"""What both templates print: one page model, the words that explain the columns, and the commands that repeat a run."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from bench.config import CellConfig, as_plain
from bench.records.schema import LayerFacts, RunRecord
from bench.units import Absent, format_absent, format_duration
from reports.load import Loaded, UnreadFile, is_synthetic, leaves, shown_value
from reports.paper import PaperTable, paper_claims, paper_tables
from reports.rows import Row, Section, machine_name, status_text
from reports.tables import Column, Table, difference_cell, estimate_cell, section_tables, trouble_reasons
from reports.text import MarkdownText, clean_text, code_span, escape_markdown, plural, slug
from reports.verdict import Verdict, headlines, section_titles, section_verdicts

MAX_DETAILS = 120  # records shown in full; the CSV tables hold all
MARKDOWN_LIMIT = 60_000  # bytes; GitHub's comments end at 65,536 characters

MARKDOWN_SECTIONS = 20  # more do not fit

#: How each number is to be read; the same words in HTML and markdown.
DEFINITIONS: tuple[tuple[str, str], ...] = (
    ("Weights, activations", "forward quantizer and bits; FP32 means that the forward pass is floating point"),
    ("Error signal ∇y", "quantizer of the gradients with respect to activations; only low-bit ones give integer "
     "backward products"),
    ("Weight gradient ∇W", "what makes and quantizes the weight gradient: the second, independent choice"),
    ("Accuracy", "of the whole test set after the last epoch, never the best one; mean over seeds with Student's 95 % "
     "interval"),
    ("Δ to FP32", "points against the FP32 row of the same suite, model, data, device and epochs; mean over the seeds "
     "that both have"),
    ("integer", "the low-bit products ran as integer products of that width"),
    ("emulated", "INT4 codes in INT8 containers: the results are INT4's, the speed is not"),
    ("simulated", "floating-point products of the quantized values: the results are low-bit, the speed is not"),
    ("float", "no low-bit product ran"),
    ("Step", "median of all measured steps with their quartiles; warm-up is left out"),
    ("Step vs FP32", "ratio of medians against FP32 steps that alternated with the row's own in the same processes, "
     "with its 95 % interval by bootstrap over processes; an interval wholly below 1 is faster; one process gives no "
     "interval and no order"),
    ("Forward, backward, meta, optimizer", "shares of the mean step; what is missing to 100 is data and time that no "
     "phase covers"),
    ("Peak allocated", "largest sum of live tensors in a few training steps: the allocator's count on CUDA, storage "
     "tracking on the CPU; the largest over seeds"),
    ("Peak reserved", "what CUDA's caching allocator took from the driver"),
    ("Peak process", "the whole process: resident peak on the CPU, NVML's figure on CUDA"),
    ("Peak device", "everything on the device, other processes included"),
    ("Hypernetwork adds", "peak with the hypernetwork minus peak without it, measured in two fresh processes"),
    ("vs retain", "against the row that keeps the whole graph and is otherwise the same; step times are compared "
     "through their ratios to FP32, and both intervals add up; retain and slim run an LSTM as the published nn.LSTM, "
     "recompute and tabulate as our reduced cell"),
    ("Added memory vs retain", "ratio of what the hypernetwork adds; on a CPU the allocated bytes of nn.LSTM hold "
     "oneDNN's workspace in full, about 1 KiB a weight at H = 4 and 10 KiB at H = 100, touched or not; process memory "
     "counts what was touched"),
    ("Meta-gradient norm", "of the gradient for the hypernetwork's weights, summed over layers, at the last observed "
     "step; slim's is one layer's share and does not compare with the others'"),
    ("Integer share", "share of the multiply-accumulates of the model's layers that ran as integers; the hypernetwork "
     "is not in it"),
    ("Hypernetwork, float multiply-adds", "floating-point multiply-accumulates of the hypernetwork in the same step"),
    ("bold", "the best value of a column as measured, which may be chance; a value of one seed or one process is never "
     "marked"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure as the page shows it."""

    title: str
    caption: str
    alt: str
    svg: Markup
    file: str  # below the report's folder, without the ending


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionView:
    """One section as the page shows it."""

    anchor: str
    title: str
    machine: str
    lead: str
    section: Section
    verdicts: tuple[Verdict, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    figures_left_out: str
    troubles: tuple[tuple[str, int, str, str], ...]  # row, seed, status, reason
    notices: tuple[tuple[str, str], ...]  # notice, rows
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One value of a record in the details."""

    path: str
    text: str
    value: str  # exact, "" for text


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """A record in full."""

    anchor: str
    title: str
    record: RunRecord
    fields: tuple[Field, ...]
    layers: tuple[Mapping[str, str], ...]
    samples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine's environment, flattened."""

    name: str
    fingerprint: str
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything that the report says."""

    title: str
    summary: str
    headlines: tuple[str, ...]
    sections: tuple[SectionView, ...]
    papers: tuple[PaperTable, ...]
    claims: tuple[tuple[str, str], ...]
    machines: tuple[Machine, ...]
    details: tuple[Detail, ...]
    details_left_out: str
    anchors: Mapping[str, str]  # record key -> anchor of its details
    problems: tuple[UnreadFile, ...]
    superseded: tuple[str, ...]
    definitions: tuple[tuple[str, str], ...] = DEFINITIONS


def build_page(
    loaded: Loaded, sections: Sequence[Section], figures: Mapping[int, Sequence[Figure]], notes: Mapping[int, str]
) -> Page:
    """Build the page model.

    Args:
        loaded: records and unread files.
        sections: of its records, as ``build_sections`` gives them.
        figures: by the section's position.
        notes: why a section has no figures, by its position.
    """
    shown = [record for section in sections for record in section.records][:MAX_DETAILS]
    anchors = {record.key: f"cell-{index}" for index, record in enumerate(shown, start=1)}
    left_out = len(loaded.records) - len(shown) - sum(len(section.superseded) for section in sections)
    models, data_sets = (
        {suite: len({getattr(s, name) for s in sections if s.suite == suite}) for suite in {s.suite for s in sections}}
        for name in ("model_name", "data_name")
    )
    labels = {record.key: row.label for section in sections for row in section.rows for record in row.records}
    return Page(
        title=f"metagrad-bench: {', '.join(dict.fromkeys(section.suite for section in sections))}",
        summary=_summary(loaded.records, sections),
        headlines=headlines(sections),
        sections=tuple(
            _section_view(
                index,
                title,
                section,
                tuple(figures.get(index, ())),
                notes.get(index, ""),
                _commands(section, models[section.suite], data_sets[section.suite]),
            )
            for index, (title, section) in enumerate(zip(section_titles(sections), sections, strict=True))
        ),
        papers=paper_tables(sections),
        claims=paper_claims(),
        machines=_machines(loaded.records),
        details=tuple(_detail(record, labels[record.key], anchors[record.key]) for record in shown),
        details_left_out=f"{plural(left_out, 'more record')} in tables/cells.csv" if left_out > 0 else "",
        anchors=anchors,
        problems=loaded.problems,
        superseded=tuple(
            f"{record.variant}, seed {record.seed}, started {record.started_at}"
            for section in sections
            for record in section.superseded
        ),
    )


def render_html(page: Page) -> str:
    """Print the page as one self-contained HTML file."""
    environment = _environment(autoescape=True, finalize=_html_text)
    script, style = (_template_text(name) for name in ("report.js", "report.css"))
    # The page may run this one script and load nothing: a name that slipped through as markup would stay inert.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.filters["breakable"] = _breakable
    template = environment.get_template("report.html.j2")
    return template.render(page=page, script=Markup(script), style=Markup(style), script_hash=digest)


def render_markdown(page: Page) -> str:
    """Print the page as GitHub-flavoured markdown below 60 KB; the longest parts go first, and the text says so."""
    environment = _environment(autoescape=False, finalize=escape_markdown)
    environment.filters["code"] = code_span
    template = environment.get_template("report.md.j2")
    page, first_level = _fewer_sections(page) if len(page.sections) > MARKDOWN_SECTIONS else (page, 0)
    for level in range(first_level, 5):
        text = template.render(page=page, level=level, raw=MarkdownText, max_rows=(10**9, 10**9, 10**9, 60, 12)[level])
        if len(text.encode()) < MARKDOWN_LIMIT:
            return text
    note = "\n\nCut here: the rest is in report.html.\n"
    return text.encode()[: MARKDOWN_LIMIT - len(note) - 8].decode(errors="ignore").rsplit("\n", 1)[0] + note


def _fewer_sections(page: Page) -> tuple[Page, int]:
    """The largest sections, to be shown without their side tables."""
    return dataclasses.replace(page, sections=page.sections[:MARKDOWN_SECTIONS], details_left_out="sections"), 2


def reproduce_command(record: RunRecord, *, with_model: bool, with_data: bool, seeds: Sequence[int]) -> str:
    """Command that measures a record's cell again.

    Args:
        record: of the cell.
        with_model: the suite sweeps models, so the cell must name its own.
        with_data: the suite sweeps data sets.
        seeds: to run.
    """
    words = ["metagrad-bench", "run"]
    overrides = [f"suite={record.suite}", f"variant={_variant_file(record.variant)}"]
    preset = record.cell.get("preset_name", "none")
    if record.variant == CellConfig().variant_name:
        overrides = list(_overrides(record))
    elif preset != "none":  # it names the model and the data, with their numbers
        overrides.append(f"preset={preset}")
        with_model = with_data = False
    if with_model:
        overrides.append(f"model={record.model_name}")
    if with_data:
        overrides.append(f"data={record.data_name}")
    overrides += [f"device={record.device}", f"seed={','.join(map(str, seeds))}"]
    return " ".join([*words, *(shlex.quote(clean_text(word)) for word in dict.fromkeys(overrides))])


def _variant_file(label: str) -> str:
    """The variant that makes rows of this label: its file's name, which settings that it leaves open may follow."""
    name, variants = label, files("suites").joinpath("variant")
    while not variants.joinpath(f"{name}.yaml").is_file():
        if "_" not in name:
            return label  # a variant of the user's own
        name = name.rpartition("_")[0]
    return name


def _overrides(record: RunRecord) -> Iterable[str]:
    """A cell without a variant, as what it changes of the defaults; a group's name is its choice."""
    defaults = dict(leaves(as_plain(CellConfig())))
    for path, value in leaves(record.cell):
        if path in {"seed", "device", "suite_name", "variant_name", "preset_name"} or defaults.get(path) == value:
            continue
        yield f"{path.removesuffix('.name')}={'null' if value is None else value}"


def _summary(records: Sequence[RunRecord], sections: Sequence[Section]) -> str:
    machines = dict.fromkeys(machine_name(record) for record in records)
    variants = {(record.suite, record.variant) for record in records}
    models = dict.fromkeys(record.model_name for record in records)
    data = dict.fromkeys(f"{r.data_name} (synthetic)" if is_synthetic(r) else r.data_name for r in records)
    seeds = {record.seed for record in records}
    first, last = min(r.started_at for r in records)[:10], max(r.started_at for r in records)[:10]
    when = f"on {last}" if first == last else f"from {first} to {last}"
    took = format_duration(sum(record.duration_s for record in records))
    gpu = "" if any(section.on_gpu for section in sections) else " Nothing ran on a GPU."
    return (
        f"{plural(len(records), 'cell')} of {plural(len(variants), 'variant')} compared: {', '.join(models)} on "
        f"{', '.join(data)}, {plural(len(seeds), 'seed')}, {plural(len(machines), 'machine')} ({', '.join(machines)}), "
        f"measured {when} in {took} altogether.{gpu}"
    )


def _section_view(
    index: int, title: str, section: Section, figures: tuple[Figure, ...], note: str, commands: tuple[str, ...]
) -> SectionView:
    machine = machine_name(section.rows[0].first)
    records = section.records
    epochs = sorted({record.accuracy.epochs for record in records if record.accuracy is not None})
    parts = [machine, f"code {section.code_version}"]
    data = next((record.data for record in records if record.data is not None), None)
    if data is not None:
        shape = "×".join(map(str, data.image_shape))
        parts.append(f"{data.train_samples:,} training and {data.test_samples:,} test images of {shape}")
    if section.batch_size:
        parts.append(f"batch {section.batch_size}")
    if epochs:
        parts.append(f"{', '.join(map(str, epochs))} {'epoch' if epochs == [1] else 'epochs'}")
    if section.synthetic:
        parts.append("synthetic data")
    return SectionView(
        anchor=f"section-{index + 1}-{slug(section.suite)}",
        title=title,
        machine=machine,
        lead="; ".join(parts),
        section=section,
        verdicts=section_verdicts(section),
        tables=section_tables(section),
        figures=figures,
        figures_left_out=note,
        troubles=tuple(
            (row.label, record.seed, status_text(record), record.reason)
            for row in section.rows
            for record in row.troubles
        ),
        notices=_notices(section),
        commands=commands,
    )


def _notices(section: Section) -> tuple[tuple[str, str], ...]:
    rows_by_notice: dict[str, dict[str, None]] = {}
    for row in section.rows:
        for record in row.records:
            for notice in record.notices:
                rows_by_notice.setdefault(notice, {})[row.label] = None
    everywhere = len(section.rows)
    return tuple(
        (notice, "every row" if len(rows) == everywhere and everywhere > 1 else ", ".join(rows))
        for notice, rows in rows_by_notice.items()
    )


def _commands(section: Section, models: int, data_sets: int) -> tuple[str, ...]:
    """The whole suite first, then each row; a model or data set is named where the suite has several."""
    seeds = sorted({record.seed for record in section.records})
    commands = []
    if section.suite != CellConfig().suite_name:
        words = [f"suite={section.suite}", f"device={section.device}", f"seed={','.join(map(str, seeds))}"]
        commands.append(" ".join(["metagrad-bench run", *(shlex.quote(clean_text(word)) for word in words)]))
    commands += [
        reproduce_command(row.first, with_model=models > 1, with_data=data_sets > 1, seeds=row.seeds)
        for row in section.rows
    ]
    return tuple(dict.fromkeys(commands))


def _machines(records: Sequence[RunRecord]) -> tuple[Machine, ...]:
    machines: dict[str, Machine] = {}
    for record in records:
        if record.fingerprint not in machines:
            fields = tuple((path, _value_text(value)) for path, value in leaves(record.environment))
            machines[record.fingerprint] = Machine(
                name=machine_name(record), fingerprint=record.fingerprint, fields=fields
            )
    return tuple(machines.values())


def _detail(record: RunRecord, label: str, anchor: str) -> Detail:
    fields = []
    for path, value in leaves(record):
        if path.startswith(("environment.", "timing.repeats", "model.layers")):
            continue
        value = shown_value(record, path, value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fields.append(Field(path=path, text=_value_text(value), value=repr(value) if number else ""))
    layers = tuple(
        {
            "name": layer.name,
            "kind": layer.kind,
            "weight_shape": "×".join(map(str, layer.weight_shape)),
            "bits": f"W{layer.weight_bits} A{layer.activation_bits} ∇y{layer.error_bits}",
            "fprop": layer.fprop,
            "dgrad": _value_text(layer.dgrad),
            "wgrad": layer.wgrad,
            "paths": paths_text(layer),
            "reason": layer.reason if not layer.quantized else "",
        }
        for layer in (record.model.layers if record.model is not None else ())
    )
    samples: list[tuple[str, str]] = []
    for index, repeat in enumerate(record.timing.repeats if record.timing is not None else ()):
        samples.append((f"process {index + 1}, step_ms", ", ".join(f"{value:g}" for value in repeat.step_ms)))
        samples.append((f"process {index + 1}, fp32_step_ms", ", ".join(f"{value:g}" for value in repeat.fp32_step_ms)))
    title = f"{label}, seed {record.seed}, {record.device}"
    return Detail(
        anchor=anchor, title=title, record=record, fields=tuple(fields), layers=layers, samples=tuple(samples)
    )


def paths_text(layer: LayerFacts) -> str:
    """Which path each of a layer's products took and why, once where they agree; "" where none was recorded.

    Args:
        layer: of a record.
    """
    told = {"fprop": layer.fprop_path, "dgrad": layer.dgrad_path, "wgrad": layer.wgrad_path}
    told = {gemm: path for gemm, path in told.items() if path}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{gemm} {path}" for gemm, path in told.items())


def _value_text(value: Any) -> str:
    if isinstance(value, Absent):
        return format_absent(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def row_anchor(anchors: Mapping[str, str], row: Row) -> str:
    """Anchor of the row's first record, "" where its details are left out."""
    return anchors.get(row.first.key, "")


def _environment(*, autoescape: bool, finalize: Any) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        autoescape=autoescape,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {
        "row_anchor": row_anchor,
        "trouble_reasons": trouble_reasons,
        "ours_column": Column(key="ours", header=""),
        "ours_accuracy": lambda ours: estimate_cell(ours.accuracy, source="accuracy.test_accuracy_pct"),
        "ours_difference": lambda ours: difference_cell(ours.accuracy_vs_fp32),
    }
    return environment


def _template_text(name: str) -> str:
    return files("reports").joinpath("templates", name).read_text(encoding="utf-8")


def _breakable(name: str) -> Markup:
    """A name that may wrap after its underscores."""
    return escape(clean_text(name)).replace("_", Markup("_<wbr>"))


def _html_text(value: Any) -> Any:
    return value if isinstance(value, Markup) else escape(clean_text(value))
