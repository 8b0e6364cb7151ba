"""A PCI function answered by a thread here, for QEMU's `x-pci-proxy-dev`.

QEMU hands every access to the function's configuration space to the other end of a socket. Its
messages are those of QEMU 7.2, `include/hw/remote/mpqemu-link.h`: a header of command (int), four
bytes of padding and the payload's size (u64), then the payload, and descriptors beside it. Reads
and writes of configuration space carry address, value and length; BAR accesses a 64-bit address
and value. Each is answered with a `RET` message that holds one u64. QEMU calls the device
experimental ("x-").

What is here looks real to the guest's kernel: type, BARs, capabilities, drivers that bind to it,
IOMMU groups. There is no memory and no engine behind the BARs.
"""

import array
import contextlib
import dataclasses
import os
import socket
import struct
import threading

# The commands, as numbered by `MPQemuCmd`.
SYNC_SYSMEM, RET, CONFIG_WRITE, CONFIG_READ, BAR_WRITE, BAR_READ, SET_IRQFD, RESET = range(8)
HEADER = struct.Struct("<i4xQ")
CONFIG = struct.Struct("<IIi")
BAR = struct.Struct("<QQI")
VALUE = struct.Struct("<Q")

# Offsets in configuration space (PCI Local Bus Specification 3.0, chapter 6).
COMMAND, BARS, SUBSYSTEM, CAPABILITIES, LINE, PIN = 0x04, 0x10, 0x2C, 0x34, 0x3C, 0x3D
POWER, EXPRESS = 0x60, 0x78  # where our capabilities lie
MEMORY_64 = 0xC  # a memory BAR, 64 bits wide, prefetchable


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a function claims to be; `bars` maps a BAR's number to its size and width in bits."""

    vendor: int
    device: int
    class_code: int
    bars: dict[int, tuple[int, int]]
    subsystem: tuple[int, int] = (0x10DE, 0x1626)
    revision: int = 0xA1


# An NVIDIA H100 PCIe is one 3D controller; its BARs are larger. Consumer cards carry an audio
# function in the same group, which the kernel's sound driver takes.
GPU = Kind(0x10DE, 0x2330, 0x030200, {0: (16 << 20, 32), 2: (16 << 30, 64)})
AUDIO = Kind(0x10DE, 0x22BA, 0x040300, {0: (16 << 10, 32)})
H100 = (GPU,)
WITH_AUDIO = (GPU, AUDIO)


class Function:
    """A function being served; `descriptor` is the end that QEMU takes."""

    def __init__(self, name: str, kind: Kind, number: int):
        self.name = name
        self._space = bytearray(256)
        self._writable = bytearray(256)
        self._kind = kind
        self._realized = False
        self._lay_out(kind, number)
        self._socket, self._given = socket.socketpair()
        self.descriptor = self._given.fileno()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        for end in (self._given, self._socket):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _lay_out(self, kind: Kind, number: int) -> None:
        space, writable = self._space, self._writable
        struct.pack_into("<HHHH", space, 0, kind.vendor, kind.device, 0, 0x10)
        struct.pack_into("<I", space, 0x08, kind.class_code << 8 | kind.revision)
        struct.pack_into("<HH", space, SUBSYSTEM, *kind.subsystem)
        space[0x0E] = 0x80  # one of several functions
        space[CAPABILITIES] = POWER
        space[PIN] = number + 1
        struct.pack_into("<BBHHH", space, POWER, 0x01, EXPRESS, 0x0003, 0x0008, 0)
        # A PCI Express endpoint with function level reset, 2.5 GT/s, one lane.
        device = struct.pack("<BBHIHHIHH", 0x10, 0, 0x0002, 0x10008FE1, 0, 0, 0x11, 0, 0x11)
        space[EXPRESS : EXPRESS + len(device)] = device
        struct.pack_into("<H", writable, COMMAND, 0x0507)
        struct.pack_into("<H", writable, POWER + 4, 0x0003)
        struct.pack_into("<H", writable, EXPRESS + 8, 0x7FFF)
        writable[0x0C] = writable[LINE] = 0xFF
        for index, (size, width) in kind.bars.items():
            offset = BARS + 4 * index
            mask = ~(size - 1) & (1 << width) - 1
            struct.pack_into("<Q" if width == 64 else "<I", writable, offset, mask)
            space[offset] = MEMORY_64 if width == 64 else 0

    def _read(self, address: int, length: int) -> int:
        # QEMU sizes the BARs itself when it makes the device, and knows 32 bits only. The wide
        # ones are kept from it, and shown to the guest, whose first sight follows a reset.
        index = (address - BARS) // 4
        if not self._realized and 0 <= index < 6 and self._kind.bars.get(index, (0, 64))[1] == 64:
            return 0
        return int.from_bytes(self._space[address : address + length], "little")

    def _write(self, address: int, value: int, length: int) -> None:
        for offset, byte in enumerate((value & (1 << 8 * length) - 1).to_bytes(length, "little")):
            mask = self._writable[address + offset]
            kept = self._space[address + offset] & ~mask
            self._space[address + offset] = kept | byte & mask

    def _serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                command, size = HEADER.unpack(self._take(HEADER.size))
                body = self._take(size)
                if command in (SYNC_SYSMEM, SET_IRQFD):
                    continue  # QEMU waits for no answer to these
                self._socket.sendall(HEADER.pack(RET, VALUE.size))
                self._socket.sendall(VALUE.pack(self._answer(command, body)))

    def _answer(self, command: int, body: bytes) -> int:
        if command == CONFIG_READ:
            address, _, length = CONFIG.unpack_from(body)
            return self._read(address, length)
        if command == CONFIG_WRITE:
            self._write(*CONFIG.unpack_from(body))
        if command == RESET:
            self._realized = True
            self._space[COMMAND : COMMAND + 2] = bytes(2)
        return 0  # a BAR reads as nothing

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece, attached, _, _ = self._socket.recvmsg(size - len(data), socket.CMSG_SPACE(64))
            for level, kind, content in attached:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    # The guest's memory, and interrupts: not needed here.
                    descriptors = array.array("i")
                    descriptors.frombytes(content[: len(content) // 4 * 4])
                    for descriptor in descriptors:
                        os.close(descriptor)
            if not piece:
                raise EOFError
            data += piece
        return data
