"""What a guest kernel was built with, read from its image or from the file beside it.

A kernel with CONFIG_IKCONFIG carries its .config, compressed, between two marks (Linux,
kernel/configs.c). An x86 image is itself compressed, after a header that says where (Linux,
Documentation/arch/x86/boot.rst). Kata's own kernels carry none, and have theirs beside them as
`config-<version>` (Kata, tools/packaging/kernel/build-kernel.sh).
"""

import dataclasses
import os
import pathlib
import re
import struct
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from kata import problems
from kata.gpu import iommu
from kata.machine import node as kata_node

_START, _END = b"IKCFG_ST", b"IKCFG_ED"
_BANNER = re.compile(rb"Linux version (\S{3,64})")
# Offsets in an x86 image (boot protocol 2.08 and later).
_SETUP_SECTORS, _MAGIC, _PROTOCOL, _VERSION, _PAYLOAD = 0x1F1, 0x202, 0x206, 0x20E, 0x248
_LARGEST = 1 << 30

Slot = Literal["acpi", "shpc", "pcie", "cold"]
"""How the guest learns of a GPU: by ACPI or a hot-plug controller on a PCI bridge, on a PCIe root
port, or by finding it when it boots."""


class Need(NamedTuple):
    """An option that a guest kernel for NVIDIA GPUs must have, or must not have."""

    option: str
    value: str
    """"y", or "n" for one that must not be there, as a module neither."""
    slots: tuple[Slot, ...]
    """The kinds of slot that need it."""
    why: str


_ALL: tuple[Slot, ...] = ("acpi", "shpc", "pcie", "cold")
# Kata, docs/use-cases/NVIDIA-GPU-passthrough-and-Kata.md, and the deploy record. With cold plug
# no slot has to take a device while the guest runs.
NEEDS = (
    Need("CONFIG_HOTPLUG_PCI_PCIE", "y", ("pcie",), "takes a GPU on a PCIe root port"),
    Need("CONFIG_HOTPLUG_PCI_SHPC", "y", ("shpc",), "takes a GPU on a PCI bridge"),
    Need("CONFIG_HOTPLUG_PCI_ACPI", "y", ("acpi",), "takes a GPU on a PCI bridge"),
    Need("CONFIG_MODULES", "y", _ALL, "loads NVIDIA's driver"),
    Need("CONFIG_MODULE_UNLOAD", "y", _ALL, "loads NVIDIA's driver"),
    Need("CONFIG_PCI_MMCONFIG", "y", _ALL, "reaches the registers of PCIe devices"),
    Need("CONFIG_DRM_NOUVEAU", "n", _ALL, "is at odds with NVIDIA's driver"),
)


@dataclasses.dataclass(frozen=True)
class GuestKernel:
    """A guest kernel's image, as read."""

    path: str
    version: str | None
    options: Mapping[str, str] | None
    """None where neither the image nor a file beside it tells."""
    source: str
    """Where the options were read, or why they were not."""

    def wrong(self, slot: Slot, machine: str = "amd64") -> tuple[Need, ...]:
        """Return what is not as a slot needs it; nothing where the options are unknown."""
        if self.options is None:
            return ()
        return tuple(
            need
            for need in NEEDS
            if slot in need.slots and asked_on(need, machine) and not meets(self.options, need)
        )


def asked_on(need: Need, machine: str) -> bool:
    """Return whether a need stands on a machine: ARM has no CONFIG_PCI_MMCONFIG, nor SHPC."""
    return machine == "amd64" or need.option not in (
        "CONFIG_PCI_MMCONFIG",
        "CONFIG_HOTPLUG_PCI_SHPC",
    )


def meets(options: Mapping[str, str], need: Need) -> bool:
    """Return whether a kernel's options meet a need."""
    value = options.get(need.option, "n")
    return value == "n" if need.value == "n" else value == need.value


def read(node: kata_node.Node, path: str) -> GuestKernel:
    """Read a guest kernel's version and options.

    Args:
        node: the machine.
        path: the image: bzImage, Image or vmlinux, compressed or not.

    Raises:
        Blocked: there is no such file, or it is no kernel.
    """
    place = node.path(path)
    if not place.is_file():
        raise problems.Blocked(f"guest kernel {path} does not exist; see gpu-guest-kernel")
    image = place.read_bytes()
    if not is_kernel(image):
        raise problems.Blocked(
            f"{path} is no kernel (bzImage, Image or vmlinux); see gpu-guest-kernel"
        )
    try:
        body, trouble = unpacked(image), ""
    except _Unreadable as error:
        body, trouble = b"", str(error)
    version = _version(image, body)
    text = embedded_config(body)
    if text is not None:
        return GuestKernel(path, version, iommu.parse_options(text), "the image itself")
    beside = _config_beside(node, path, version)
    if beside:
        options = iommu.parse_options(node.read(beside) or "")
        return GuestKernel(path, version, options, beside)
    reason = trouble or "the image carries no configuration"
    hint = f"put config-{version} beside it" if version else "put its .config beside it"
    return GuestKernel(path, version, None, f"{reason}; {hint}")


def is_kernel(image: bytes) -> bool:
    """Return whether these bytes look like a kernel: x86 boot image, ARM64 image or ELF."""
    packed = any(image.startswith(magic) for magic in _UNPACKERS)
    return (
        image[_MAGIC : _MAGIC + 4] == b"HdrS"
        or image[0x38:0x3C] == b"ARM\x64"
        or image.startswith(b"\x7fELF")
        or packed
    )


def embedded_config(body: bytes) -> str | None:
    """Return the .config inside an unpacked kernel; None if it carries none."""
    start = body.find(_START + b"\x1f\x8b")
    end = body.find(_END, start)
    if start < 0 or end < 0:
        return None
    return _gzip(body[start + len(_START) : end]).decode(errors="replace")


def unpacked(image: bytes) -> bytes:
    """Return a kernel as it lies in memory, whatever its image is compressed with."""
    if image[_MAGIC : _MAGIC + 4] == b"HdrS":
        (protocol,) = struct.unpack_from("<H", image, _PROTOCOL)
        if protocol < 0x208:
            raise _Unreadable(f"boot protocol {protocol >> 8}.{protocol & 255:02} is too old")
        offset, length = struct.unpack_from("<II", image, _PAYLOAD)
        begin = ((image[_SETUP_SECTORS] or 4) + 1) * 512 + offset
        image = image[begin : begin + length]
    for magic, unpack in _UNPACKERS.items():
        if image.startswith(magic):
            return unpack(image)
    return image


class _Unreadable(Exception):
    """The image cannot be unpacked here."""


def _gzip(data: bytes) -> bytes:
    import zlib

    return _bounded(zlib.decompressobj(wbits=31).decompress, data, zlib.error)


def _xz(data: bytes) -> bytes:
    import lzma

    return _bounded(lzma.LZMADecompressor().decompress, data, lzma.LZMAError)


def _bzip2(data: bytes) -> bytes:
    import bz2

    return _bounded(bz2.BZ2Decompressor().decompress, data, OSError)


def _zstd(data: bytes) -> bytes:
    import zstandard

    def decompress(data: bytes, most: int) -> bytes:
        # A kernel's frame does not tell its size.
        with zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(data) as reader:
            return reader.read(most)

    return _bounded(decompress, data, zstandard.ZstdError)


def _lz4(data: bytes) -> bytes:
    from kata.gpu import lz4

    return _bounded(lz4.decompress, data, ValueError)


def _bounded(
    decompress: Callable[[bytes, int], bytes], data: bytes, failure: type[Exception]
) -> bytes:
    # What follows the stream (its size, padding) is left alone.
    try:
        return decompress(data, _LARGEST)
    except failure as error:
        raise _Unreadable(f"the image cannot be unpacked: {error}") from error


_UNPACKERS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": _gzip,
    b"\xfd7zXZ\x00": _xz,
    b"\x5d\x00\x00": _xz,
    b"BZh": _bzip2,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x02\x21\x4c\x18": _lz4,
}


def _version(image: bytes, body: bytes) -> str | None:
    if image[_MAGIC : _MAGIC + 4] == b"HdrS":
        (offset,) = struct.unpack_from("<H", image, _VERSION)
        words = image[offset + 0x200 :][:256].split(b"\0")[0].split()
        return words[0].decode(errors="replace") if offset and words else None
    match = _BANNER.search(body)
    return match[1].decode(errors="replace") if match else None


def _config_beside(node: kata_node.Node, path: str, version: str | None) -> str | None:
    """Return the configuration that lies beside an image, whose name may be a link's."""
    names: list[pathlib.PurePath] = [pathlib.PurePath(path)]
    place = node.path(path)
    if place.is_symlink():
        names.append(names[0].parent / os.readlink(place))
    candidates: list[str] = []
    for name in names:
        _, dash, rest = name.name.partition("-")
        if dash:
            candidates.append(str(name.with_name(f"config-{rest}")))
        candidates.append(f"{name}.config")
        if version:
            candidates.append(str(name.with_name(f"config-{version}")))
    return next((path for path in candidates if node.exists(path)), None)
