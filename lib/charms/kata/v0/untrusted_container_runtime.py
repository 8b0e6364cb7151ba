"""The `untrusted-container-runtime` interface, both sides, for ops charms.

Charms that bring a container runtime, and charms that have containerd, take the side that they need;
neither has to know the other's.

A subordinate that brings a container runtime for untrusted pods (Kata Containers, say) tells the
containerd charm beside it of that runtime. The relation is container-scoped: both units are on one
machine, and each side has the unit's data bag.

The wire format is that of the reactive library `interface:untrusted-container-runtime`: two keys,
each JSON-encoded, so that the quotes are on the wire.

    name         "kata"
    binary_path  "/usr/bin/kata-runtime"

This library adds one optional key, `handler`, a JSON object with what those two cannot carry.
Readers of the old format pass over it.

    handler      {"runtime_type": "io.containerd.kata.v2",
                  "runtime_path": "/usr/local/bin/containerd-shim-kata-v2",
                  "config_path": "/etc/kata-containers/configuration.toml",
                  "annotations": ["io.katacontainers.*"]}

The side that has the runtime:

    from charms.kata.v0 import untrusted_container_runtime as untrusted

    class KataCharm(ops.CharmBase):
        def __init__(self, framework):
            super().__init__(framework)
            self.untrusted = untrusted.RuntimeRequirer(self, "untrusted")
            framework.observe(self.on["untrusted"].relation_joined, self._on_joined)

        def _on_joined(self, event):
            self.untrusted.publish(untrusted.Runtime("kata", "/usr/bin/kata-runtime"))

The side that has containerd:

    class ContainerdCharm(ops.CharmBase):
        def __init__(self, framework):
            super().__init__(framework)
            self.untrusted = untrusted.RuntimeProvider(self, "untrusted")
            framework.observe(self.untrusted.on.changed, self._on_runtime_changed)

        def _on_runtime_changed(self, event):
            runtime = self.untrusted.runtime  # None: gone, or not yet there

To start: `charmcraft fetch-lib charms.kata.v0.untrusted_container_runtime`, and in charmcraft.yaml

    requires:  # or provides, for the side that has containerd
      untrusted:
        interface: untrusted-container-runtime
        scope: container

What a containerd charm makes of a handler, in its configuration of schema 2:

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.untrusted]
      runtime_type = <runtime_type>
      runtime_path = <runtime_path, if it is not empty>
      pod_annotations = <annotations>
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.untrusted.options]
        ConfigPath = <config_path>

Without a `config_path` the table `options` must be left out altogether: Kata up to 2.1.1 fails for
any, also an empty one. That is also why `binary_path` belongs into no options of containerd's.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, cast

import ops

# Charmhub gives out the id when the library is first published:
# `charmcraft create-lib untrusted_container_runtime`.
LIBID = "unpublished"
LIBAPI = 0
LIBPATCH = 1


@dataclasses.dataclass(frozen=True)
class Handler:
    """How containerd is to run the runtime: the keys of a runtime handler in its configuration."""

    runtime_type: str
    """containerd's name of the shim, such as `io.containerd.kata.v2`."""
    runtime_path: str = ""
    """Absolute path of the shim; empty: containerd looks for it on its PATH."""
    config_path: str = ""
    """The runtime's own configuration file; empty: the runtime looks for it."""
    annotations: tuple[str, ...] = ()
    """Pod annotations to pass to the runtime, as patterns."""


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A container runtime for untrusted pods."""

    name: str
    """Short name; old readers make the runtime type `io.containerd.<name>.v2` of it."""
    binary_path: str
    """Absolute path of the runtime's program."""
    handler: Handler | None = None
    """What the old format cannot carry; None from a side that speaks only the old one."""


def encode(runtime: Runtime) -> dict[str, str]:
    """Return the data bag's keys and values for a runtime."""
    data = {"name": json.dumps(runtime.name), "binary_path": json.dumps(runtime.binary_path)}
    if runtime.handler:
        data["handler"] = json.dumps(dataclasses.asdict(runtime.handler), sort_keys=True)
    return data


def decode(data: Mapping[str, str]) -> Runtime | None:
    """Read a runtime from a data bag.

    As the reactive library does, a value that is not JSON is taken as it stands. A `handler` of an
    unknown shape counts as none: what matters is in the two old keys.

    Returns:
        The runtime, or None while either of the two old keys is missing or empty.
    """
    name, binary_path = _text(data.get("name")), _text(data.get("binary_path"))
    if not name or not binary_path:
        return None
    return Runtime(name, binary_path, _handler(data.get("handler")))


def _text(raw: str | None) -> str:
    if not raw:
        return ""
    try:
        value = json.loads(raw)
    except ValueError:
        return raw
    return value if isinstance(value, str) else ""


def _handler(raw: str | None) -> Handler | None:
    try:
        value = json.loads(raw or "null")
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    known = cast("dict[str, Any]", value)
    texts = {key: known.get(key, "") for key in ("runtime_type", "runtime_path", "config_path")}
    annotations: Any = known.get("annotations", [])
    if not all(isinstance(text, str) for text in texts.values()) or not texts["runtime_type"]:
        return None
    if not isinstance(annotations, list):
        return None
    patterns = cast("list[Any]", annotations)
    if not all(isinstance(pattern, str) for pattern in patterns):
        return None
    return Handler(**texts, annotations=tuple(patterns))


class RuntimeRequirer(ops.Object):
    """The side that has the runtime: it requires a containerd to run under.

    Args:
        charm: the charm.
        endpoint: the name of its endpoint, of the interface `untrusted-container-runtime`.
    """

    def __init__(self, charm: ops.CharmBase, endpoint: str = "untrusted") -> None:
        super().__init__(charm, f"untrusted-container-runtime-{endpoint}")
        self._endpoint = endpoint

    def publish(self, runtime: Runtime) -> bool:
        """Tell every related containerd of the runtime.

        The reactive containerd charm reads the relation once: publish only what will stay.

        Returns:
            True if any relation's data has changed.
        """
        wanted, changed = encode(runtime), False
        for relation in self.model.relations[self._endpoint]:
            data = relation.data[self.model.unit]
            for key, value in wanted.items():
                if data.get(key) != value:
                    data[key] = value
                    changed = True
        return changed


class RuntimeChangedEvent(ops.EventBase):
    """A runtime for untrusted pods came, changed or went."""


class RuntimeProviderEvents(ops.ObjectEvents):
    """What `RuntimeProvider` tells of."""

    changed = ops.EventSource(RuntimeChangedEvent)


class RuntimeProvider(ops.Object):
    """The side that has containerd: it provides a place to run.

    Args:
        charm: the charm.
        endpoint: the name of its endpoint, of the interface `untrusted-container-runtime`.
    """

    on = RuntimeProviderEvents()  # type: ignore[assignment]

    def __init__(self, charm: ops.CharmBase, endpoint: str = "untrusted") -> None:
        super().__init__(charm, f"untrusted-container-runtime-{endpoint}")
        self._endpoint = endpoint
        events = charm.on[endpoint]
        for event in (events.relation_changed, events.relation_broken):
            self.framework.observe(event, self._tell)

    @property
    def runtime(self) -> Runtime | None:
        """The runtime that is related, or None: no relation, or nothing said yet."""
        for relation in self.model.relations[self._endpoint]:
            if not relation.active:
                continue
            for unit in sorted(relation.units, key=lambda each: each.name):
                if runtime := decode(relation.data[unit]):
                    return runtime
        return None

    def _tell(self, _: ops.EventBase) -> None:
        self.on.changed.emit()
