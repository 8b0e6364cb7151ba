"""Files that may be gone by the time they are read: those of processes and of sandboxes."""

import os

from kata.machine import node as kata_node


def text(node: kata_node.Node, path: str) -> str:
    """Return a file's text; empty where it is gone, or the process that it speaks of is."""
    try:
        return node.read(path) or ""
    except OSError:
        return ""


def names(node: kata_node.Node, folder: str) -> list[str]:
    """Return the names in a folder; none where it is gone."""
    try:
        return os.listdir(node.path(folder))
    except OSError:
        return []
