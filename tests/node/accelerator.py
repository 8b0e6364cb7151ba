"""Whether this machine can run guests in hardware: found out by running one.

A `/dev/kvm` that opens proves little: in some clouds and sandboxes the first instruction of a
guest never ends.
"""

import functools
import os
import pathlib
import subprocess
import tempfile

from tests.node import cache

TRY = 5  # seconds; where KVM works the answer takes 0.1 s
ANSWER = 0x21
# At the reset vector of a 64 KiB firmware: mov al, ANSWER; out 0xf4, al; hlt.
FIRMWARE = bytes(0xFFF0) + bytes([0xB0, ANSWER, 0xE6, 0xF4, 0xF4]) + bytes(11)


@functools.cache
def chosen() -> str:
    """Return "kvm" or "tcg" (emulation), tried once per boot of this machine.

    `$KATA_CHARM_ACCELERATOR` overrides it.
    """
    forced = os.environ.get("KATA_CHARM_ACCELERATOR")
    if forced:
        return forced
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = cache.root() / "accelerator"
    if known.is_file():
        when, _, answer = known.read_text().partition(" ")
        if when == boot:
            return answer
    answer = "kvm" if _kvm_runs() else "tcg"
    temporary = known.with_suffix(f".{os.getpid()}")
    temporary.write_text(f"{boot} {answer}")
    temporary.replace(known)
    return answer


def _kvm_runs() -> bool:
    """Run three instructions under KVM; they end QEMU with an exit status of our choice."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with tempfile.NamedTemporaryFile() as firmware:
        firmware.write(FIRMWARE)
        firmware.flush()
        command = [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35,kernel-irqchip=split", "-accel", "kvm", "-cpu", "host", "-m", "64"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios", firmware.name),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TRY, check=False)
        except subprocess.TimeoutExpired:
            return False
    # QEMU's isa-debug-exit ends with twice the byte and one.
    return done.returncode == 2 * ANSWER + 1
