"""vGPUs: mediated devices that NVIDIA's licensed host driver makes of a GPU.

From Ampere on, virtual functions of the GPU make them. None outlives a boot: each boot makes them
anew, from the record that is kept here.
"""

import itertools
import json
import pathlib
import uuid
from collections.abc import Iterable
from typing import TypedDict

from kata import problems
from kata.gpu import holders, mdev, pci, vgpu_driver
from kata.machine import node as kata_node

RECORD = "/var/lib/kata-charm/vgpu.json"
SRIOV_MANAGE = "/usr/lib/nvidia/sriov-manage"
BOOT_PROGRAM = "/usr/local/lib/kata-charm/vgpu-boot.py"
BOOT_UNIT = "/etc/systemd/system/kata-charm-vgpu.service"

# A driver shows the types of its virtual functions a moment after these are there.
_FOR_TYPES = 10
MOST = 256  # instances on a machine, as many as vgpu-count allows
# Makes the same names after every boot, so that what refers to a vGPU stays right.
_NAMES = uuid.UUID("6f0d4a3c-6b1b-5d0b-9f1c-0f6a7c1f9d52")

_UNIT_TEXT = f"""\
# Written by the kata charm.
[Unit]
Description=Create the vGPUs of this machine
After=systemd-modules-load.service nvidia-vgpud.service nvidia-vgpu-mgr.service
Before=containerd.service snap.k8s.containerd.service
ConditionPathExists={RECORD}

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -I -S {BOOT_PROGRAM} {RECORD}
TimeoutStartSec=180
# It writes to sysfs, and NVIDIA's sriov-manage may load a module. All else is kept from it.
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_SYS_ADMIN CAP_SYS_MODULE CAP_SYS_RAWIO
IPAddressDeny=any
LockPersonality=yes
MemoryDenyWriteExecute=yes
NoNewPrivileges=yes
PrivateNetwork=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectProc=invisible
ProtectSystem=full
RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service @module
UMask=0077

[Install]
WantedBy=multi-user.target
"""


_Place = tuple[str, str]
"""The address of a function, and the id of a type that it makes."""


class _Made(TypedDict):
    parent: str
    type: str


class _Record(TypedDict):
    instances: dict[str, _Made]
    sriov: list[str]


def ensure_instances(
    node: kata_node.Node, gpus: Iterable[pci.Function], wanted: str, count: int
) -> bool:
    """Have `count` vGPUs of a type on this machine, now and after every boot.

    Args:
        node: the machine.
        gpus: the GPUs that may be divided.
        wanted: a type's id or name.
        count: how many in all; 0 for as many as fit.

    Returns:
        True if anything has changed.

    Raises:
        Blocked: no driver, no such type, or no room for that many.
        Waiting: one that is too many, or of another type, is still in a sandbox.
    """
    gpus = tuple(gpus)
    changed = _ensure_virtual_functions(node, gpus)
    offered = _offered(node, gpus, wanted)
    places = {(each.parent, each.id) for each in offered}
    # Those first: a GPU makes vGPUs of one type at a time, and has no room beside another's.
    changed |= _destroy(node, _surplus(node, places, count))
    made = len(_at(node, places))
    room = sum(each.available for each in _offered(node, gpus, wanted))
    if made + room < max(count, 1):
        raise _no_room(wanted, count, made + room)
    changed |= _persist(node)
    # Each one takes from the room of all: virtual functions share the memory of their GPU.
    while made < (count or MOST):
        free = next((x for x in _offered(node, gpus, wanted) if x.available), None)
        if not free:
            break
        _create(node, free)
        made, changed = made + 1, True
    if made < count:
        raise _no_room(wanted, count, made)
    return changed


def by_virtual_functions(
    node: kata_node.Node, gpus: Iterable[pci.Function]
) -> tuple[pci.Function, ...]:
    """Return which GPUs make vGPUs of virtual functions only: those from Ampere on.

    A T4 could have virtual functions too, and makes its vGPUs itself.
    """
    parents = {each.parent for each in mdev.types(node)}
    return tuple(gpu for gpu in gpus if gpu.virtual_total and gpu.bdf not in parents)


def require(node: kata_node.Node, gpus: Iterable[pci.Function], wanted: str, count: int) -> None:
    """Look whether the vGPUs wanted are there, and change nothing.

    Raises:
        Blocked: no driver, no such type, or fewer than `count` of them (at least one).
    """
    offered = _offered(node, tuple(gpus), wanted)
    there = len(_at(node, {(each.parent, each.id) for each in offered}))
    if there < max(count, 1):
        raise problems.Blocked(
            f"vgpu-count={count}: {there} of type {wanted} exist; create them, or set "
            "gpu-prepare-host=true"
        )


def remove(node: kata_node.Node) -> bool:
    """Destroy the vGPUs that were made by us, and forget them.

    Returns:
        True if anything has changed.

    Raises:
        Waiting: one is still in a sandbox; all stay, until the next boot at most.
    """
    if not node.exists(RECORD):
        return False
    # The boots to come first: whatever happens to us now, the next one makes none.
    if node.exists(BOOT_UNIT):
        node.run("systemctl", "disable", pathlib.PurePath(BOOT_UNIT).name, check=False)
        node.remove(BOOT_UNIT)
        node.run("systemctl", "daemon-reload", check=False)
    for path in (BOOT_PROGRAM, str(pathlib.PurePath(BOOT_PROGRAM).parent)):
        node.remove(path)
    record = _recorded(node)
    _destroy(node, set(record["instances"]))
    for bdf in record["sriov"]:
        node.run(SRIOV_MANAGE, "-d", bdf, check=False, timeout=60)
    node.remove(RECORD)
    return True


def _offered(node: kata_node.Node, gpus: tuple[pci.Function, ...], wanted: str) -> list[mdev.Type]:
    """Return where the wanted type can be made: on the GPUs or their virtual functions."""
    addresses = {gpu.bdf for gpu in gpus}
    functions = [each for each in pci.functions(node) if each.virtual_of in addresses]
    addresses |= {each.bdf for each in functions}
    known = [each for each in mdev.types(node) if each.parent in addresses]
    if not known:
        if any(
            node.exists(f"{pci.DEVICES}/{bdf}/nvidia/creatable_vgpu_types") for bdf in addresses
        ):
            raise problems.Blocked(
                "this NVIDIA driver makes vGPUs without mediated devices, which Kata cannot use: "
                "install a vGPU driver of a branch with mdev, or set gpu-mode=passthrough"
            )
        if version := vgpu_driver.loaded_version(node):
            raise problems.Blocked(
                f"NVIDIA's driver {version} offers no vGPU types here: it is not the vGPU host "
                "driver (…-vgpu-kvm.run), or these GPUs have no vGPU"
            )
        raise problems.Blocked(
            "no vGPU types on this machine's GPUs: NVIDIA's licensed vGPU host driver is not "
            "loaded; attach it as the resource vgpu-driver"
        )
    offered = [each for each in known if wanted in (each.id, each.name)]
    if not offered:
        names = ", ".join(sorted({f"{each.id} ({each.name})" for each in known})[:4])
        raise problems.Blocked(f"vgpu-type={wanted}: not offered here; there are {names}, …")
    return offered


def _ensure_virtual_functions(node: kata_node.Node, gpus: tuple[pci.Function, ...]) -> bool:
    """Enable the virtual functions that GPUs from Ampere on need for vGPUs."""
    record = _recorded(node)
    changed = False
    for gpu in by_virtual_functions(node, gpus):
        if gpu.virtual_enabled:
            continue
        if not node.exists(SRIOV_MANAGE):
            raise problems.Blocked(
                f"{gpu.bdf} needs SR-IOV for vGPUs, and {SRIOV_MANAGE} is missing: attach "
                "NVIDIA's vGPU host driver as the resource vgpu-driver"
            )
        ran = node.run(SRIOV_MANAGE, "-e", gpu.bdf, check=False, timeout=60)
        if not ran.ok:
            raise problems.Blocked(
                f"sriov-manage -e {gpu.bdf}: {ran.words}; is SR-IOV on in the firmware?"
            )
        record["sriov"] = sorted({*record["sriov"], gpu.bdf})
        changed |= _write(node, record)
    if changed:
        mdev.await_types(node, _FOR_TYPES)
    return changed


def _at(node: kata_node.Node, places: set[_Place]) -> list[mdev.Instance]:
    """Return the vGPUs that exist of these parents and types, whoever made them."""
    return [each for each in mdev.instances(node) if (each.parent, each.type) in places]


def _surplus(node: kata_node.Node, places: set[_Place], count: int) -> set[str]:
    """Return which of ours are too many: gone, of other types or GPUs, and above the count."""
    ours = _recorded(node)["instances"]
    fitting = _at(node, places)
    surplus = set(ours) - {each.uuid for each in fitting}
    if count:
        # Those in use go last: most often nothing has to wait then.
        mine = sorted(
            (each for each in fitting if each.uuid in ours),
            key=lambda each: (not _users(node, each), each.uuid),
        )
        surplus |= {each.uuid for each in mine[max(0, count - len(fitting) + len(mine)) :]}
    return surplus


def _create(node: kata_node.Node, offered: mdev.Type) -> None:
    """Make one instance, under a name that the same place gets again after each boot."""
    taken = {each.uuid for each in mdev.instances(node)}
    numbers = (
        str(uuid.uuid5(_NAMES, f"{offered.parent}/{offered.id}/{number}"))
        for number in itertools.count()
    )
    name = next(each for each in numbers if each not in taken)
    record = _recorded(node)
    record["instances"][name] = {"parent": offered.parent, "type": offered.id}
    _write(node, record)
    mdev.create(node, offered, name)


def _destroy(node: kata_node.Node, names: set[str]) -> bool:
    """Destroy instances of ours, all of them or none, and take them off the record."""
    if not names:
        return False
    leaving = [each for each in mdev.instances(node) if each.uuid in names]
    for each in leaving:
        users = _users(node, each)
        if users:
            raise problems.Waiting(
                f"vGPU {each.uuid} is still used by {', '.join(map(str, users))}: it is removed "
                "when that pod has gone"
            )
    for each in leaving:
        mdev.destroy(node, each)
    record = _recorded(node)
    for name in names:
        record["instances"].pop(name, None)
    return _write(node, record)


def _users(node: kata_node.Node, instance: mdev.Instance) -> tuple[holders.Holder, ...]:
    device = f"{mdev.DEVICES}/{instance.uuid}"
    return holders.having_open(node, *holders.vfio_files(node, device, instance.group))


def _no_room(wanted: str, count: int, fit: int) -> problems.Blocked:
    return problems.Blocked(
        f"vgpu-count={count}: only {fit} of type {wanted} fit on this machine's GPUs; lower "
        "vgpu-count or choose a smaller vgpu-type"
    )


def _persist(node: kata_node.Node) -> bool:
    """Have the boots to come create what is recorded."""
    program = pathlib.Path(__file__).with_name("vgpu_boot.py").read_text()
    changed = node.write(BOOT_PROGRAM, program)
    if node.write(BOOT_UNIT, _UNIT_TEXT):
        node.run("systemctl", "daemon-reload")
        node.run("systemctl", "enable", pathlib.PurePath(BOOT_UNIT).name)
        changed = True
    return changed


def _recorded(node: kata_node.Node) -> _Record:
    record: _Record = json.loads(node.read(RECORD) or '{"instances": {}, "sriov": []}')
    return record


def _write(node: kata_node.Node, record: _Record) -> bool:
    return node.write(RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n", mode=0o600)
