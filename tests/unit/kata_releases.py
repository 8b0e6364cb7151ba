"""Small Kata releases for tests: what each generation ships, as far as the charm looks at it."""

import pathlib

import yaml

from kata import settings
from kata.release import release

CHARM = pathlib.Path(__file__).resolve().parents[2] / "charmcraft.yaml"
DEFAULTS = {
    name: option["default"]
    for name, option in yaml.safe_load(CHARM.read_text())["config"]["options"].items()
}

V1 = """\
# Configuration of 1.x

[hypervisor.qemu]
path = "/usr/bin/qemu-system-x86_64"
kernel = "/usr/share/kata-containers/vmlinuz.container"
image = "/usr/share/kata-containers/kata-containers.img"
machine_type = "pc"

# Optional space-separated list of options to pass to the guest kernel.
kernel_params = "quiet"
default_vcpus = 1
# If unspecified then it will be set 2048 MiB.
default_memory = 2048
#enable_debug = true

[proxy.kata]
path = "/usr/libexec/kata-containers/kata-proxy"
#enable_debug = true

[agent.kata]
#enable_debug = true
kernel_modules=[]

[runtime]
#enable_debug = true
#enable_agent_pidns = true"""

V2 = """\
[hypervisor.qemu]
path = "/opt/kata/bin/qemu-system-x86_64"
kernel = "/opt/kata/share/kata-containers/vmlinux.container"
image = "/opt/kata/share/kata-containers/kata-containers.img"
enable_annotations = ["enable_iommu"]
valid_hypervisor_paths = ["/opt/kata/bin/qemu-system-x86_64"]
kernel_params = ""
default_vcpus = 1
default_memory = 2048
# Default 0
#pcie_root_port = 2
virtio_fs_daemon = "/opt/kata/libexec/virtiofsd"

[agent.kata]
#enable_debug = true

# Enable debug console.

#debug_console_enabled = true

[runtime]
#enable_debug = true
#      cold_plug_vfio = no_port (default) => no cold plug
experimental=[]
"""

V4 = """\
[hypervisor.{table}]
path = "/opt/kata/bin/{program}"
kernel = "/opt/kata/share/kata-containers/vmlinux.container"
image = "/opt/kata/share/kata-containers/kata-containers.img"
enable_annotations = ["enable_iommu", "kernel_params"]
kernel_params = "cgroup_no_v1=all"
firmware = ""
firmware_volume = ""
default_vcpus = 1.0
default_memory = 2048
enable_debug = false

[hypervisor.{table}.factory]
enable_template = false

[agent.kata]
enable_debug = false
debug_console_enabled = false

[agent.kata.mem_agent]
mem_agent_enable = false

[runtime]
enable_debug = false
name = "virt_container"
hypervisor_name = "{table}"
experimental = []

[[hypervisor.{table}.guest_extension_images]]
name = "gpu"
path = "/opt/kata/share/kata-containers/extension.img"
"""

RUST_TABLES = {"qemu": "qemu", "clh": "clh", "dragonball": "dragonball", "fc": "firecracker"}


def installed(version, files, kind="archive", root="/opt/kata"):
    """Return a release by its shipped configuration files: by hypervisor and shim."""
    configurations = {}
    for (hypervisor, shim), path in files.items():
        configurations.setdefault(shim, {})[hypervisor] = path
    shims = {shim: f"{root}/{release.SHIMS[shim]}" for shim in configurations}
    return release.Release(version, kind, root, shims, configurations)


def options(**changed):
    """Read the charm's options: its defaults, with some changed (dashes as underscores)."""
    given = {name.replace("_", "-"): value for name, value in changed.items()}
    assert given.keys() <= DEFAULTS.keys()
    return settings.read(DEFAULTS | given)


def install(node, version="4.1.0"):
    """Lay a release of a generation on a node: 1.x as packages, the others as archives."""
    major = int(version.split(".")[0])
    if major == 1:
        path = "/usr/share/defaults/kata-containers/configuration.toml"
        node.lay({path: V1})
        return installed(version, {("qemu", "go"): path}, kind="packages", root="/usr")
    folder = "/opt/kata/share/defaults/kata-containers"
    if major < 4:
        clh = V2.replace("qemu-system-x86_64", "cloud-hypervisor")
        texts = {"qemu": V2, "clh": clh.replace(".qemu", ".clh")}
        texts["fc"] = clh.replace(".qemu", ".firecracker")
        files = {(name, "go"): f"{folder}/configuration-{name}.toml" for name in texts}
        node.lay({path: texts[name] for (name, _), path in files.items()})
        return installed(version, files)
    files = {
        (name, "rust"): f"{folder}/runtime-rs/configuration-{name}-runtime-rs.toml"
        for name in RUST_TABLES
    }
    node.lay(
        {
            path: V4.format(table=RUST_TABLES[name], program=name)
            for (name, _), path in files.items()
        }
    )
    return installed(version, files)
