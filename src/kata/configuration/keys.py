"""Which keys of configuration.toml a release of Kata knows.

Kata passes over a key that it does not know without a word, so such a key is a setting that does
nothing. A release's shipped file tells what it knows: by each key that is set there, and by each
that stands in a comment as an example. Where that misleads, the tables here have the truth, as
read in Kata's sources at its tags: the Go runtime's structures in
src/runtime/pkg/katautils/config.go (in 1.x pkg/katautils/config.go), the Rust runtime's in
src/libs/kata-types/src/config.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Number = tuple[int, int, int]
Path = tuple[str, ...]
"""The names from the top of a TOML file to a table or a key."""

# The names of each hypervisor's table: the Rust runtime called Cloud Hypervisor's otherwise from
# 3.3 to 3.29.
HYPERVISORS: Mapping[str, tuple[str, ...]] = {
    "qemu": ("qemu",),
    "clh": ("clh", "cloud-hypervisor"),
    "dragonball": ("dragonball",),
    "fc": ("firecracker",),
}

_FIRST: Number = (0, 0, 0)
_NEVER: Number = (1 << 30, 0, 0)


class Row(NamedTuple):
    """Releases, from `since` up to and without `until`, in which a key is not what it seems."""

    shim: str
    table: str
    """hypervisor, agent or runtime."""
    key: str
    since: Number = _FIRST
    until: Number = _NEVER
    example: Any = None
    """A value of the key's type, where the shipped file has none."""


# The shipped file mentions these, and the runtime passes over them.
MENTIONED_ONLY = (
    Row("go", "hypervisor", "hotplug_vfio_on_root_bus", (3, 2, 0)),
    Row("go", "hypervisor", "pcie_root_port", (3, 2, 0), (3, 6, 0)),
    Row("go", "runtime", "disable_selinux", (2, 3, 3), (2, 5, 0)),
    Row("rust", "hypervisor", "block_device_aio", _FIRST, (3, 20, 0)),
    Row("rust", "hypervisor", "cold_plug_vfio", _FIRST, (3, 31, 0)),
    Row("rust", "hypervisor", "disable_guest_selinux", _FIRST, (3, 9, 0)),
    Row("rust", "hypervisor", "disable_selinux", _FIRST, (3, 21, 0)),
    Row("rust", "hypervisor", "extra_monitor_socket", _FIRST, (3, 29, 0)),
    Row("rust", "hypervisor", "firmware_volume"),
    Row("rust", "hypervisor", "hot_plug_vfio"),
    Row("rust", "hypervisor", "indep_iothreads", _FIRST, (3, 32, 0)),
    Row("rust", "hypervisor", "msize_9p", (3, 29, 0)),
    Row("rust", "hypervisor", "seccompsandbox"),
    Row("rust", "hypervisor", "sev_snp_guest", _FIRST, (3, 15, 0)),
    Row("rust", "hypervisor", "use_legacy_serial"),
    Row("rust", "hypervisor", "vhost_user_reconnect_timeout_sec"),
    Row("rust", "agent", "cdh_api_timeout"),
    Row("rust", "agent", "dial_timeout"),
    Row("rust", "runtime", "disable_guest_empty_dir", _FIRST, (3, 23, 0)),
    Row("rust", "runtime", "enable_vcpus_pinning", _FIRST, (3, 30, 0)),
    Row("rust", "runtime", "guest_selinux_label"),
    Row("rust", "runtime", "kubelet_root_dir"),
    Row("rust", "runtime", "pod_resource_api_sock", _FIRST, (3, 31, 0)),
)

# The runtime knows these, and the shipped file of one hypervisor or another is silent on them.
KNOWN_TOO = (
    Row("go", "hypervisor", "cold_plug_vfio", (3, 2, 0), _NEVER, ""),
    Row("go", "hypervisor", "confidential_guest", (2, 2, 0), _NEVER, False),
    Row("go", "hypervisor", "guest_extension_images", (4, 0, 0), _NEVER, [{}]),
    Row("go", "hypervisor", "image", _FIRST, _NEVER, ""),
    Row("go", "hypervisor", "initrd", _FIRST, _NEVER, ""),
    Row("go", "hypervisor", "kernel_verity_params", (3, 27, 0), _NEVER, ""),
    Row("go", "hypervisor", "pcie_switch_port", (3, 6, 0), _NEVER, 0),
    Row("go", "agent", "launch_process_timeout", (3, 29, 0), _NEVER, 0),
    Row("go", "agent", "visible_cdi_devices", (3, 32, 0), _NEVER, False),
    Row("go", "runtime", "experimental_force_guest_pull", (3, 18, 0), _NEVER, False),
    Row("rust", "hypervisor", "cold_plug_vfio", (3, 31, 0), _NEVER, ""),
    Row("rust", "hypervisor", "confidential_guest", _FIRST, _NEVER, False),
    Row("rust", "hypervisor", "guest_extension_images", (4, 0, 0), _NEVER, [{}]),
    Row("rust", "hypervisor", "hotplug_vfio_on_root_bus", _FIRST, (4, 0, 0), False),
    Row("rust", "hypervisor", "image", _FIRST, _NEVER, ""),
    Row("rust", "hypervisor", "initrd", _FIRST, _NEVER, ""),
    Row("rust", "hypervisor", "kernel_verity_params", (3, 27, 0), _NEVER, ""),
    Row("rust", "hypervisor", "overhead_memory", (4, 0, 0), _NEVER, 0),
    Row("rust", "hypervisor", "overhead_vcpus", (4, 0, 0), _NEVER, 0.0),
    Row("rust", "hypervisor", "pcie_root_port", _FIRST, _NEVER, 0),
    Row("rust", "hypervisor", "pcie_switch_port", (3, 17, 0), _NEVER, 0),
    Row("rust", "agent", "create_container_timeout", (3, 19, 0), _NEVER, 0),
    Row("rust", "agent", "launch_process_timeout", (3, 29, 0), _NEVER, 0),
    Row("rust", "agent", "visible_cdi_devices", (3, 32, 0), _NEVER, False),
    Row("rust", "runtime", "pod_resource_api_sock", (3, 31, 0), _NEVER, ""),
)

# Kata takes numbers below 0 for these alone; elsewhere they are beyond the field's range, and the
# whole file is refused.
SIGNED = ("default_vcpus",)

_TABLE = re.compile(r"\s*\[+\s*([A-Za-z0-9_.-]+)\s*\]+\s*(?:#.*)?")
_KEY = re.compile(r"\s*(#?) ?([A-Za-z0-9_-]+)\s*=\s*(.*)")


@dataclasses.dataclass(frozen=True)
class Mention:
    """Where a shipped file has a key: set, or in a comment as an example."""

    line: int
    """Counted from 0."""
    value: str
    """The text after the equals sign."""
    live: bool


def mentions(shipped: str) -> dict[Path, Mention]:
    """Find every key of a shipped configuration file by its path; one that is set comes first."""
    found: dict[Path, Mention] = {}
    table: Path = ()
    for number, line in enumerate(shipped.splitlines()):
        header = _TABLE.fullmatch(line)
        if header:
            table = tuple(header[1].split("."))
            continue
        match = _KEY.fullmatch(line)
        if match:
            mention = Mention(number, match[3], live=not match[1])
            path = (*table, match[2])
            if path not in found or (mention.live and not found[path].live):
                found[path] = mention
    return found


@dataclasses.dataclass(frozen=True)
class Known:
    """The keys that a shim of a release knows.

    Attributes:
        number: the release.
        shim: go or rust.
        mentioned: what its shipped file for the hypervisor mentions.
    """

    number: Number
    shim: str
    mentioned: Mapping[Path, Mention]

    def hypervisor(self) -> str:
        """Return the name of the shipped file's table of the hypervisor."""
        return next((path[1] for path in self.mentioned if path[0] == "hypervisor"), "")

    def __contains__(self, path: Path) -> bool:
        """Return whether the runtime reads a key; of a table it is told by the keys in it."""
        if self._row(MENTIONED_ONLY, path):
            return False
        if self._row(KNOWN_TOO, path):
            return True
        return any(
            known[: len(path)] == path and (mention.live or self._value(known) is not None)
            for known, mention in self.mentioned.items()
        )

    def example(self, path: Path) -> Any:
        """Return a value of a key's type, or None where the type is not known."""
        row = self._row(KNOWN_TOO, path)
        return self._value(path) if path in self.mentioned else row.example if row else None

    def _row(self, rows: tuple[Row, ...], path: Path) -> Row | None:
        place = path[:1] if path[:1] == ("runtime",) else path[:2]
        if len(path) != len(place) + 1:
            return None
        for row in rows:
            named = (row.shim, row.table, row.key) == (self.shim, path[0], path[-1])
            if named and row.since <= self.number < row.until:
                return row
        return None

    def _value(self, path: Path) -> Any:
        """Read the value that a shipped file has for a key: prose in a comment is no example."""
        import tomlkit
        import tomlkit.exceptions

        try:
            return tomlkit.parse(f"value = {self.mentioned[path].value}").unwrap()["value"]
        except (tomlkit.exceptions.TOMLKitError, ValueError):
            return None
