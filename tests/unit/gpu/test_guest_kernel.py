"""What a guest kernel was built with, read from its image."""

import bz2
import gzip
import lzma
import struct

import pytest
import zstandard

from kata import problems
from kata.gpu import guest_kernel
from tests.unit.gpu import test_lz4

GOOD = """\
CONFIG_HOTPLUG_PCI_PCIE=y
CONFIG_HOTPLUG_PCI_SHPC=y
CONFIG_HOTPLUG_PCI_ACPI=y
CONFIG_MODULES=y
CONFIG_MODULE_UNLOAD=y
CONFIG_PCI_MMCONFIG=y
# CONFIG_DRM_NOUVEAU is not set
"""
PATH = "/usr/share/kata-containers/vmlinuz-nvidia-gpu.container"
COMPRESSIONS = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
    "lz4": test_lz4.stored,
    "none": lambda data: data,
}


def vmlinux(config=GOOD, version="5.15.23-nvidia-gpu"):
    """A kernel as it lies in memory: an ELF file with its banner and, if asked, its .config."""
    body = b"\x7fELF" + bytes(3000) + f"Linux version {version} (kata@build)".encode() + bytes(99)
    # The marks stand in the kernel's own text too, without a configuration behind them.
    body += b"IKCFG_ST and IKCFG_ED" + bytes(50)
    if config is not None:
        body += b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED"
    return body + bytes(500)


def bzimage(payload, version="5.15.23-nvidia-gpu", protocol=0x20F):
    """An x86 boot image around a payload (Linux, Documentation/arch/x86/boot.rst)."""
    sectors, offset = 4, 100
    setup = bytearray((sectors + 1) * 512)
    setup[0x1F1] = sectors
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, 0x300)
    text = f"{version} (kata@build) #1 SMP".encode() + b"\0"
    setup[0x500 : 0x500 + len(text)] = text
    # What follows the stream: the unpacked size, as Linux's build appends it.
    payload += struct.pack("<I", 12345)
    struct.pack_into("<II", setup, 0x248, offset, len(payload))
    return bytes(setup) + bytes(offset) + payload + bytes(700)


def lay(node, image, path=PATH):
    node.lay({path: ""})
    node.path(path).write_bytes(image)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_the_options_are_read_from_inside_an_x86_image(node, name):
    lay(node, bzimage(COMPRESSIONS[name](vmlinux())))
    kernel = guest_kernel.read(node, PATH)
    assert kernel.source == "the image itself"
    assert kernel.version == "5.15.23-nvidia-gpu"
    assert kernel.options["CONFIG_MODULE_UNLOAD"] == "y"
    assert kernel.options["CONFIG_DRM_NOUVEAU"] == "n"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_and_from_a_vmlinux_or_a_packed_image_of_another_machine(node, pack):
    lay(node, pack(vmlinux(version="6.1.38")))
    kernel = guest_kernel.read(node, PATH)
    assert (kernel.version, kernel.source) == ("6.1.38", "the image itself")


@pytest.mark.parametrize(
    "beside",
    [
        "/usr/share/kata-containers/config-nvidia-gpu.container",
        "/usr/share/kata-containers/config-5.15.23-89-nvidia-gpu",
        "/usr/share/kata-containers/config-5.15.23-nvidia-gpu",
        f"{PATH}.config",
    ],
)
def test_an_image_that_carries_none_has_them_beside_it(node, beside):
    # Kata installs vmlinuz-5.15.23-89-nvidia-gpu, a link to it, and config-5.15.23-89-nvidia-gpu.
    real = "/usr/share/kata-containers/vmlinuz-5.15.23-89-nvidia-gpu"
    lay(node, bzimage(gzip.compress(vmlinux(None))), real)
    node.path(PATH).symlink_to("vmlinuz-5.15.23-89-nvidia-gpu")
    node.lay({beside: GOOD})
    kernel = guest_kernel.read(node, PATH)
    assert kernel.source == beside
    assert kernel.wrong("pcie") == ()


def test_an_image_that_tells_nothing_says_what_to_do(node):
    lay(node, bzimage(gzip.compress(vmlinux(None))))
    kernel = guest_kernel.read(node, PATH)
    assert kernel.options is None
    assert kernel.source == (
        "the image carries no configuration; put config-5.15.23-nvidia-gpu beside it"
    )
    assert kernel.wrong("pcie") == ()


def test_a_damaged_image_is_told(node):
    lay(node, bzimage(gzip.compress(b"")[:10] + b"\xff" * 200))
    kernel = guest_kernel.read(node, PATH)
    assert kernel.options is None
    assert "cannot be unpacked" in kernel.source


def test_a_boot_protocol_without_a_payload_offset_is_told(node):
    lay(node, bzimage(gzip.compress(vmlinux()), protocol=0x207))
    assert "boot protocol 2.07 is too old" in guest_kernel.read(node, PATH).source


@pytest.mark.parametrize("image", [b"", b"hello", b"\x89PNG" + bytes(600)])
def test_what_is_no_kernel_is_refused(node, image):
    lay(node, image)
    with pytest.raises(problems.Blocked, match=f"{PATH} is no kernel"):
        guest_kernel.read(node, PATH)


def test_what_is_not_there_is_refused(node):
    with pytest.raises(problems.Blocked, match="does not exist; see gpu-guest-kernel"):
        guest_kernel.read(node, PATH)


@pytest.mark.parametrize(
    ("slot", "machine", "broken", "expected"),
    [
        ("pcie", "amd64", "CONFIG_HOTPLUG_PCI_PCIE=y", ["CONFIG_HOTPLUG_PCI_PCIE"]),
        ("cold", "amd64", "CONFIG_HOTPLUG_PCI_PCIE=y", []),
        ("shpc", "amd64", "CONFIG_HOTPLUG_PCI_SHPC=y", ["CONFIG_HOTPLUG_PCI_SHPC"]),
        ("acpi", "amd64", "CONFIG_HOTPLUG_PCI_SHPC=y", []),
        ("acpi", "amd64", "CONFIG_HOTPLUG_PCI_ACPI=y", ["CONFIG_HOTPLUG_PCI_ACPI"]),
        ("cold", "amd64", "CONFIG_MODULES=y", ["CONFIG_MODULES"]),
        ("cold", "amd64", "CONFIG_PCI_MMCONFIG=y", ["CONFIG_PCI_MMCONFIG"]),
        ("cold", "arm64", "CONFIG_PCI_MMCONFIG=y", []),
        ("cold", "amd64", "CONFIG_MODULE_UNLOAD=y", ["CONFIG_MODULE_UNLOAD"]),
    ],
)
def test_what_a_slot_needs(slot, machine, broken, expected):
    text = GOOD.replace(f"{broken}\n", "")
    kernel = guest_kernel.GuestKernel(PATH, None, options(text), "a test")
    assert [need.option for need in kernel.wrong(slot, machine)] == expected


@pytest.mark.parametrize("value", ["y", "m"])
def test_nouveau_must_not_be_there_in_any_form(value):
    text = GOOD.replace("# CONFIG_DRM_NOUVEAU is not set", f"CONFIG_DRM_NOUVEAU={value}")
    kernel = guest_kernel.GuestKernel(PATH, None, options(text), "a test")
    assert [need.option for need in kernel.wrong("cold")] == ["CONFIG_DRM_NOUVEAU"]


def options(text):
    from kata.gpu import iommu

    return iommu.parse_options(text)
