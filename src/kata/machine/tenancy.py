"""Which unit of this charm works on the machine: Juju may put several on one.

The first to come works; the others stand by, and the next of them takes over when it leaves. Juju
runs the hooks of one machine one at a time, so the list needs no lock.
"""

import json
import logging
import os
from typing import Any, cast

from kata.machine import node

log = logging.getLogger(__name__)

STATE = "/var/lib/kata-charm"
"""Folder of what the charm itself must remember on a machine; only root may look inside."""

PROOF = f"{STATE}/verify"
"""There while verify-sandbox runs, and after one that was killed, if only by a power cut."""

_UNITS = f"{STATE}/units.json"


def join(machine: node.Node, unit: str) -> str:
    """Put a unit on the machine's list, and return the unit whose turn it is.

    Args:
        machine: the machine.
        unit: the unit's name, such as `kata/0`.
    """
    units = _present(machine, unit)
    if unit not in units:
        units.append(unit)
    _reclaim(machine)
    machine.write(_UNITS, json.dumps(units) + "\n", mode=0o600)
    return units[0]


def is_first(machine: node.Node, unit: str) -> bool:
    """Return whether it is this unit's turn."""
    return _present(machine, unit)[:1] == [unit]


def is_alone(machine: node.Node, unit: str) -> bool:
    """Return whether no other unit is there to go on when this one leaves."""
    return _present(machine, unit) in ([], [unit])


def leave(machine: node.Node, unit: str) -> str | None:
    """Take a unit off the list, and return the unit whose turn it is now; None after the last."""
    units = [each for each in _present(machine, unit) if each != unit]
    if units:
        machine.write(_UNITS, json.dumps(units) + "\n", mode=0o600)
        return units[0]
    machine.remove(_UNITS)
    return None


def _reclaim(machine: node.Node) -> None:
    """Make the folder if it is missing, and take back what somebody has made others' to change."""
    top = machine.path(STATE)
    top.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder, _, names in os.walk(top):
        below = STATE + folder[len(str(top)) :]
        for path in (below, *(f"{below}/{name}" for name in names)):
            if machine.reclaim(path):
                log.warning("%s could be changed by others than root: put right", path)


def _present(machine: node.Node, unit: str) -> list[str]:
    """Return the list without units that left without a word, such as by a forced removal."""
    try:
        listed: Any = json.loads(machine.read(_UNITS) or "[]")
    except ValueError:
        listed = []
    units: list[str] = (
        [str(each) for each in cast("list[Any]", listed)] if isinstance(listed, list) else []
    )
    agents = "/var/lib/juju/agents/unit-{}"
    return [
        each
        for each in units
        if each == unit or machine.exists(agents.format(each.replace("/", "-")))
    ]
