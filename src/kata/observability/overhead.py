"""What a sandbox takes of the host's memory beside its guest's: what a RuntimeClass's overhead is for.

The kernel counts for each mapping of a process how much of it is in memory. A guest's own memory is
one mapping or a few, each far larger than any other of a hypervisor; so is the guest's image, which
all sandboxes share. What is left is the hypervisor itself.
"""

import re

from kata.machine import node as kata_node
from kata.machine import vanishing

GUEST = 128 << 10
"""kB from which a mapping counts as the guest's: the least that the option default-memory takes."""

# Of /proc/<pid>/smaps, proc(5); and of /proc/<pid>/status, the tables by which it is mapped.
_SIZE = re.compile(r"Size:\s+(\d+) kB")
_SHARE = re.compile(r"Pss:\s+(\d+) kB")
_TABLES = re.compile(r"^VmPTE:\s+(\d+) kB", re.MULTILINE)


def of_process(node: kata_node.Node, pid: int) -> int:
    """Return the bytes that a process holds beside the guest's memory; 0 where it is gone.

    Pages that processes share count in equal parts for each, so that the sum over all is right.
    """
    tables = _TABLES.search(vanishing.text(node, f"/proc/{pid}/status"))
    own = read(vanishing.text(node, f"/proc/{pid}/smaps"))
    return own + (int(tables[1]) << 10 if tables else 0)


def read(smaps: str) -> int:
    """Return the bytes in memory of all mappings that are smaller than a guest's memory.

    Args:
        smaps: the text of /proc/<pid>/smaps.
    """
    total, counts = 0, False
    for line in smaps.splitlines():
        if size := _SIZE.match(line):
            counts = int(size[1]) < GUEST
        elif counts and (share := _SHARE.match(line)):
            total += int(share[1])
    return total << 10
