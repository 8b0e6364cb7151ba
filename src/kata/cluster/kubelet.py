"""Which node of the cluster this machine is."""

import pathlib
from collections.abc import Iterator

from kata.machine import node

_OVERRIDE = "--hostname-override"


def machine_id(machine: node.Node) -> str | None:
    """Return the id that kubelet reports as the node's `status.nodeInfo.machineID`.

    Kubelet reads the same file (cadvisor, its option `machine_id_file`).
    """
    return (machine.read("/etc/machine-id") or "").strip() or None


def names(machine: node.Node) -> Iterator[str]:
    """Yield the names that the node may have, the likeliest and cheapest first.

    The name is the machine's, in lower case, unless kubelet was told another; on some clouds it
    is the long form of it (Kubernetes, pkg/util/node, GetHostname).
    """
    seen = {""}
    for find in (_short, _told, _long):
        name = find(machine).strip().lower()
        if name not in seen:
            seen.add(name)
            yield name


def name(machine: node.Node) -> str:
    """Return the name by which a kubelet that runs here calls itself."""
    return (_told(machine) or _short(machine)).strip().lower()


def _short(machine: node.Node) -> str:
    return machine.read("/proc/sys/kernel/hostname") or ""


def _told(machine: node.Node) -> str:
    """Return what the running kubelet's command line says."""
    for place in machine.path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = place.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended meanwhile
        if pathlib.PurePath(arguments[0]).name != "kubelet":
            continue
        for at, argument in enumerate(arguments):
            option, _, value = argument.partition("=")
            if option == _OVERRIDE:
                return value or "".join(arguments[at + 1 : at + 2])
    return ""


def _long(machine: node.Node) -> str:
    # Asks the resolver, which may be slow: a process with a time limit, and only as a last resort.
    ran = machine.run("hostname", "--fqdn", check=False, timeout=5)
    return ran.out if ran.ok else ""
