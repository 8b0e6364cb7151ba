"""The machine's IOMMU: whether the kernel can use it, does use it, and will after the next boot."""

import dataclasses
import re
from collections.abc import Mapping

from kata import problems
from kata.machine import modules
from kata.machine import node as kata_node

GROUPS = "/sys/kernel/iommu_groups"
UNITS = "/sys/class/iommu"
# update-grub reads the files of this folder after /etc/default/grub, on Debian and Ubuntu. Cloud
# images and the provisioner of MAAS have one named 50-…: ours comes after it.
GRUB_FOLDER = "/etc/default/grub.d"
GRUB_FILE = f"{GRUB_FOLDER}/90-kata-charm-iommu.cfg"
GRUB_RESULT = "/boot/grub/grub.cfg"

# What VFIO asks of a host's kernel (Kata, docs/use-cases/NVIDIA-GPU-passthrough-and-Kata.md).
FOR_PASSTHROUGH = ("CONFIG_VFIO", "CONFIG_VFIO_IOMMU_TYPE1", "CONFIG_VFIO_PCI")
# Since Linux 6.1 the second is part of the first.
FOR_VGPU = ("CONFIG_VFIO_MDEV", "CONFIG_VFIO_MDEV_DEVICE")
_FOLDED = {"CONFIG_VFIO_MDEV_DEVICE": "CONFIG_VFIO_MDEV"}

# CPU vendor to the word on the kernel's command line. An ARM machine needs none.
PARAMETERS = {"GenuineIntel": "intel_iommu=on", "AuthenticAMD": "amd_iommu=on"}
# ACPI tables by which firmware announces an IOMMU (UEFI Forum's registry of ACPI tables).
TABLES = {"GenuineIntel": "DMAR", "AuthenticAMD": "IVRS", "": "IORT"}
FIRMWARE_NAMES = {"GenuineIntel": "Intel VT-d", "AuthenticAMD": "AMD-Vi (IOMMU)", "": "SMMU"}

_OPTION = re.compile(r"(CONFIG_\w+)=(.*)|# (CONFIG_\w+) is not set")


@dataclasses.dataclass(frozen=True)
class State:
    """The IOMMU of a machine, as found."""

    active: bool
    """Whether the kernel has put devices into IOMMU groups."""
    parameter: str | None
    """The word that this CPU's command line needs; None if it needs none."""
    on_command_line: bool
    switched_off: str | None
    """The word on the command line that switches it off, if there is one."""
    announced: bool | None
    """Whether the firmware announces an IOMMU; None if that cannot be told."""
    firmware_name: str
    """What the firmware's menu calls it."""

    @property
    def reboot_helps(self) -> bool:
        """Whether another command line is all that is missing."""
        return not self.active and bool(self.parameter) and not self.on_command_line

    @property
    def remedy(self) -> str:
        """What to do about an IOMMU that is not active."""
        if self.switched_off:
            return f"take {self.switched_off} off the kernel's command line, then reboot"
        if self.announced is False or not self.reboot_helps:
            return f"switch on {self.firmware_name} in the firmware (BIOS), then reboot"
        return f"boot with {self.parameter} on the kernel's command line"


def state(node: kata_node.Node) -> State:
    """Look at the IOMMU as it is now."""
    vendor = _cpu_vendor(node)
    words = (node.read("/proc/cmdline") or "").split()
    parameter = PARAMETERS.get(vendor)
    tables = node.path("/sys/firmware/acpi/tables")
    names = ("intel_iommu", "amd_iommu", "iommu")
    pairs = [(word, *word.partition("=")[::2]) for word in words]
    off = (word for word, name, value in pairs if name in names and "off" in value.split(","))
    # The kernel takes a comma after the word too: intel_iommu=on,sm_on.
    given = {piece for word in words for piece in (word, word.partition(",")[0])}
    return State(
        active=_filled(node, GROUPS) and _filled(node, UNITS),
        parameter=parameter,
        on_command_line=parameter in given,
        switched_off=next(off, None),
        announced=(tables / TABLES.get(vendor, "IORT")).exists() if tables.is_dir() else None,
        firmware_name=FIRMWARE_NAMES.get(vendor, FIRMWARE_NAMES[""]),
    )


def parse_options(text: str) -> dict[str, str]:
    """Read a kernel's .config: option to its value; "n" where it is not set."""
    options: dict[str, str] = {}
    for line in text.splitlines():
        match = _OPTION.fullmatch(line.strip())
        if match:
            options[match[1] or match[3]] = match[2].strip('"') if match[1] else "n"
    return options


def host_options(node: kata_node.Node) -> Mapping[str, str] | None:
    """Return the options that the running kernel was built with; None if it does not tell."""
    release = modules.kernel_release(node)
    for path in (f"/boot/config-{release}", f"/lib/modules/{release}/config"):
        text = node.read(path)
        if text:
            return parse_options(text)
    packed = node.path("/proc/config.gz")
    if packed.exists():
        import gzip

        return parse_options(gzip.decompress(packed.read_bytes()).decode(errors="replace"))
    return None


def missing_options(options: Mapping[str, str], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the wanted options that are neither built in nor a module."""

    def there(name: str) -> bool:
        if name in options or name not in _FOLDED:
            return options.get(name) in ("y", "m")
        return there(_FOLDED[name])

    return tuple(name for name in wanted if not there(name))


def ensure_next_boot(node: kata_node.Node, parameter: str) -> bool:
    """Have the boot loader start the kernel with the IOMMU on from the next boot.

    Returns:
        True if anything has changed.

    Raises:
        Blocked: the boot loader is not GRUB, or it does not take the change; nothing is left of
            the attempt then.
    """
    if not node.exists("/etc/default/grub") or not node.exists("/usr/sbin/update-grub"):
        raise problems.Blocked(
            f"the IOMMU is off and this machine's boot loader is not GRUB: add {parameter} to its "
            "kernel command line, then reboot"
        )
    text = (
        "# Written by the kata charm: GPUs in virtual machines need the IOMMU.\n"
        f'GRUB_CMDLINE_LINUX="${{GRUB_CMDLINE_LINUX}} {parameter}"\n'
    )
    changed = node.write(GRUB_FILE, text)
    # An earlier attempt may have ended between the file and the command.
    if not changed and parameter in (node.read(GRUB_RESULT) or ""):
        return False
    ran = node.run("update-grub", check=False, timeout=300)
    trouble = "" if ran.ok else ran.words
    if ran.ok and parameter not in (node.read(GRUB_RESULT) or parameter):
        trouble = f"{parameter} did not get into {GRUB_RESULT}{_overriding(node)}"
    if trouble:
        node.remove(GRUB_FILE)
        raise problems.Blocked(f"update-grub: {trouble}; mend it, or set {parameter} by hand")
    return True


def forget_next_boot(node: kata_node.Node) -> bool:
    """Take our word off the command line of the boots to come; return True if it was there.

    Raises:
        Blocked: the boot loader does not take the change.
    """
    if not node.exists(GRUB_FILE):
        return False
    # The file goes last: while it is there, it is known that something is left to do.
    node.write(GRUB_FILE, "# Written by the kata charm, which is about to remove it.\n")
    ran = node.run("update-grub", check=False, timeout=300)
    if not ran.ok and ran.status != 127:  # there is such a command
        raise problems.Blocked(f"update-grub: {ran.words}; mend it")
    return node.remove(GRUB_FILE)


def _overriding(node: kata_node.Node) -> str:
    """Name the files that are read after ours and set what it adds to."""
    ours = GRUB_FILE.rpartition("/")[2]
    later = [
        name
        for name in node.names(GRUB_FOLDER)
        if name.endswith(".cfg")
        and name > ours
        and re.search(
            r"^\s*GRUB_CMDLINE_LINUX=", node.read(f"{GRUB_FOLDER}/{name}") or "", re.MULTILINE
        )
    ]
    return f": {', '.join(later)} in {GRUB_FOLDER} overrides it" if later else ""


def _cpu_vendor(node: kata_node.Node) -> str:
    match = re.search(r"^vendor_id\s*:\s*(\S+)", node.read("/proc/cpuinfo") or "", re.MULTILINE)
    return match[1] if match else ""


def _filled(node: kata_node.Node, folder: str) -> bool:
    place = node.path(folder)
    return place.is_dir() and any(place.iterdir())
