"""The RuntimeClasses of the cluster: made, kept as they should be, and removed.

An unchanged cluster costs one read for each class and no write. What others add to our objects is
left alone, and what they change of ours is put back.
"""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kata import problems
from kata.cluster import api, managed_fields
from kata.cluster.managed_fields import MANAGER, Manifest, mapping

if TYPE_CHECKING:
    import decimal

log = logging.getLogger(__name__)

_PATH = "/apis/node.k8s.io/v1/runtimeclasses"
_MANAGED_BY = "app.kubernetes.io/managed-by"
_APPLICATION = "juju.io/application"
_MODEL = "juju.io/model"
_EVERY = "juju.io/runtime-classes"


@dataclasses.dataclass(frozen=True)
class Owner:
    """The Juju application that RuntimeClasses belong to; `model` is the UUID of its model."""

    application: str
    model: str

    def labels(self) -> dict[str, str]:
        """Return the labels that say so."""
        return {_MANAGED_BY: MANAGER, _APPLICATION: self.application, _MODEL: self.model}


@dataclasses.dataclass(frozen=True)
class RuntimeClass:
    """A RuntimeClass as it should be.

    Attributes:
        name: what a pod gives as runtimeClassName.
        handler: containerd's handler behind it.
        memory: of a sandbox beside its containers, as a Kubernetes quantity; empty for none.
        cpu: the same for CPU.
        node_selector: labels of the nodes that can run it; empty for any.
    """

    name: str
    handler: str
    memory: str = ""
    cpu: str = ""
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])


def manifest(wanted: RuntimeClass, owner: Owner, every: Iterable[str]) -> Manifest:
    """Return the object to apply.

    Args:
        wanted: the class.
        owner: whom it belongs to.
        every: the names of all classes of that owner. Each class carries the list, so that any
            leader sees from any class that another one has to go.
    """
    made: Manifest = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {
            "name": wanted.name,
            "labels": owner.labels(),
            "annotations": {_EVERY: ",".join(sorted(every))},
        },
        "handler": wanted.handler,
    }
    fixed = {"memory": wanted.memory, "cpu": wanted.cpu}
    if overhead := {resource: amount for resource, amount in fixed.items() if amount}:
        made["overhead"] = {"podFixed": overhead}
    if wanted.node_selector:
        made["scheduling"] = {"nodeSelector": dict(wanted.node_selector)}
    return made


def ensure_runtime_classes(
    server: api.Server, owner: Owner, wanted: Sequence[RuntimeClass]
) -> bool:
    """Make the owner's RuntimeClasses the wanted ones, and remove further ones of the owner.

    Returns:
        True if anything has changed.

    Raises:
        Blocked: an object of that name is somebody else's; it is left alone, the rest is done.
        Waiting: the API server does not do it now.
    """
    every = [each.name for each in wanted]
    live = {name: server.read(f"{_PATH}/{name}") for name in every}
    foreign = {name: whose for name in every if (whose := _foreign(live[name], owner))}
    changed = {
        each.name: made
        for each in wanted
        if each.name not in foreign
        and _said(made := manifest(each, owner, every))
        != _said(managed_fields.applied(live[each.name]))
    }
    if changed:
        # First what has to go: the lists that tell of it are overwritten by what is applied.
        for name in _names(server, owner) - set(every):
            _delete(server, name)
    for name, made in changed.items():
        _apply(server, made, live[name])
    for name, whose in foreign.items():
        raise problems.Blocked(
            f"RuntimeClass {name} belongs to {whose}: delete it, or give ours another name"
        )
    return bool(changed)


def present(server: api.Server, names: Iterable[str]) -> dict[str, bool]:
    """Return which RuntimeClasses are in the cluster, whosever they are.

    Raises:
        Waiting: the API server does not tell it now.
    """
    return {name: server.read(f"{_PATH}/{name}") is not None for name in names}


def remove_runtime_classes(server: api.Server, owner: Owner) -> bool:
    """Remove every RuntimeClass of the owner; return True if there was one.

    Raises:
        Waiting: the API server does not do it now.
    """
    names = _names(server, owner)
    for name in names:
        _delete(server, name)
    return bool(names)


def _names(server: api.Server, owner: Owner) -> set[str]:
    """Return the names of the owner's RuntimeClasses."""
    selector = ",".join(f"{label}={value}" for label, value in owner.labels().items())
    listed = server.read(_PATH, labelSelector=selector) or {}
    return {str(mapping(each, "metadata").get("name")) for each in listed.get("items") or ()}


def _apply(server: api.Server, made: Manifest, live: Manifest | None) -> None:
    name = made["metadata"]["name"]
    if live and live.get("handler") != made["handler"]:
        # The API server lets nobody change it (Kubernetes, pkg/apis/node/validation). Pods that
        # run already do not need the object.
        _delete(server, name)
        live = None
    log.info("RuntimeClass %s: apply, handler %s", name, made["handler"])
    # By force only over what is known to be ours: if somebody else's came into being a moment
    # ago, the next event finds out.
    server.apply(made, force=live is not None)


def _delete(server: api.Server, name: str) -> None:
    from lightkube.resources import node_v1

    log.info("RuntimeClass %s: delete", name)
    with contextlib.suppress(api.Absent):
        server.delete(node_v1.RuntimeClass, name)


def _foreign(live: Manifest | None, owner: Owner) -> str | None:
    """Return in words whose an object is; None for ours, or where there is none."""
    if live is None:
        return None
    labels = mapping(live, "metadata", "labels")
    by, application, model = (labels.get(key) for key in (_MANAGED_BY, _APPLICATION, _MODEL))
    if application or model:
        same = (application, model) == (owner.application, owner.model)
        return None if same else f"application {application} of model {model}"
    managers = managed_fields.managers(live)
    # Our labels may have been edited away: that we applied it is still on record.
    if MANAGER in managers and by in (None, MANAGER):
        return None
    return str(by or next(iter(managers), "somebody else"))


def _said(made: Manifest) -> Manifest:
    """Return what is ours to say in an object, with equal amounts in equal form."""
    fixed = mapping(made, "overhead", "podFixed")
    return {
        "labels": mapping(made, "metadata", "labels"),
        "annotations": mapping(made, "metadata", "annotations"),
        "handler": made.get("handler"),
        "overhead": {resource: _same(str(amount)) for resource, amount in fixed.items()},
        "selector": mapping(made, "scheduling", "nodeSelector"),
    }


_POWERS = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def amount(quantity: str) -> int:
    """Return a quantity of memory in bytes; 0 for what is none."""
    return int(number) if (number := _number(quantity)) is not None else 0


def _same(quantity: str) -> object:
    """Return what is equal for equal quantities: the server writes 1024Mi as 1Gi and 0.25 as 250m."""
    number = _number(quantity)
    return quantity if number is None else number


def _number(quantity: str) -> "decimal.Decimal | None":
    import decimal

    read = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([numkKMGTPE]?)(i?)", quantity)
    if not read:
        return None
    number, prefix, binary = read.groups()
    power = _POWERS[prefix.replace("K", "k")]
    return decimal.Decimal(number) * decimal.Decimal(1024 if binary else 1000) ** power
