"""Metrics as an exporter tells them, read as Prometheus reads them."""

from prometheus_client import parser


class Metrics(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """Values by name and labels."""

    @classmethod
    def of(cls, text: str) -> "Metrics":
        families = parser.text_string_to_metric_families(text)
        samples = (sample for family in families for sample in family.samples)
        return cls({(each.name, frozenset(each.labels.items())): each.value for each in samples})

    def value(self, name: str, **labels: str) -> float | None:
        """Return the one value with that name and at least these labels; None if there is none.

        Raises:
            LookupError: there are several.
        """
        found = self.values_of(name, **labels)
        if len(found) > 1:
            raise LookupError(f"{name} with {labels}: {len(found)} values")
        return found[0] if found else None

    def values_of(self, name: str, **labels: str) -> list[float]:
        """Return all values with that name and at least these labels."""
        return [
            value
            for (each, given), value in self.items()
            if each == name and labels.items() <= set(given)
        ]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self}
