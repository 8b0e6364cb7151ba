"""Runs beside sandboxes: calls the code under test, and prints what it finds as JSON.

sandbox_driver.py list
sandbox_driver.py inspect SANDBOX…
sandbox_driver.py churn FIRST COUNT LOOKS   lists while others come and go
"""

import dataclasses
import json
import multiprocessing
import pathlib
import sys

from kata.containerd import cri
from kata.machine import node as kata_node
from kata.sandbox import network, report, sandboxes
from tests.node import by_hand, pod_records
from tests.node import sandboxes_at_scale as scale

HERE = kata_node.Node()


def found():
    socket = pathlib.Path(pod_records.CONTAINERD)
    handlers = cri.pod_handlers(socket) if socket.exists() else None
    return sandboxes.find(HERE, handlers=handlers)


def listed():
    seen = found()
    return {"table": report.table(seen), "sandboxes": seen}


def inspect(*names):
    seen = found()
    picked = [sandboxes.pick(seen, sandbox=name) for name in names]
    return [
        {**report.data(each), "way": network.look(HERE, each.id, each.network)} for each in picked
    ]


def _come_and_go(first, count, stop):
    while not stop.is_set():
        scale.remove(scale.lay_out(count, first=first, network=False))


def churn(first, count, looks):
    """Look at sandboxes while others come and go; return what was seen of all of them."""
    stop = multiprocessing.Event()
    other = multiprocessing.Process(target=_come_and_go, args=(int(first), int(count), stop))
    other.start()
    try:
        return [
            [(each.pod, each.vm.cid, each.problems) for each in sandboxes.find(HERE)]
            for _ in range(int(looks))
        ]
    finally:
        stop.set()
        other.join()


def _plain(value):
    return dataclasses.asdict(value)


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    calls = {"list": listed, "inspect": inspect, "churn": churn, "by-hand": by_hand.every}
    print(json.dumps(calls[what](*words), default=_plain))
