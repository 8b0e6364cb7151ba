"""What a guest image is: a disk with a file system, or an initrd."""

import struct
from typing import BinaryIO

from kata import problems
from kata.machine import node as kata_node

SECTOR = 512
# Marks of the file systems that Kata's rootfs_type names, by their place in a partition (Linux,
# include/uapi/linux/magic.h and each file system's superblock).
FILE_SYSTEMS = (
    (0x438, b"\x53\xef", "ext4"),
    (0x400, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0, b"XFSB", "xfs"),
)
# cpio archives, plain or compressed.
INITRDS = (b"070701", b"070702", b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
INITRD = "initrd"


def kind(node: kata_node.Node, path: str) -> str:
    """Return the file system of a guest image (ext4, erofs, xfs), or "initrd".

    Raises:
        Blocked: there is no such file, or it is neither.
    """
    place = node.path(path)
    if not place.is_file():
        raise problems.Blocked(f"gpu-guest-image={path}: there is no such file on this machine")
    with place.open("rb") as file:
        head = file.read(SECTOR)
        if head.startswith(INITRDS):
            return INITRD
        for start in (0, *_partitions(head)):
            found = _file_system(file, start)
            if found:
                return found
    raise problems.Blocked(
        f"gpu-guest-image={path}: expected a disk image with ext4, erofs or xfs, or an initrd"
    )


def _partitions(head: bytes) -> list[int]:
    """Return where the partitions of an MBR start, in bytes; Kata's images have one."""
    if len(head) < SECTOR or head[510:512] != b"\x55\xaa":
        return []
    starts = (struct.unpack_from("<I", head, 446 + 16 * number + 8)[0] for number in range(4))
    return [start * SECTOR for start in starts if start]


def _file_system(file: BinaryIO, start: int) -> str | None:
    for offset, mark, name in FILE_SYSTEMS:
        file.seek(start + offset)
        if file.read(len(mark)) == mark:
            return name
    return None
