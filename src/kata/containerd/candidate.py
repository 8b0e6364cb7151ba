"""Asks containerd itself about a configuration that is not in its place yet.

This module runs in hooks and in the guard before containerd starts.
"""

from kata.containerd import files as containerd_files
from kata.containerd import toml_statements, version
from kata.containerd.files import Disk, Release
from kata.machine import node

FOLDER = f"{version.FOLDER}/candidate"
"""Private copies: they are gone when the answer is there."""

DUMP: Release = (1, 3, 0)
"""First containerd that can check a configuration without starting."""
_LIMIT = 20  # seconds; it takes 0.03


def dump(
    machine: node.Node, binary: str, main: str, disk: Disk, limit: float = _LIMIT
) -> node.Ran:
    """Let containerd read a configuration and print what it makes of it.

    The copies import each other as the originals do, so nothing of the originals is read.

    Args:
        machine: where containerd is.
        binary: path of containerd.
        main: path of its main file.
        disk: the files as they are to be.
        limit: seconds.
    """
    files = containerd_files.read(main, disk)
    copies = {file.path: f"{FOLDER}/{number}.toml" for number, file in enumerate(files)}
    read_at = {path: str(machine.path(copy)) for path, copy in copies.items()}
    version.make_folder(machine)
    machine.path(FOLDER).mkdir(exist_ok=True, mode=0o700)
    try:
        for file in files:
            imports = containerd_files.imported(file, disk)
            text = _importing(file.text, [read_at.get(each, each) for each in imports])
            machine.write(copies[file.path], text, mode=0o600)
        return _dump(machine, binary, copies[main], limit)
    finally:
        for copy in copies.values():
            machine.remove(copy)
        machine.remove(FOLDER)


def dump_in_place(machine: node.Node, binary: str, main: str) -> node.Ran:
    """Let containerd read the configuration that stands, and print what it makes of it."""
    if machine.exists(main):
        return _dump(machine, binary, main, _LIMIT)
    # It starts without a file, but does not print what it then has; an empty one says the same.
    return dump(machine, binary, main, containerd_files.Changed(machine, {main: ""}))


def original(words: str, main: str, disk: Disk) -> str:
    """Return what containerd said of the copies as if it had been said of the originals."""
    for number, file in enumerate(containerd_files.read(main, disk)):
        words = words.replace(f"{FOLDER}/{number}.toml", file.path)
    return words


def _dump(machine: node.Node, binary: str, main: str, limit: float) -> node.Ran:
    config = str(machine.path(main))
    return machine.run(binary, "--config", config, "config", "dump", check=False, timeout=limit)


def _importing(text: str, paths: list[str]) -> str:
    for statement in toml_statements.statements(text):
        if statement.path == ("imports",) and statement.value:
            start, end = statement.value
            return text[:start] + "[" + ", ".join(f'"{each}"' for each in paths) + "]" + text[end:]
    return text
