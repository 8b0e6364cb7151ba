"""What a node is like, and what changed between two looks: for people, and to compare in tests."""

import dataclasses
import json
from collections.abc import Mapping

from tests.node import machine

# Runs in the node: one pass over the folders that a charm may change.
_LOOK = """
import hashlib, json, os, stat, sys
seen = {}
for top in sys.argv[1:]:
    for folder, folders, names in os.walk(top):
        for name in [*folders, *names]:
            path = os.path.join(folder, name)
            try:
                found = os.lstat(path)
                if stat.S_ISLNK(found.st_mode):
                    what = "-> " + os.readlink(path)
                elif stat.S_ISREG(found.st_mode):
                    with open(path, "rb") as file:
                        what = hashlib.sha256(file.read()).hexdigest()
                elif stat.S_ISDIR(found.st_mode):
                    what = "folder"
                else:
                    continue
            except FileNotFoundError:
                continue
            seen[path] = "%s %o %d:%d" % (what, found.st_mode & 0o7777, found.st_uid, found.st_gid)
json.dump(seen, sys.stdout)
"""
FOLDERS = ("/etc", "/opt", "/usr/local", "/var/lib/kata-charm", "/run/kata-charm")
CONFIG = "/etc/containerd/config.toml"


@dataclasses.dataclass(frozen=True)
class View:
    """A node at one moment.

    Attributes:
        files: path to kind, digest, mode and owner.
        config: containerd's configuration.
        run: what tells this run of containerd from all others.
        since: when this run began, in the node's words.
        active: the state of containerd's unit.
        cri: the state of containerd's CRI plugin, such as `ok`.
        modules: the modules of the kernel that Kata needs and that are loaded.
    """

    files: Mapping[str, str]
    config: str
    run: str
    since: str
    active: str
    cri: str
    modules: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Change:
    """What differs between two views; paths in order."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    altered: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.altered)


def look(node: machine.Machine, folders: tuple[str, ...] = FOLDERS) -> View:
    """Look at a node."""
    asked = "--property=InvocationID,ActiveState,ActiveEnterTimestamp"
    # Side by side: under emulation each takes half a second.
    walk = node.start(["python3", "-I", "-S", "-c", _LOOK, *folders])
    shown = node.start(["systemctl", "show", asked, "containerd"])
    listed = node.start(["timeout", "10", "ctr", "plugins", "ls"])
    files = json.loads(walk.wait(check=True).out)
    unit = dict(line.split("=", 1) for line in shown.wait(check=True).out.splitlines())
    rows = [line.split() for line in listed.wait().out.splitlines()]
    states = {row[1]: row[-1] for row in rows if row[:1] and "cri" in row[0] + row[1]}
    loaded = {line.split()[0] for line in node.run("cat /proc/modules").out.splitlines()}
    return View(
        files=files,
        config=node.run(["cat", CONFIG], check=False).out,
        run=unit["InvocationID"],
        since=unit["ActiveEnterTimestamp"],
        active=unit["ActiveState"],
        cri=states.get("cri") or states.get("runtime") or "no answer",
        modules=frozenset(loaded & {"vhost", "vhost_net", "vhost_vsock", "kvm"}),
    )


def change(before: View, after: View) -> Change:
    """Return which files came, went and changed."""
    first, second = before.files, after.files
    return Change(
        added=tuple(sorted(second.keys() - first.keys())),
        removed=tuple(sorted(first.keys() - second.keys())),
        altered=tuple(
            sorted(path for path in first.keys() & second.keys() if first[path] != second[path])
        ),
    )
