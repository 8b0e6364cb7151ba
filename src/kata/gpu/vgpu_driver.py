"""NVIDIA's licensed vGPU host driver: its `.run` file, installed as the deploy record does it."""

import hashlib
import json
import pathlib

from kata import problems
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


def loaded_version(node: kata_node.Node) -> str | None:
    """Return the version of the NVIDIA driver that the kernel has loaded."""
    return (node.read(VERSION) or "").strip() or None


def ensure_installed(node: kata_node.Node, package: pathlib.Path) -> bool:
    """Install the driver from an attached `.run` file, once for each file and kernel.

    Returns:
        True if it was installed now.

    Raises:
        Blocked: no headers of the running kernel to build with, or the installer fails.
    """
    release = modules.kernel_release(node)
    digest = hashlib.sha256()
    with package.open("rb") as file:
        start = file.read(64)
        file.seek(0)
        while piece := file.read(1 << 20):
            digest.update(piece)
    if not start.startswith(b"#!"):
        raise problems.Blocked(
            "resource vgpu-driver is not NVIDIA's installer (NVIDIA-Linux-…-vgpu-kvm.run): attach "
            "that file"
        )
    wanted = {"digest": digest.hexdigest(), "kernel": release}
    if json.loads(node.read(RECORD) or "{}") == wanted:
        return _load(node)
    source = f"/lib/modules/{release}/build"
    if not node.exists(source):
        raise problems.Blocked(
            f"vgpu-driver needs the headers of kernel {release}: install linux-headers-{release}"
        )
    ran = node.run(
        *("sh", str(package), *FLAGS, f"--kernel-source-path={source}"),
        check=False,
        timeout=PATIENCE,
    )
    if not ran.ok:
        errors = [x for x in (node.read(LOG) or "").splitlines() if x.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR:").strip() if errors else ran.words
        raise problems.Blocked(f"vgpu-driver: the installer failed: {reason}; see {LOG}")
    node.write(RECORD, json.dumps(wanted) + "\n", mode=0o600)
    node.run("depmod", check=False)
    _load(node)
    return True


def remove(node: kata_node.Node) -> bool:
    """Uninstall the driver if it was installed by us; return True if it was."""
    if not node.exists(RECORD):
        return False
    ran = node.run("nvidia-uninstall", "-q", "--ui=none", check=False, timeout=PATIENCE)
    if not ran.ok and ran.status != 127:
        raise problems.Blocked(f"nvidia-uninstall: {ran.words}; see {LOG}")
    return node.remove(RECORD)


def _load(node: kata_node.Node) -> bool:
    """Load the driver and start its services where they are not; return True if it was loaded."""
    if loaded_version(node):
        return False
    for module in MODULES:
        node.run("modprobe", module, check=False)
    for service in SERVICES:
        node.run("systemctl", "start", service, check=False)
    return True
