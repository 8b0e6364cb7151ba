"""What the exporter measures: sandboxes, how they start, and whether the node is as it should be.

A row of `_LOOKS` for each subject. One that fails is left out and counted, and the rest is told.
"""

import logging
import pathlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from kata import problems
from kata.containerd import config as containerd_config
from kata.containerd import files as containerd_files
from kata.containerd import memory as containerd_memory
from kata.machine import facts, host, vanishing
from kata.machine import node as kata_node
from kata.observability import overhead, starts
from kata.observability import told as hooks_word
from kata.observability.exposition import Family, Sample
from kata.sandbox import sandboxes

log = logging.getLogger(__name__)

_LISTENS = "00010000"  # flag __SO_ACCEPTCON in /proc/net/unix (linux/net.h)
# Where Kata shares files with a guest (virtcontainers' kataHostSharedDir, runtime-rs' KATA_PATH):
# the command line of a sandbox's virtiofsd has it.
_SHARED = "/run/kata-containers/shared/sandboxes/"


class Place(NamedTuple):
    """Where containerd is: its systemd unit, its state folder and its socket."""

    unit: str
    state: str
    socket: str


class Measures:
    """All that there is to tell of a node.

    Args:
        node: the machine.
        place: of containerd.
    """

    def __init__(self, node: kata_node.Node, place: Place) -> None:
        self._node = node
        self._place = place
        self._journal = starts.Journal(node, place.unit)
        self._starts = starts.Starts()
        self._found: tuple[sandboxes.Sandbox, ...] = ()

    def families(self) -> Iterator[Family]:
        """Look at everything once, and yield what was found."""
        begun, ended = time.monotonic(), dict[str, bool]()
        for name, look in self._looks.items():
            try:
                yield from list(look())
                ended[name] = True
            except (problems.Problem, OSError, ValueError) as error:
                log.warning("%s: %s", name, error)
                ended[name] = False
        yield Family(
            "kata_charm_look_ok",
            "gauge",
            "Whether the exporter could look at a subject.",
            [Sample(ok, {"subject": name}) for name, ok in ended.items()],
        )
        yield _gauge("look_seconds", "Time that all this took.", time.monotonic() - begun)

    @property
    def _looks(self) -> dict[str, Callable[[], Iterable[Family]]]:
        return {
            "sandboxes": self._sandboxes,
            "starts": self._started,
            "configuration": self._configuration,
            "node": self._checks,
            "hooks": self._told,
        }

    def _sandboxes(self) -> Iterator[Family]:
        self._found = sandboxes.find(self._node, self._place.state)
        strays = [each for each in self._found if sandboxes.LEFT_BEHIND in each.problems]
        yield _gauge("sandboxes", "Kata sandboxes.", len(self._found) - len(strays))
        yield _gauge(
            "stray_vms", "Virtual machines that no sandbox of containerd's has.", len(strays)
        )
        own = _overheads(self._node, self._found)
        for name, meaning, value in _OF_SANDBOXES:
            values = [(value(each, own), each) for each in self._found if each not in strays]
            samples = [Sample(n, _labels(each)) for n, each in values if n is not None]
            yield Family(f"kata_charm_sandbox_{name}", "gauge", meaning, samples)

    def _started(self) -> Iterable[Family]:
        # After the sandboxes: a line is about Kata's if one of them has its id.
        self._starts.take(self._journal.read(), {each.id for each in self._found})
        return self._starts.families()

    def _configuration(self) -> Iterator[Family]:
        yield _gauge(
            "config_drift_files",
            "Files of containerd's in which others have changed Kata's handlers.",
            len(self._drift()),
        )

    def _drift(self) -> Collection[str]:
        """Return the files that would have to change for our handlers to be whole."""
        recorded = (self._node.read(containerd_memory.FACTS) or "").encode(
            "utf-8", "surrogateescape"
        )
        if facts.hold(recorded, str(self._node.root)):
            return ()
        memory = containerd_memory.load(self._node)
        if memory is None:
            return ()
        return containerd_files.plan(
            memory.config, self._node, memory.release, memory.wanted, memory.touched
        ).keys()

    def _checks(self) -> Iterator[Family]:
        """Tell whether a pod with Kata could start here now."""
        memory = containerd_memory.load(self._node)
        found = {each.name: each.ok for each in host.checks(self._node) if each.required}
        found["shim"] = self._node.exists(containerd_config.SHIM)
        found["handlers"] = bool(memory and memory.wanted.handlers and not self._drift())
        found["containerd"] = self._listens()
        yield Family(
            "kata_charm_check",
            "gauge",
            "Whether the node has what pods with Kata need.",
            [Sample(ok, {"check": name}) for name, ok in found.items()],
        )
        yield _gauge("node_ready", "Whether all of these hold.", all(found.values()))

    def _listens(self) -> bool:
        lines = vanishing.text(self._node, "/proc/net/unix").splitlines()
        fields = [line.split(None, 7) for line in lines]
        # Num, RefCount, Protocol, Flags, Type, St, Inode, Path
        return any(each[3] == _LISTENS and each[7:] == [self._place.socket] for each in fields)

    def _told(self) -> Iterator[Family]:
        told = hooks_word.load(self._node)
        if told is None:
            return
        about = {"version": told.release, "shim": told.shim}
        yield _gauge("info", "Release and shim of Kata in use.", 1, **about)
        yield _gauge("hook_timestamp_seconds", "When the charm last looked.", told.time)
        yield _gauge("unit_problem", "Whether the charm is blocked, or waits.", bool(told.problem))
        if told.labelled is not None:
            yield _gauge("node_labelled", "Whether the node has Kata's label.", told.labelled)
        yield Family(
            "kata_charm_runtime_class_present",
            "gauge",
            "Whether a RuntimeClass is in the cluster. The leader tells.",
            [Sample(ok, {"runtime_class": name}) for name, ok in told.runtime_classes.items()],
        )
        yield Family(
            "kata_charm_runtime_class_overhead_bytes",
            "gauge",
            "Memory that a RuntimeClass adds to each pod.",
            [
                Sample(size, {"runtime_class": name, "hypervisor": kind})
                for name, (kind, size) in told.overheads.items()
            ],
        )


_OfSandbox = Callable[[sandboxes.Sandbox, dict[str, int]], float | None]
_OF_SANDBOXES: tuple[tuple[str, str, _OfSandbox], ...] = (
    (
        "vm",
        "Whether a sandbox has its virtual machine's process.",
        lambda each, _: sandboxes.NO_HYPERVISOR not in each.problems,
    ),
    (
        "age_seconds",
        "Time since the virtual machine was started.",
        lambda each, _: each.usage.seconds if each.usage else None,
    ),
    (
        "memory_bytes",
        "Host memory that the hypervisor holds, the guest's included.",
        lambda each, _: each.usage.memory if each.usage else None,
    ),
    (
        "guest_memory_bytes",
        "Memory that the guest has been given.",
        lambda each, _: each.vm.memory << 20 if each.vm.memory else None,
    ),
    (
        "overhead_bytes",
        "Host memory that the sandbox takes beside the guest's.",
        lambda each, own: own.get(each.id),
    ),
)


def _labels(sandbox: sandboxes.Sandbox) -> dict[str, str]:
    return {
        "sandbox": sandbox.id,
        "namespace": sandbox.pod_namespace,
        "pod": sandbox.pod,
        "hypervisor": sandbox.vm.hypervisor,
        "shim": sandbox.shim or "",
    }


def _overheads(node: kata_node.Node, found: Iterable[sandboxes.Sandbox]) -> dict[str, int]:
    """Return what each sandbox's processes hold beside the guest's memory, by the sandbox's id."""
    servers = _file_servers(node)
    own: dict[str, int] = {}
    for sandbox in found:
        # Dragonball is a thread of the shim.
        pids = {sandbox.shim_pid, sandbox.vm.pid, *servers.get(sandbox.id, ())} - {None}
        total = sum(overhead.of_process(node, pid) for pid in pids if pid)
        if total and sandbox.vm.pid:
            own[sandbox.id] = total
    return own


def _file_servers(node: kata_node.Node) -> dict[str, list[int]]:
    """Return the processes that share files with guests (virtiofsd), by the sandbox's id."""
    servers: dict[str, list[int]] = {}
    for name in vanishing.names(node, "/proc"):
        line = vanishing.text(node, f"/proc/{name}/cmdline") if name.isdigit() else ""
        _, found, rest = line.partition(_SHARED)
        if found and "virtiofsd" in pathlib.PurePath(line.partition("\0")[0]).name:
            servers.setdefault(rest.partition("/")[0], []).append(int(name))
    return servers


def _gauge(name: str, meaning: str, value: float, **labels: str) -> Family:
    return Family(f"kata_charm_{name}", "gauge", meaning, [Sample(value, labels)])
