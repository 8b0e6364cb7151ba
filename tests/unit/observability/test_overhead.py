"""What a sandbox takes beside its guest's memory."""

import mmap
import os

from kata.machine import node as kata_node
from kata.observability import overhead

SMAPS = """\
55d0c0000000-55d0c1000000 r-xp 00000000 fe:00 1 /opt/kata/bin/qemu-system-x86_64
Size:              16384 kB
Rss:               12000 kB
Pss:               10000 kB
Pss_Dirty:             0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0080000000 rw-s 00000000 00:01 2 /memfd:memory-backend-memfd (deleted)
Size:            2097152 kB
Rss:              900000 kB
Pss:              900000 kB
7f0080000000-7f0081000000 rw-p 00000000 00:00 0 [heap]
Size:              16384 kB
Rss:                2000 kB
Pss:                2000 kB
"""


def test_the_guests_memory_is_left_out():
    assert overhead.read(SMAPS) == 12000 << 10


def test_the_tables_that_map_it_count(node):
    node.lay({"/proc/7/smaps": SMAPS, "/proc/7/status": "Name:\tq\nVmPTE:\t    500 kB\n"})
    assert overhead.of_process(node, 7) == 12500 << 10


def test_a_process_that_is_gone_takes_nothing(node):
    assert overhead.of_process(node, 7) == 0


def test_on_a_real_process():
    machine = kata_node.Node()
    before = overhead.of_process(machine, os.getpid())
    with mmap.mmap(-1, 256 << 20) as guest, mmap.mmap(-1, 64 << 20) as own:
        guest.write(b"x" * (200 << 20))
        own.write(b"x" * (32 << 20))
        grown = overhead.of_process(machine, os.getpid()) - before
    assert 31 << 20 < grown < 60 << 20
