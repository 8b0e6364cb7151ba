"""What Juju and Kubernetes answer, read; and what they are asked for, written."""

import base64
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

IMAGE = "docker.io/library/busybox:1.37"
ANNOTATION = "io.kubernetes.cri.untrusted-workload"


class Unit(NamedTuple):
    """A unit as `juju status` shows it."""

    name: str
    machine: str
    principal: str
    """The unit that it sits beside; empty for one that has a machine of its own."""
    status: str
    message: str
    agent: str

    @property
    def settled(self) -> bool:
        """Whether it has done what it was told, and is well."""
        return (self.status, self.agent) == ("active", "idle")


def units(status: Mapping[str, Any], application: str) -> dict[str, Unit]:
    """Return the units of an application, by name.

    Args:
        status: what `juju status --format json` prints.
        application: its name; those of a subordinate stand with the units that they sit beside.
    """
    return {
        each.name: each for each in _units(status) if each.name.rpartition("/")[0] == application
    }


def _units(status: Mapping[str, Any]) -> Iterator[Unit]:
    for about in status["applications"].values():
        for name, unit in _below(about, "units").items():
            machine = unit.get("machine", "")
            yield _unit(name, machine, "", unit)
            for beside, subordinate in _below(unit, "subordinates").items():
                yield _unit(beside, machine, name, subordinate)


def _below(about: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Return a table of tables, which Juju leaves out where it is empty."""
    return cast("dict[str, dict[str, Any]]", about.get(key) or {})


def _unit(name: str, machine: str, principal: str, unit: Mapping[str, Any]) -> Unit:
    workload, agent = unit.get("workload-status", {}), unit.get("juju-status", {})
    return Unit(
        name,
        machine,
        principal,
        workload.get("current", ""),
        workload.get("message", ""),
        agent.get("current", ""),
    )


def waited_for(status: Mapping[str, Any], applications: tuple[str, ...]) -> list[str]:
    """Return a line for everything that is not yet as it should be; none where all is well."""
    lines: list[str] = []
    for application in applications:
        found = units(status, application)
        lines += [f"{application}: no unit yet"] if not found else []
        lines += [
            f"{each.name}: {each.status} ({each.agent}) {each.message}".rstrip()
            for each in found.values()
            if not each.settled
        ]
    return lines


class Answer(NamedTuple):
    """What an action has answered."""

    completed: bool
    results: dict[str, str]
    message: str


def answer(text: str) -> Answer:
    """Read what `juju run <unit> <action> --format json` prints.

    Raises:
        ValueError: it is not the answer of one unit.
    """
    (about,) = json.loads(text).values()
    results = {key: str(value) for key, value in _below(about, "results").items()}
    return Answer(about["status"] == "completed", results, about.get("message", ""))


def pod(name: str, *, runtime_class: str = "", untrusted: bool = False) -> dict[str, Any]:
    """Return a pod that prints its kernel and stays; by RuntimeClass or by the annotation."""
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "app",
                "image": IMAGE,
                "command": ["sh", "-c", "uname -r; exec sleep 86400"],
            }
        ],
    }
    metadata: dict[str, Any] = {"name": name}
    if runtime_class:
        spec["runtimeClassName"] = runtime_class
    if untrusted:
        metadata["annotations"] = {ANNOTATION: "true"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def apply(kubectl: str, manifest: Mapping[str, Any]) -> str:
    """Return a line for a shell that applies a manifest; no quote in it can be misread on the way."""
    text = base64.b64encode(json.dumps(manifest).encode()).decode()
    return f"echo {shlex.quote(text)} | base64 --decode | {kubectl} apply -f -"


def integrations(bundle: Mapping[str, Any], application: str) -> set[tuple[str, str]]:
    """Return the endpoints of an application that a bundle integrates, each with its partner."""
    found: set[tuple[str, str]] = set()
    for one, other in bundle["relations"]:
        for ours, theirs in ((one, other), (other, one)):
            name, _, endpoint = ours.partition(":")
            if name == application:
                found.add((endpoint, theirs))
    return found


def handlers(config: str) -> set[str]:
    """Return the handlers that containerd's configuration has, without those commented out."""
    tables = re.findall(r"^[ \t]*\[plugins\..*\.runtimes\.([\w-]+)\]", config, re.MULTILINE)
    return set(tables)
