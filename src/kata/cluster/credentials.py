"""How to reach the API server, handed out by the control plane and kept between hooks."""

import dataclasses
import json
from typing import Any

from kata.machine import node


@dataclasses.dataclass(frozen=True)
class Access:
    """How to reach an API server.

    Attributes:
        server: its https URL.
        token: the bearer token; never shown.
        ca: the certificates to trust, in PEM.
        others: further URLs of the same cluster, tried in turn where the first does not answer.
    """

    server: str
    token: str = dataclasses.field(repr=False)
    ca: str = dataclasses.field(repr=False)
    others: tuple[str, ...] = ()


def save(machine: node.Node, path: str, access: Access, source: str) -> bool:
    """Keep an access for later hooks, readable by root alone.

    Args:
        machine: the machine that keeps it.
        path: the file.
        access: what is kept.
        source: a digest of what it was made from.

    Returns:
        True if the file has changed.
    """
    kept = {"source": source, **dataclasses.asdict(access)}
    return machine.write(path, json.dumps(kept) + "\n", mode=0o600)


def load(machine: node.Node, path: str, source: str | None = None) -> Access | None:
    """Return the access kept in a file; None if there is none, or none of that `source`."""
    try:
        kept: Any = json.loads(machine.read(path) or "{}")
        if source not in (None, kept["source"]):
            return None
        told: list[Any] = [kept["server"], kept["token"], kept["ca"], *kept["others"]]
        if not all(isinstance(each, str) for each in told):
            return None
        return Access(told[0], told[1], told[2], tuple(told[3:]))
    except (ValueError, KeyError, TypeError):
        return None
