"""One API server and 1 to 5,000 units: requests an hour, and after an outage, by simulation.

The clock is the simulation's. The units' part is the charm's own code, from the moment that a hook
has its credentials, and what answers is the API server of the tests, which counts; between them
there is no socket, so that an hour of 5,000 units takes a minute.
"""

import collections
import heapq
import json
import pathlib
import random
from collections.abc import Iterator
from typing import Any

from kata import problems
from kata.cluster import api, credentials, node_labels, runtime_classes
from kata.cluster.managed_fields import MANAGER
from kata.machine import node as kata_node
from tests import api_server
from tests.bench.rows import Row

INTERVAL = 300.0
"""Seconds between two update-status hooks of a unit, Juju's default."""
SPREAD = 0.2
"""Juju waits up to so much shorter or longer each time (internal/worker/uniter/timer.go)."""
OUTAGE = (3600.0, 5400.0)
END = 7200.0
PATHS = {"Node": "/api/v1/nodes", "RuntimeClass": "/apis/node.k8s.io/v1/runtimeclasses"}
OWNER = runtime_classes.Owner("kata", "5f2c1f0e-6d7a-4c58-8d1b-6a9b0d0a7b11")
CLASS = runtime_classes.RuntimeClass("kata", "kata", "320Mi", "250m", {node_labels.READY: "true"})


class _Machine(kata_node.Node):
    """A machine of which only the name and the id are asked."""

    def __init__(self, number: int):
        super().__init__(pathlib.Path("/nonexistent"))
        self.name, self.id = f"node-{number:04}", f"{number:032x}"

    def read(self, path: Any) -> str | None:
        return {
            "/etc/machine-id": self.id,
            "/proc/sys/kernel/hostname": self.name,
        }.get(str(path))


class _Server(api.Server):
    """A conversation with the stand-in, without a socket."""

    def __init__(self, behind: api_server.ApiServer, fleet: "Fleet"):
        super().__init__(credentials.Access(behind.url, behind.token, behind.ca))
        self._behind = behind
        self._fleet = fleet

    def _exchange(self, target: str) -> tuple[int, bytes]:
        if OUTAGE[0] <= self._fleet.now < OUTAGE[1]:
            raise self._waiting("no answer")
        self._fleet.minutes[int(self._fleet.now // 60)] += 1
        headers = {"Authorization": f"Bearer {self.access.token}"}
        status, _, body = self._behind.answer("GET", target, headers, b"")
        return status, body

    def apply(self, made: Any, *, force: bool) -> None:
        self._fleet.minutes[int(self._fleet.now // 60)] += 1
        path = f"{PATHS[made['kind']]}/{made['metadata']['name']}"
        headers = {
            "Authorization": f"Bearer {self.access.token}",
            "Content-Type": "application/apply-patch+yaml",
        }
        target = f"{path}?fieldManager={MANAGER}&force={'true' if force else 'false'}"
        status, _, body = self._behind.answer("PATCH", target, headers, json.dumps(made).encode())
        if status >= 300:
            raise RuntimeError(body)


class Fleet:
    """Units whose hooks run as Juju runs them.

    Attributes:
        now: seconds since all were deployed.
        minutes: requests by minute.
        waiting: how many hooks found no control plane.
    """

    def __init__(self, count: int):
        self.now = 0.0
        self.minutes: collections.Counter[int] = collections.Counter()
        self.waiting = 0
        self._chance = random.Random(count)
        self._count = count

    def run(self) -> None:
        """Let an hour go by, half an hour of outage, and half an hour after it."""
        behind = api_server.ApiServer()
        machines = [_Machine(number) for number in range(self._count)]
        for machine in machines:
            behind.add_node(machine.name, machine.id)
        due = [(self._chance.uniform(0, INTERVAL), number) for number in range(self._count)]
        heapq.heapify(due)
        while due[0][0] < END:
            self.now, number = due[0]
            server = _Server(behind, self)
            try:
                node_labels.ensure(server, machines[number], {node_labels.READY: "true"})
                if number == 0:
                    runtime_classes.ensure_runtime_classes(server, OWNER, [CLASS])
            except problems.Waiting:
                self.waiting += 1
            wait = INTERVAL * self._chance.uniform(1 - SPREAD, 1 + SPREAD)
            heapq.heapreplace(due, (self.now + wait, number))
        behind._server.server_close()

    def between(self, since: float, until: float) -> list[int]:
        """Return the requests of each minute."""
        return [self.minutes[each] for each in range(int(since // 60), int(until // 60))]


def bag(count: int) -> tuple[int, int]:
    """Return the bytes of relation data that a unit writes, and that it reads with so many units.

    The control plane answers all units in one bag (interface kube-control, `creds`).
    """
    model = OWNER.model
    asked = {
        "kubelet_user": f"kata/0@{model}",
        "auth_group": "system:masters",
        "schema_vers": "[0, 1]",
    }
    # As the library writes it with schema 1: a secret's id instead of tokens.
    entry = {
        "client_token": None,
        "kubelet_token": None,
        "proxy_token": None,
        "scope": "kata/0000",
        "secret-id": "secret:d1s2c3v4b5n6m7k8j9h0",
    }
    creds = {f"kata/{number}@{model}": entry for number in range(count)}
    answered = {"api-endpoints": json.dumps(["https://10.0.0.1:6443"]), "creds": json.dumps(creds)}
    return _size(asked), _size(answered)


def _size(data: dict[str, str]) -> int:
    return sum(len(key) + len(value) for key, value in data.items())


def rows(counts: tuple[int, ...] = (1, 100, 1000, 5000)) -> Iterator[Row]:
    """Simulate each number of units."""
    for count in counts:
        fleet = Fleet(count)
        fleet.run()
        hour = sum(fleet.between(1800, 3600)) * 2  # without the first hooks, which write
        worst = max(fleet.between(OUTAGE[1], END))
        written, read = bag(count)
        yield Row(
            f"{count:,} units: requests an hour",
            hour,
            "",
            note=f"{hour / 3600:.2f} a second; {fleet.waiting} hooks found no control plane",
        )
        yield Row(
            f"{count:,} units: worst minute after an outage",
            worst,
            "requests",
            "a mean minute",
            hour / 60,
            note="",
        )
        yield Row(
            f"{count:,} units: relation data that a unit writes and reads",
            read / 1000,
            "kB",
            note=f"it writes {written} bytes, whatever their number",
        )
