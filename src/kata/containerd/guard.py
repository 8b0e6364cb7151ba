"""The start-up guard: Kata's handlers are in containerd's configuration whenever containerd starts.

The containerd charm writes that configuration anew whenever it likes, restarts containerd, and
tells nobody. A drop-in for containerd's unit makes systemd run a small program before each start:
this package's own editor, packed into one file for the machine's own Python.
"""

import os
import pathlib

from kata.containerd import version
from kata.containerd.daemon import Containerd
from kata.machine import node, program

PROGRAM = "/usr/local/lib/kata-charm/guard.pyz"
UNITS = "/etc/systemd/system"
DROP_IN = "kata-charm.conf"

_TEMPLATE = pathlib.Path(__file__).parents[3] / "templates" / "containerd-guard.conf"
_GUARD = program.Program(
    path=PROGRAM,
    main="containerd/guard_program",
    modules=(
        "__init__",
        "containerd/__init__",
        "containerd/candidate",
        "containerd/config",
        "containerd/files",
        "containerd/guard_repair",
        "containerd/memory",
        "containerd/toml_statements",
        "containerd/version",
        "machine/__init__",
        "machine/facts",
        "machine/node",
        "machine/tenancy",
        "problems",
    ),
    record=f"{version.FOLDER}/guard",
)


def ensure(machine: node.Node, containerd: Containerd) -> bool:
    """Have the guard run before each start of containerd. containerd is not restarted for it.

    Returns:
        True if anything changed.

    Raises:
        Blocked: a file cannot be written.
        CommandFailed: systemd does not take it.
    """
    drop_in = f"{UNITS}/{containerd.unit}.d/{DROP_IN}"
    version.make_folder(machine)
    program_changed = _GUARD.ensure(machine)
    changed = machine.write(drop_in, _TEMPLATE.read_text())
    for path in _drop_ins(machine):
        if path != drop_in:
            changed |= _remove(machine, path)
    if changed or containerd.reload:
        machine.run("systemctl", "daemon-reload")
    return changed or program_changed


def remove(machine: node.Node) -> bool:
    """Take the guard away.

    Returns:
        True if anything changed.

    Raises:
        Blocked: a file cannot be removed.
        CommandFailed: systemd does not take it.
    """
    changed = False
    for path in _drop_ins(machine):
        changed |= _remove(machine, path)
    if changed:
        machine.run("systemctl", "daemon-reload")
    return _GUARD.remove(machine) or changed


def _drop_ins(machine: node.Node) -> list[str]:
    folders = [name for name in machine.names(UNITS) if name.endswith(".service.d")]
    paths = [f"{UNITS}/{folder}/{DROP_IN}" for folder in folders]
    return [path for path in paths if machine.exists(path)]


def _remove(machine: node.Node, path: str) -> bool:
    """Remove a file, and its folder if nothing else is in it."""
    removed = machine.remove(path)
    machine.remove(os.path.dirname(path))
    return removed
