"""The start-up guard: Kata's handlers are in containerd's configuration whenever containerd starts.

The containerd charm writes that configuration anew whenever it likes, restarts containerd, and
tells nobody. A drop-in for containerd's unit makes systemd run a small program before each start:
this package's own editor, packed into one file for the machine's own Python.
"""

import os
import pathlib

from kata.containerd import version
from kata.containerd.daemon import Containerd
from kata.machine import facts, node

PROGRAM = "/usr/local/lib/kata-charm/guard.pyz"
UNITS = "/etc/systemd/system"
DROP_IN = "kata-charm.conf"

_PACKAGE = pathlib.Path(__file__).parents[1]
_TEMPLATE = _PACKAGE.parents[1] / "templates" / "containerd-guard.conf"
_MADE_FROM = f"{version.FOLDER}/guard"
_MODULES = (
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
)
_MAIN = "containerd/guard_program"
_DATE = (1980, 1, 1, 0, 0, 0)  # the same modules make the same program


def ensure(machine: node.Node, containerd: Containerd) -> bool:
    """Have the guard run before each start of containerd. containerd is not restarted for it.

    Returns:
        True if anything changed.

    Raises:
        Blocked: a file cannot be written.
        CommandFailed: systemd does not take it.
    """
    drop_in = f"{UNITS}/{containerd.unit}.d/{DROP_IN}"
    program_changed = _ensure_program(machine)
    for path in (os.path.dirname(PROGRAM), PROGRAM):
        program_changed |= machine.reclaim(path)
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
    return _remove(machine, PROGRAM) or changed


def pack() -> bytes:
    """Return the guard's program: one file that Python runs."""
    import io
    import zipfile

    sources = {f"kata/{module}.py": _PACKAGE / f"{module}.py" for module in _MODULES}
    sources["__main__.py"] = _PACKAGE / f"{_MAIN}.py"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, path in sources.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), path.read_bytes())
    return packed.getvalue()


def _ensure_program(machine: node.Node) -> bool:
    made_from = _made_from(machine)
    machine.path(PROGRAM)  # so that a witness knows what this depends on
    if machine.read(_MADE_FROM) == made_from:
        return False
    changed = machine.write(PROGRAM, pack().decode("utf-8", "surrogateescape"))
    version.make_folder(machine)
    machine.write(_MADE_FROM, _made_from(machine), mode=0o600)
    return changed


def _made_from(machine: node.Node) -> str:
    """Return what tells whether the program is the one that our modules make: no need to pack."""
    modules = [("stat", f"{_PACKAGE}/{module}.py") for module in (*_MODULES, _MAIN)]
    looked = facts.record(modules) + facts.record([("stat", PROGRAM)], str(machine.root))
    return looked.decode("utf-8", "surrogateescape")


def _drop_ins(machine: node.Node) -> list[str]:
    folders = [name for name in machine.names(UNITS) if name.endswith(".service.d")]
    paths = [f"{UNITS}/{folder}/{DROP_IN}" for folder in folders]
    return [path for path in paths if machine.exists(path)]


def _remove(machine: node.Node, path: str) -> bool:
    """Remove a file, and its folder if nothing else is in it."""
    removed = machine.remove(path)
    machine.remove(os.path.dirname(path))
    return removed
