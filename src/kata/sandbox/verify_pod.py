"""The proof that a class isolates, as a user sees it: a pod, made through the API.

The pod is bound to this node, runs the probe, and is looked at from both sides. It ends by itself
should nobody be left to delete it.
"""

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Generator
from typing import Any

from kata import problems, settings
from kata.checks import causes
from kata.cluster import api, node_labels
from kata.cluster.managed_fields import MANAGER, Manifest, mapping
from kata.machine import host
from kata.machine import node as kata_node
from kata.sandbox import probe, probe_image, sandboxes, throwaway, verify

NAMESPACE = "default"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
_LOGS = "/var/log/pods"
_LABEL = "kata-charm/verify"
_UNTRUSTED = "io.kubernetes.cri.untrusted-workload"
_PAUSE = 1.0  # seconds between two looks at the pod
_IMPORT = 60  # seconds
_GONE = 60  # seconds for a pod to be gone after it was deleted


def pod(
    node: kata_node.Node,
    service: throwaway.Service,
    server: api.Server,
    handler: str,
    *,
    image: str = "",
    timeout: float = 120,
) -> verify.Verdict:
    """Boot a sandbox as a pod's, by the RuntimeClass of that name, and look at it.

    Args:
        node: the machine, which must be a node of the cluster.
        service: its containerd.
        server: the API server.
        handler: the class; `untrusted` stands for the annotation.
        image: a further container with this image; none by default.
        timeout: seconds that the pod may take to answer.

    Raises:
        Problem: the pod could not be made, or not be removed.
    """
    live = node_labels.find(server, node)
    if live is None:
        raise problems.Blocked("this machine is no node of the cluster: no pod can be bound to it")
    name = str(mapping(live, "metadata")["name"])
    verdict = verify.Verdict(handler, verify.host_kernel())
    with (
        verify.in_order(node),
        _image(node, service),
        _made(server, manifest(name, handler, image, timeout)) as made,
    ):
        began = time.monotonic()
        uid = str(mapping(made, "metadata")["uid"])
        try:
            answer = _answer(node, server, made, began + timeout)
        except problems.Blocked as problem:
            return dataclasses.replace(verdict, trouble=f"no sandbox: {verify.brief(problem)}")
        seconds = round(time.monotonic() - began, 2)
        found = [each for each in sandboxes.find(node, service.state) if each.uid == uid]
        verdict = dataclasses.replace(verdict, guest=answer, seconds=seconds)
        return verify.judged(node, verdict, found)


def manifest(node_name: str, handler: str, image: str, timeout: float) -> Manifest:
    """Return the pod to make."""
    containers: list[dict[str, Any]] = [
        {"name": "probe", "image": probe_image.NAME, "imagePullPolicy": "Never"}
    ]
    if image:
        containers.append({"name": "image", "image": image})
    metadata: dict[str, Any] = {
        "name": f"kata-verify-{secrets.token_hex(4)}",
        "namespace": NAMESPACE,
        "labels": {"app.kubernetes.io/managed-by": MANAGER, _LABEL: node_name},
    }
    spec: dict[str, Any] = {
        "nodeName": node_name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "activeDeadlineSeconds": int(timeout) + _GONE,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "tolerations": [{"operator": "Exists"}],
        "containers": containers,
    }
    if handler == settings.UNTRUSTED:
        metadata["annotations"] = {_UNTRUSTED: "true"}
    else:
        spec["runtimeClassName"] = handler
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@contextlib.contextmanager
def _image(node: kata_node.Node, service: throwaway.Service) -> Generator[None]:
    """Put the image of the probe where kubelet's pods find it, and take it away again."""
    images = (service.ctr, "--address", service.address, "--namespace", "k8s.io", "images")
    image = probe_image.make(host.machine(node))
    archive = image.archive.decode("utf-8", "surrogateescape")
    node.run(*images, "import", "-", text=archive, timeout=_IMPORT)
    try:
        yield
    finally:
        node.run(*images, "rm", "--sync", *image.names, check=False, timeout=_IMPORT)


@contextlib.contextmanager
def _made(server: api.Server, wanted: Manifest) -> Generator[Manifest]:
    """Make the pod, and delete it and those that earlier proofs have left."""
    name = wanted["metadata"]["name"]
    _delete_all(server, wanted["metadata"]["labels"][_LABEL])
    try:
        server.apply(wanted, force=False)
        made = server.read(f"{_PODS}/{name}")
        if made is None:
            raise problems.Waiting(f"pod {NAMESPACE}/{name} was deleted by somebody else")
        yield made
    finally:
        with verify.undisturbed():
            _delete_all(server, wanted["metadata"]["labels"][_LABEL])


def _delete_all(server: api.Server, node_name: str) -> None:
    until = time.monotonic() + _GONE
    while True:
        listed = server.read(_PODS, labelSelector=f"{_LABEL}={node_name}") or {}
        items: list[Manifest] = listed.get("items") or []
        if not items:
            return
        if time.monotonic() > until:
            name = items[0]["metadata"]["name"]
            raise problems.Waiting(f"pod {NAMESPACE}/{name} is not gone after {_GONE} s; see it")
        for each in items:
            with contextlib.suppress(api.Absent):
                server.delete_pod(NAMESPACE, each["metadata"]["name"])
        time.sleep(_PAUSE)


def _answer(
    node: kata_node.Node, server: api.Server, made: Manifest, until: float
) -> probe.Kernel:
    """Return what the probe says in the pod's log on this machine.

    Raises:
        Blocked: it says nothing; the message tells what kubelet says instead.
    """
    metadata = mapping(made, "metadata")
    name, uid = str(metadata["name"]), str(metadata["uid"])
    folder = f"{_LOGS}/{NAMESPACE}_{name}_{uid}/probe"
    while True:
        for file in node.path(folder).glob("*.log"):
            with contextlib.suppress(ValueError, OSError):
                return read_log(file.read_bytes())
        words = _words(server, name, uid)
        live = mapping(server.read(f"{_PODS}/{name}") or {}, "status")
        if live.get("phase") == "Failed" or causes.of(words):
            raise problems.Blocked(words or str(live.get("message") or live.get("reason") or "?"))
        if time.monotonic() > until:
            raise problems.Blocked(words or "nothing was heard from inside in time")
        time.sleep(_PAUSE)


def read_log(text: bytes) -> probe.Kernel:
    """Read the probe's answer from a container's log, in the form that CRI gives it.

    Raises:
        ValueError: it is not there.
    """
    _, _, line = text.partition(b" stdout F ")
    return probe.read(line[: probe.SIZE])


def _words(server: api.Server, name: str, uid: str) -> str:
    """Return kubelet's latest complaint about the pod."""
    selector = f"involvedObject.name={name},involvedObject.uid={uid},type=Warning"
    listed = server.read(_EVENTS, fieldSelector=selector) or {}
    events: list[Manifest] = listed.get("items") or []
    events.sort(key=lambda each: str(each.get("lastTimestamp") or each.get("eventTime") or ""))
    return str(events[-1].get("message") or "") if events else ""
