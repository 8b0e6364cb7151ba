"""Handing PCI functions to vfio-pci, now and at every boot, and giving them back.

A function is bound through its `driver_override`, so that no other card with the same ids is
touched. At boot a udev rule does the same before any driver's module is loaded. What was taken is
written down first, with the driver that it was taken from: that is what is given back.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping

from kata import problems
from kata.gpu import holders, nouveau, pci
from kata.machine import node as kata_node

DRIVER = "vfio-pci"
RECORD = "/var/lib/kata-charm/vfio.json"
RULES = "/etc/udev/rules.d/70-kata-charm-gpu.rules"
MODULES = "/etc/modules-load.d/kata-charm-gpu.conf"
PROBE = "/sys/bus/pci/drivers_probe"

_RULES_HEADER = "# Written by the kata charm: these functions go to virtual machines.\n"
# A virtual machine may have an IOMMU group whose other endpoints have no driver or one of these
# (Linux, drivers/vfio/vfio_main.c and group.c).
HARMLESS = (None, DRIVER, "pci-stub")
# The drivers by which a host uses a GPU itself. nouveau is not among them: it binds to whatever
# it finds, and nobody computes with it.
HOST_DRIVERS = ("nvidia",)


def endpoints(
    found: Iterable[pci.Function], gpus: Iterable[pci.Function]
) -> tuple[pci.Function, ...]:
    """Return what has to go along with the GPUs: every endpoint of their IOMMU groups."""
    found = tuple(found)
    groups = {gpu.group for gpu in gpus if gpu.group is not None}
    return tuple(each for each in found if each.group in groups and not each.is_bridge)


def unbound(
    found: Iterable[pci.Function], gpus: Iterable[pci.Function]
) -> tuple[pci.Function, ...]:
    """Return what keeps virtual machines from having the GPUs: functions with other drivers."""
    gpus = tuple(gpus)
    beside = (each for each in endpoints(found, gpus) if each not in gpus)
    return (
        *(each for each in gpus if each.driver != DRIVER),
        *(each for each in beside if each.driver not in HARMLESS),
    )


def obstacles(
    node: kata_node.Node, found: Iterable[pci.Function], gpus: Iterable[pci.Function]
) -> tuple[str, ...]:
    """Return why the GPUs cannot be taken from the host, a sentence each; nothing if they can."""
    gpus, found = tuple(gpus), tuple(found)
    console = _consoles(node)
    reasons: list[str] = []
    for gpu in gpus:
        if gpu.driver == DRIVER:
            continue
        users = holders.having_open(node, *_host_files(node, gpu))
        if gpu.driver in HOST_DRIVERS or users:
            used_by = ", ".join(map(str, users)) or "no process just now"
            reasons.append(
                f"{gpu.bdf} belongs to the host's driver {gpu.driver}, held by {used_by}: "
                "stop them and unload it, or leave the GPU out of gpu-devices"
            )
        elif gpu.boot_vga or gpu.bdf in console:
            reasons.append(
                f"{gpu.bdf} drives the host's console: choose another in gpu-devices, or make "
                "another display the primary one in the firmware"
            )
    slots = {gpu.slot for gpu in gpus}
    taken = {gpu.bdf for gpu in gpus}
    for each in endpoints(found, gpus):
        stranger = each.bdf not in taken and each.slot not in slots
        if stranger and each.driver not in HARMLESS:
            reasons.append(
                f"IOMMU group {each.group} of a GPU also holds {each.bdf} (driver {each.driver}), "
                "which the host uses: move the card to another slot, or see gpu-devices"
            )
    return tuple(reasons)


def ensure_bound(node: kata_node.Node, gpus: Iterable[pci.Function]) -> bool:
    """Bind the GPUs, and every endpoint of their IOMMU groups, to vfio-pci, now and at boot.

    What was bound before and is no longer wanted is given back.

    Returns:
        True if anything has changed.

    Raises:
        Blocked: a GPU is in use by the host or shares its group with something that is; nothing
            has been bound then. Or the kernel refuses, and what was bound is undone.
        Waiting: a function that is to be given back is still in a sandbox.
    """
    gpus = tuple(gpus)
    found = pci.functions(node)
    reasons = obstacles(node, found, gpus)
    if reasons:
        raise problems.Blocked(reasons[0])
    wanted = endpoints(found, gpus)
    changed = give_back(node, keep={each.bdf for each in wanted})
    if changed:
        found = pci.functions(node)  # with the drivers that have come back
    record = recorded(node)
    # What somebody else has bound already is none of ours, and stays when we leave.
    new = [each for each in wanted if each.driver != DRIVER and each.bdf not in record]
    record |= {each.bdf: each.driver or "" for each in new}
    changed |= _write_record(node, record)
    changed |= _persist(node, found, record)
    return _bind(node, [each for each in wanted if each.driver != DRIVER], record) or changed


def give_back(node: kata_node.Node, keep: Iterable[str] = ()) -> bool:
    """Return what was bound to the drivers that it was taken from.

    Args:
        node: the machine.
        keep: addresses that stay bound.

    Returns:
        True if anything has changed.

    Raises:
        Waiting: a sandbox still uses one of them; all stay bound, until the next boot at most.
    """
    record = recorded(node)
    leaving = {bdf: driver for bdf, driver in record.items() if bdf not in set(keep)}
    if not leaving:
        return False
    found = pci.functions(node)
    kept = {bdf: driver for bdf, driver in record.items() if bdf not in leaving}
    present = [each for each in found if each.bdf in leaving]
    # The boots to come first: whatever happens to us now, the next one gives them back.
    _persist(node, found, kept, leaving)
    for each in present:
        # The kernel would keep us waiting until the virtual machine has gone.
        files = holders.vfio_files(node, f"{pci.DEVICES}/{each.bdf}", each.group)
        users = holders.having_open(node, *files) if each.driver == DRIVER else ()
        if users:
            raise problems.Waiting(
                f"{each.bdf} is still used by {', '.join(map(str, users))}: it goes back to the "
                "host when that pod has gone, or at the next boot"
            )
    for each in present:
        _release(node, each, leaving[each.bdf])
    _write_record(node, kept)
    return True


def recorded(node: kata_node.Node) -> dict[str, str]:
    """Return what was bound by us: addresses, and the drivers from before, "" for none."""
    return json.loads(node.read(RECORD) or "{}")


def _bind(
    node: kata_node.Node, functions: Iterable[pci.Function], record: Mapping[str, str]
) -> bool:
    functions = list(functions)
    if not functions:
        return False
    done: list[pci.Function] = []
    try:
        loaded = node.run("modprobe", DRIVER, check=False)
        if not loaded.ok:
            raise problems.Blocked(f"modprobe {DRIVER}: {loaded.words}; GPUs need this module")
        for each in functions:
            done.append(each)
            node.put(f"{pci.DEVICES}/{each.bdf}/driver_override", DRIVER)
            if each.driver:
                node.put(f"{pci.DEVICES}/{each.bdf}/driver/unbind", each.bdf)
            node.put(PROBE, each.bdf)
            if _driver(node, each.bdf) != DRIVER:
                raise problems.Blocked(
                    f"the kernel did not bind {each.bdf} to {DRIVER}: see dmesg for the reason"
                )
    except problems.Problem:
        # All endpoints of a group or none.
        for each in done:
            _release(node, each, record.get(each.bdf, each.driver or ""))
        undone = {each.bdf for each in functions}
        left = {bdf: was for bdf, was in record.items() if bdf not in undone}
        _persist(node, pci.functions(node), left)
        _write_record(node, left)
        raise
    return True


def _release(node: kata_node.Node, function: pci.Function, before: str) -> None:
    """Undo a binding: no override, and the driver from before if there was one."""
    folder = f"{pci.DEVICES}/{function.bdf}"
    if (node.read(f"{folder}/driver_override") or "").strip() == DRIVER:
        node.put(f"{folder}/driver_override", "\n")
    if _driver(node, function.bdf) == DRIVER:
        node.put(f"{folder}/driver/unbind", function.bdf)
    if before and not _driver(node, function.bdf):
        node.run("modprobe", before, check=False)
        node.put(PROBE, function.bdf)


def _persist(
    node: kata_node.Node,
    found: Iterable[pci.Function],
    record: Mapping[str, str],
    leaving: Mapping[str, str] | None = None,
) -> bool:
    """Make the boots to come bind what is in `record`, and nothing else.

    Args:
        node: the machine.
        found: its functions.
        record: what stays bound, and the drivers from before.
        leaving: what goes back to the drivers from before.
    """
    found = tuple(found)
    drivers = {each.bdf: each.driver for each in found} | dict(leaving or {})
    wants_nouveau = any(
        driver == nouveau.NAME and bdf not in record for bdf, driver in drivers.items()
    )
    if not record:
        gone = [node.remove(path) for path in (RULES, MODULES)]
        return any((*gone, nouveau.allow(node)))
    ours = [each for each in found if each.bdf in record]
    changed = node.write(RULES, _RULES_HEADER + "".join(_rule(each) for each in ours))
    changed |= node.write(MODULES, f"# Written by the kata charm.\n{DRIVER}\n")
    keep_out = nouveau.allow if wants_nouveau else nouveau.ensure_blacklisted
    return keep_out(node) or changed


def _rule(function: pci.Function) -> str:
    """Return what udev does when it sees a function, at boot or when it is plugged in.

    A driver that the initramfs or the kernel has bound before is let go, unless it is one that
    computes. vfio-pci itself is left alone: a sandbox may have the function.
    """
    this = (
        f'ACTION=="add", SUBSYSTEM=="pci", KERNEL=="{function.bdf}", '
        f'ATTR{{vendor}}=="0x{function.vendor}", ATTR{{device}}=="0x{function.device}"'
    )
    others = "|".join((DRIVER, *HOST_DRIVERS))
    return (
        f'{this}, ATTR{{driver_override}}="{DRIVER}"\n'
        f'{this}, DRIVER=="?*", DRIVER!="{others}", ATTR{{driver/unbind}}="$kernel"\n'
        f'{this}, ATTR{{[subsystem/pci]drivers_probe}}="$kernel"\n'
    )


def _write_record(node: kata_node.Node, record: Mapping[str, str]) -> bool:
    if not record:
        return node.remove(RECORD)
    return node.write(RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n", mode=0o600)


def _driver(node: kata_node.Node, bdf: str) -> str | None:
    try:
        return pathlib.PurePath(os.readlink(node.path(f"{pci.DEVICES}/{bdf}/driver"))).name
    except OSError:
        return None


def _host_files(node: kata_node.Node, gpu: pci.Function) -> tuple[str, ...]:
    """Return how the paths start by which the host's programs use a GPU."""
    files = [f"/dev/dri/{name}" for name in node.names(f"{pci.DEVICES}/{gpu.bdf}/drm")]
    # The numbers of NVIDIA's own files say little of the card, and /dev/nvidiactl is for all.
    return (*files, "/dev/nvidia*") if gpu.driver in HOST_DRIVERS else tuple(files)


def _consoles(node: kata_node.Node) -> set[str]:
    """Return the addresses of the functions that a framebuffer console is on."""
    devices = node.path("/sys/class/graphics").glob("fb*/device")
    return {pathlib.PurePath(os.readlink(link)).name for link in devices if link.is_symlink()}
