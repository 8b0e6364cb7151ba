"""nouveau, the kernel's own driver for NVIDIA's GPUs: kept from loading where it is in the way."""

from kata.machine import node as kata_node

NAME = "nouveau"
BLACKLIST = "/etc/modprobe.d/kata-charm-gpu.conf"
_TEXT = "# Written by the kata charm.\nblacklist nouveau\noptions nouveau modeset=0\n"


def ensure_blacklisted(node: kata_node.Node) -> bool:
    """Keep it from loading from now on; return True if it could load until now."""
    if not node.write(BLACKLIST, _TEXT):
        return False
    _renew_initramfs(node)
    return True


def allow(node: kata_node.Node) -> bool:
    """Let it load again; return True if we had kept it from that."""
    if not node.remove(BLACKLIST):
        return False
    _renew_initramfs(node)
    return True


def _renew_initramfs(node: kata_node.Node) -> None:
    """Carry the blacklist into the initramfs, where there is one: it may load nouveau itself."""
    if node.exists("/usr/sbin/update-initramfs"):
        node.run("update-initramfs", "-u", check=False, timeout=300)
