"""What a shim is given: a container's specification, and the options of its handler."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kata.containerd import cri, protobuf

# The type that CRI gives to the options of any runtime but runc: cri.… up to containerd 1.4.
_OPTIONS, _OLD_OPTIONS = "runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"
_RUNC_OPTIONS = "containerd.runc.v1.Options"
_SPECIFICATION = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

_MOUNTS: Mapping[str, tuple[str, str, str]] = {
    "/proc": ("proc", "proc", "nosuid,noexec,nodev"),
    "/dev": ("tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    "/dev/pts": ("devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"),
    "/dev/" + "shm": ("tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
    "/sys": ("sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
}


def is_runc(handler: cri.Handler) -> bool:
    """Return whether a handler runs containers without a virtual machine, by runc's own shim."""
    return handler.runtime_type.startswith("io.containerd.runc.")


def options(handler: cri.Handler, containerd: tuple[int, int, int]) -> bytes:
    """Return a handler's options as CRI sends them (containerd, pkg/cri, generateRuntimeOptions).

    No table is no message. Any table is one, even if nothing in it means anything to the shim;
    that is what shims of Kata up to 1.13 and 2.1.1 cannot take.

    Args:
        handler: as CRI has loaded it.
        containerd: its release.
    """
    given = handler.options
    if given is None:
        return b""
    if is_runc(handler):
        message = protobuf.message(
            (6, str(given.get("BinaryName") or "")),
            (7, str(given.get("Root") or "")),
            (9, int(_by_systemd(handler))),
        )
        return _any(_RUNC_OPTIONS, message)
    path, kind = str(given.get("ConfigPath") or ""), str(given.get("TypeUrl") or "")
    name = _OLD_OPTIONS if containerd < (1, 5, 0) else _OPTIONS
    return _any(name, protobuf.message((1, kind), (2, path)))


def specification(
    handler: cri.Handler, parent: str, name: str, words: Sequence[str], network: str
) -> bytes:
    """Return the specification of a container that has no more than it needs.

    Args:
        handler: what it will run with.
        parent: the cgroup above the container's.
        name: the container's id.
        words: its command line.
        network: path of its network namespace.
    """
    # runc wants the place in systemd's form where it is told to use systemd.
    cgroup = f"system.slice:{parent}:{name}" if _by_systemd(handler) else f"/{parent}/{name}"
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(words),
            "env": ["PATH=/"],
            "cwd": "/",
            "noNewPrivileges": True,
            # The agent in the guest asks for them, even if there are none.
            "capabilities": {"bounding": [], "effective": [], "permitted": []},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": place, "type": kind, "source": source, "options": given.split(",")}
            for place, (kind, source, given) in _MOUNTS.items()
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "cgroupsPath": cgroup,
            "namespaces": [
                *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                {"type": "network", "path": network},
            ],
        },
    }
    return _any(_SPECIFICATION, json.dumps(spec).encode())


def _by_systemd(handler: cri.Handler) -> bool:
    return is_runc(handler) and bool((handler.options or {}).get("SystemdCgroup"))


def _any(kind: str, value: bytes) -> bytes:
    """Return a google.protobuf.Any, with the short type that containerd's typeurl uses."""
    return protobuf.message((1, kind), (2, value))
