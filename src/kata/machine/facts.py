"""What was seen of some files when all was well, so that it costs next to nothing to see it again.

The guard asks this before each start of containerd, and each hook does: it must stay cheap, so it
compares bytes and imports nothing beyond `os`.
"""

import os
from collections.abc import Iterable, Iterator

Fact = tuple[str, str]
"""A kind (`file`, `names` or `stat`) and a path."""

_NONE = b"-\0"


def record(facts: Iterable[Fact], root: str = "/") -> bytes:
    """Look, and return what `hold` needs to tell whether anything has changed since.

    Args:
        facts: what to look at: the text of a `file`, the `names` in a folder, or a file's `stat`.
        root: what `/` stands for.
    """
    pieces: list[bytes] = []
    for kind, path in facts:
        seen = _look(kind, os.fsencode(root.rstrip("/") + path))
        pieces.append(b"%s %d %s\n%s" % (kind.encode(), len(seen), os.fsencode(path), seen))
    return b"".join(pieces)


def hold(recorded: bytes, root: str = "/") -> bool:
    """Return whether everything is as it was recorded; a record that is none does not hold."""
    above = os.fsencode(root.rstrip("/"))
    try:
        for kind, path, seen in _entries(recorded):
            if seen != _look(kind, above + path):
                return False
    except ValueError:
        return False
    return recorded != b""


def paths(recorded: bytes) -> list[str]:
    """Return what a record is about; nothing where it is none."""
    try:
        return [os.fsdecode(path) for _, path, _ in _entries(recorded)]
    except ValueError:
        return []


def _entries(recorded: bytes) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield kind, path and what was seen.

    Raises:
        ValueError: it is no record.
    """
    position = 0
    while position < len(recorded):
        end = recorded.index(b"\n", position)
        kind, size, path = recorded[position:end].split(b" ", 2)
        position = end + 1 + int(size)
        yield kind.decode(), path, recorded[end + 1 : position]


def _look(kind: str, path: bytes) -> bytes:
    try:
        if kind == "file":
            with open(path, "rb") as file:
                return file.read()
        if kind == "names":
            return b"\0".join(sorted(os.listdir(path)))
        if kind == "stat":
            known = os.stat(path)
            return b"%d %d %d" % (known.st_mtime_ns, known.st_size, known.st_ino)
    except (OSError, ValueError):  # the latter for a name that no file can have
        return _NONE
    raise ValueError(kind)
