"""Files that may be gone by the time they are read: those of processes and of sandboxes."""

import os

from kata.machine import node as kata_node

_PART = 64 << 10


def text(node: kata_node.Node, path: str) -> str:
    """Return a file's text; empty where it is gone, or the process that it speaks of is."""
    try:
        # A pipe in a file's place has nothing to say, and must not keep anybody waiting.
        descriptor = os.open(node.place(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        parts = list(iter(lambda: os.read(descriptor, _PART), b""))
    except OSError:  # ESRCH: the process ended in between
        return ""
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("utf-8", "surrogateescape")


def names(node: kata_node.Node, folder: str) -> list[str]:
    """Return the names in a folder; none where it is gone."""
    try:
        return os.listdir(node.place(folder))
    except OSError:
        return []
