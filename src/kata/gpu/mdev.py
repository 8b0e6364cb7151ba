"""Mediated devices (mdev), as the kernel shows them: what a GPU can be divided into, and is.

A driver shows each type that it can make as a folder below the GPU, or below its virtual
functions. Writing a UUID into a type's `create` makes an instance, which lasts until the next boot
(Linux, Documentation/driver-api/vfio-mediated-device.rst).
"""

import contextlib
import dataclasses
import os
import pathlib
import time

from kata.gpu import pci
from kata.machine import node as kata_node

BUS = "/sys/class/mdev_bus"
DEVICES = "/sys/bus/mdev/devices"


@dataclasses.dataclass(frozen=True)
class Type:
    """What a GPU, or one of its virtual functions, can be divided into."""

    parent: str
    """The address of the function that makes it."""
    id: str
    """Such as nvidia-105."""
    name: str
    """Such as GRID P100-8Q."""
    available: int
    """How many more can be made."""
    description: str = ""


@dataclasses.dataclass(frozen=True)
class Instance:
    """A vGPU that exists."""

    uuid: str
    parent: str
    type: str
    group: int | None
    """Its IOMMU group: the sandbox gets /dev/vfio/<group>."""


def types(node: kata_node.Node) -> tuple[Type, ...]:
    """Return what the GPUs of the machine offer, by parent and type id."""
    found: list[Type] = []
    for folder in sorted(node.path(BUS).glob("*/mdev_supported_types/*")):
        parent = folder.parent.parent.name
        place = f"{BUS}/{parent}/mdev_supported_types/{folder.name}"

        def attribute(name: str, place: str = place) -> str:
            return (node.read(f"{place}/{name}") or "").strip()

        found.append(
            Type(
                parent=parent,
                id=folder.name,
                name=attribute("name"),
                available=pci.number(attribute("available_instances")),
                description=attribute("description"),
            )
        )
    return tuple(found)


def await_types(node: kata_node.Node, seconds: float) -> None:
    """Wait until a driver that has just been loaded shows its types, or the time is over."""
    deadline = time.monotonic() + seconds
    while not types(node) and time.monotonic() < deadline:
        time.sleep(1)


def instances(node: kata_node.Node) -> tuple[Instance, ...]:
    """Return the vGPUs that exist, whoever made them."""
    found: list[Instance] = []
    for name in node.names(DEVICES):
        with contextlib.suppress(OSError):  # it has been destroyed under our eyes
            device = node.path(DEVICES) / name
            group = device / "iommu_group"
            number = pathlib.PurePath(os.readlink(group)).name if group.is_symlink() else None
            found.append(
                Instance(
                    uuid=name,
                    # The device lies below its parent in the kernel's tree.
                    parent=device.resolve().parent.name,
                    type=pathlib.PurePath(os.readlink(device / "mdev_type")).name,
                    group=int(number) if number else None,
                )
            )
    return tuple(found)


def create(node: kata_node.Node, offered: Type, name: str) -> None:
    """Make an instance of a type, under a UUID.

    Raises:
        Blocked: the driver refuses.
    """
    node.put(f"{BUS}/{offered.parent}/mdev_supported_types/{offered.id}/create", name)


def destroy(node: kata_node.Node, instance: Instance) -> None:
    """Destroy an instance that nothing uses.

    Raises:
        Blocked: the driver refuses.
    """
    node.put(f"{DEVICES}/{instance.uuid}/remove", "1")
