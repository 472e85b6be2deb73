"""The page model printed as one HTML file and as GitHub-flavoured markdown."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from reports.page import Page
from reports.tables.cells import difference_cell, estimate_cell, trouble_reasons
from reports.text import MarkdownText, clean_text, code_span, escape_markdown

MARKDOWN_LIMIT = 60_000  # bytes; GitHub's comments end at 65,536 characters
MARKDOWN_SECTIONS = 20  # more do not fit
#: Rows of a table, and what else is left out, level by level until the text is short enough.
MAX_ROWS = (400, 400, 200, 60, 12)
LEFT_OUT = (
    "what the columns mean and the environment", "every table but the main ones",
    "the papers’ tables, the commands and rows beyond the first 60 of a table",
    "notices and rows beyond the first 12 of a table",
)  # fmt: skip


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
    num_sections = min(len(page.sections), MARKDOWN_SECTIONS)
    first_level = 2 if num_sections < len(page.sections) else 0
    for level in range(first_level, len(MAX_ROWS)):
        text = template.render(
            page=page, level=level, raw=MarkdownText, max_rows=MAX_ROWS[level], num_sections=num_sections,
            left_out=LEFT_OUT,
        )  # fmt: skip
        if len(text.encode()) < MARKDOWN_LIMIT:
            return text
    note = "\n\nCut here to stay below GitHub’s limit: the rest is in report.html.\n"
    return text.encode()[: MARKDOWN_LIMIT - len(note.encode())].decode(errors="ignore").rsplit("\n", 1)[0] + note


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
        "trouble_reasons": trouble_reasons,
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
    return value if isinstance(value, Markup) else _escaped(str(value))


@functools.lru_cache(maxsize=2**16)
def _escaped(text: str) -> Markup:
    """Few texts repeat many times on a long page."""
    return escape(clean_text(text))
