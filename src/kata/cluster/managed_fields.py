"""What a live Kubernetes object tells: its fields, and which of them this charm manages.

The API server keeps for each manager a tree of the fields that it has set (FieldsV1: every name
has `f:` before it). So what was applied last needs no memory of ours.
"""

from typing import Any, cast

MANAGER = "kata-charm"
"""Our name as a manager of fields."""

Manifest = dict[str, Any]


def applied(live: Manifest | None) -> Manifest:
    """Return the fields that we manage, with their present values.

    client-go calls this Extract. A field that somebody else has changed is no longer ours, and so
    is missing.
    """
    kept: Manifest = {}
    for entry in _entries(live):
        if entry.get("manager") == MANAGER and not entry.get("subresource"):
            _take(mapping(entry, "fieldsV1"), live or {}, kept)
    return kept


def managers(live: Manifest | None) -> list[str]:
    """Return who manages fields of an object, the oldest first."""
    return [str(entry.get("manager")) for entry in _entries(live)]


def mapping(made: Any, *path: str) -> dict[str, Any]:
    """Return the map at a path, or an empty one where there is none."""
    for field in path:
        made = cast("Manifest", made).get(field) if isinstance(made, dict) else None
    return cast("dict[str, Any]", made) if isinstance(made, dict) else {}


def _entries(live: Manifest | None) -> list[dict[str, Any]]:
    entries: Any = mapping(live, "metadata").get("managedFields")
    given = cast("list[Any]", entries) if isinstance(entries, list) else []
    return [mapping(entry) for entry in given]


def _take(fields: Manifest, live: Manifest, kept: Manifest) -> None:
    for key, below in fields.items():
        field = key.removeprefix("f:")
        if not key.startswith("f:") or field not in live:
            continue
        if below:
            _take(mapping(below), mapping(live, field), kept.setdefault(field, {}))
        else:
            kept[field] = live[field]
