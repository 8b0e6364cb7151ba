"""PCI functions of the machine, as the kernel shows them below /sys/bus/pci/devices.

What `lspci -nn -D -vv` prints of a GPU by hand: address, ids, class, driver, memory regions with
their sizes, IOMMU group.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable

from kata.machine import node as kata_node

DEVICES = "/sys/bus/pci/devices"
NVIDIA = "10de"
# Base class and subclass (PCI Code and ID Assignment Specification): VGA and 3D controllers.
DISPLAY_CLASSES = ("0300", "0302")
# Where Debian and Ubuntu keep the names of vendors and devices (package pci.ids).
NAMES = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")

# Flags of a resource (Linux, include/linux/ioport.h).
_MEMORY, _PREFETCH, _MEMORY_64, _UNSET = 0x200, 0x2000, 0x100000, 0x20000000
_BARS = 6
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Bar:
    """A region of memory that a function answers to.

    Attributes:
        index: which of the six registers it starts at; a 64-bit region takes two.
        address: where firmware or kernel mapped it; 0 if nowhere.
        size: in bytes.
    """

    index: int
    address: int
    size: int
    wide: bool
    """64-bit: may lie above 4 GiB."""
    prefetchable: bool
    mapped: bool = True

    @property
    def large(self) -> bool:
        """Whether it needs room above 4 GiB, as a Tesla P100's 16 GiB do and a T4's 256 MiB don't.

        Below 4 GiB a virtual machine has a gibibyte or two for the regions of all its devices.
        """
        return self.wide and self.prefetchable and self.size >= GIB

    def __str__(self) -> str:
        """As lspci -vv has it, with the mark."""
        width = "64-bit" if self.wide else "32-bit"
        kind = "prefetchable" if self.prefetchable else "non-prefetchable"
        place = f"{self.address:x}" if self.mapped else "nowhere"
        mark = " large" if self.large else ""
        return (
            f"Region {self.index}: {place} ({width}, {kind}) [size={size_words(self.size)}]{mark}"
        )


@dataclasses.dataclass(frozen=True)
class Function:
    """One function of a PCI device, by its address (domain:bus:device.function, "BDF")."""

    bdf: str
    vendor: str
    """Four hexadecimal digits, as in lspci -n; so is `device`."""
    device: str
    class_code: str
    """Six hexadecimal digits: base class, subclass, programming interface."""
    driver: str | None = None
    group: int | None = None
    """Number of the IOMMU group; None without an IOMMU."""
    bars: tuple[Bar, ...] = ()
    boot_vga: bool = False
    """Whether the firmware's console is on it."""
    virtual_of: str | None = None
    """The physical function, if this is a virtual one (SR-IOV)."""
    virtual_total: int = 0
    virtual_enabled: int = 0

    @property
    def ids(self) -> str:
        """Vendor and device, as gpu-devices takes them."""
        return f"{self.vendor}:{self.device}"

    @property
    def is_bridge(self) -> bool:
        """Whether it is a bridge between buses: those stay with the host.

        NVIDIA's NVSwitch says "bridge" (0680), and is an endpoint all the same.
        """
        return self.class_code.startswith("06") and not self.class_code.startswith("0680")

    @property
    def is_gpu(self) -> bool:
        """Whether it is a display or 3D controller of NVIDIA's, and not a virtual function."""
        shows = self.class_code[:4] in DISPLAY_CLASSES
        return self.vendor == NVIDIA and shows and not self.virtual_of

    @property
    def large(self) -> bool:
        """Whether any of its regions is large."""
        return any(bar.large for bar in self.bars)

    @property
    def slot(self) -> str:
        """The address without the function: the same for all functions of one card."""
        return self.bdf.rpartition(".")[0]


def functions(node: kata_node.Node) -> tuple[Function, ...]:
    """Return every PCI function of the machine, in the order of their addresses."""
    found = (_read(node, name) for name in node.names(DEVICES))
    return tuple(function for function in found if function)


def chosen(found: Iterable[Function], devices: tuple[str, ...]) -> tuple[Function, ...]:
    """Return the functions that the option gpu-devices names.

    Args:
        found: the functions of the machine.
        devices: ("all",) for every NVIDIA GPU, or addresses and vendor:device ids.
    """
    if devices == ("all",):
        return tuple(each for each in found if each.is_gpu)
    # A virtual function may have the ids of its physical one: it is named by address alone.
    return tuple(
        each
        for each in found
        if not each.is_bridge
        and (each.bdf in devices or (each.ids in devices and not each.virtual_of))
    )


def known_names(node: kata_node.Node, wanted: Iterable[Function]) -> dict[str, str]:
    """Return names by vendor:device ids, for as many functions as the machine knows names of."""
    ids = {each.ids for each in wanted}
    known: dict[str, str] = {}
    for path in NAMES:
        vendor = ""
        for line in (node.read(path) or "").splitlines():
            if line[:1] not in ("", "#", "\t"):
                vendor = line[:4]
            elif line.startswith("\t") and not line.startswith("\t\t"):
                device, _, name = line.strip().partition("  ")
                if f"{vendor}:{device}" in ids:
                    known.setdefault(f"{vendor}:{device}", name)
    return known


def number(text: str, base: int = 10) -> int:
    """Return a number as a driver shows it; 0 for what is none."""
    try:
        return int(text, base)
    except ValueError:
        return 0


def size_words(size: int) -> str:
    """Return a size in bytes as lspci writes it: 16G, 32M, 4K."""
    for unit in ("", "K", "M", "G"):
        if size < 1024 or size % 1024:
            return f"{size}{unit}"
        size //= 1024
    return f"{size}T"


def _read(node: kata_node.Node, bdf: str) -> Function | None:
    folder = f"{DEVICES}/{bdf}"

    def attribute(name: str) -> str:
        return (node.read(f"{folder}/{name}") or "").strip()

    def link(name: str) -> str | None:
        try:
            return pathlib.PurePath(os.readlink(node.path(f"{folder}/{name}"))).name
        except OSError:
            return None

    vendor, device = attribute("vendor"), attribute("device")
    if not vendor or not device:
        return None  # it has been unplugged under our eyes
    group = link("iommu_group")
    return Function(
        bdf=bdf,
        vendor=vendor.removeprefix("0x"),
        device=device.removeprefix("0x"),
        class_code=attribute("class").removeprefix("0x"),
        driver=link("driver"),
        group=int(group) if group else None,
        bars=_bars(attribute("resource")),
        boot_vga=attribute("boot_vga") == "1",
        virtual_of=link("physfn"),
        virtual_total=number(attribute("sriov_totalvfs")),
        virtual_enabled=number(attribute("sriov_numvfs")),
    )


def _bars(resource: str) -> tuple[Bar, ...]:
    """Read a `resource` file: start, end and flags a line (Linux, drivers/pci/pci-sysfs.c)."""
    bars: list[Bar] = []
    for index, line in enumerate(resource.splitlines()[:_BARS]):
        start, end, flags = ([number(word, 16) for word in line.split()] + [0, 0, 0])[:3]
        if flags & _MEMORY and end > start:
            bars.append(
                Bar(
                    index=index,
                    address=start,
                    size=end - start + 1,
                    wide=bool(flags & _MEMORY_64),
                    prefetchable=bool(flags & _PREFETCH),
                    mapped=start > 0 and not flags & _UNSET,
                )
            )
    return tuple(bars)
