"""Text from configs and records made safe for HTML, markdown and spreadsheets, and the number formats reports add."""

from __future__ import annotations

import re
import unicodedata

from bench.privacy import without_places
from bench.units import Absent, format_ratio
from bench.units import plural as plural

# Bidirectional overrides and isolates can make a reader see other digits than the file holds.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN_SPECIAL = re.compile(r"([\\`*\[\]|~$])")
_EDGE_UNDERSCORE = re.compile(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class MarkdownText(str):
    """Text that is markdown already; everything else is escaped where it is printed."""

    __slots__ = ()


def clean_text(value: object) -> str:
    """Put a value on one line, without home folders and GPUs' serial numbers.

    Control and bidirectional control characters become U+FFFD.
    """
    return without_places(_UNSEEN.sub("\ufffd", " ".join(str(value).split())))


def escape_markdown(value: object) -> str:
    """Escape text for a GitHub-flavoured markdown line or table cell; mentions, links and HTML lose their meaning."""
    if isinstance(value, MarkdownText):
        return str(value)
    text = clean_text(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKDOWN_SPECIAL.sub(r"\\\1", text)
    text = _EDGE_UNDERSCORE.sub(r"\\_", text)
    text = re.sub(r"#(?=\w)", "&#35;", text)
    text = re.sub(r"(?i)\b(https?|ftp)://", r"\1&#58;//", text)
    return re.sub(r"(?i)\bwww\.", "www&#46;", text).replace("@", "&#64;")


def code_span(value: object) -> MarkdownText:
    """Show text as code in markdown, also inside a table; a backtick in it becomes an apostrophe."""
    text = clean_text(value).replace("`", "'").replace("|", "\\|")
    return MarkdownText(f"`{text}`" if text else "")


def csv_text(value: object) -> object:
    """Quote text that a spreadsheet would run as a formula; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = clean_text(value)
    return f"'{text}" if value.startswith(_FORMULA_STARTS) or text.startswith(_FORMULA_STARTS) else text


def signed(value: float) -> str:
    """Print a difference with its sign (``+0.41``, ``−0.16``, ``0.00``)."""
    text = f"{abs(value):.2f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def ratio_text(value: float) -> str:
    """Print a ratio; a small one keeps two digits instead of rounding to nothing (``0.0014×``)."""
    return format_ratio(value) if abs(value) >= 0.095 or value == 0 else f"{value:.2g}×"


def slug(value: str) -> str:
    """Make a file name or an anchor of any text: lower-case ASCII letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60] or "x"


def reason_of(value: object) -> str:
    """Reason of an absent value, "" for any other."""
    return value.reason if isinstance(value, Absent) else ""
