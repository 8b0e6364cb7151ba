"""What a node is like, and what changed between two looks: for people, and to compare in tests."""

import dataclasses
import json
from collections.abc import Mapping

from tests.node import machine

# Runs in the node: one pass over the folders that a charm may change. hashlib takes longer to start
# than the pass itself.
_LOOK = """
import _sha256, json, os, stat, sys
def text(path):
    try:
        return open(path, encoding="utf-8", errors="replace").read()
    except OSError:
        return ""
seen = {}
for top in sys.argv[2:]:
    for folder, folders, names in os.walk(top):
        for name in [*folders, *names]:
            path = os.path.join(folder, name)
            try:
                found = os.lstat(path)
                if stat.S_ISLNK(found.st_mode):
                    what = "-> " + os.readlink(path)
                elif stat.S_ISREG(found.st_mode):
                    with open(path, "rb") as file:
                        what = _sha256.sha256(file.read()).hexdigest()
                elif stat.S_ISDIR(found.st_mode):
                    what = "folder"
                else:
                    continue
            except FileNotFoundError:
                continue
            seen[path] = "%s %o %d:%d" % (what, found.st_mode & 0o7777, found.st_uid, found.st_gid)
told = {"files": seen, "config": text(sys.argv[1]), "modules": text("/proc/modules")}
sys.stdout.write(json.dumps(told))
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
    walk = node.start(["python3", "-I", "-S", "-c", _LOOK, CONFIG, *folders])
    shown = node.start(["systemctl", "show", asked, "containerd"])
    listed = node.start(["timeout", "10", "ctr", "plugins", "ls"])
    told = json.loads(walk.wait(check=True).out)
    unit = dict(line.split("=", 1) for line in shown.wait(check=True).out.splitlines())
    rows = [line.split() for line in listed.wait().out.splitlines()]
    states = {row[1]: row[-1] for row in rows if row[:1] and "cri" in row[0] + row[1]}
    loaded = {line.split()[0] for line in told["modules"].splitlines()}
    return View(
        files=told["files"],
        config=told["config"],
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
