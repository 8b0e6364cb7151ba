"""Puts our runtime handlers into the text of a containerd configuration, and takes them out again.

What we add is one block at the end, between two comments that say whose it is. A statement of
somebody else that stands in the way (a handler of the same name, an inline table that cannot be
extended, options that break Kata's shim) is turned into a comment, line by line, and its lines come
back when the block goes. Every other byte stays, so removing is exactly the reverse of adding.

This module runs in hooks and in the guard before containerd starts: it needs Python alone.
"""

import bisect
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from kata.containerd import toml_statements
from kata.containerd.toml_statements import Path, Statement

RUNTIME_TYPE = "io.containerd.kata.v2"
SHIM = "/usr/local/bin/containerd-shim-kata-v2"
"""The `runtime_path` of all our handlers: a link that never moves under running pods."""
UNTRUSTED = "untrusted"

CRI: Mapping[str, str] = {
    "v1": "cri",
    "v2": "io.containerd.grpc.v1.cri",
    "v3": "io.containerd.cri.v1.runtime",
}
"""The plugin whose table has the runtime handlers, by schema. Schema 4 has them where 3 has."""


class Wanted(NamedTuple):
    """What is to stand in a node's containerd configuration."""

    handlers: tuple[str, ...]
    """Names of our handlers; none when ours are to go."""
    sections: Mapping[str, str]
    """The handlers' tables as TOML, by schema."""
    known: tuple[str, ...] = ()
    """Names that handlers of ours have or once had on this node: where a program has written the
    file anew without our comments, a handler is known by its name and by the shim it runs."""


class _Block(NamedTuple):
    start: int
    end: int
    title: str
    alone: bool
    """The whole file was made by us."""
    open: bool
    """The last line before it had no end."""
    ending: str


class _Line(NamedTuple):
    """One key of a table, with its value as it is written; None stands for an empty table."""

    path: Path
    value: str | None


_TITLE = "# kata charm"
_ADVICE = "the charm keeps this part up and takes it away again, so edit elsewhere"
_TITLES = re.compile(rf"{_TITLE}((?: [0-9]+)?):")
_MARKS = re.compile(
    rf"^(?P<title>{_TITLE}(?: [0-9]+)?): (?:end\r?(?:\n|\Z)|(?P<begin>begin, {_ADVICE})"
    r"(?P<alone>, a file of its own)?(?P<open>, after an open line)?(?P<ending>\r?\n))",
    re.MULTILINE,
)
_VERSION = re.compile(r"^version[ \t]*=[^\n]*\n", re.MULTILINE)
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_KATA_TYPE = re.compile(r"io\.containerd\.kata.*\.v2")
# The Charmed Kubernetes containerd charm writes the path of an untrusted runtime this way
# (charm-containerd, templates/config*.toml). No shim of Kata knows these keys.
_HARMFUL_KEYS = frozenset({"Runtime", "RuntimeRoot"})
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def has_block(text: str) -> bool:
    """Return whether a block of ours is in the text."""
    return next(_blocks(text), None) is not None


def is_ours_alone(text: str) -> bool:
    """Return whether a file was made by us and has nothing of anybody else's in it."""
    block = next(_blocks(text), None)
    return bool(block and block.alone and not (text[: block.start] + text[block.end :]).strip())


def defined(text: str, statement: Statement, schema: str) -> Iterator[Path]:
    """Yield what a statement defines in the CRI plugin's table, by its full path."""
    plugin, path = CRI[schema], statement.path
    if path[0] != "plugins" or (len(path) > 1 and path[1] != plugin):
        return
    for line in _lines(text, statement, _containerd(schema)):
        if line.path[1:2] == (plugin,):
            yield line.path


def add(
    text: str, schema: str, wanted: Wanted, *, section: str | None = None, alone: bool = False
) -> str:
    """Return the text with our block in it, and with nothing in our handlers' way.

    Args:
        text: the file as it stands, with or without an earlier block of ours.
        schema: the names that containerd reads in this file: a key of `CRI`.
        wanted: our handlers.
        section: what the block says, instead of the handlers' tables: nothing in a file that is
            only cleared, or more where containerd needs it.
        alone: the file is made by us.

    Raises:
        toml_statements.Malformed: the text is no TOML.
    """
    text = restore(text, wanted.known)
    section = wanted.sections[schema] if section is None else section
    displaced, kept = _in_the_way(text, schema, wanted, adding=bool(section))
    if not section and not displaced:
        return text
    used = set(_TITLES.findall(text))
    title = next(_TITLE + tag for tag in _tags() if tag not in used)
    ending = "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"
    pieces: list[str] = []
    done = 0
    for start, end in displaced:
        lines = _LINES.findall(text[start:end])
        pieces += [text[done:start], *(f"{title}: was {line}" for line in lines)]
        done = end
    pieces.append(text[done:])
    is_open = text != "" and not text.endswith("\n")
    flags = (", a file of its own" if alone else "") + (", after an open line" if is_open else "")
    lines = [*kept, *_LINES.findall(section)]
    block = [f"{title}: begin, {_ADVICE}{flags}", *lines, f"{title}: end"]
    return (
        "".join(pieces)
        + ending * is_open
        + "".join(line.removesuffix("\n") + ending for line in block)
    )


def restore(text: str, known: Iterable[str] = ()) -> str:
    """Return the text without anything of ours: as it was before `add`, byte for byte.

    Args:
        text: the file as it stands.
        known: names of handlers of ours that may stand in it without our comments around them.

    Raises:
        toml_statements.Malformed: the text is no TOML.
    """
    pieces: list[str] = []
    titles: set[str] = set()
    done = 0
    for block in _blocks(text):
        piece, done = text[done : block.start], block.end
        if block.open and done == len(text):
            piece = piece.removesuffix(block.ending)
        pieces.append(piece)
        titles.add(block.title)
        if block.alone and (text[: block.start] + text[block.end :]).strip():
            # Somebody has built upon a file that we made: it goes on being of that schema.
            version = _VERSION.search(text, block.start, block.end)
            pieces.append(version[0] if version else "")
    text = "".join(pieces) + text[done:]
    for title in titles:
        text = re.sub(rf"^(\ufeff?){title}: was ", r"\1", text, flags=re.MULTILINE)
    known = frozenset(known)
    return _without(text, known) if known and RUNTIME_TYPE in text else text


def _tags() -> Iterator[str]:
    """Yield what tells our comments from those of a text that speaks of us already."""
    yield ""
    yield from map(" {}".format, itertools.count(2))


def _blocks(text: str) -> Iterator[_Block]:
    """Find our blocks from top to bottom: whole ones, whose ends are not in somebody's string."""
    if _TITLE not in text:
        return
    spans = [(each.start, each.end) for each in toml_statements.statements(text)]
    opened: dict[str, re.Match[str]] = {}
    done = 0
    for mark in _MARKS.finditer(text):
        before = bisect.bisect_left(spans, (mark.start(), 0)) - 1
        if (spans and spans[before][0] < mark.start() < spans[before][1]) or mark.start() < done:
            continue
        title = mark["title"]
        if mark["begin"]:
            opened.setdefault(title, mark)
        elif title in opened:
            begin, done = opened.pop(title), mark.end()
            alone, is_open = begin["alone"] is not None, begin["open"] is not None
            yield _Block(begin.start(), done, title, alone, is_open, begin["ending"])


def _without(text: str, known: frozenset[str]) -> str:
    """Take out handlers of ours that somebody's program has written anew, without our comments."""
    roots = [_containerd(schema) for schema in CRI]
    handlers: dict[Path, dict[str, str]] = {}
    spans: dict[Path, list[tuple[int, int]]] = {}
    for statement in toml_statements.statements(text):
        for root in (each for each in roots if _on_route(statement.path, each)):
            for path, value in _lines(text, statement, root):
                if len(path) < 5 or path[3] != "runtimes" or path[4] not in known:
                    continue
                if len(path) == 6 and value is not None:
                    handlers.setdefault(path[:5], {})[path[5]] = toml_statements.string(value)
                span = (statement.start, statement.end)
                if _below(statement.path, path[:5]) and span not in spans.get(path[:5], [])[-1:]:
                    spans.setdefault(path[:5], []).append(span)
    gone: list[tuple[int, int]] = []
    for handler, keys in handlers.items():
        # Before containerd 1.6 there is no runtime_path; these annotations nobody else allows.
        shim = keys.get("runtime_path", SHIM if "io.katacontainers" in str(keys) else "")
        if keys.get("runtime_type") == RUNTIME_TYPE and shim == SHIM:
            gone += spans.get(handler, [])
    pieces: list[str] = []
    done = 0
    for start, end in sorted(gone):
        pieces.append(text[done:start])
        done = end
    return "".join(pieces) + text[done:]


def _in_the_way(
    text: str, schema: str, wanted: Wanted, *, adding: bool
) -> tuple[list[tuple[int, int]], list[str]]:
    """Return which lines must become comments, and what of them must be said anew."""
    root = _containerd(schema)
    runtimes, old_untrusted = (*root, "runtimes"), (*root, "untrusted_workload_runtime")
    defined = [
        (statement, _lines(text, statement, root))
        for statement in toml_statements.statements(text)
        if _on_route(statement.path, root)
    ]
    lines = [line for _, found in defined for line in found]
    taken: list[Path] = [(*runtimes, name) for name in wanted.handlers]
    # Both spellings in one file keep containerd 1.3 - 1.7 from loading its CRI plugin
    # (containerd, pkg/cri/config/config.go, ValidatePluginConfig); one without a type is none.
    if UNTRUSTED in wanted.handlers and (
        old_untrusted[-1] in wanted.sections[schema]
        or any(_says(line, (*old_untrusted, "runtime_type")) for line in lines)
    ):
        taken.append(old_untrusted)
    taken += [(*handler, "options") for handler in _harmed(lines, runtimes)]
    displaced: list[tuple[int, int]] = []
    kept: dict[Path, list[str]] = {}
    for statement, found in defined:
        stay = [line for line in found if not any(_below(line.path, table) for table in taken)]
        # An inline table cannot be extended by a table of its own.
        closed = _is_inline(text, statement.value) and _below(runtimes, statement.path)
        if len(stay) == len(found) and not (adding and closed):
            continue
        displaced.append((statement.start, statement.end))
        for path, value in stay:
            table = kept.setdefault(path if value is None else path[:-1], [])
            table += [] if value is None else [f"{_key(path[-1])} = {value}"]
    said = [(f"[{'.'.join(map(_key, path))}]", keys) for path, keys in kept.items()]
    return displaced, [line for header, keys in said for line in (header, *keys)]


def _harmed(lines: list[_Line], runtimes: Path) -> list[Path]:
    """Return the handlers that run Kata's shim with options that it cannot read."""
    depth = len(runtimes) + 1
    options: dict[Path, set[str]] = {}
    kata: list[Path] = []
    for path, value in lines:
        if not _below(path, runtimes) or len(path) <= depth:
            continue
        if path[depth] == "options":
            options.setdefault(path[:depth], set()).update(path[depth + 1 : depth + 2])
        elif path[depth:] == ("runtime_type",) and _KATA_TYPE.fullmatch(_string(value)):
            kata.append(path[:depth])
    return [each for each in kata if each in options and options[each] <= _HARMFUL_KEYS]


def _containerd(schema: str) -> Path:
    return ("plugins", CRI[schema], "containerd")


def _below(path: Path, table: Path) -> bool:
    return path[: len(table)] == table


def _on_route(path: Path, root: Path) -> bool:
    """Return whether a statement is on the way to the handlers or about one of them."""
    if len(path) <= len(root):
        return _below(root, path)
    return _below(path, root) and path[3] in ("runtimes", "untrusted_workload_runtime")


def _is_inline(text: str, value: tuple[int, int] | None) -> bool:
    return value is not None and text[value[0]] == "{"


def _lines(text: str, statement: Statement, root: Path) -> list[_Line]:
    """Return what a statement defines, with the inline tables on the way taken apart."""

    def taken_apart(path: Path, value: tuple[int, int]) -> Iterator[_Line]:
        if not _is_inline(text, value) or not _on_route(path, root):
            yield _Line(path, text[slice(*value)])
            return
        pairs = toml_statements.pairs(text, value)
        if not pairs:
            yield _Line(path, None)
        for key, inner in pairs:
            yield from taken_apart(path + key, inner)

    if statement.value is None:
        return [_Line(statement.path, None)]
    return list(taken_apart(statement.path, statement.value))


def _says(line: _Line, path: Path) -> str:
    """Return the string that a line gives to this key; an empty one when it is about another."""
    return _string(line.value) if line.path == path else ""


def _string(value: str | None) -> str:
    return toml_statements.string(value or "")


def _key(part: str) -> str:
    if _BARE_KEY.fullmatch(part):
        return part
    escaped = (f"\\u{ord(c):04x}" if c < " " or c in '"\\\x7f' else c for c in part)
    return f'"{"".join(escaped)}"'
