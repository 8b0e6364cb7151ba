"""What hooks and the guard remember together of containerd's configuration.

This module runs in hooks and in the guard before containerd starts.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from kata.containerd import config as containerd_config
from kata.containerd import files as containerd_files
from kata.containerd import version
from kata.containerd.files import File, Release
from kata.machine import facts, node

FOLDER = version.FOLDER
WANTED = f"{FOLDER}/wanted.json"
FACTS = f"{FOLDER}/facts"
"""What was seen when all was as it should be, as `facts.record` keeps it."""
READ = "/run/kata-charm/read"
"""The run of containerd that has read the configuration as it is wanted."""


class Memory(NamedTuple):
    """What stands in containerd's configuration because of us, and where."""

    config: str
    """Path of containerd's main file."""
    binary: str
    release: Release
    stat: str
    """What the program's file was like when it was of that release."""
    source: str
    """Digest of what the sections were made from."""
    wanted: containerd_config.Wanted
    touched: tuple[str, ...] = ()
    """Files that have or once had something of ours."""


def load(machine: node.Node) -> Memory | None:
    """Return what is remembered; None where there is nothing, or nothing of use."""
    try:
        said = cast("dict[str, Any]", json.loads(machine.read(WANTED) or ""))
        wanted = containerd_config.Wanted(
            tuple(said["handlers"]), dict(said["sections"]), tuple(said["known"])
        )
        major, minor, patch = map(int, said["release"])
        return Memory(
            config=said["config"],
            binary=said["binary"],
            release=(major, minor, patch),
            stat=said["stat"],
            source=said["source"],
            wanted=wanted,
            touched=tuple(said["touched"]),
        )
    except (ValueError, ArithmeticError, KeyError, TypeError):
        return None


def save(machine: node.Node, memory: Memory) -> None:
    """Remember; what a run of containerd has read before is not this."""
    said = memory._asdict() | memory.wanted._asdict()
    del said["wanted"]
    text = json.dumps(said, indent=1) + "\n"
    if machine.read(WANTED) != text:
        machine.remove(READ)
        version.make_folder(machine)
        machine.write(WANTED, text, mode=0o600)


def settle(machine: node.Node, memory: Memory, files: Iterable[File]) -> None:
    """Remember that the files are as they are wanted."""
    looked = containerd_files.seen(files)
    looked += [("file", path) for path in memory.touched if ("file", path) not in looked]
    looked += [("file", WANTED), ("stat", memory.binary)]
    recorded = facts.record(looked, str(machine.root))
    version.make_folder(machine)
    machine.write(FACTS, recorded.decode("utf-8", "surrogateescape"), mode=0o600)
