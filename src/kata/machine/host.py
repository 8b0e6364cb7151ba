"""What Kata asks of the machine: found, wanted, and the remedy where they differ.

`checks` looks and changes nothing. `ensure_ready` loads what only has to be loaded, and refuses a
machine that cannot run Kata before anything is installed on it.
"""

import dataclasses
import fcntl
import os
import pathlib
import re
from collections.abc import Callable
from typing import Literal

from kata import problems
from kata.machine import modules
from kata.machine import node as kata_node

Architecture = Literal["amd64", "arm64"]

_ARCHITECTURES: dict[str, Architecture] = {"x86_64": "amd64", "aarch64": "arm64"}
_MODULES = ("vhost", "vhost_net", "vhost_vsock")
# The CPU flag of hardware virtualisation, and the module of KVM that uses it.
_KVM_MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}
# linux/kvm.h: _IO(0xAE, 0x00); the answer has been 12 since Linux 2.6.22, and is fixed.
_KVM_GET_API_VERSION = 0xAE00
_KVM_API_VERSION = 12
# QEMU's io_uring, which Kata's own configuration asks for from 3.0 (block_device_aio).
_KERNEL = (5, 1)


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that Kata asks of the machine.

    Attributes:
        name: what is looked at, in a word or two.
        found: how it is.
        wanted: how it should be.
        ok: whether that will do.
        remedy: what to do about it; empty where nothing can or need be done.
        required: whether Kata cannot run without it; otherwise it is advice.
    """

    name: str
    found: str
    wanted: str
    ok: bool
    remedy: str = ""
    required: bool = True


def machine(node: kata_node.Node) -> Architecture:
    """Return the machine's architecture as Debian and Kata's release files name it.

    Raises:
        Blocked: Kata's releases are not for it.
    """
    word = _hardware(node)
    if word not in _ARCHITECTURES:
        raise problems.Blocked(f"this machine is {word}: Kata runs on {_known()} only")
    return _ARCHITECTURES[word]


def in_system_container(node: kata_node.Node) -> str | None:
    """Return which kind of container this machine is (such as `lxc`), or None if it is none.

    A container's root cannot load modules or start virtual machines of its own accord; that is
    how the machine was placed, and no fault (systemd, "Container Interface").
    """
    told = (node.read("/run/systemd/container") or "").strip()
    if told:
        return told
    for variable in (node.read("/proc/1/environ") or "").split("\0"):
        name, _, value = variable.partition("=")
        if name == "container" and value:
            return value
    return None


def checks(node: kata_node.Node) -> tuple[Check, ...]:
    """Look at all that Kata asks of the machine; nothing is changed."""
    return tuple(look(node) for look in (*_HARDWARE, *_DEVICES, *_ADVICE))


def only_cgroup_v2(node: kata_node.Node) -> bool:
    """Return whether the machine has control groups of version 2 alone."""
    return node.exists("/sys/fs/cgroup/cgroup.controllers")


def ensure_ready(node: kata_node.Node) -> bool:
    """Load the modules that Kata needs, on a machine that can run it.

    Returns:
        True if anything changed.

    Raises:
        Blocked: the machine cannot run Kata; the message says why and what would help.
    """
    _require(*(look(node) for look in _HARDWARE))
    changed = ensure_modules(node)
    _require(*(look(node) for look in _DEVICES))
    return changed


def ensure_modules(node: kata_node.Node) -> bool:
    """Load the kernel modules that Kata needs, now and at each boot.

    Returns:
        True if anything changed.

    Raises:
        Blocked: a module cannot be loaded; the message has modprobe's own words.
    """
    wanted: dict[str, str] = dict.fromkeys(_MODULES, "dmesg has the kernel's reason")
    flag = _cpu_flag(node)
    if flag:
        wanted[_KVM_MODULES[flag]] = _virtualisation_remedy(node)
    return modules.ensure(node, wanted)


def kvm_api(device: pathlib.Path) -> int:
    """Ask /dev/kvm for its API version, as every hypervisor does first.

    Raises:
        OSError: it is not there, may not be opened, or is no KVM device.
    """
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(descriptor, _KVM_GET_API_VERSION, 0)
    finally:
        os.close(descriptor)


# The checks, each a function from the machine to its answer


def _architecture(node: kata_node.Node) -> Check:
    word = _hardware(node)
    return Check(
        "architecture",
        _ARCHITECTURES.get(word, word),
        _known(),
        word in _ARCHITECTURES,
        "place the unit on another machine",
    )


def _virtualisation(node: kata_node.Node) -> Check:
    if _hardware(node) != "x86_64":
        # Arm's CPUs have no flag for it: /dev/kvm alone tells.
        return Check("CPU virtualisation", "told by /dev/kvm", "vmx or svm on amd64", ok=True)
    flag = _cpu_flag(node)
    return Check(
        "CPU virtualisation",
        flag or "no such CPU flag",
        "vmx (Intel) or svm (AMD)",
        flag is not None,
        _virtualisation_remedy(node),
    )


def _kvm(node: kata_node.Node) -> Check:
    wanted = f"usable, API version {_KVM_API_VERSION}"
    try:
        version = kvm_api(node.path("/dev/kvm"))
    except FileNotFoundError:
        found, ok = "missing", False
    except OSError as error:
        found, ok = os.strerror(error.errno or 0), False
    else:
        found, ok = f"API version {version}", version == _KVM_API_VERSION
    return Check("/dev/kvm", found, wanted, ok, _virtualisation_remedy(node))


def _device(path: str, module: str) -> Callable[[kata_node.Node], Check]:
    def look(node: kata_node.Node) -> Check:
        found = "present" if node.exists(path) else "missing"
        if not modules.loaded(node, module):
            # The device file may be there first: opening it would load the module.
            found = f"{found}, module {module} not loaded"
        return Check(path, found, "present", found == "present", f"modprobe {module}")

    return look


def _cgroups(node: kata_node.Node) -> Check:
    if only_cgroup_v2(node):
        found = "v2 only"
    elif node.exists("/sys/fs/cgroup/unified/cgroup.controllers"):
        found = "v1 and v2"
    else:
        found = "v1" if node.exists("/sys/fs/cgroup/memory") else "none mounted"
    return Check("cgroups", found, "v1 or v2", found != "none mounted", required=False)


def _kernel(node: kata_node.Node) -> Check:
    release = modules.kernel_release(node)
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return Check(
        "kernel",
        release or "unknown",
        ".".join(map(str, _KERNEL)) + " or later",
        bool(numbers) and (int(numbers[1]), int(numbers[2])) >= _KERNEL,
        "run a newer kernel, or set block_device_aio through kata-config",
        required=False,
    )


def _placement(node: kata_node.Node) -> Check:
    found = "a virtual machine" if _virtual(node) else "bare metal"
    product = (node.read("/sys/class/dmi/id/product_name") or "").strip()
    return Check(
        "machine",
        f"{found} ({product})" if product else found,
        "bare metal, or nested virtualisation",
        ok=True,
        required=False,
    )


_Look = Callable[[kata_node.Node], Check]
_HARDWARE: tuple[_Look, ...] = (_architecture, _virtualisation)
_DEVICES: tuple[_Look, ...] = (
    _kvm,
    _device("/dev/vhost-vsock", "vhost_vsock"),
    _device("/dev/vhost-net", "vhost_net"),
)
_ADVICE: tuple[_Look, ...] = (_placement, _cgroups, _kernel)


def _require(*found: Check) -> None:
    for check in found:
        if check.required and not check.ok:
            raise problems.Blocked(
                f"{check.name}: {check.found}, expected {check.wanted}; {check.remedy}"
            )


# What the kernel says


def _hardware(node: kata_node.Node) -> str:
    # Linux 6.1 and later say it in a file, older ones by uname(2) alone.
    return (node.read("/proc/sys/kernel/arch") or "").strip() or os.uname().machine


def _known() -> str:
    return " or ".join(_ARCHITECTURES.values())


def _cpu_flags(node: kata_node.Node) -> frozenset[str]:
    text = node.read("/proc/cpuinfo") or ""
    match = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def _cpu_flag(node: kata_node.Node) -> str | None:
    return next((flag for flag in _KVM_MODULES if flag in _cpu_flags(node)), None)


def _virtual(node: kata_node.Node) -> bool:
    return "hypervisor" in _cpu_flags(node) or node.exists("/proc/device-tree/hypervisor")


def _virtualisation_remedy(node: kata_node.Node) -> str:
    if _virtual(node):
        return "let this VM nest: kvm_intel/kvm_amd nested=1 on its host, or such a cloud flavour"
    if _hardware(node) == "aarch64":
        return "boot a kernel with KVM, at exception level 2"
    return "switch VT-x or AMD-V on in the machine's firmware"
