"""How pods' sandboxes start, by what containerd and the kernel write in the journal."""

import collections
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from kata.checks import causes
from kata.machine import node as kata_node
from kata.observability import exposition

UNKNOWN = "unknown"
"""Cause of a failure in a shim's hands, in words that nobody knows."""
BOUNDS = (0.5, 1, 1.5, 2, 3, 5, 8, 13, 20, 30, 60, 120)
"""Seconds: a sandbox takes about one on a quick machine, and Kata gives up after a minute or two."""

# containerd's CRI plugin, 1.2 to 2.3 (internal/cri/instrument/instrumented_service.go). How the pod
# is spelled differs, but it is the same in all lines of one.
_LINE = re.compile(
    r'msg="RunPodSandbox for (?P<pod>(?:[^"\\]|\\.)+?)(?: returns sandbox id \\"(?P<id>\w+)\\"|'
    r'(?P<failed> failed, error))?"(?=\s|$)',
    re.IGNORECASE,
)
# The kernel has a second line for the same.
_KILLED = re.compile(r"Out of memory: Killed process", re.IGNORECASE)
_SHIMS = re.compile(r"create shim task|create containerd task|start sandbox task", re.IGNORECASE)
_RUNC = re.compile(
    r"runc create failed|OCI runtime create failed|io\.containerd\.runc", re.IGNORECASE
)
_OUT_OF_MEMORY = "out-of-memory"
_NOT_KATAS = ("no-image", "no-network")
_PENDING = 1000  # starts that are waited for; the oldest is given up
_TIMEOUT = 20


class Line(NamedTuple):
    """A line of the journal: seconds since 1970, and what it says."""

    time: float
    words: str


class Journal:
    """What containerd and the kernel write from now on.

    Args:
        node: the machine.
        unit: containerd's systemd unit.
    """

    def __init__(self, node: kata_node.Node, unit: str) -> None:
        self._node = node
        # Of the unit's own processes, or of the kernel.
        self._of = (f"_SYSTEMD_UNIT={unit}", "+", "_TRANSPORT=kernel")
        self._cursor = ""

    def read(self) -> list[Line]:
        """Return what is new since the last call; nothing by the first.

        Raises:
            CommandFailed: the journal cannot be read.
        """
        since = ("--after-cursor", self._cursor) if self._cursor else ("--lines", "0")
        ran = self._node.run(
            *("journalctl", "--quiet", "--no-pager", "--output", "short-unix", "--show-cursor"),
            *since,
            *self._of,
            timeout=_TIMEOUT,
        )
        lines: list[Line] = []
        for line in ran.out.splitlines():
            if line.startswith("-- cursor: "):
                self._cursor = line.removeprefix("-- cursor: ")
                continue
            time, _, words = line.partition(" ")
            if time.replace(".", "", 1).isdigit():
                lines.append(Line(float(time), words))
        return lines


class Starts:
    """Counts the failures, and times what starts.

    Attributes:
        failures: how many sandboxes failed, by cause; every cause that is known is there.
        seconds: how long the others took, from kubelet's question to containerd's answer.
    """

    def __init__(self) -> None:
        names = (name for name in causes.names() if name not in _NOT_KATAS)
        # A counter that appears with its first failure would hide that one from `increase`.
        self.failures = collections.Counter(dict.fromkeys((*names, UNKNOWN), 0))
        self.seconds = exposition.Histogram(BOUNDS)
        self._begun: dict[str, float] = {}

    def take(self, lines: Iterable[Line], sandboxes: Collection[str]) -> None:
        """Take in what the journal says.

        Args:
            lines: of the journal, in order.
            sandboxes: ids of the sandboxes that are Kata's.
        """
        for line in lines:
            told = _LINE.search(line.words)
            if told is None:
                cause = causes.of(line.words) if _KILLED.search(line.words) else None
                if cause and cause.name == _OUT_OF_MEMORY:
                    self.failures[cause.name] += 1
                continue
            begun = self._begun.pop(told["pod"], None)
            if told["failed"]:
                if cause := _failure(line.words):
                    self.failures[cause] += 1
            elif not told["id"]:
                self._begun[told["pod"]] = line.time
                if len(self._begun) > _PENDING:
                    del self._begun[next(iter(self._begun))]
            elif begun is not None and told["id"] in sandboxes:
                self.seconds.observe(max(line.time - begun, 0))

    def families(self) -> Iterable[exposition.Family]:
        """Return what there is to tell."""
        yield exposition.Family(
            "kata_charm_sandbox_failures_total",
            "counter",
            "Sandboxes that containerd could not start, or that the kernel killed for memory.",
            [exposition.Sample(n, {"cause": cause}) for cause, n in self.failures.items()],
        )
        yield exposition.Family(
            "kata_charm_sandbox_start_seconds",
            "histogram",
            "Time from kubelet's request for a Kata sandbox to containerd's answer.",
            self.seconds.samples(),
        )


def _failure(words: str) -> str | None:
    """Return the cause of a failure; None for what has nothing to do with Kata."""
    cause = causes.of(words)
    if cause:
        return None if cause.name in _NOT_KATAS else cause.name
    return UNKNOWN if _SHIMS.search(words) and not _RUNC.search(words) else None
