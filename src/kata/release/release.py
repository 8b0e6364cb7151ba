"""A Kata release on the machine: where it is, and what of it there is.

Names and places follow kata-containers at its tags 2.0.0 to 4.1.0, and its packages of 1.x.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from kata import problems
from kata.machine import node as kata_node
from kata.machine import tenancy
from kata.settings import HYPERVISORS
from kata.settings import Shim as AskedShim

Shim = Literal["go", "rust"]
Number = tuple[int, int, int]

STATE = tenancy.STATE
PREFIX = "/opt/kata"
"""Where Kata's archives are built for. A symbolic link of ours into `RELEASES`."""
RELEASES = "/opt/kata-releases"
"""A folder for each unpacked release: its version, a dash, and 12 digits of a digest."""
RECORD = ".kata-charm.json"
"""In each of these folders: what it is. It is there from the moment that the folder is."""
SHIM_LINK = "/usr/local/bin/containerd-shim-kata-v2"
"""On containerd's PATH, and the `runtime_path` of every handler. A link of ours to the shim."""
SELECTED = f"{STATE}/release.json"
"""Which release is in use: packages, or one of the folders."""
PACKAGES = f"{STATE}/packages.json"
"""Which packages this charm has installed. It is there as long as one of them may be."""

SHIMS: Mapping[Shim, str] = {
    "go": "bin/containerd-shim-kata-v2",
    "rust": "runtime-rs/bin/containerd-shim-kata-v2",
}
"""Below `PREFIX` (src/runtime/Makefile, src/runtime-rs/Makefile: BINDIR)."""
CONFIGURATIONS = "share/defaults/kata-containers"

_RUST_BY_DEFAULT: Number = (4, 0, 0)

# The Rust shim's configurations were named after these until they got their present names.
_OTHER_NAMES = {"cloud-hypervisor": "clh"}
# Before 3.3.0 the Rust shim's only configuration lay beside the Go shim's.
_RUST_ONLY = ("dragonball",)
# An archive may ship a configuration without its hypervisor.
_PROGRAMS = {"fc": "bin/firecracker"}


@dataclasses.dataclass(frozen=True)
class Release:
    """A release of Kata that is installed.

    Attributes:
        version: such as `4.1.0`.
        kind: whether it came as archives or as Debian packages.
        root: the folder above its `bin` and `share`, as containerd and Kata see it.
        shims: the absolute path of each shim that it has.
        configurations: of each shim, the shipped configuration file by hypervisor, and by what
            else has one of its own (such as `qemu-nvidia-gpu`).
        archives: the SHA-256 of each archive that it was unpacked from, by name.
    """

    version: str
    kind: Literal["archive", "packages"]
    root: str
    shims: Mapping[Shim, str]
    configurations: Mapping[Shim, Mapping[str, str]]
    archives: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])

    @property
    def number(self) -> Number:
        """The version as numbers, to compare."""
        return number(self.version)

    @property
    def default_shim(self) -> Shim:
        """The shim that the release itself prefers, among those that are there."""
        preferred = default_shim(self.version)
        return preferred if preferred in self.shims else next(iter(self.shims))

    def shim(self, asked: AskedShim) -> Shim:
        """Return the shim for the option `shim`.

        Raises:
            Blocked: the release does not have it.
        """
        if asked == "auto":
            return self.default_shim
        if asked not in self.shims:
            there = " and ".join(self.shims)
            raise problems.Blocked(
                f"option shim={asked}: the installed Kata {self.version} has {there}; "
                f"set shim={self.default_shim} or install another release"
            )
        return asked

    def hypervisors(self, shim: Shim) -> tuple[str, ...]:
        """Return what a shim of this release has configurations for, in alphabetical order."""
        return tuple(sorted(self.configurations.get(shim, ())))

    def shipped(self, hypervisor: str, shim: Shim) -> str:
        """Return the path of the configuration file that the release ships.

        Args:
            hypervisor: as in the option `hypervisor`, or another name of `hypervisors`.
            shim: which shim is to read it.

        Raises:
            Blocked: the release ships none.
        """
        path = self.configurations.get(shim, {}).get(hypervisor)
        if path is None:
            there = [each for each in HYPERVISORS if each in self.hypervisors(shim)]
            raise problems.Blocked(
                f"option hypervisor={hypervisor}: Kata {self.version} with the {shim} shim ships "
                f"{', '.join(there) or 'none'}; set one of these, or another shim"
            )
        return path


def number(version: str) -> Number:
    """Return a version's three numbers; `4.1.0-rc0` counts as 4.1.0."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)


def default_shim(version: str) -> Shim:
    """Return the shim that a release prefers: Rust from 4.0.0."""
    return "rust" if number(version) >= _RUST_BY_DEFAULT else "go"


def installed(node: kata_node.Node) -> Release | None:
    """Return the release that is in use on the machine, or None."""
    selected = remembered(node, SELECTED)
    if selected.get("kind") == "archive":
        folder = f"{RELEASES}/{selected.get('folder')}"
        link = node.path(PREFIX)
        if not link.is_symlink() or str(link.readlink()) != folder:
            return None
        return recorded(node, folder)
    if selected.get("kind") == "packages":
        root = str(selected.get("root"))
        shims, configurations = survey(node.path(root), root)
        version = str(selected.get("version"))
        return Release(version, "packages", root, shims, configurations) if shims else None
    return None


def recorded(node: kata_node.Node, folder: str) -> Release | None:
    """Return what a folder of `RELEASES` holds; None if it holds no whole release."""
    record = remembered(node, f"{folder}/{RECORD}")
    try:
        return Release(**record)
    except TypeError:
        return None


def survey(tree: pathlib.Path, root: str) -> tuple[dict[Shim, str], dict[Shim, dict[str, str]]]:
    """Find the shims and the shipped configurations in a tree.

    Args:
        tree: where it lies for this process.
        root: where it lies for Kata.

    Returns:
        The paths of the shims, and of their configurations by hypervisor.
    """
    shims: dict[Shim, str] = {}
    found: dict[Shim, dict[str, str]] = {}
    for shim, path in SHIMS.items():
        if (tree / path).is_file():
            shims[shim] = f"{root}/{path}"
            found[shim] = {}
    folders: tuple[tuple[Shim, str], ...] = (
        ("go", CONFIGURATIONS),
        ("rust", f"{CONFIGURATIONS}/runtime-rs"),
    )
    for shim, folder in folders:
        for file in sorted((tree / folder).glob("configuration-*.toml")):
            name = file.stem.removeprefix("configuration-")
            name = name.removesuffix("-runtime-rs").removeprefix("rs-")
            name = _OTHER_NAMES.get(name, name)
            program = tree / _PROGRAMS.get(name, "")
            reader: Shim = "rust" if name in _RUST_ONLY else shim
            if reader in found and file.is_file() and (root != PREFIX or program.exists()):
                found[reader][name] = f"{root}/{folder}/{file.name}"
    # The first releases of 1.x had a single one, for QEMU.
    single = f"{CONFIGURATIONS}/configuration.toml"
    if "go" in found and not found["go"] and (tree / single).is_file():
        found["go"]["qemu"] = f"{root}/{single}"
    return shims, found


def version_of(node: kata_node.Node, shim: str) -> str:
    """Return the version that a shim says it has; every one since 1.5 answers `--version`.

    Raises:
        Blocked: it does not say.
    """
    ran = node.run(str(node.path(shim)), "--version", check=False, timeout=20)
    found = re.search(r"version: ([0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.+~-]*)", ran.out)
    if not found:
        raise problems.Blocked(
            f"{shim} --version does not say its version ({ran.words[:60]}); install another Kata"
        )
    return found[1]


def remembered(node: kata_node.Node, path: str) -> dict[str, Any]:
    """Return what one of our own JSON files says; nothing if it is missing or spoilt."""
    try:
        value: Any = json.loads(node.read(path) or "{}")
    except ValueError:
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
