"""What hooks tell the exporter: what only they know of the charm and of the cluster.

The exporter has no access to the Kubernetes API. A hook has, and leaves here what it found.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, cast

from kata.machine import node as kata_node
from kata.machine import tenancy

FOLDER = f"{tenancy.STATE}/metrics"
"""The one folder of the charm's, beside containerd's, that the exporter can read."""
FILE = f"{FOLDER}/hooks/told.json"


@dataclasses.dataclass(frozen=True)
class Told:
    """How things were when the last hook ended.

    Attributes:
        time: when that was, in seconds since 1970.
        release: version of Kata in use; empty for none.
        shim: its shim.
        overheads: of each RuntimeClass, its hypervisor and the bytes of its overhead.
        runtime_classes: whether each is in the cluster; only the leader knows.
        labelled: whether the node has the label of nodes that are ready; None where nobody knows.
        problem: what the unit is blocked by or waits for; empty for nothing.
    """

    time: float = 0
    release: str = ""
    shim: str = ""
    overheads: Mapping[str, tuple[str, int]] = dataclasses.field(
        default_factory=dict[str, tuple[str, int]]
    )
    runtime_classes: Mapping[str, bool] = dataclasses.field(default_factory=dict[str, bool])
    labelled: bool | None = None
    problem: str = ""


def save(node: kata_node.Node, told: Told) -> None:
    """Leave it for the exporter.

    Raises:
        Blocked: the file cannot be written.
    """
    make_folder(node)
    node.write(FILE, json.dumps(dataclasses.asdict(told)) + "\n", mode=0o600)


def make_folder(node: kata_node.Node) -> None:
    """Make the folder, and in it that of the file: it changes with each hook, and `FOLDER` does not."""
    top = node.path(FOLDER)
    top.mkdir(parents=True, exist_ok=True, mode=0o700)
    (top / "hooks").mkdir(exist_ok=True, mode=0o700)


def load(node: kata_node.Node) -> Told | None:
    """Return what the last hook left; None where there is nothing, or nothing of use."""
    try:
        said = cast("dict[str, Any]", json.loads(node.read(FILE) or ""))
        said["overheads"] = {name: tuple(each) for name, each in said["overheads"].items()}
        return Told(**said)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
