"""The configuration files that a stand-in for a Kata release ships: which key in which release.

The keys and their defaults are those of `src/runtime/config/` and `src/runtime-rs/config/` of
kata-containers at its tags 1.13.0 to 4.1.0; the files have no more of the real ones' text.
"""

from typing import NamedTuple

Number = tuple[int, int, int]


class Key(NamedTuple):
    """A key of a configuration file, and the releases that ship it.

    Attributes:
        table: `hypervisor` stands for the file's own hypervisor.
        name: the key.
        value: as TOML; `{opt}` is Kata's prefix.
        since: the first release with it.
        until: the first release without it.
        active: from which release on it stands there uncommented.
        only: the hypervisors or the shim that have it; empty for all.
    """

    table: str
    name: str
    value: str
    since: Number = (0, 0, 0)
    until: Number = (99, 0, 0)
    active: Number = (0, 0, 0)
    only: tuple[str, ...] = ()


LATE = (3, 30, 0)  # from here on, about, defaults stand in the files uncommented
NEVER = (99, 0, 0)
KEYS = (
    Key("hypervisor", "path", '"{opt}/bin/{program}"'),
    Key("hypervisor", "kernel", '"{opt}/share/kata-containers/vmlinux.container"'),
    Key("hypervisor", "image", '"{opt}/share/kata-containers/kata-containers.img"'),
    Key("hypervisor", "initrd", '"{opt}/share/kata-containers/kata-containers-initrd.img"',
        active=NEVER),
    Key("hypervisor", "machine_type", '"pc"', until=(2, 1, 0), only=("qemu",)),
    Key("hypervisor", "machine_type", '"q35"', since=(2, 1, 0), only=("qemu",)),
    Key("hypervisor", "rootfs_type", '"ext4"', since=(3, 1, 0)),
    Key("hypervisor", "enable_annotations", '[".*"]', until=(2, 0, 0)),
    Key("hypervisor", "enable_annotations", "[]", since=(2, 0, 0), until=(2, 1, 0)),
    Key("hypervisor", "enable_annotations", '["enable_iommu"]', since=(2, 1, 0), until=(3, 0, 0)),
    Key("hypervisor", "enable_annotations", '["enable_iommu", "virtio_fs_extra_args"]',
        since=(3, 0, 0), until=LATE),
    Key("hypervisor", "enable_annotations", '["enable_iommu", "kernel_params", "default_vcpus"]',
        since=LATE),
    Key("hypervisor", "valid_hypervisor_paths", '["{opt}/bin/{program}"]'),
    Key("hypervisor", "kernel_params", '""', until=LATE),
    Key("hypervisor", "kernel_params", '"cgroup_no_v1=all"', since=LATE),
    Key("hypervisor", "firmware", '""', only=("qemu",)),
    Key("hypervisor", "firmware_volume", '""', since=(2, 3, 0), only=("qemu", "go")),
    Key("hypervisor", "default_vcpus", "1"),
    Key("hypervisor", "default_maxvcpus", "0"),
    Key("hypervisor", "default_bridges", "1", only=("qemu",)),
    Key("hypervisor", "default_memory", "2048"),
    Key("hypervisor", "memory_slots", "10", active=LATE),
    Key("hypervisor", "default_maxmemory", "0", since=(2, 4, 0)),
    Key("hypervisor", "disable_block_device_use", "false", only=("qemu",)),
    Key("hypervisor", "shared_fs", '"virtio-9p"', until=(2, 0, 0), only=("qemu",)),
    Key("hypervisor", "shared_fs", '"virtio-fs"', since=(2, 0, 0), only=("qemu", "clh")),
    Key("hypervisor", "virtio_fs_daemon", '"{opt}/libexec/kata-qemu/virtiofsd"',
        since=(2, 0, 0), until=(2, 4, 0), only=("qemu", "clh")),
    Key("hypervisor", "virtio_fs_daemon", '"{opt}/libexec/virtiofsd"', since=(2, 4, 0),
        only=("qemu", "clh")),
    Key("hypervisor", "virtio_fs_cache", '"auto"', only=("qemu", "clh")),
    Key("hypervisor", "block_device_driver", '"virtio-scsi"', only=("qemu",)),
    Key("hypervisor", "block_device_driver", '"virtio-blk"', only=("clh", "dragonball")),
    Key("hypervisor", "enable_hugepages", "true", until=LATE, active=NEVER),
    Key("hypervisor", "enable_hugepages", "false", since=LATE),
    Key("hypervisor", "enable_iommu", "true", since=(1, 11, 0), until=LATE, active=NEVER,
        only=("qemu",)),
    Key("hypervisor", "enable_iommu", "false", since=LATE, only=("qemu",)),
    Key("hypervisor", "enable_debug", "true", until=LATE, active=NEVER),
    Key("hypervisor", "enable_debug", "false", since=LATE),
    Key("hypervisor", "hotplug_vfio_on_root_bus", "true", until=(3, 3, 0), active=NEVER,
        only=("qemu",)),
    Key("hypervisor", "hot_plug_vfio", '"no-port"', since=(3, 3, 0), active=LATE,
        only=("qemu", "clh", "go")),
    Key("hypervisor", "cold_plug_vfio", '"no-port"', since=(3, 3, 0), active=LATE,
        only=("qemu", "clh")),
    Key("hypervisor", "pcie_root_port", "2", since=(1, 11, 0), until=LATE, active=NEVER,
        only=("qemu",)),
    Key("hypervisor", "pcie_root_port", "0", since=LATE, only=("qemu",)),
    Key("factory", "enable_template", "true", until=LATE, active=NEVER, only=("go",)),
    Key("factory", "enable_template", "false", since=LATE, only=("go",)),
    Key("proxy.kata", "path", '"{libexec}/kata-containers/kata-proxy"', until=(2, 0, 0)),
    Key("shim.kata", "path", '"{libexec}/kata-containers/kata-shim"', until=(2, 0, 0)),
    Key("agent.kata", "enable_debug", "true", until=LATE, active=NEVER),
    Key("agent.kata", "enable_debug", "false", since=LATE),
    Key("agent.kata", "kernel_modules", "[]"),
    Key("agent.kata", "debug_console_enabled", "true", since=(2, 0, 0), until=LATE, active=NEVER),
    Key("agent.kata", "debug_console_enabled", "false", since=LATE),
    Key("agent.kata", "dial_timeout", "45", since=(3, 2, 0), only=("go",)),
    Key("agent.kata", "dial_timeout_ms", "10", since=(3, 2, 0), only=("rust",)),
    Key("netmon", "path", '"{libexec}/kata-containers/kata-netmon"', until=(2, 1, 0)),
    Key("runtime", "enable_debug", "true", until=LATE, active=NEVER),
    Key("runtime", "enable_debug", "false", since=LATE),
    Key("runtime", "internetworking_model", '"tcfilter"'),
    Key("runtime", "name", '"virt_container"', since=(3, 0, 0), only=("rust",)),
    Key("runtime", "hypervisor_name", '"{table}"', since=(3, 0, 0), only=("rust",)),
    Key("runtime", "agent_name", '"kata"', since=(3, 0, 0), only=("rust",)),
    Key("runtime", "disable_guest_seccomp", "true"),
    Key("runtime", "sandbox_cgroup_only", "false", until=LATE),
    Key("runtime", "sandbox_cgroup_only", "false", since=LATE, only=("go",)),
    Key("runtime", "sandbox_cgroup_only", "true", since=LATE, only=("rust",)),
    Key("runtime", "static_sandbox_resource_mgmt", "false", since=(2, 4, 0)),
    Key("runtime", "vfio_mode", '"guest-kernel"', since=(2, 4, 0)),
    Key("runtime", "experimental", "[]"),
)  # fmt: skip

PROGRAMS = {
    "qemu": "qemu-system-x86_64",
    "clh": "cloud-hypervisor",
    "fc": "firecracker",
    "dragonball": "",
}


def number(release: str) -> Number:
    """Return a version's three numbers."""
    major, minor, patch = release.partition("-")[0].split(".")
    return int(major), int(minor), int(patch)


def text(release: str, kind: str, language: str) -> bytes:
    """Return a configuration file with the keys of the release."""
    release_number = number(release)
    base = kind.partition("-")[0]
    table = "firecracker" if base == "fc" else base
    if (base, language) == ("clh", "rust") and release_number < (4, 0, 0):
        table = "cloud-hypervisor"
    prefix = "/usr" if release_number < (2, 0, 0) else "/opt/kata"
    filled = {
        "opt": prefix,
        "libexec": f"{prefix}/libexec",
        "program": PROGRAMS[base],
        "table": table,
    }
    lines = [f"# Configuration of a stand-in for Kata {release}: {kind}, {language} shim"]
    current = ""
    for key in KEYS:
        there = key.since <= release_number < key.until
        wanted = {base, language}
        if not there or (key.only and not _applies(key.only, wanted)):
            continue
        name = f"hypervisor.{table}" if key.table == "hypervisor" else key.table
        if name != current:
            lines += ["", f"[{name}]"]
            current = name
        value = key.value
        for word, meant in filled.items():
            value = value.replace("{" + word + "}", meant)
        mark = "" if release_number >= key.active else "#"
        lines.append(f"{mark}{key.name} = {value}")
    return "\n".join([*lines, ""]).encode()


def _applies(only: tuple[str, ...], wanted: set[str]) -> bool:
    """A key may name hypervisors, a shim, or both; each that it names must fit."""
    languages = {"go", "rust"} & {*only}
    bases = {*only} - languages
    return (not languages or bool(languages & wanted)) and (not bases or bool(bases & wanted))
