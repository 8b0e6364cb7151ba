"""Starts containerd anew, and tells whether it serves."""

import re
import time

from kata.containerd.daemon import Containerd
from kata.machine import node

RESTART = 150
"""Seconds that systemd is given: it waits 90 for a start, and may have to stop a hung one first."""
READY = 45
"""Seconds from there until containerd must answer and its CRI plugin be loaded."""

# Types and ids of the plugins that serve Kubernetes: the first up to containerd 1.7, all from 2.0.
_CRI = (
    ("io.containerd.grpc.v1", "cri"),
    ("io.containerd.cri.v1", "runtime"),
    ("io.containerd.cri.v1", "images"),
)
_ANSWER = 10  # seconds for one question
_PAUSE = 0.5
_FIELD = re.compile(r'(?:msg|error)="((?:[^"\\]|\\.)*)"')
_SERIOUS = re.compile(r"level=(?:fatal|error)|^containerd: ")


def restart(machine: node.Node, containerd: Containerd) -> str:
    """Start containerd anew and wait until it serves.

    Returns:
        In containerd's own words why it does not; nothing if it does.
    """
    ran = machine.run("systemctl", "restart", "--", containerd.unit, check=False, timeout=RESTART)
    if not ran.ok:
        return _journal(machine, containerd) or ran.words
    return trouble(machine, containerd, READY)


def trouble(machine: node.Node, containerd: Containerd, patience: float = 0) -> str:
    """Return in containerd's own words why it does not serve pods; nothing if it does.

    Args:
        machine: the node.
        containerd: the one to ask.
        patience: seconds that it may take to answer.
    """
    ask = (containerd.ctr, "--address", containerd.address(machine), "plugins", "ls")
    until = time.monotonic() + patience
    while True:
        ran = machine.run(*ask, check=False, timeout=_ANSWER)
        rows = [line.split() for line in ran.out.splitlines()]
        states = {(row[0], row[1]): row[-1] for row in rows if len(row) >= 3}
        loaded = [states[each] for each in _CRI if each in states]
        if ran.ok and loaded and set(loaded) == {"ok"}:
            return ""
        if ran.ok and "error" in loaded:
            failing = next(each for each in _CRI if states.get(each) == "error")
            return _reason(machine, ask, failing) or "its CRI plugin is not loaded"
        if time.monotonic() >= until:
            break
        time.sleep(_PAUSE)
    if ran.ok:
        return "its CRI plugin is not loaded"
    return _journal(machine, containerd) or ran.words


def _reason(machine: node.Node, ask: tuple[str, ...], plugin: tuple[str, str]) -> str:
    ran = machine.run(*ask, "-d", f"id=={plugin[1]}", check=False, timeout=_ANSWER)
    said = re.search(r"^\s*Message:\s*(.+)$", ran.out, re.MULTILINE)
    return said[1].strip() if said else ""


def _journal(machine: node.Node, containerd: Containerd) -> str:
    """Return the last complaint of this run of containerd, or of what is run before it."""
    run = machine.unit(containerd.unit, "InvocationID")["InvocationID"]
    # systemd may have begun another run meanwhile, which has said nothing yet. Its own lines about
    # a unit are of neither, so what is left is the programs' words.
    lines = _said(machine, f"_SYSTEMD_INVOCATION_ID={run}") if run else []
    lines = lines or _said(machine, f"_SYSTEMD_UNIT={containerd.unit}", "--since=-5min")
    serious = (line for line in reversed(lines) if _SERIOUS.search(line))
    line = next(serious, lines[-1] if lines else "")
    fields = [each.replace('\\"', '"') for each in _FIELD.findall(line)]
    return ": ".join(fields) or line.removeprefix("containerd: ").strip()


def _said(machine: node.Node, *which: str) -> list[str]:
    ran = machine.run(
        *("journalctl", *which, "--output", "cat", "--lines", "60", "--no-pager", "--quiet"),
        check=False,
        timeout=_ANSWER,
    )
    return [line for line in ran.out.splitlines() if line.strip()]
