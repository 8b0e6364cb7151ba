"""A figure, its yardstick and what it is to reach; as a table and as JSON."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure.

    Attributes:
        what: is measured.
        ours: the charm's, in `unit`: a median where it is a time.
        unit: such as s, ms, MB or calls.
        against: what the yardstick is; empty without one.
        yardstick: its figure, in the same unit.
        aim: what is to be reached, in words.
        bound: the bound of the ratio, or of the figure where there is no yardstick.
        least: whether the bound is the least that will do; the most otherwise.
        note: what a reader should know of this run.
    """

    what: str
    ours: float
    unit: str
    against: str = ""
    yardstick: float | None = None
    aim: str = ""
    bound: float | None = None
    least: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the yardstick's."""
        return self.ours / self.yardstick if self.yardstick else None

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        if self.bound is None:
            return None
        figure = self.ours if self.ratio is None else self.ratio
        return figure >= self.bound if self.least else figure <= self.bound

    def data(self) -> dict[str, Any]:
        """Return it as JSON can have it."""
        return {**dataclasses.asdict(self), "ratio": self.ratio, "met": self.met}


def row(said: Mapping[str, Any]) -> Row:
    """Return a row from its JSON."""
    names = {field.name for field in dataclasses.fields(Row)}
    return Row(**{name: value for name, value in said.items() if name in names})


def alternately(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of functions that are called in turn.

    Who goes first in one round goes last in the next, so that nobody always finds warm caches.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders) if number % 2 == 0 else list(reversed(contenders))
        for name in names:
            began = time.perf_counter()
            contenders[name]()
            samples[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in samples.items()}


def cells(each: Row) -> Sequence[str]:
    """Return what a table says of a row."""
    return (
        each.what,
        _number(each.ours, each.unit),
        f"{_number(each.yardstick, each.unit)} ({each.against})" if each.yardstick else "–",
        f"{each.ratio:.2f}" if each.ratio is not None else "–",
        each.aim or "–",
        {True: "yes", False: "no", None: "–"}[each.met],
    )


HEADS = ("what", "ours", "yardstick", "ratio", "to reach", "met")


def markdown(rows: Sequence[Row]) -> str:
    """Return the table for a document."""
    lines = [HEADS, ("---",) * len(HEADS), *(cells(each) for each in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    shown = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    return f"{shown} {unit}".strip()
