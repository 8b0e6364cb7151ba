"""The guard: what systemd runs before each start of containerd (see `guard`).

Most often nothing is to be done, and that must cost next to nothing: so nothing is imported here
that is not needed to see it.
"""

import os
import sys

from kata.machine import facts

FACTS = "/var/lib/kata-charm/containerd/facts"
READ = "/run/kata-charm/read"


def main(root: str = "/") -> None:
    """Put our handlers back where they are missing; whatever happens, let containerd start."""
    try:
        if not _is_settled(root):
            from kata.containerd import guard_repair

            if not guard_repair.repair(root):
                return
        _tell(root.rstrip("/") + READ)
    except Exception as error:  # noqa: BLE001 - a containerd without Kata is better than none
        sys.stderr.write(f"kata-charm guard: {error!r}; nothing done\n")


def _is_settled(root: str) -> bool:
    try:
        with open(root.rstrip("/") + FACTS, "rb") as file:
            return facts.hold(file.read(), root)
    except OSError:
        return False


def _tell(path: str) -> None:
    """Tell the charm's hooks that this start reads our handlers."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        file.write(os.environ.get("INVOCATION_ID", ""))


if __name__ == "__main__":
    main()
