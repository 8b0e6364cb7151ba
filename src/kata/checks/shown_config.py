"""What containerd and Kata are configured with on this machine, and what of it is this charm's.

Everything is shown as a difference: of containerd's files from what they would be without us, of
those from what they should be, and of Kata's configuration from the file that the release ships.
"""

import dataclasses
import difflib
from collections.abc import Iterable

from kata import handlers, problems
from kata.checks import readiness
from kata.configuration import custody
from kata.containerd import config as containerd_config
from kata.containerd import daemon, toml_statements
from kata.containerd import files as containerd_files
from kata.containerd import memory as containerd_memory
from kata.machine import node as kata_node
from kata.machine import vanishing


@dataclasses.dataclass(frozen=True)
class Shown:
    """What was found.

    Attributes:
        live: the file that containerd was started with.
        files: all files that it reads, in its order: later ones win.
        ours: our part of them, as a difference.
        drift: what would have to change for our part to be whole, as a difference; empty if it is.
        kata: the difference of each Kata configuration from the shipped one, by path.
        notes: what else to know.
    """

    live: str
    files: tuple[str, ...]
    ours: str
    drift: str
    kata: dict[str, str]
    notes: tuple[str, ...] = ()


def look(node: kata_node.Node, found: daemon.Containerd) -> Shown:
    """Look at the configuration; nothing is changed.

    Args:
        node: the machine.
        found: the containerd that serves the pods.

    Raises:
        Blocked: a file of containerd's is no TOML.
    """
    notes: list[str] = []
    memory = containerd_memory.load(node)
    if memory is None:
        notes.append("this charm has written no handler yet")
    known = memory.wanted.known if memory else ()
    try:
        files = containerd_files.read(found.config, node)
    except toml_statements.Malformed as error:
        raise problems.Blocked(f"{error.path} is no TOML: {error}; mend it") from error
    if not node.exists(found.config):
        notes.append(f"{found.config} is not there: containerd runs with its defaults")
    ours = (
        difference(containerd_config.restore(file.text, known), file.text, file.path)
        for file in files
    )
    changed = readiness.drift(node, found)
    drift = (difference(node.read(path) or "", text or "", path) for path, text in changed.items())
    kata = dict(_kata(node))
    notes += [f"{path}: edited by hand" for path in kata if _edited(node, path)]
    return Shown(
        found.config,
        tuple(file.path for file in files),
        "".join(ours),
        "".join(drift),
        kata,
        tuple(notes),
    )


def difference(before: str, after: str, name: str) -> str:
    """Return how a text differs from another, as `diff -u` does; nothing where they are equal."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), name, name, n=1
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _kata(node: kata_node.Node) -> Iterable[tuple[str, str]]:
    for name in sorted(vanishing.names(node, handlers.FOLDER)):
        path = f"{handlers.FOLDER}/{name}"
        mark = custody.look(node, path)
        if mark:
            text = "".join((node.read(path) or "").splitlines(keepends=True)[2:])
            shipped = node.read(mark.source) or ""
            yield path, difference(shipped, text, mark.source) or "as shipped\n"


def _edited(node: kata_node.Node, path: str) -> bool:
    mark = custody.look(node, path)
    return mark is not None and mark.edited
