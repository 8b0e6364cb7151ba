"""The points at which a hook can be cut short: between any two changes that it makes to its machine.

    points.prepare(node)
    unit.dispatch("install", env=points.RECORD)
    found = points.recorded(node)
    ...
    unit.dispatch("install", env=points.killing(found[7].number))

`points_in_process` counts in the node. The same hook on the same node has the same points, so a
point that showed a fault can be tried again.
"""

import pathlib
import random
from collections.abc import Sequence
from typing import NamedTuple

from tests.node import machine, points_in_process

_FOLDER = "/usr/local/lib/python3.11/dist-packages"
_RECORD = "/run/kata-points"
_CONSOLE = "/dev/ttyS0"
VARIABLE = points_in_process.VARIABLE
RECORD = {VARIABLE: f"record {_RECORD}"}
"""For the environment of a process whose points are to be recorded."""

# What is being done at a point: the first of these in what is touched, or run.
_AREAS = (
    ("/opt/kata-releases/", "unpack"),
    ("/opt", "switch"),
    ("/usr/local/bin", "switch"),
    ("/etc/kata-containers", "configuration"),
    ("/etc/containerd", "containerd's file"),
    ("/var/lib/kata-charm/containerd", "containerd's file"),
    ("config dump", "containerd's file"),
    ("systemctl restart", "restart"),
    ("plugins ls", "restart"),
    ("/run/kata-charm", "restart"),
    ("daemon-reload", "guard"),
    ("/usr/local/lib/kata-charm", "guard"),
    ("/etc/systemd", "guard"),
    ("apt-get", "packages"),
    ("dpkg", "packages"),
    ("/etc/apt", "packages"),
    ("modprobe", "modules"),
    ("/etc/modules-load.d", "modules"),
)


class Point(NamedTuple):
    """A change that a hook is about to make."""

    number: int  # from 1 on
    seconds: float  # from its start
    lasts: float  # seconds until the next one
    event: str
    subject: str

    @property
    def area(self) -> str:
        """What is being done there."""
        return next((area for text, area in _AREAS if text in self.subject), "state")

    def __str__(self) -> str:
        return f"{self.number} ({self.event} {self.subject[:90]})"


def prepare(node: machine.Machine) -> None:
    """Let Python in the node count."""
    node.copy_in(pathlib.Path(points_in_process.__file__), f"{_FOLDER}/kata_points.py")
    node.copy_in("import kata_points\n", f"{_FOLDER}/kata-points.pth")


def recorded(node: machine.Machine) -> list[Point]:
    """Return the points of the process that was last started with `RECORD`."""
    rows = [line.split("\t", 2) for line in node.copy_out(_RECORD).decode().splitlines()]
    times = [float(row[0]) for row in rows]
    ends = [*times[1:], *times[-1:]]
    return [
        Point(number, time, end - time, row[1], row[2])
        for number, (time, end, row) in enumerate(zip(times, ends, rows, strict=True), 1)
    ]


def killing(point: int, seconds: float = 0) -> dict[str, str]:
    """Return the environment of a process that dies, as by SIGKILL, so long after a point."""
    return {VARIABLE: f"kill {_CONSOLE} {point} {seconds:.3f}"}


def cutting(point: int, seconds: float = 0) -> dict[str, str]:
    """Return the environment of a process with which the node loses its power, by the host's hand."""
    return {VARIABLE: f"cut {_CONSOLE} {point} {seconds:.3f}"}


def stops(node: machine.Machine) -> list[Point]:
    """Return the points that processes said they came to, since the node was started."""
    said = node.console.split(points_in_process.MARK)[1:]
    rows = [each.partition("\n")[0].strip().split("\t", 2) for each in said if "\n" in each]
    return [Point(0, float(row[0]), 0.0, row[1], row[2]) for row in rows]


def spread(found: Sequence[Point], count: int, chance: random.Random) -> list[Point]:
    """Choose points so that each area has its share, whatever its number of points."""
    areas: dict[str, list[Point]] = {}
    for point in found:
        areas.setdefault(point.area, []).append(point)
    names = list(areas)
    chance.shuffle(names)
    chosen = [chance.choice(areas[names[n % len(names)]]) for n in range(count)]
    return sorted(chosen)
