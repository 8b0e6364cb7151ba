"""What Kata publishes: which archives a release has, where they are, and what they must be.

The table of names follows kata-containers at its tags 2.0.0 to 4.1.0; a release that is packed in
a new way needs a row here.
"""

import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from kata import problems
from kata.machine.host import Architecture
from kata.release import release
from kata.settings import Shim

DOWNLOAD = "https://github.com/kata-containers/kata-containers/releases/download/{version}/{name}"
# From which release on an archive has which name; Debian's word for the architecture is `arch`,
# the kernel's is `machine`.
_NAMES: tuple[tuple[release.Number, str], ...] = (
    ((3, 21, 0), "kata-static-{version}-{arch}.tar.zst"),
    ((3, 2, 0), "kata-static-{version}-{arch}.tar.xz"),
    ((2, 0, 0), "kata-static-{version}-{machine}.tar.xz"),
)
_MACHINES: Mapping[Architecture, str] = {"amd64": "x86_64", "arm64": "aarch64"}
_FIRST_FOR_ARM64: release.Number = (3, 2, 0)
# From here on there are two archives, each whole in itself: the Rust shim's, and the Go shim's
# with Firecracker (docs/releases/4.1.0.md).
_SPLIT: release.Number = (4, 1, 0)
_GO_NAME = "kata-go-static-{version}-{arch}.tar.zst"
_ONLY_IN_GO = ("fc",)


def assets(
    version: str, architecture: Architecture, shim: Shim, hypervisors: Collection[str]
) -> tuple[str, ...]:
    """Return the names of the archives that are needed, in the order to unpack them.

    Args:
        version: the release.
        architecture: of the machine.
        shim: as in the option of that name.
        hypervisors: all that have a handler.

    Raises:
        Blocked: the release was not published as an archive.
    """
    published = release.number(version)
    names = [name for since, name in _NAMES if published >= since]
    if not names:
        raise problems.Blocked(
            f"option kata-version={version}: Kata 1.x has no archive to download; "
            "attach the resource kata-archive, or set packages"
        )
    wanted = release.default_shim(version) if shim == "auto" else shim
    needed = [names[0]]
    if published >= _SPLIT and (wanted == "go" or not set(_ONLY_IN_GO).isdisjoint(hypervisors)):
        needed = [_GO_NAME] if wanted == "go" else [names[0], _GO_NAME]
    words = {"version": version, "arch": architecture, "machine": _MACHINES[architecture]}
    return tuple(name.format(**words) for name in needed)


def address(template: str, version: str, architecture: Architecture, name: str) -> str:
    """Return where to download an archive.

    Args:
        template: the option `archive-url`; empty for Kata's own releases.
        version: the release.
        architecture: of the machine.
        name: of the archive.

    Raises:
        Blocked: nothing is published for this architecture.
    """
    if not template and architecture == "arm64" and release.number(version) < _FIRST_FOR_ARM64:
        raise problems.Blocked(
            f"option kata-version={version}: Kata has archives for arm64 from 3.2.0 on; "
            "set a later one, or attach the resource kata-archive"
        )
    filled = template or DOWNLOAD
    # A plain folder is a mirror as good as any.
    if filled.endswith("/"):
        filled += "{name}"
    for word, value in (("version", version), ("arch", architecture), ("name", name)):
        filled = filled.replace("{" + word + "}", value)
    return filled


def known_digest(version: str, name: str) -> str:
    """Return the SHA-256 of a published archive, or nothing if the charm does not know it.

    Kata publishes none in a file. The table names the public projects that pin the same value;
    `tools/pin_release.py` adds what GitHub's release API says.
    """
    return _digests().get(version, {}).get("files", {}).get(name, "")


def is_known(digest: str) -> bool:
    """Tell whether some published archive has this SHA-256."""
    return any(digest in row["files"].values() for row in _digests().values())


def _digests() -> Any:
    return json.loads(pathlib.Path(__file__).with_name("digests.json").read_bytes())
