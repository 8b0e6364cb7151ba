"""LZ4's legacy frames, as `lz4 -l` writes them for Linux."""

import struct

import pytest

from kata.gpu import lz4

# printf 'abcabcabcabcabcabcabcabcabcabc, and so on' | lz4 -l, taken apart by hand: 3 literals,
# a copy of 27 bytes from 3 back (it runs into itself), then 11 literals.
BLOCK = bytes.fromhex("3f") + b"abc" + bytes.fromhex("0300 08") + b"\xb0" + b", and so on"


def framed(*blocks):
    return lz4.MAGIC + b"".join(struct.pack("<I", len(each)) + each for each in blocks)


def stored(data):
    """A frame of literals only, in blocks as long as the format's: what any reader must take."""
    blocks = []
    for start in range(0, len(data), 1 << 16):
        piece = data[start : start + (1 << 16)]
        length = len(piece)
        head = bytes([min(length, 15) << 4])
        if length >= 15:
            rest = length - 15
            head += b"\xff" * (rest // 255) + bytes([rest % 255])
        blocks.append(head + piece)
    return framed(*blocks)


def test_literals_and_a_copy_that_repeats():
    assert lz4.decompress(framed(BLOCK), 1 << 20) == b"abc" * 10 + b", and so on"


def test_blocks_follow_each_other_and_what_comes_after_is_left():
    frame = framed(BLOCK, BLOCK) + struct.pack("<I", 1 << 31)
    assert lz4.decompress(frame, 1 << 20) == (b"abc" * 10 + b", and so on") * 2


@pytest.mark.parametrize("length", [0, 1, 14, 15, 16, 269, 270, 271, 70000])
def test_long_runs(length):
    data = bytes(number % 251 for number in range(length))
    assert lz4.decompress(stored(data), 1 << 20) == data


def test_it_stops_where_it_is_told_to():
    assert len(lz4.decompress(framed(*[BLOCK] * 100), 1000)) < 1100


@pytest.mark.parametrize(
    "block", [b"\x10a\x05\x00", b"\x10a\x00\x00\x00", b"\x1f", b"\x00\x01", b"\x0f\x01\x00\xff"]
)
def test_damage_is_told(block):
    with pytest.raises(ValueError, match=r"block ends early|before the data"):
        lz4.decompress(framed(block), 1 << 20)
