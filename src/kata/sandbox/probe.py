"""A program of a few dozen bytes that says which kernel it runs on, and waits.

It asks uname(2), writes the answer to its standard output and sleeps. It needs no library and no
other file, so that it runs in any sandbox, whatever there is on the machine and in the image. Its
machine code is spelled out below, call by call.
"""

import struct
from typing import NamedTuple

from kata.machine import host

PATH = "/kata-probe"
"""Where it is in a container."""

_FIELD = 65
_ANSWER_SIZE = 6 * _FIELD  # struct new_utsname (linux/utsname.h)

SIZE = _ANSWER_SIZE + 1
"""Bytes that it writes: the kernel's answer, and the end of a line for those who read lines."""

# Where the file is put in memory, to run and to write to; aligned for pages of up to 64 KiB.
_CODE, _DATA, _PAGE = 0x400000, 0x500000, 0x10000
_ANSWER = 0x200  # in the file
_EXECUTABLE, _LOAD, _STACK = 2, 1, 0x6474E551  # ET_EXEC, PT_LOAD, PT_GNU_STACK
_READ, _WRITE, _RUN = 4, 2, 1  # PF_R, PF_W, PF_X
_ELF = struct.Struct("<4s4B8xHHIQQQI6H")
_PROGRAM = struct.Struct("<IIQQQQQQ")

# Number of the call in eax; arguments in edi, esi, edx.
_AMD64 = (
    *("b83f000000", "bf00025000", "0f05"),  # uname(answer)
    *("b801000000", "bf01000000", "be00025000", "ba87010000", "0f05"),  # write(1, answer, 391)
    *("b822000000", "0f05", "ebf7"),  # pause(), again and again
)
# Number of the call in x8; arguments in x0 to x3.
_ARM64 = (
    *("081480d2", "004080d2", "000aa0f2", "010000d4"),  # uname(answer)
    # write(1, answer, 391)
    *("080880d2", "200080d2", "014080d2", "010aa0f2", "e23080d2", "010000d4"),
    # ppoll(NULL, 0, NULL, NULL), again and again
    *("280980d2", "000080d2", "010080d2", "020080d2", "030080d2", "010000d4", "faffff17"),
)
_MACHINES = {"amd64": (62, _AMD64), "arm64": (183, _ARM64)}  # EM_X86_64, EM_AARCH64


class Kernel(NamedTuple):
    """What a kernel calls itself: its release, and when and by whom it was built."""

    release: str
    version: str


def program(machine: host.Architecture) -> bytes:
    """Return the program, an ELF executable."""
    number, words = _MACHINES[machine]
    start = _ELF.size + 3 * _PROGRAM.size
    size = _ANSWER + SIZE
    identity = (b"\x7fELF", 2, 1, 1, 0)  # 64 bits, least significant byte first, version 1
    sizes = (_ELF.size, _PROGRAM.size, 3, 0, 0, 0)
    before = b"".join(
        (
            _ELF.pack(*identity, _EXECUTABLE, number, 1, _CODE + start, _ELF.size, 0, 0, *sizes),
            _PROGRAM.pack(_LOAD, _READ | _RUN, 0, _CODE, _CODE, size, size, _PAGE),
            _PROGRAM.pack(_LOAD, _READ | _WRITE, 0, _DATA, _DATA, size, size, _PAGE),
            _PROGRAM.pack(_STACK, _READ | _WRITE, 0, 0, 0, 0, 0, 16),
            bytes.fromhex("".join(words)),
        )
    )
    return before.ljust(_ANSWER, b"\0") + b"\n".rjust(SIZE, b"\0")


def read(answer: bytes) -> Kernel:
    """Read what the program wrote.

    Raises:
        ValueError: it is not whole.
    """
    if len(answer) != SIZE:
        raise ValueError(f"{len(answer)} bytes instead of {SIZE}")
    fields = [
        answer[start : start + _FIELD].partition(b"\0")[0].decode("ascii", "backslashreplace")
        for start in range(0, _ANSWER_SIZE, _FIELD)
    ]
    return Kernel(fields[2], fields[3])
