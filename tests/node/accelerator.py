"""Whether this machine can run guests in hardware: found out by running one.

A `/dev/kvm` that opens proves little: in some clouds and sandboxes a guest's firmware still runs,
and its kernel never gets to its first line.
"""

import functools
import os
import pathlib
import subprocess

from tests.node import cache

TRY = 8  # seconds; where KVM works a kernel is through in one


@functools.cache
def chosen(kernel: pathlib.Path) -> str:
    """Return "kvm" or "tcg" (emulation), tried with `kernel` once per boot of this machine.

    `$KATA_CHARM_ACCELERATOR` overrides it.
    """
    forced = os.environ.get("KATA_CHARM_ACCELERATOR")
    if forced:
        return forced
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = cache.root() / f"accelerator-{cache.key(pathlib.Path(__file__))}"
    if known.is_file():
        when, _, answer = known.read_text().partition(" ")
        if when == boot:
            return answer
    answer = "kvm" if _boots(kernel, "kvm") else "tcg"
    temporary = known.with_suffix(f".{os.getpid()}")
    temporary.write_text(f"{boot} {answer}")
    temporary.replace(known)
    return answer


def _boots(kernel: pathlib.Path, accelerator: str) -> bool:
    """Start a kernel that, having no disk, soon panics, which ends QEMU; see if it says a word."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "q35", "-accel", accelerator, "-cpu", "max", "-m", "256", "-no-reboot"),
        *("-kernel", str(kernel), "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"),
        *("-serial", "stdio"),
    ]
    try:
        said = subprocess.run(command, capture_output=True, timeout=TRY, check=False).stdout
    except subprocess.TimeoutExpired:
        return False
    return b"Linux version" in said
