"""Labels on the node of the cluster that this machine is."""

import logging
import urllib.parse
from collections.abc import Mapping

from kata.cluster import api, kubelet, managed_fields
from kata.cluster.managed_fields import Manifest, mapping
from kata.machine import node

log = logging.getLogger(__name__)

READY = "katacontainers.io/kata-runtime"
"""Label of a node whose containerd can run Kata; kata-deploy has the same (Kata 2.0 and later)."""

GPU = "katacontainers.io/kata-gpu"
"""Label of a node whose GPUs can be given to sandboxes."""


def ensure(server: api.Server, machine: node.Node, labels: Mapping[str, str | None]) -> bool:
    """Make these all the labels that this charm has on the machine's node; None stands for none.

    A label that another program has set too outlives ours. A machine that is no node of the
    cluster is left alone.

    Returns:
        True if anything has changed.

    Raises:
        Waiting: the API server does not do it now.
    """
    live = find(server, machine)
    if live is None:
        log.info("this machine is no node of the cluster: it gets no labels")
        return False
    wanted = {label: value for label, value in labels.items() if value is not None}
    if mapping(managed_fields.applied(live), "metadata", "labels") == wanted:
        return False
    # With the uid the server refuses if another machine has taken the name meanwhile.
    metadata = {field: mapping(live, "metadata").get(field) for field in ("name", "uid")}
    if wanted:  # even an empty map would be one that we manage
        metadata["labels"] = wanted
    log.info("node %s: our labels are %s", metadata["name"], wanted or "gone")
    server.apply({"apiVersion": "v1", "kind": "Node", "metadata": metadata}, force=True)
    return True


def is_ready(server: api.Server, machine: node.Node) -> bool | None:
    """Return whether this machine's node has the label of those that are ready; None for no node.

    Raises:
        Waiting: the API server does not tell it now.
    """
    live = find(server, machine)
    return None if live is None else mapping(live, "metadata", "labels").get(READY) == "true"


def find(server: api.Server, machine: node.Node) -> Manifest | None:
    """Return the Node object of this machine, or None: the machine's id proves that it is.

    Raises:
        Waiting: the API server does not tell it now.
    """
    machine_id, forbidden = kubelet.machine_id(machine), None
    if machine_id is None:
        return None
    for name in kubelet.names(machine):
        try:
            live = server.read(f"/api/v1/nodes/{urllib.parse.quote(name, safe='')}")
        except api.Forbidden as error:  # a node may read no other (Kubernetes 1.32 and later)
            forbidden = forbidden or error
            continue
        if mapping(live, "status", "nodeInfo").get("machineID") == machine_id:
            return live
    if forbidden:
        raise forbidden
    return None
