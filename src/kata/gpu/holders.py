"""Which processes hold a device: what they use is not taken from under them."""

import contextlib
import dataclasses
import fnmatch
import os
import pathlib

from kata.machine import node as kata_node


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that has a device file open."""

    pid: int
    name: str

    def __str__(self) -> str:
        """For a status line."""
        return f"{self.name} ({self.pid})"


def having_open(node: kata_node.Node, *patterns: str) -> tuple[Holder, ...]:
    """Return the processes that have a file open that matches, as in a shell, a pattern."""
    found: list[Holder] = []
    for process in sorted(node.path("/proc").glob("[0-9]*"), key=lambda each: int(each.name)):
        opened = _open_files(process)
        if any(fnmatch.filter(opened, pattern) for pattern in patterns):
            name = (node.read(f"/proc/{process.name}/comm") or "?").strip()
            found.append(Holder(int(process.name), name))
    return tuple(found)


def vfio_files(node: kata_node.Node, device: str, group: int | None) -> tuple[str, ...]:
    """Return the files under /dev/vfio by which a virtual machine opens a device, if they exist.

    Args:
        node: the machine.
        device: its folder in sysfs: a PCI function's, or a mediated device's.
        group: its IOMMU group.
    """
    candidates = [f"/dev/vfio/{group}"] if group is not None else []
    # Since Linux 6.6 a device also has a file of its own.
    candidates += [f"/dev/vfio/devices/{name}" for name in node.names(f"{device}/vfio-dev")]
    return tuple(path for path in candidates if node.exists(path))


def _open_files(process: pathlib.Path) -> tuple[str, ...]:
    targets: list[str] = []
    with contextlib.suppress(OSError):  # the process has ended
        for descriptor in os.scandir(process / "fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                targets.append(os.readlink(descriptor.path))
    return tuple(targets)
