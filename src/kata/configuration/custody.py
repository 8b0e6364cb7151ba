"""Files of ours in a folder where others write too: marked, and theirs kept and put back.

A file of ours says so in its first lines, with digests of what it was made from and of its text:
so neither the charm nor anyone else has to remember whose it is, and whether it was edited since.
"""

import dataclasses
import hashlib
import os
import re
import stat

from kata.machine import node as kata_node

BEFORE = ".before-kata-charm"
"""Ends the name that a file gets which was there before ours, until ours goes."""
EDITED = ".edited"
"""Ends the name under which an edit of ours is kept, before ours is put there again."""

_MARK = re.compile(
    r"# Made by the Juju charm kata, which undoes edits: use its options, such as kata-config\.\n"
    r"# From (?P<source>[^\n]*), inputs (?P<inputs>[0-9a-f]{64}), text (?P<text>[0-9a-f]{64})\.\n"
)
_MODE = 0o644


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a file of ours says of itself.

    Attributes:
        inputs: digest of what it was made from.
        edited: whether its text is no longer as it was made.
        exposed: whether its owner or its mode is not as it was made.
        source: the file that it was made from.
    """

    inputs: str
    edited: bool = False
    exposed: bool = False
    source: str = ""

    @property
    def intact(self) -> bool:
        """Whether it is as it was made."""
        return not self.edited and not self.exposed


def stamp(text: str, source: str, inputs: str) -> str:
    """Return a text with our mark before it.

    Args:
        text: what the file is about.
        source: the file that it was made from.
        inputs: SHA-256 of all that it was made from.
    """
    return (
        "# Made by the Juju charm kata, which undoes edits: use its options, such as kata-config."
        f"\n# From {source}, inputs {inputs}, text {_digest(text)}.\n{text}"
    )


def look(node: kata_node.Node, path: str) -> Mark | None:
    """Return the mark of the file there, or None if there is none or it is not ours."""
    place = node.path(path)
    if place.is_symlink() or not place.is_file():
        return None
    text = node.read(path) or ""
    mark = _MARK.match(text)
    if not mark:
        return None
    known = place.stat()
    edited = _digest(text[mark.end() :]) != mark["text"]
    exposed = stat.S_IMODE(known.st_mode) != _MODE or known.st_uid != os.geteuid()
    return Mark(mark["inputs"], edited, exposed, mark["source"])


def place(node: kata_node.Node, path: str, text: str) -> None:
    """Put a stamped text at a path; what is there and is not ours is kept beside it."""
    clear(node, path)
    mark = look(node, path)
    if mark and mark.exposed:
        node.remove(path)  # writing to a file keeps its owner and mode, a new one gets ours
    node.write(path, text, mode=_MODE)


def clear(node: kata_node.Node, path: str) -> None:
    """Keep what is at a path and is not ours, or no longer, under another name."""
    if not os.path.lexists(node.path(path)):
        return
    mark = look(node, path)
    if not mark:
        _keep(node, path, BEFORE)
    elif mark.edited:
        _keep(node, path, EDITED)


def release(node: kata_node.Node, path: str) -> bool:
    """Take our file away, and put back what was there before it.

    Returns:
        True if anything changed. A file that is not ours stays, and so does what came before it.
    """
    mark = look(node, path)
    if mark and mark.edited:
        _keep(node, path, EDITED)
    elif mark:
        node.remove(path)
    return put_back(node, path) or mark is not None


def put_back(node: kata_node.Node, path: str) -> bool:
    """Put back what was at a path before ours, unless something is there."""
    return not os.path.lexists(node.path(path)) and node.move(path + BEFORE, path)


def _keep(node: kata_node.Node, path: str, suffix: str) -> None:
    name, number = path + suffix, 1
    while os.path.lexists(node.path(name)):
        number += 1
        name = f"{path}{suffix}-{number}"
    node.move(path, name)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
