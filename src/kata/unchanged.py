"""Whether a machine still looks as it did when there was nothing to do on it.

Most hooks find nothing to do: on every unit, every few minutes, for years. So a `Witness` stands
in for the node while a hook works, and notes how each place looked before it was looked at, and
whether anything was done. Work that did nothing would do nothing again as long as those places
look the same, and to see that takes neither a parser nor a process.
"""

import json
import os
import pathlib
import stat
import zlib
from collections.abc import Mapping
from typing import Any, cast

from kata.machine import node, tenancy

_FILE = "/run/kata-charm/unchanged.json"  # gone with a reboot, after which everything is looked at
# Its CPUs' speeds change all the time, and its flags only with a boot. And in the charm's own folder
# other parts of a hook keep files too; what counts there is looked at by itself.
_RESTLESS = ("/proc/cpuinfo", tenancy.STATE)
# systemd keeps a link for each unit that runs, to what tells this run of it from all others
# (systemd, src/core/unit.c, unit_export_invocation_id).
_INVOCATION = "/run/systemd/units/invocation:{}"


class Witness(node.Node):
    """A node that notes what is looked at and whether anything is done.

    Args:
        machine: the node that it stands in for.

    Attributes:
        machine: the node that it stands in for.
        seen: how each place looked when it was first asked for.
    """

    def __init__(self, machine: node.Node) -> None:
        super().__init__(machine.root)
        self.seen: dict[str, str] = {}
        self._acts: list[bool] = []  # shared with what `once_linked` returns
        self.machine = machine

    @property
    def acted(self) -> bool:
        """Whether anything was done, or looked at in a way that cannot be told again."""
        return any(self._acts)

    def path(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Return where `path` lies, and note how it looks."""
        name = self.led(path)
        place = self.machine.path(name)
        if name not in self.seen and name not in _RESTLESS:
            self.seen[name] = _look(name, place)
        return place

    def write(self, path: str | os.PathLike[str], text: str, mode: int = 0o644) -> bool:
        """Write a file as the node does."""
        self.path(path)
        return self._did(self.machine.write(path, text, mode))

    def link(self, path: str | os.PathLike[str], target: str) -> bool:
        """Make a link as the node does."""
        self.path(path)
        return self._did(self.machine.link(path, target))

    def remove(self, path: str | os.PathLike[str]) -> bool:
        """Remove as the node does."""
        self.path(path)
        return self._did(self.machine.remove(path))

    def move(self, path: str | os.PathLike[str], to: str | os.PathLike[str]) -> bool:
        """Rename as the node does."""
        self.path(path)
        return self._did(self.machine.move(path, to))

    def reclaim(self, path: str | os.PathLike[str]) -> bool:
        """Take back what is ours as the node does."""
        self.path(path)
        return self._did(self.machine.reclaim(path))

    def put(self, path: str | os.PathLike[str], value: str) -> None:
        """Hand a value to the kernel."""
        self._did(True)
        self.machine.put(path, value)

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60,
        text: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> node.Ran:
        """Run a command; what systemd says of units is the only thing that can be seen again."""
        if argv[:2] == ("systemctl", "show") and "--" in argv:
            links = [_INVOCATION.format(unit) for unit in argv[argv.index("--") + 1 :]]
            runs = [os.path.lexists(self.path(link)) for link in links]
            self._did(not any(runs))
        else:
            self._did(True)
        return self.machine.run(*argv, check=check, timeout=timeout, text=text, env=env)

    def _did(self, changed: bool) -> bool:
        self._acts.append(changed)
        return changed


def keep(witness: Witness, key: str, answer: Mapping[str, Any]) -> bool:
    """Keep what came of work that did nothing, for as long as the machine looks the same.

    Args:
        witness: what stood in for the node while the work was done.
        key: what was asked for, in any form.
        answer: what came of it, as JSON can have it.

    Returns:
        True if it was kept: something was done otherwise.
    """
    if witness.acted:
        return False
    kept = {"key": key, "answer": answer, "seen": witness.seen}
    witness.machine.write(_FILE, json.dumps(kept) + "\n", mode=0o600)
    return True


def recall(machine: node.Node, key: str) -> dict[str, Any] | None:
    """Return what came of the same work last time; None if it may come to something else now."""
    try:
        kept: Any = json.loads(machine.read(_FILE) or "")
        seen = cast("dict[str, str]", kept["seen"])
        same = kept["key"] == key and all(
            _look(name, machine.path(name)) == look for name, look in seen.items()
        )
        return dict(kept["answer"]) if same else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def forget(machine: node.Node) -> bool:
    """Forget what was kept; return True if there was anything."""
    return machine.remove(_FILE)


def _look(name: str, place: pathlib.Path) -> str:
    """Return how a place looks: a change of what is there shows in it."""
    try:
        found = os.lstat(place)
        if stat.S_ISLNK(found.st_mode):
            return f"-> {os.readlink(place)} {_signature(place)}"
        if not name.startswith(("/proc", "/sys", "/dev")):
            return _signature(place)
        # The kernel's files have neither times nor sizes that tell anything.
        if stat.S_ISDIR(found.st_mode):
            return "/".join(sorted(os.listdir(place)))
        if stat.S_ISREG(found.st_mode):
            return f"{zlib.crc32(place.read_bytes()):08x}"
        return f"{found.st_mode:o} {found.st_rdev}"
    except OSError:
        return "nothing"


def _signature(place: pathlib.Path) -> str:
    try:
        found = place.stat()
    except OSError:
        return "nothing"
    # The time of the last change of any kind, which nobody can set.
    return f"{found.st_ctime_ns} {found.st_size} {found.st_ino} {found.st_mode:o}"
