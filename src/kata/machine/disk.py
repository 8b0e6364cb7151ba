"""What a disk can still take, and what is safe on it."""

import ctypes
import os
import pathlib

from kata import problems

RESERVE = 256 << 20
"""Bytes to leave free: a full disk takes the node's pods down."""


def require_room(folder: pathlib.Path, size: int) -> None:
    """Refuse to write more than there is room for.

    Args:
        folder: where it is to go.
        size: how many bytes.

    Raises:
        Blocked: it would not leave `RESERVE` free.
    """
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if size + RESERVE > free:
        raise problems.Blocked(
            f"the disk of {folder} is full: {free >> 20} MiB free, {(size + RESERVE) >> 20} MiB "
            "needed; make room, then wait"
        )


def sync(folder: pathlib.Path) -> None:
    """Wait until all that was written to the file system of `folder` would outlive a power cut.

    One call for a tree of files is far cheaper than an fsync for each (man 2 syncfs).

    Raises:
        OSError: some of it could not be written.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)
