"""What there is of a sandbox beside containerd's word for it: processes, mounts and folders.

containerd forgets a sandbox whose making is cut off, and the shim goes on booting it (seen with
containerd 1.6 and Kata 4.1): from then on it is nobody's, and holds its memory until the machine
is restarted.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Iterator

from kata.machine import node as kata_node
from kata.machine import vanishing
from kata.sandbox import bundles, processes

# What shims know of a sandbox, and what they share with its guest (virtcontainers, runtime-rs).
_PLACES = ("/run/vc/sbs", "/run/vc/vm", "/run/kata", "/run/kata-containers/shared/sandboxes")
_ENDED = 10  # seconds until killed processes must be gone
_LOOK = 0.1  # seconds between two looks at them


def names(node: kata_node.Node, state: str, namespace: str) -> set[str]:
    """Return the ids of the sandboxes of which something is there.

    Args:
        node: the machine.
        state: containerd's state folder.
        namespace: the only namespace of containerd's to look at.
    """
    found = {name for space, name in processes.find(node).shims if space == namespace}
    for kind in bundles.KINDS:
        found.update(vanishing.names(node, f"{state}/{kind}/{namespace}"))
    return found


def end(
    node: kata_node.Node, state: str, namespace: str, name: str, patience: float
) -> tuple[str, ...]:
    """End the processes of a sandbox, and remove what they leave.

    Args:
        node: the machine.
        state: containerd's state folder.
        namespace: the sandbox's namespace in containerd.
        name: its id.
        patience: seconds in which they may end by themselves.

    Returns:
        What could not be ended or removed.
    """
    until = time.monotonic() + patience
    while alive := _family(node, namespace, name):
        if time.monotonic() > until:
            break
        time.sleep(_LOOK)
    if alive:
        # Who loses its shim is nobody's child: whoever has been seen once is meant.
        alive = _kill(node, namespace, name, alive)
    if alive:
        return (f"process {min(alive)} of {name} does not end",)
    places = [node.path(f"{place}/{name}") for place in _PLACES]
    for kind in bundles.KINDS:
        bundle = node.path(f"{state}/{kind}/{namespace}/{name}")
        with contextlib.suppress(OSError):
            # Its other half, on the disk.
            places.append(node.path(os.readlink(bundle / "work")))
        places.append(bundle)
    return tuple(left for place in places for left in _remove(node, place))


def _kill(node: kata_node.Node, namespace: str, name: str, seen: set[int]) -> set[int]:
    until = time.monotonic() + _ENDED
    while True:
        for pid in seen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        alive = {pid for pid in seen if processes.parent(node, pid) is not None}
        seen = alive | _family(node, namespace, name)
        if not seen or time.monotonic() > until:
            return seen
        time.sleep(_LOOK)


def _family(node: kata_node.Node, namespace: str, name: str) -> set[int]:
    """Return a sandbox's shim and hypervisor, and the processes that those have started."""
    running = processes.find(node)
    shim, vm = running.shims.get((namespace, name)), running.hypervisors.get(name)
    found = {each.pid for each in (shim, vm) if each and each.pid}
    if found:
        children: dict[int | None, set[int]] = {}
        for pid in map(int, filter(str.isdigit, vanishing.names(node, "/proc"))):
            children.setdefault(processes.parent(node, pid), set()).add(pid)
        latest = found
        while latest := {child for pid in latest for child in children.get(pid, ())} - found:
            found |= latest
    return found


def _remove(node: kata_node.Node, place: pathlib.Path) -> Iterator[str]:
    for mounted in reversed(_mounts(place)):
        node.run("umount", "--", mounted, check=False)
    if still := _mounts(place):
        # What lies below may be somebody's data.
        yield f"{still[0]} is still mounted"
    else:
        shutil.rmtree(place, ignore_errors=True)


def _mounts(place: pathlib.Path) -> list[str]:
    """Return what is mounted at a place and below it, the outer before the inner."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ")[4] for line in file]
    return [each for each in points if pathlib.PurePath(each).is_relative_to(place)]
