"""How a node is, after the charm's work on it: what Juju and the cluster are told."""

import dataclasses
from typing import TYPE_CHECKING

from kata import problems

if TYPE_CHECKING:
    from kata.observability import services


@dataclasses.dataclass(frozen=True)
class Report:
    """How a node is."""

    version: str | None
    """Of Kata; None where it is not installed by this unit."""
    handlers: tuple[str, ...] = ()
    """What containerd calls them, the main one first."""
    config_path: str = ""
    """The main handler's configuration, if containerd may be told its path."""
    gpus: tuple[str, ...] = ()
    """Addresses of the GPUs that sandboxes can have."""
    notes: tuple[str, ...] = ()
    """What the operator should know, and need not act on."""
    targets: "tuple[services.Target, ...]" = ()
    """Where Prometheus can ask how sandboxes and the node fare."""
    problem: problems.Problem | None = None
    """What keeps a part from being ready that ordinary sandboxes do not need."""

    @property
    def message(self) -> str:
        """One line for the unit's status."""
        if not self.version:
            return "; ".join(self.notes)
        behind = f"{self.version}; {', '.join(self.handlers)}"
        return "; ".join((f"Kata runtime available ({behind})", *self.notes))
