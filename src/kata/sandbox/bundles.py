"""containerd's task bundles: a folder for each running container, with its specification.

They answer for every container at once what containerd would have to be asked one by one.
"""

import dataclasses
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from kata.machine import node as kata_node
from kata.machine import vanishing

# Below containerd's state folder, each with a folder for every namespace: tasks since 1.2, and
# sandboxes of its sandbox API since 2.0 (containerd, core/runtime/v2, plugins/sandbox).
KINDS = ("io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim")
# What containerd's CRI writes into a specification (containerd, pkg/cri/annotations).
_PREFIX = "io.kubernetes.cri."
_NOTHING: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """One container's bundle.

    Attributes:
        id: the container's id.
        namespace: containerd's namespace, `k8s.io` for pods.
        path: the folder.
        shim: the shim's path, as containerd called it; empty before containerd 1.6.
        annotations: what CRI wrote into the specification, without its prefix.
        network: path of the network namespace, empty for none.
        readable: whether the specification could be read.
    """

    id: str
    namespace: str
    path: str
    shim: str = ""
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    network: str = ""
    readable: bool = True

    @property
    def sandbox(self) -> str:
        """The id of the sandbox that it belongs to; a lone container is its own."""
        return self.annotations.get("sandbox-id") or self.id


def find(node: kata_node.Node, state: str, known: Collection[str]) -> Iterator[Bundle]:
    """Yield the bundles that a Kata shim serves.

    Args:
        node: the machine.
        state: containerd's state folder.
        known: ids of sandboxes that have left Kata's own state.
    """
    for kind in KINDS:
        for namespace in vanishing.names(node, f"{state}/{kind}"):
            top = f"{state}/{kind}/{namespace}"
            for name in vanishing.names(node, top):
                bundle = Bundle(name, namespace, f"{top}/{name}")
                shim = vanishing.text(node, f"{bundle.path}/shim-binary-path").strip()
                if name in known or "kata" in pathlib.PurePath(shim).name:
                    yield _read(node, dataclasses.replace(bundle, shim=shim))
                elif not shim:
                    # Before containerd 1.6 only the specification tells whose it is.
                    bundle = _read(node, bundle)
                    if bundle.sandbox in known:
                        yield bundle


def path_of(node: kata_node.Node, state: str, name: str) -> str | None:
    """Return the folder of the bundle with that id, in any namespace, or None."""
    for kind in KINDS:
        for namespace in vanishing.names(node, f"{state}/{kind}"):
            path = f"{state}/{kind}/{namespace}/{name}"
            if node.exists(path):
                return path
    return None


def _read(node: kata_node.Node, bundle: Bundle) -> Bundle:
    text = vanishing.text(node, f"{bundle.path}/config.json")
    try:
        spec: Any = json.loads(text)
        annotations: dict[str, object] = spec.get("annotations") or {}
        spaces: list[dict[str, str]] = (spec.get("linux") or _NOTHING).get("namespaces") or []
        network = [space.get("path", "") for space in spaces if space.get("type") == "network"]
        ours = {
            key.removeprefix(_PREFIX): str(value)
            for key, value in annotations.items()
            if key.startswith(_PREFIX)
        }
    except (ValueError, RecursionError, AttributeError, TypeError):
        # Half written, or half removed.
        return dataclasses.replace(bundle, readable=False)
    return dataclasses.replace(bundle, annotations=ours, network=network[0] if network else "")
