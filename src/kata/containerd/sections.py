"""The tables of our handlers as containerd's configuration has them, by release and schema."""

import json
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

from kata.containerd import config
from kata.containerd.files import Release
from kata.handlers import Handler

TEMPLATES = pathlib.Path(__file__).parents[3] / "templates"
_TEMPLATE = TEMPLATES / "containerd-handlers.toml.j2"

ANNOTATIONS = ("io.katacontainers.*",)
"""Annotations of a pod that containerd hands on to Kata, as patterns."""

# First release that knows a key (containerd, pkg/config of containerd/cri 1.2 - 1.4, then
# pkg/cri/config/config.go). The values are those of Kata's own installer (kata-deploy 4.1.0).
_KEYS: Mapping[str, tuple[Release, Any]] = {
    "runtime_type": ((1, 2, 0), config.RUNTIME_TYPE),
    "privileged_without_host_devices": ((1, 3, 0), True),
    "pod_annotations": ((1, 3, 0), list(ANNOTATIONS)),
    "container_annotations": ((1, 4, 0), ["io.kubernetes.container.terminationMessage*"]),
    "runtime_path": ((1, 6, 0), config.SHIM),
}
_SNAPSHOTTER: Release = (1, 7, 0)
_UNTRUSTED_AS_HANDLER: Release = (1, 3, 0)


def source(handlers: Iterable[Handler], release: Release) -> str:
    """Return a digest of everything that the tables are made from: cheaper than making them."""
    known = [_handler(each, release) for each in handlers]
    text = json.dumps(known) + _TEMPLATE.read_text()
    return f"{zlib.crc32(text.encode()):08x}-{len(text)}"


def render(handlers: Iterable[Handler], release: Release) -> dict[str, str]:
    """Return the tables of the handlers as TOML, by schema.

    Args:
        handlers: our handlers.
        release: the containerd that will read them: older ones know fewer keys.
    """
    import jinja2

    # What is made is TOML, not HTML; every value goes through the `toml` filter.
    environment = jinja2.Environment(  # noqa: S701
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["toml"] = _toml
    template = environment.from_string(_TEMPLATE.read_text())
    known = [_handler(each, release) for each in handlers]
    return {
        schema: template.render(plugin=plugin, handlers=known)
        for schema, plugin in config.CRI.items()
    }


def _handler(handler: Handler, release: Release) -> dict[str, Any]:
    keys = {key: value for key, (first, value) in _KEYS.items() if release >= first}
    if handler.snapshotter and release >= _SNAPSHOTTER:
        keys["snapshotter"] = handler.snapshotter
    is_old = handler.name == config.UNTRUSTED and release < _UNTRUSTED_AS_HANDLER
    return {
        "table": "untrusted_workload_runtime" if is_old else f"runtimes.{handler.name}",
        "lines": keys,
        "options": {"ConfigPath": handler.configuration} if handler.config_path else {},
    }


def _toml(value: Any) -> str:
    """Print a value as TOML: a boolean, a string or an array of strings."""
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return f"[{', '.join(map(_toml, items))}]"
    # JSON's strings are TOML's, but for a DEL and for pairs of surrogates.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
