"""Where the statements of a TOML text stand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.containerd import toml_statements as toml


def said(text):
    """The path of each statement, and its value as it is written."""
    return [
        (".".join(each.path), text[slice(*each.value)] if each.value else None)
        for each in toml.statements(text)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# a comment\n\n", []),
        ("a = 1", [("a", "1")]),
        ("\ufeffa = 1\n", [("a", "1")]),
        ("a = 1 # one\r\nb = 'x' \r\n", [("a", "1"), ("b", "'x'")]),
        ("[a.\"b.c\".'d']\ne = true\n", [("a.b.c.d", None), ("a.b.c.d.e", "true")]),
        ("[ a . b ]\n c . d = 1\n", [("a.b", None), ("a.b.c.d", "1")]),
        (
            "[[a]]\nb = 1\n[[a]]\nb = 2\n",
            [("a", None), ("a.b", "1")] * 1 + [("a", None), ("a.b", "2")],
        ),
        ('a = """x\n[b]\n# "\\""" """\n', [("a", '"""x\n[b]\n# "\\""" """')]),
        ("a = '''x'''''\nb = 1\n", [("a", "'''x'''''"), ("b", "1")]),
        ('a = ""\nb = ""\n', [("a", '""'), ("b", '""')]),
        ('a = [ "]", # ]\n [1, {b = "}"}],\n]\n', [("a", '[ "]", # ]\n [1, {b = "}"}],\n]')]),
        ("a = 1979-05-27 07:32:00Z # now\n", [("a", "1979-05-27 07:32:00Z")]),
        ("a = -1e+5\nb = +inf\n", [("a", "-1e+5"), ("b", "+inf")]),
        ('"" = 1\n', [("", "1")]),
    ],
)
def test_statements(text, expected):
    assert said(text) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a = 1\npassword = "p"w"\n', 2),
        ("a = \n", 1),
        ("a\n", 1),
        ("[a\n", 1),
        ("[[a]\n", 1),
        ('\n\na = "x\n"', 3),
        ('a = """x\n', 1),
        ("a = [1, 2\n", 2),
        ("a = [1}\n", 1),
        ("a = 1 b = 2\n", 1),
        ("= 1\n", 1),
        ("\r", 1),
        ("a = 1\n[b]\r", 2),
        ("a = 1\r", 1),
    ],
)
def test_what_is_no_toml_is_named_by_its_line(text, line):
    with pytest.raises(toml.Malformed, match=f"^line {line}: expected ") as caught:
        list(toml.statements(text))
    assert caught.value.line == line


def test_lines_of_statements_leave_out_comments_and_blanks():
    text = "# top\na = [\n1]\n\n  [b] # here\nc = 1"
    lines = [text[each.start : each.end] for each in toml.statements(text)]
    assert lines == ["a = [\n1]\n", "  [b] # here\n", "c = 1"]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("'a\\b'", "a\\b"),
        (r'"a\tb\"\\ \u00e9 \U0001F600"', 'a\tb"\\ é 😀'),
        ('"""\na\\\n   b"""', "ab"),
        ("'''\r\na\\b'''", "a\\b"),
        ('""', ""),
        (r'"\ud800 \UFFFFFFFF"', r"\ud800 \UFFFFFFFF"),  # neither stands for a letter
        ("1", "1"),
    ],
)
def test_strings(written, text):
    assert toml.string(written) == text


def test_an_array_of_strings():
    text = 'a = ["x", \'y\', # "no"\n"""z""", 1, ["w"],]\n'
    (statement,) = toml.statements(text)
    assert toml.strings(text, statement.value) == ["x", "y", "z"]


def test_pairs_of_an_inline_table():
    text = 'a = { b.c = "}", "d e" = { f = 1 } }\n'
    (statement,) = toml.statements(text)
    pairs = toml.pairs(text, statement.value)
    assert [(path, text[slice(*span)]) for path, span in pairs] == [
        (("b", "c"), '"}"'),
        (("d e",), "{ f = 1 }"),
    ]


@given(st.text(st.sampled_from("ab=[]{}.,#\"'\\\n\r\t 1_-"), max_size=60))
def test_any_text_is_walked_or_refused(text):
    try:
        spans = [(each.start, each.end) for each in toml.statements(text)]
    except toml.Malformed:
        return
    assert spans == sorted(spans)
    assert all(start < end for start, end in spans)
