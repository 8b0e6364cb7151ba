"""Where each statement of a TOML text stands: for editing by whole lines, byte for byte.

A TOML library gives a tree and prints it anew. To change three lines of somebody else's file and
to take the change back exactly, one needs the lines themselves: this module walks the statements
of TOML 1.0 once, from top to bottom, and says for each what it defines and which lines it takes.
It reads no values but those that are asked for, and it needs nothing beyond Python itself.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

Path = tuple[str, ...]


class Malformed(ValueError):
    """The text is no TOML; `line` counts from 1."""

    path: str = ""
    """The file that has the text, if whoever read it says so."""

    def __init__(self, line: int, expected: str) -> None:
        super().__init__(f"line {line}: expected {expected}")
        self.line = line


class Statement(NamedTuple):
    """A table header, or a key with its value."""

    path: Path
    """The table that a header opens, or the whole path of a key, its table's included."""
    start: int
    """Where its first line starts."""
    end: int
    """Where the line after its last one starts."""
    value: tuple[int, int] | None
    """Where a key's value starts and ends; None for a header."""


_BASIC = r'"(?:[^"\\\n]|\\[^\n])*"'
_LITERAL = r"'[^'\n]*'"
_KEY = rf"(?:[A-Za-z0-9_-]+|{_BASIC}|{_LITERAL})"
_DOTTED = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_LINE_END = r"(?:\#[^\n]*)?(?:\r?\n|\Z)"

_STATEMENT = re.compile(
    rf"""[ \t]*(?:
      \[(?P<array>\[)?[ \t]*(?P<header>{_DOTTED})[ \t]*\](?(array)\])[ \t]*{_LINE_END}
    | (?P<key>{_DOTTED})[ \t]*=[ \t]*(?P<value>{_BASIC}(?!")|{_LITERAL}(?!')|[^\s"'\[\]{{}}\#,=]+(?=[\s\#]|\Z))?
    | (?P<nothing>{_LINE_END})
    )""",
    re.VERBOSE,
)
_REST = re.compile(rf"[ \t]*{_LINE_END}")
_KEYS = re.compile(_KEY)
_PAIR = re.compile(rf"({_DOTTED})[ \t]*=[ \t]*")
_SCALAR = re.compile(
    rf"{_BASIC}(?!\")|{_LITERAL}(?!')|[^\s\"'\[\]{{}}#,=]+(?:[ ][0-9][^\s\"'\[\]{{}}#,=]*)?"
)
# What matters between the brackets of a value: everything else is skipped in one stride.
_TOKEN = re.compile(rf"[^\"'#\[\]{{}}]+|\#[^\n]*|[\[\]{{}}]|\"\"\"|'''|{_BASIC}|{_LITERAL}")
_BETWEEN = re.compile(r"(?:[ \t\r\n]|#[^\n]*(?:\n|\Z))*")
_CLOSING = {'"""': re.compile(r'\\.|"{3,5}', re.DOTALL), "'''": re.compile(r"'{3,5}")}
_PAIRS = {"]": "[", "}": "{"}
_ESCAPE = re.compile(
    r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|[ \t]*\r?\n[ \t\r\n]*|(.))", re.DOTALL
)
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def statements(text: str) -> Iterator[Statement]:
    """Walk the statements of a TOML text in their order.

    Raises:
        Malformed: a line is no TOML. Not everything that TOML forbids is seen here.
    """
    table: Path = ()
    # Some programs put a byte order mark before the first line.
    position = 1 if text.startswith("\ufeff") else 0
    while position < len(text):
        match = _STATEMENT.match(text, position)
        if not match:
            raise _malformed(text, position, "a table, a key or a comment")
        start, position = position, match.end()
        if match["nothing"] is not None:
            continue
        if match["header"] is not None:
            table = keys(match["header"])
            yield Statement(table, start, position, None)
            continue
        if match["value"] is not None:
            value = match.span("value")
        else:
            value = (position, _value_end(text, position))
        rest = _REST.match(text, value[1])
        if not rest and match["value"] is not None:  # a date and a time with a space between
            value = (value[0], _value_end(text, value[0]))
            rest = _REST.match(text, value[1])
        if not rest:
            raise _malformed(text, value[1], "the end of the line after a value")
        position = rest.end()
        yield Statement(table + keys(match["key"]), start, position, value)


def keys(dotted: str) -> Path:
    """Split a dotted key: `a."b.c".d` has three parts."""
    if dotted.replace("-", "_").isidentifier():
        return (dotted,)
    return tuple(string(part) if part[0] in "\"'" else part for part in _KEYS.findall(dotted))


def string(value: str) -> str:
    """Return what a string of any of TOML's four kinds says; another value is returned as is."""
    for quotes in ('"""', "'''"):
        if value.startswith(quotes) and len(value) >= 6:
            inner = value[3:-3].removeprefix("\r\n").removeprefix("\n")
            return inner if quotes == "'''" else _unescape(inner)
    if value.startswith("'"):
        return value[1:-1]
    return _unescape(value[1:-1]) if value.startswith('"') else value


def strings(text: str, value: tuple[int, int]) -> list[str]:
    """Return the strings of an array of strings; what else is in it is left out."""
    return [string(text[start:end]) for start, end in _items(text, value) if text[start] in "\"'"]


def pairs(text: str, value: tuple[int, int]) -> list[tuple[Path, tuple[int, int]]]:
    """Return the keys of an inline table and where the value of each starts and ends.

    Raises:
        Malformed: it is no inline table.
    """
    found: list[tuple[Path, tuple[int, int]]] = []
    position = _skip(text, value[0] + 1)
    while text[position] != "}":
        match = _PAIR.match(text, position)
        if not match:
            raise _malformed(text, position, "a key")
        end = _value_end(text, match.end())
        found.append((keys(match[1]), (match.end(), end)))
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return found


def _items(text: str, value: tuple[int, int]) -> Iterator[tuple[int, int]]:
    if text[value[0]] != "[":
        return
    position = _skip(text, value[0] + 1)
    while text[position] != "]":
        end = _value_end(text, position)
        yield position, end
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    """Return where the next thing inside brackets starts: past blanks, line ends and comments."""
    match = _BETWEEN.match(text, position)
    position = match.end() if match else position
    if position >= len(text):
        raise _malformed(text, position, "a closing bracket")
    return position


def _value_end(text: str, start: int) -> int:
    """Return where the value that starts at `start` ends."""
    if text.startswith(('"""', "'''"), start):
        return _quoted_end(text, start)
    if not text.startswith(("[", "{"), start):
        match = _SCALAR.match(text, start)
        if not match:
            raise _malformed(text, start, "a value")
        return match.end()
    opened: list[str] = []
    position = start
    while True:
        match = _TOKEN.match(text, position)
        if not match:
            raise _malformed(text, position, "a closing bracket or quote")
        token, position = match[0], match.end()
        if token in _CLOSING:
            position = _quoted_end(text, match.start())
        elif token in ("[", "{"):
            opened.append(token)
        elif token in _PAIRS:
            if opened.pop() != _PAIRS[token]:
                raise _malformed(text, match.start(), "the bracket that was opened last")
            if not opened:
                return position


def _quoted_end(text: str, start: int) -> int:
    """Return where the multi-line string that starts at `start` ends."""
    closing = _CLOSING[text[start : start + 3]]
    position = start + 3
    while True:
        match = closing.search(text, position)
        if not match:
            raise _malformed(text, start, "an end of this string")
        position = match.end()
        if not match[0].startswith("\\"):
            return position


def _unescape(inner: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        code = match[1] or match[2]
        if code:
            number = int(code, 16)
            is_letter = number <= 0x10FFFF and not 0xD800 <= number < 0xE000
            return chr(number) if is_letter else match[0]
        return _ESCAPES.get(match[3], match[0]) if match[3] else ""

    return _ESCAPE.sub(replaced, inner) if "\\" in inner else inner


def _malformed(text: str, position: int, expected: str) -> Malformed:
    return Malformed(text.count("\n", 0, position) + 1, expected)
