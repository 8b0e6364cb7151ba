"""Text from elsewhere, fit for a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata import terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("default/nginx-7d", "default/nginx-7d"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("two\nlines\r\t", r"two\x0alines\x0d\x09"),
        ("中\U0001f600", r"\u4e2d\U0001f600"),
        ("\udcff", r"\udcff"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("cut…", "cut…"),
    ],
)
def test_nothing_of_others_moves_the_cursor(text, shown):
    assert terminal.plain(text) == shown


@given(st.text())
def test_any_text_is_one_printable_line_and_stays_so(text):
    shown = terminal.plain(text)
    assert shown.isprintable()
    assert terminal.plain(shown) == shown


@given(st.text(), st.integers(1, 40))
def test_what_is_cut_keeps_to_its_width(text, width):
    assert len(terminal.cut(text, width)) <= width
    assert len(terminal.tail(text, width)) <= width


def test_a_path_keeps_its_end_and_a_name_its_beginning():
    assert terminal.tail("/opt/kata/share/vmlinux", 12) == "…are/vmlinux"
    assert terminal.cut("a-long-name-of-a-pod", 8) == "a-long-…"


@given(st.text(max_size=400), st.integers(0, 8))
def test_wrapped_lines_keep_to_the_terminal(text, indent):
    assert all(len(line) <= terminal.WIDTH for line in terminal.wrapped(text, indent))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (86400, "1d0h"),
        (99 * 86400 + 23 * 3600, "99d23h"),
        (100 * 86400, "100d"),
    ],
)
def test_an_age_fits_into_six_columns(seconds, shown):
    assert terminal.age(seconds) == shown
    assert len(shown) <= 6


def test_lines_keep_their_letters_and_lose_what_a_terminal_would_obey():
    text = "caf\u00e9\t\u7bb1\n\x1b[2J\x00\r \udcff \u202eabc\u2028"
    assert terminal.shown(text) == (
        "caf\u00e9\t\u7bb1\n\\x1b[2J\\x00\\x0d \\udcff \\u202eabc\\u2028"
    )
