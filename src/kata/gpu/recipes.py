"""How each release of Kata is told to give a GPU to a sandbox.

Pure: release, shim, hypervisor and the plug wanted go in; the keys of configuration.toml come
out, each known to that release, or a refusal that says what would do. A key that a release does
not know is a setting that does nothing, for Kata ignores it in silence.

The keys and their releases were read in Kata's sources (src/runtime/pkg/katautils/config.go and
src/libs/kata-types/src/config) at its tags.
"""

import dataclasses
from collections.abc import Mapping

from kata import problems
from kata.gpu import guest_kernel

Number = tuple[int, int, int]
Key = tuple[str, str]
"""A table of configuration.toml, such as "hypervisor.qemu", and a key in it."""
Value = str | int | bool | None
"""None takes the key out."""

MEMORY = 8192  # MiB of a guest, as NVIDIA's reference flow has it
# What QEMU and a guest with a GPU take beside the guest's memory: 10240Mi at the reference size.
MEMORY_BESIDE = 2048
CPU = "1"
TIMEOUT = 1200  # seconds
ROOT_PORTS = 8
# Each port takes 4 KiB of 64 KiB of I/O space (Kata, virtcontainers/qemu.go, createPCIeTopology).
MOST_ROOT_PORTS = 16
KERNEL_PARAMS = ("pci=realloc", "pci=nocrs", "pci=assign-busses", "cgroup_no_v1=all")
KUBELET_SOCKET = "/var/lib/kubelet/pod-resources/kubelet.sock"

# First release of the Go runtime that knows a key, where it is not 1.3.0.
PCIE_ROOT_PORT: Number = (1, 11, 0)
NO_PC_MACHINE: Number = (2, 2, 0)  # q35 is the only machine from here on
ACPI_BRIDGES: Number = (2, 3, 0)  # bridges took devices by SHPC until then
PORTS: Number = (3, 2, 0)  # hot_plug_vfio, cold_plug_vfio
PCIE_ROOT_PORT_AGAIN: Number = (3, 6, 0)
KUBELET_ASKED: Number = (3, 24, 0)  # pod_resource_api_sock
CLOUD_HYPERVISOR_COLD: Number = (3, 29, 0)
# The Rust runtime: cold_plug_vfio and pod_resource_api_sock came together.
RUST: Number = (3, 31, 0)
# The first release whose configuration-qemu-nvidia-gpu.toml fits its own runtime: those of 3.2 –
# 3.5 set keys that these releases do not know, and lack the ones that they do.
NVIDIA_BASE: Number = (3, 6, 0)

_REFERENCE_GO: Mapping[Key, tuple[Number, Value]] = {
    ("runtime", "sandbox_cgroup_only"): ((1, 9, 0), True),
    ("runtime", "static_sandbox_resource_mgmt"): ((2, 4, 0), True),
    ("agent.kata", "dial_timeout"): ((2, 1, 0), TIMEOUT),
    ("runtime", "create_container_timeout"): ((3, 4, 0), TIMEOUT),
    ("runtime", "pod_resource_api_sock"): (KUBELET_ASKED, KUBELET_SOCKET),
}
_REFERENCE_RUST: Mapping[Key, tuple[Number, Value]] = {
    ("runtime", "sandbox_cgroup_only"): (RUST, True),
    ("runtime", "static_sandbox_resource_mgmt"): (RUST, True),
    # A try each second, for as long as the Go runtime's dial_timeout.
    ("agent.kata", "dial_timeout_ms"): (RUST, 1000),
    ("agent.kata", "reconnect_timeout_ms"): (RUST, TIMEOUT * 1000),
    ("agent.kata", "create_container_timeout"): (RUST, TIMEOUT),
    ("runtime", "pod_resource_api_sock"): (RUST, KUBELET_SOCKET),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the configuration of a handler for GPUs has beyond the shipped file."""

    plug: str
    """pci, pcie or cold."""
    slot: guest_kernel.Slot
    keys: Mapping[Key, Value]
    kernel_params: tuple[str, ...]
    """To be added to the shipped ones, not put in their place."""
    overhead_memory: str
    overhead_cpu: str
    notes: tuple[str, ...] = ()
    """What the operator should know of this way."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a recipe is asked for."""

    number: Number
    shim: str
    """go or rust."""
    hypervisor: str
    plug: str
    """The option gpu-plug."""
    large: bool
    """Whether any GPU has a large BAR."""
    devices: int
    """How many PCIe functions may be plugged into one sandbox."""
    memory: int = MEMORY
    """MiB of the guest."""
    machine: str = "amd64"

    @property
    def version(self) -> str:
        """The release in words."""
        return ".".join(map(str, self.number))


def overhead(memory: int) -> tuple[str, str]:
    """Return the RuntimeClass's overhead, memory and CPU, for a guest of so many MiB."""
    return f"{memory + MEMORY_BESIDE}Mi", CPU


def starts_from_nvidias(hypervisor: str, number: Number) -> bool:
    """Return whether NVIDIA's configuration file, where shipped, is the one to start from."""
    return hypervisor == "qemu" and number >= NVIDIA_BASE


def recipe(wish: Wish) -> Recipe:
    """Return how this release gives a GPU to a sandbox.

    Raises:
        Blocked: it cannot in the way wanted; the message says which release or option would do.
    """
    _check_hypervisor(wish)
    plug = _plug(wish)
    keys = {**_machine(wish, plug), **_ports(wish, plug)}
    keys["hypervisor." + wish.hypervisor, "default_memory"] = wish.memory
    if plug == "cold":
        reference = _REFERENCE_RUST if wish.shim == "rust" else _REFERENCE_GO
        keys |= {key: value for key, (since, value) in reference.items() if wish.number >= since}
    memory, cpu = overhead(wish.memory)
    return Recipe(
        plug=plug,
        slot=_slot(wish, plug),
        keys=keys,
        kernel_params=KERNEL_PARAMS if plug == "cold" else (),
        overhead_memory=memory,
        overhead_cpu=cpu,
        notes=_notes(wish, plug),
    )


def _check_hypervisor(wish: Wish) -> None:
    if wish.number < (1, 3, 0):
        raise problems.Blocked(f"gpu-mode: Kata {wish.version} has no GPUs; 1.3.0 is the first")
    if wish.hypervisor not in ("qemu", "clh"):
        raise problems.Blocked(
            f"gpu-mode: hypervisor={wish.hypervisor} takes no GPU; set hypervisor=qemu"
        )
    if wish.shim == "rust" and wish.hypervisor != "qemu":
        raise problems.Blocked(
            f"gpu-mode: the Rust shim gives GPUs to QEMU only, not to {wish.hypervisor}; set "
            "hypervisor=qemu, or shim=go"
        )
    if wish.shim == "rust" and wish.number < RUST:
        raise problems.Blocked(
            f"gpu-mode: the Rust shim of Kata {wish.version} cannot plug GPUs; set shim=go, or "
            "kata-version to 3.31.0 or later"
        )
    if wish.hypervisor == "clh" and wish.number < PORTS:
        raise problems.Blocked(
            f"gpu-mode: Cloud Hypervisor takes GPUs from Kata 3.2.0 on, not {wish.version}; set "
            "hypervisor=qemu"
        )
    if wish.machine != "amd64" and wish.number < PORTS:
        raise problems.Blocked(
            f"gpu-mode: on {wish.machine} Kata takes GPUs from 3.2.0 on, not {wish.version}"
        )


def _plug(wish: Wish) -> str:
    """Choose the plug for auto, and refuse one that cannot work."""
    if wish.plug != "auto":
        plug = wish.plug
    elif wish.shim == "rust" or (wish.hypervisor == "qemu" and wish.number >= KUBELET_ASKED):
        plug = "cold"
    else:
        plug = "pcie" if wish.large or wish.hypervisor == "clh" else "pci"
    refusal = _refusal(wish, plug)
    if refusal:
        raise problems.Blocked(f"gpu-plug={wish.plug}: {refusal}")
    return plug


def _refusal(wish: Wish, plug: str) -> str | None:
    version, number = wish.version, wish.number
    if plug == "cold":
        if number < PORTS:
            return f"Kata {version} has no cold plug; set gpu-plug=auto, or kata-version to 3.2.0+"
        if wish.hypervisor == "clh" and number < CLOUD_HYPERVISOR_COLD:
            return "Cloud Hypervisor has cold plug from Kata 3.29.0 on; set hypervisor=qemu"
        return None
    if wish.shim == "rust":
        return "the Rust shim has no hot plug; set gpu-plug=cold, or shim=go"
    if plug == "pci":
        if wish.hypervisor == "clh":
            return "Cloud Hypervisor has no bridge port; set gpu-plug=pcie, or hypervisor=qemu"
        if wish.large and number >= PORTS:
            return (
                f"no bridge of Kata {version} has room for a large BAR; set gpu-plug=pcie or cold"
            )
    if number < PCIE_ROOT_PORT and (wish.large or plug == "pcie"):
        return (
            f"Kata {version} takes small BARs on PCI only; large BARs and PCIe need 1.11.0 or "
            "later: set kata-version"
        )
    if plug == "pcie" and wish.hypervisor == "qemu" and PORTS <= number < PCIE_ROOT_PORT_AGAIN:
        # They make a port for each device that the sandbox container has: under Kubernetes none.
        return (
            f"Kata {version} makes no root port for a Kubernetes pod's GPU; set kata-version to "
            "3.6.0 or later"
        )
    return None


def _machine(wish: Wish, plug: str) -> dict[Key, Value]:
    if wish.hypervisor != "qemu" or wish.machine != "amd64":
        return {}  # the shipped file names the only machine there is
    on_pc = plug == "pci" and wish.number < NO_PC_MACHINE and not wish.large
    return {("hypervisor.qemu", "machine_type"): "pc" if on_pc else "q35"}


def _ports(wish: Wish, plug: str) -> dict[Key, Value]:
    table = f"hypervisor.{wish.hypervisor}"
    counted = min(wish.devices, MOST_ROOT_PORTS)
    ports: dict[Key, Value] = {}
    if wish.number < PORTS:
        # The root bus of pc takes devices at any time, that of q35 only on a root port.
        on_root_bus = plug == "pcie" or (wish.number < NO_PC_MACHINE and not wish.large)
        ports[table, "hotplug_vfio_on_root_bus"] = on_root_bus
    else:
        hot = {"pci": "bridge-port", "pcie": "root-port", "cold": "no-port"}[plug]
        if wish.shim == "go":
            ports[table, "hot_plug_vfio"] = hot
        # Cloud Hypervisor's file has no cold plug before the release that takes it.
        if wish.hypervisor == "qemu" or wish.number >= CLOUD_HYPERVISOR_COLD:
            ports[table, "cold_plug_vfio"] = "root-port" if plug == "cold" else "no-port"
    counts = wish.number < PORTS or wish.number >= PCIE_ROOT_PORT_AGAIN
    if wish.hypervisor == "qemu" and counts and plug != "pci":
        least = ROOT_PORTS if plug == "cold" else 1
        ports[table, "pcie_root_port"] = max(least, counted)
    return ports


def _slot(wish: Wish, plug: str) -> guest_kernel.Slot:
    if plug == "cold":
        return "cold"
    if plug == "pcie":
        return "pcie"
    on_pc = wish.number < NO_PC_MACHINE and not wish.large
    return "acpi" if on_pc or wish.number >= ACPI_BRIDGES else "shpc"


def _notes(wish: Wish, plug: str) -> tuple[str, ...]:
    notes: list[str] = []
    if plug == "cold" and wish.number < KUBELET_ASKED:
        notes.append(
            f"Kata {wish.version} cannot ask the kubelet which GPU a pod got: only a pod that "
            "names it in a cdi.k8s.io annotation gets it; 3.24.0 and later ask"
            if wish.number >= PCIE_ROOT_PORT_AGAIN
            else f"Kata {wish.version} plugs only the GPUs of a pod's first container, which "
            "Kubernetes gives none; use 3.24.0 or later"
        )
    if wish.devices > MOST_ROOT_PORTS and plug != "pci":
        notes.append(f"one sandbox takes {MOST_ROOT_PORTS} functions at most")
    return tuple(notes)
