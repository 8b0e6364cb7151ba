"""NVIDIA's licensed vGPU host driver: its `.run` file, installed as the deploy record does it."""

import hashlib
import json
import pathlib
from typing import TypedDict

from kata import problems
from kata.gpu import mdev, nouveau
from kata.machine import modules
from kata.machine import node as kata_node

RECORD = "/var/lib/kata-charm/vgpu-driver.json"
LOG = "/var/log/nvidia-installer.log"
VERSION = "/sys/module/nvidia/version"
# -a: accept the licence, -q: no questions. No OpenGL: nobody draws on the host.
FLAGS = (
    *("-a", "-q", "--ui=none", "--no-cc-version-check"),
    *("--no-opengl-files", "--no-install-libglvnd"),
)
MODULES = ("nvidia", "nvidia-vgpu-vfio")
SERVICES = ("nvidia-vgpud", "nvidia-vgpu-mgr")
# Building the kernel module takes minutes on a small machine.
PATIENCE = 1800
# nvidia-vgpud tells the kernel of the types a few seconds after it has started.
_FOR_TYPES = 30


class _Record(TypedDict, total=False):
    """What was done to the machine; of the installed file, enough to know it again."""

    digest: str
    file: list[int]
    """Size and time: spares each hook from reading some hundred megabytes."""
    kernel: str
    nouveau: bool
    """Whether nouveau was unloaded."""


def loaded_version(node: kata_node.Node) -> str | None:
    """Return the version of the NVIDIA driver that the kernel has loaded."""
    return (node.read(VERSION) or "").strip() or None


def ensure_installed(node: kata_node.Node, package: pathlib.Path) -> bool:
    """Install the driver from an attached `.run` file, once for each file and kernel.

    nouveau, with which the installer refuses to work, is unloaded and kept from loading.

    Returns:
        True if it was installed now.

    Raises:
        Blocked: no headers of the running kernel to build with, nouveau in use, or the installer
            fails.
    """
    release = modules.kernel_release(node)
    record = _recorded(node)
    status = package.stat()
    wanted: _Record = {**record, "file": [status.st_size, status.st_mtime_ns], "kernel": release}
    if record.get("file") != wanted["file"]:
        wanted["digest"] = _digest(package)
    if all(record.get(key) == wanted.get(key) for key in ("digest", "kernel")):
        _write(node, wanted)
        return _load(node)
    source = f"/lib/modules/{release}/build"
    if not node.exists(source):
        raise problems.Blocked(
            f"vgpu-driver needs the headers of kernel {release}: install linux-headers-{release}"
        )
    if _unload_nouveau(node, record):
        wanted["nouveau"] = True
    ran = node.run(
        *("sh", str(package), *FLAGS, f"--kernel-source-path={source}"),
        check=False,
        timeout=PATIENCE,
    )
    if not ran.ok:
        errors = [x for x in (node.read(LOG) or "").splitlines() if x.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR:").strip() if errors else ran.words
        raise problems.Blocked(f"vgpu-driver: the installer failed: {reason}; see {LOG}")
    _write(node, wanted)
    node.run("depmod", check=False)
    _load(node)
    return True


def remove(node: kata_node.Node) -> bool:
    """Unload and uninstall the driver if it was installed by us; return True if it was."""
    if not node.exists(RECORD):
        return False
    record = _recorded(node)
    if record.get("digest"):
        for service in SERVICES:
            node.run("systemctl", "stop", service, check=False)
        # One that something still uses stays until the next boot.
        node.run("modprobe", "-r", *reversed(MODULES), check=False)
        ran = node.run("nvidia-uninstall", "-q", "--ui=none", check=False, timeout=PATIENCE)
        if not ran.ok and ran.status != 127:
            raise problems.Blocked(f"nvidia-uninstall: {ran.words}; see {LOG}")
    nouveau.allow(node)
    if record.get("nouveau"):
        node.run("modprobe", nouveau.NAME, check=False)
    return node.remove(RECORD)


def _load(node: kata_node.Node) -> bool:
    """Load the driver and start its services where they are not; return True if it was loaded."""
    if loaded_version(node):
        return False
    for module in MODULES:
        node.run("modprobe", module, check=False)
    for service in SERVICES:
        node.run("systemctl", "start", service, check=False)
    if loaded_version(node):
        mdev.await_types(node, _FOR_TYPES)
    return True


def _unload_nouveau(node: kata_node.Node, record: _Record) -> bool:
    """Keep nouveau out, now and at the boots to come; return True if it was loaded."""
    if not node.exists(f"/sys/module/{nouveau.NAME}"):
        return False
    _write(node, {**record, "nouveau": True})  # before anything is done that it must undo
    nouveau.ensure_blacklisted(node)
    if not node.run("modprobe", "-r", nouveau.NAME, check=False).ok:
        raise problems.Blocked(
            "reboot needed: vgpu-driver cannot be installed beside nouveau, which is in use; it "
            "is kept from loading at the next boot"
        )
    return True


def _digest(package: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with package.open("rb") as file:
        if file.read(2) != b"#!":
            raise problems.Blocked(
                "resource vgpu-driver is not NVIDIA's installer (NVIDIA-Linux-…-vgpu-kvm.run): "
                "attach that file"
            )
        file.seek(0)
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _recorded(node: kata_node.Node) -> _Record:
    record: _Record = json.loads(node.read(RECORD) or "{}")
    return record


def _write(node: kata_node.Node, record: _Record) -> bool:
    return node.write(RECORD, json.dumps(record, sort_keys=True) + "\n", mode=0o600)
