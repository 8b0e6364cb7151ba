"""Prometheus' text format: what an exporter answers (prometheus/docs, exposition_formats.md, 0.0.4)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_NO_LABELS: Mapping[str, str] = {}


class Sample(NamedTuple):
    """One value of a family; `suffix` is what a histogram's samples add to the family's name."""

    value: float
    labels: Mapping[str, str] = _NO_LABELS
    suffix: str = ""


class Family(NamedTuple):
    """A metric: its name, what it means, and its values."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    samples: Sequence[Sample]


class Histogram:
    """Counts observations by size.

    Args:
        bounds: the upper bounds of its buckets, in rising order; one without a bound is added.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = (*bounds, float("inf"))
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count an observation."""
        self._sum += value
        for place, bound in enumerate(self._bounds):
            self._counts[place] += value <= bound

    def samples(self) -> list[Sample]:
        """Return what there is to tell."""
        buckets = [
            Sample(count, {"le": _number(bound)}, "_bucket")
            for bound, count in zip(self._bounds, self._counts, strict=True)
        ]
        return [
            *buckets,
            Sample(self._sum, suffix="_sum"),
            Sample(self._counts[-1], suffix="_count"),
        ]


def text(families: Iterable[Family]) -> str:
    """Return metrics as Prometheus reads them. A family without a value is left out."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        lines.append(f"# HELP {family.name} {family.meaning}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for value, labels, suffix in family.samples:
            pairs = ",".join(f'{key}="{_escaped(each)}"' for key, each in labels.items())
            named = f"{family.name}{suffix}" + (f"{{{pairs}}}" if pairs else "")
            lines.append(f"{named} {_number(value)}")
    return "\n".join([*lines, ""])


def _escaped(value: str) -> str:
    # What is no UTF-8 on the machine must not make the whole answer invalid.
    return value.encode("utf-8", "replace").decode().translate(_ESCAPES)


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
