"""The kernel modules that Kata needs: loaded now, and at each boot."""

import pathlib
import re
from collections.abc import Mapping

from kata import problems
from kata.machine import node as kata_node

FILE = "/etc/modules-load.d/kata-charm.conf"
"""Where they are named for the next boot (man modules-load.d)."""

_HEADER = "# Made by the Juju charm kata, and removed with it: modules of Kata Containers.\n"


def loaded(node: kata_node.Node, name: str) -> bool:
    """Return whether a module is loaded or built into the running kernel."""
    if node.exists(f"/sys/module/{name}"):
        return True
    builtin = node.read(f"/lib/modules/{kernel_release(node)}/modules.builtin") or ""
    names = (pathlib.PurePath(line).stem.replace("-", "_") for line in builtin.splitlines())
    return name in names


def ensure(node: kata_node.Node, wanted: Mapping[str, str]) -> bool:
    """Load modules that are not loaded, and name all of them for the next boot.

    Args:
        node: the machine.
        wanted: each module's name, and what to do where the kernel refuses it.

    Returns:
        True if one was loaded or the list for the next boot has changed.

    Raises:
        Blocked: a module cannot be loaded; the message has modprobe's own words.
    """
    missing = [name for name in wanted if not loaded(node, name)]
    for name in missing:
        ran = node.run("modprobe", "--", name, check=False)
        if not ran.ok:
            remedy = wanted[name]
            if "not found" in ran.words:
                remedy = f"install linux-modules-extra-{kernel_release(node)}"
            raise problems.Blocked(f"module {name}: {_reason(ran.words)}; {remedy}")
    listed = _HEADER + "".join(f"{name}\n" for name in wanted)
    return node.write(FILE, listed) or bool(missing)


def release(node: kata_node.Node) -> bool:
    """Forget the modules for the next boot; what is loaded stays, others may use it.

    Returns:
        True if our list was there.
    """
    if not (node.read(FILE) or "").startswith(_HEADER):
        return False
    return node.remove(FILE)


def kernel_release(node: kata_node.Node) -> str:
    """Return the running kernel's release, such as `6.8.0-45-generic`."""
    return (node.read("/proc/sys/kernel/osrelease") or "").strip()


def _reason(words: str) -> str:
    """Return modprobe's words without its own name, the module's and the folder it searched."""
    words = re.sub(r"^modprobe: (FATAL|ERROR): ", "", words)
    words = re.sub(r"^(Module \S+ |could not insert '\S+': )", "", words)
    return re.sub(r" in directory \S+$", "", words)
