from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.text import clean_text, code_span, csv_text, escape_markdown, ratio_text, signed, slug


@given(st.text())
def test_escaped_markdown_stays_on_one_line_and_in_its_table_cell(text: str) -> None:
    escaped = escape_markdown(text)
    assert len(escaped.splitlines()) <= 1
    assert "|" not in escaped.replace("\\|", "")
    assert "<" not in escaped
    assert "@" not in escaped


@given(st.text())
def test_escaping_never_ends_in_an_open_backslash(text: str) -> None:
    escaped = escape_markdown(text)
    assert (len(escaped) - len(escaped.rstrip("\\"))) % 2 == 0


def test_names_with_inner_underscores_stay_readable_in_markdown() -> None:
    assert escape_markdown("metagrad_int4_slim") == "metagrad_int4_slim"
    assert escape_markdown("_emphasis_") == "\\_emphasis\\_"


def test_mentions_issues_links_and_html_lose_their_meaning_in_markdown() -> None:
    text = escape_markdown("@someone #12 https://example.org <img src=x> [a](b) `c` *d*")
    assert text == ("&#64;someone &#35;12 https&#58;//example.org &lt;img src=x&gt; \\[a\\](b) \\`c\\` \\*d\\*")


def test_bidirectional_and_control_characters_are_made_visible() -> None:
    assert clean_text("a\u202eb\x00c\nd") == "a\ufffdb\ufffdc d"
    assert clean_text("a\u2028b\u2029c") == "a b c"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("No such file: /home/alice/data/x.bin", "No such file: ~/data/x.bin"),
        ("'/Users/bob/runs' is full", "'~/runs' is full"),
        ("/mnt/home/carol/nets.py:12", "~/nets.py:12"),
        ("C:\\Users\\dave\\x is there", "~\\x is there"),
        ("/root/.cache cannot be read", "~/.cache cannot be read"),
        ("lost GPU-12345678-abcd-ef01-2345-6789abcdef01 (Xid 79)", "lost GPU-… (Xid 79)"),
        ("lost gpu-12345678-abcd-ef01-2345-6789abcdef01", "lost gpu-…"),
        ("batch/root and home/x", "batch/root and home/x"),
        ("/data/homes/x", "/data/homes/x"),
    ],
)
def test_home_folders_and_serial_numbers_are_left_out(text: str, shown: str) -> None:
    assert clean_text(text) == shown


def test_code_spans_cannot_be_closed_from_inside() -> None:
    assert code_span("a`b|c") == "`a'b\\|c`"


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2", "@x", "\t=1", " =1"])
def test_text_that_a_spreadsheet_would_run_is_quoted(text: str) -> None:
    quoted = csv_text(text)
    assert isinstance(quoted, str)
    assert quoted.startswith("'")


def test_numbers_and_harmless_text_are_not_quoted() -> None:
    assert csv_text(-2.5) == -2.5
    assert csv_text("uint8") == "uint8"


@pytest.mark.parametrize(("value", "text"), [(0.41, "+0.41"), (-0.16, "−0.16"), (0.001, "0.00"), (-0.004, "0.00")])
def test_differences_carry_their_sign_unless_they_round_to_zero(value: float, text: str) -> None:
    assert signed(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.338, "1.34×"), (0.0014, "0.0014×"), (0.0949, "0.095×"), (0.0, "0.00×")])
def test_small_ratios_do_not_round_to_nothing(value: float, text: str) -> None:
    assert ratio_text(value) == text


def test_slugs_are_safe_in_file_names_and_never_empty() -> None:
    assert slug("Demo / ../x") == "demo-x"
    assert slug("‮") == "x"
