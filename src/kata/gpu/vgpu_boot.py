"""Create the vGPUs of this machine again after a boot, which ends them.

Run by kata-charm-vgpu.service as a file of its own, on the system's python3, without anything of
the charm: the standard library only. Its one argument is the record that `kata.vgpu` keeps.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping

BUS = "/sys/class/mdev_bus"
SRIOV_MANAGE = "/usr/lib/nvidia/sriov-manage"
PATIENCE = 120  # seconds that NVIDIA's driver gets to show its types


def create(record: Mapping[str, Mapping[str, str]], bus: pathlib.Path, patience: float) -> int:
    """Create what is missing of the recorded vGPUs; return how many could not be.

    Args:
        record: UUID to the parent's address and the type's id.
        bus: where the parents are.
        patience: seconds to wait, in all, for the parents.
    """
    deadline = time.monotonic() + patience
    failed = 0
    for uuid, instance in record.items():
        folder = bus / instance["parent"] / "mdev_supported_types" / instance["type"]
        while not folder.is_dir() and time.monotonic() < deadline:
            time.sleep(1)
        if (folder / "devices" / uuid).exists():
            continue
        try:
            _put(folder / "create", uuid)
        except OSError as error:
            print(f"vGPU {uuid} ({instance['type']}): {error}", file=sys.stderr)  # noqa: T201
            failed += 1
    return failed


def _put(path: pathlib.Path, value: str) -> None:
    """Hand a value to the kernel: the file is for writing only, and must be there."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def main(path: str) -> int:
    """Read the record at `path`, enable virtual functions if they were, and create."""
    record = json.loads(pathlib.Path(path).read_text())
    for bdf in record.get("sriov", []):
        subprocess.run([SRIOV_MANAGE, "-e", bdf], check=False, timeout=60)
    return 1 if create(record.get("instances", {}), pathlib.Path(BUS), PATIENCE) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
