"""LZ4 in the legacy framing of Linux kernel images, unpacked: the standard library has none.

The formats are those of lz4's doc/lz4_Frame_format.md and doc/lz4_Block_format.md.
"""

import struct

MAGIC = b"\x02\x21\x4c\x18"


def decompress(data: bytes, most: int) -> bytes:
    """Unpack a legacy frame; what follows its last block is left alone.

    Args:
        data: the frame, from its magic number on.
        most: bytes to stop after.

    Raises:
        ValueError: it is damaged.
    """
    output = bytearray()
    position = len(MAGIC)
    while position + 4 <= len(data) and len(output) < most:
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        # A kernel's image ends with its unpacked size: no block is that long.
        if size == 0 or position + size > len(data):
            break
        _block(data, position, position + size, output)
        position += size
    return bytes(output)


def _block(data: bytes, position: int, end: int, output: bytearray) -> None:
    """Append what a block holds: runs of literals, each followed by a copy of earlier bytes."""
    try:
        while position < end:
            token = data[position]
            position += 1
            length = token >> 4
            if length == 15:
                length, position = _longer(data, position)
            output += data[position : position + length]
            position += length
            if position == end:
                return  # the last run has no copy
            distance = data[position] | data[position + 1] << 8
            position += 2
            length = token & 15
            if length == 15:
                length, position = _longer(data, position)
            _copy(output, distance, length + 4)
    except IndexError:
        raise ValueError("the block ends early") from None


def _longer(data: bytes, position: int) -> tuple[int, int]:
    """Return a length of 15 or more, and where its bytes end."""
    length = 15
    while True:
        byte = data[position]
        position += 1
        length += byte
        if byte != 255:
            return length, position


def _copy(output: bytearray, distance: int, length: int) -> None:
    start = len(output) - distance
    if distance == 0 or start < 0:
        raise ValueError("a copy starts before the data")
    if distance >= length:
        output += output[start : start + length]
    else:
        # It runs into what it writes itself: the bytes repeat.
        piece = bytes(output[start:])
        output += (piece * (length // distance + 1))[:length]
