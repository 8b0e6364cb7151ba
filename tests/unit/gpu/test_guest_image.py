"""What a guest image is."""

import gzip
import struct

import pytest

from kata import problems
from kata.gpu import guest_image

PATH = "/srv/kata-gpu.img"
SUPERBLOCKS = {
    "ext4": (0x438, b"\x53\xef"),
    "erofs": (0x400, struct.pack("<I", 0xE0F5E1E2)),
    "xfs": (0, b"XFSB"),
}


def disk(kind, start=0):
    """An image with a file system, at its beginning or in a partition of an MBR."""
    offset, mark = SUPERBLOCKS[kind]
    image = bytearray(start + 0x1000)
    image[start + offset : start + offset + len(mark)] = mark
    if start:
        struct.pack_into("<I", image, 446 + 8, start // 512)
        image[510:512] = b"\x55\xaa"
    return bytes(image)


def kind(node, image):
    node.lay({PATH: ""})
    node.path(PATH).write_bytes(image)
    return guest_image.kind(node, PATH)


@pytest.mark.parametrize("name", SUPERBLOCKS)
@pytest.mark.parametrize("start", [0, 3 << 20])
def test_a_disk_is_known_by_its_file_system(node, name, start):
    # Kata's image builder starts its partition at 3 MiB.
    assert kind(node, disk(name, start)) == name


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_initrd_is_an_archive(node, pack):
    assert kind(node, pack(b"070701" + bytes(600))) == "initrd"


def test_anything_else_is_refused(node):
    with pytest.raises(problems.Blocked, match=r"gpu-guest-image=/srv/kata-gpu\.img: expected"):
        kind(node, b"hello" * 1000)


def test_nothing_there_is_refused(node):
    with pytest.raises(problems.Blocked, match="there is no such file"):
        guest_image.kind(node, PATH)
