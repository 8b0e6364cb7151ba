"""Which files a hypervisor may be pointed at: what it runs and boots, it does as root."""

import os
import pathlib
import stat
from collections.abc import Iterable

from kata.machine import node as kata_node

ROOT = 0
"""The user whom files and folders outside Kata's own must belong to."""

_MOST_LINKS = 40  # as the kernel follows before it says ELOOP (path_resolution(7))
_WILDCARDS = frozenset("*?[")  # glob(7)


def refusal(node: kata_node.Node, path: str, homes: Iterable[str]) -> str | None:
    """Return why a hypervisor must not be given this file, or None if it may.

    Args:
        node: the machine.
        path: the file, absolute.
        homes: folders whose files are taken as they are, for they are Kata's own.
    """
    if not path.startswith("/"):
        return "is no absolute path"
    real, passed = _walk(node, path)
    if not real or not node.path(real).is_file():
        return "is no file of this machine"
    return None if _within(node, real, homes) else _open_to_others(node, [*passed, real])


def pattern_refusal(node: kata_node.Node, pattern: str, homes: Iterable[str]) -> str | None:
    """Return why pods must not choose a file by this glob(7) pattern, or None if they may.

    All that may ever match counts: so the folder before the first wildcard is what must be Kata's
    own; another folder must be root's alone, and only the file's name may have wildcards.
    """
    parts = pathlib.PurePosixPath(pattern).parts
    first = next((at for at, part in enumerate(parts) if _WILDCARDS & set(part)), None)
    if first is None:
        return refusal(node, pattern, homes)
    if not pattern.startswith("/") or ".." in parts:
        return "is no absolute pattern"
    real, passed = _walk(node, str(pathlib.PurePosixPath(*parts[:first])))
    if not real or not node.path(real).is_dir():
        return "is in no folder of this machine"
    if _within(node, real, homes):
        return None
    if first < len(parts) - 1:
        return "has wildcards before the file's name"
    return _open_to_others(node, [*passed, real])


def _within(node: kata_node.Node, real: str, homes: Iterable[str]) -> bool:
    return any(
        pathlib.PurePosixPath(real).is_relative_to(home)
        for home in (_walk(node, home)[0] for home in homes)
        if home
    )


def _open_to_others(node: kata_node.Node, places: Iterable[str]) -> str | None:
    """Return what is wrong with the first place that others than root could change."""
    for place in places:
        known = os.lstat(node.path(place))
        if known.st_uid != ROOT:
            return f"can be changed by others: {place} is not root's"
        if not stat.S_ISLNK(known.st_mode) and known.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"can be changed by others: {place} is writable for them"
    return None


def _walk(node: kata_node.Node, path: str) -> tuple[str | None, list[str]]:
    """Follow a path's links within the node.

    Returns:
        The path without links, or None where there is nothing; and each folder and link that was
        passed on the way.
    """
    real = pathlib.PurePosixPath("/")
    passed: list[str] = []
    links = 0
    ahead = list(reversed(pathlib.PurePosixPath(path).parts[1:]))
    while ahead:
        part = ahead.pop()
        if part == "..":
            real = real.parent
            continue
        passed.append(str(real))
        place = node.path(real / part)
        if not os.path.lexists(place):
            return None, passed
        if not place.is_symlink():
            real /= part
            continue
        links += 1
        if links > _MOST_LINKS:
            return None, passed
        passed.append(str(real / part))
        target = pathlib.PurePosixPath(os.readlink(place))
        if target.is_absolute():
            real = pathlib.PurePosixPath("/")
        ahead.extend(part for part in reversed(target.parts) if part != "/")
    return str(real), passed
