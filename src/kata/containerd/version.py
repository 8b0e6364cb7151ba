"""Which release a containerd is.

This module runs in hooks and in the guard before containerd starts.
"""

import json
import re

from kata import problems
from kata.containerd.files import Release
from kata.machine import facts, node, tenancy

FOLDER = f"{tenancy.STATE}/containerd"
"""What is remembered of containerd; only root may look inside."""

_KNOWN = f"{FOLDER}/release.json"
_NUMBER = re.compile(r"\bv?(\d{1,6})\.(\d{1,6})\.(\d{1,6})")
_LIMIT = 20  # seconds; it takes 0.02


def release(machine: node.Node, binary: str, limit: float = _LIMIT) -> Release:
    """Return a containerd's release; it is asked once, and again when the file is another.

    Args:
        machine: the node.
        binary: path of the program.
        limit: seconds that it may take to answer.

    Raises:
        Blocked: it does not say.
    """
    file = stat(machine, binary)
    try:
        known: dict[str, list[int]] = json.loads(machine.read(_KNOWN) or "{}")
        major, minor, patch = known[file]
    except (ValueError, KeyError, TypeError):
        ran = machine.run(binary, "--version", check=False, timeout=limit)
        found = _NUMBER.search(ran.out)
        if not found:
            raise problems.Blocked(
                f"{binary} does not say its version: {ran.words}; reinstall containerd"
            ) from None
        major, minor, patch = map(int, found.groups())
        make_folder(machine)
        machine.write(_KNOWN, json.dumps({file: [major, minor, patch]}), mode=0o600)
    return major, minor, patch


def stat(machine: node.Node, path: str) -> str:
    """Return what tells a program's file from a newer one in its place."""
    return facts.record([("stat", path)], str(machine.root)).decode("utf-8", "surrogateescape")


def make_folder(machine: node.Node) -> None:
    """Make the folder of what is remembered of containerd, for root alone."""
    machine.path(tenancy.STATE).mkdir(parents=True, exist_ok=True, mode=0o700)
    machine.path(FOLDER).mkdir(exist_ok=True, mode=0o700)
