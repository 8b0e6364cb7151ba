"""The processes that make up sandboxes: shims and hypervisors, found in one pass over /proc.

Any of them may end while it is looked at: what is gone is left out, or has None for an answer.
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping
from typing import NamedTuple

from kata.machine import node as kata_node
from kata.machine import vanishing
from kata.sandbox import hypervisor

# Bytes of a command line that are looked at: QEMU's has about 4 kB, a GPU adds one device each.
_MOST = 64 << 10
_LIKELY = (b"shim", b"qemu", b"cloud-hypervisor", b"firecracker")


@dataclasses.dataclass(frozen=True)
class Shim:
    """A containerd shim: one process for a pod, or for a lone container.

    Attributes:
        pid: its process.
        namespace: containerd's namespace, such as `k8s.io`.
        sandbox: the id that it was started for.
        program: its path, as it was called.
    """

    pid: int
    namespace: str
    sandbox: str
    program: str


class Running(NamedTuple):
    """The processes of sandboxes, by the ids that they give on their command lines."""

    hypervisors: Mapping[str, hypervisor.Vm]
    shims: Mapping[tuple[str, str], Shim]
    """By containerd's namespace and the sandbox's id."""


class Usage(NamedTuple):
    """What a process has used: seconds since it started, and bytes of memory in use now."""

    seconds: int
    memory: int


def find(node: kata_node.Node) -> Running:
    """Look at every process's command line once."""
    hypervisors: dict[str, hypervisor.Vm] = {}
    shims: dict[tuple[str, str], Shim] = {}
    for name in vanishing.names(node, "/proc"):
        words = command_line(node, int(name)) if name.isdigit() else []
        if words and "shim" in words[0]:
            if shim := _shim(int(name), words):
                shims.setdefault((shim.namespace, shim.sandbox), shim)
        elif vm := hypervisor.read_command_line(words):
            hypervisors.setdefault(vm.sandbox, dataclasses.replace(vm, pid=int(name)))
    return Running(hypervisors, shims)


def command_line(node: kata_node.Node, pid: int) -> list[str]:
    """Return the command line of a hypervisor or a shim; nothing of any other process."""
    try:
        descriptor = os.open(node.place(f"/proc/{pid}/cmdline"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        text = os.read(descriptor, _MOST)
    except OSError:  # ESRCH: it ended in between
        return []
    finally:
        os.close(descriptor)
    program = text.partition(b"\0")[0]
    if not any(part in program for part in _LIKELY):
        return []
    return text.rstrip(b"\0").decode("utf-8", "surrogateescape").split("\0")


def _shim(pid: int, words: list[str]) -> Shim | None:
    """Read the command line that containerd gives every shim (core/runtime/v2/binary.go)."""
    told = dict(itertools.pairwise(words))
    # With a command for a last word it is a helper of containerd's, gone in a moment.
    if "-id" not in told or words[-1] in ("start", "delete"):
        return None
    return Shim(pid, told.get("-namespace", ""), told["-id"], words[0])


def usage(node: kata_node.Node, pid: int) -> Usage | None:
    """Return what a process has used; None where it is gone.

    Of /proc/<pid>/stat, proc(5): field 22 counts clock ticks since boot, field 24 pages.
    """
    stat, uptime = vanishing.text(node, f"/proc/{pid}/stat"), vanishing.text(node, "/proc/uptime")
    # The second field is a name in brackets, which may hold anything.
    fields = stat.rpartition(")")[2].split()
    try:
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        seconds = float(uptime.split()[0]) - started
        return Usage(max(0, int(seconds)), int(fields[21]) * os.sysconf("SC_PAGESIZE"))
    except (IndexError, ValueError):
        return None


def parent(node: kata_node.Node, pid: int) -> int | None:
    """Return the process that a process is a child of; None where it has ended."""
    # proc(5): the fields behind the name in brackets are the state and the parent.
    fields = vanishing.text(node, f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 and fields[0] not in "ZX" else None


def program(node: kata_node.Node, pid: int) -> str:
    """Return the file that a process runs, links followed; empty where it is gone."""
    try:
        return os.readlink(node.place(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
    except OSError:
        return ""


def in_network(node: kata_node.Node, namespace: str, pid: int) -> str | None:
    """Return the folder of /proc whose network is that namespace's, or None.

    A hypervisor's process lives in its pod's network. Dragonball is a thread of the shim, and
    only that thread does.

    Args:
        node: the machine.
        namespace: path of a network namespace.
        pid: a process that may live in it, or one of its threads.
    """
    try:
        wanted = os.stat(node.place(namespace))
        if _same(wanted, node, f"/proc/{pid}"):
            return f"/proc/{pid}"
        for thread in os.listdir(node.place(f"/proc/{pid}/task")):
            if _same(wanted, node, f"/proc/{pid}/task/{thread}"):
                return f"/proc/{pid}/task/{thread}"
    except OSError:
        pass
    return None


def _same(wanted: os.stat_result, node: kata_node.Node, folder: str) -> bool:
    try:
        return os.path.samestat(wanted, os.stat(node.place(f"{folder}/ns/net")))
    except FileNotFoundError:
        return False
