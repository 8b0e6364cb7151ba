"""Run in the node: a guest of one instruction, under the node's own /dev/kvm."""

import ctypes
import fcntl
import mmap
import os
import struct

CREATE_VM, VCPU_MMAP_SIZE = 0xAE01, 0xAE04
SET_MEMORY, CREATE_VCPU, RUN = 0x4020AE46, 0xAE41, 0xAE80
GET_SREGS, SET_SREGS, SET_REGS = 0x8138AE83, 0x4138AE84, 0x4090AE82
EXIT_HLT = 5

kvm = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(kvm, CREATE_VM, 0)
memory = mmap.mmap(-1, 4096)
memory[0] = 0xF4  # hlt
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(vm, SET_MEMORY, struct.pack("IIQQQ", 0, 0, 0x1000, 4096, address))
vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
state = mmap.mmap(vcpu, fcntl.ioctl(kvm, VCPU_MMAP_SIZE, 0))
registers = bytearray(312)
fcntl.ioctl(vcpu, GET_SREGS, registers)
struct.pack_into("QIH", registers, 0, 0, 0xFFFF, 0)  # the code segment starts at 0
fcntl.ioctl(vcpu, SET_SREGS, registers)
fcntl.ioctl(vcpu, SET_REGS, struct.pack("16QQQ", *[0] * 16, 0x1000, 2))
fcntl.ioctl(vcpu, RUN, 0)
(reason,) = struct.unpack_from("I", state, 8)
print("halted" if reason == EXIT_HLT else f"exit reason {reason}")
