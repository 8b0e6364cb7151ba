"""Every Kata sandbox on the node, from containerd's task bundles, Kata's state and /proc.

One pass, whatever their number, and containerd is not asked. A sandbox may come or go while it is
looked at: one that is gone is left out, and one that is half there is looked at once more before
it says what is wrong with it.
"""

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from kata import problems
from kata.machine import node as kata_node
from kata.machine import vanishing
from kata.sandbox import bundles, hypervisor, network, processes

Shim = Literal["go", "rust"]

GO_STATE = "/run/vc/sbs"
RUST_STATE = "/run/kata"
# Firecracker's id, as virtcontainers shortens it (fc.go, truncateID).
_SHORT = 32
# This charm keeps each release in a folder of its own.
_RELEASE = re.compile(r"/kata-releases/([^/]+)-[0-9a-f]{12}/")

_MOMENT = 0.2  # seconds

LEFT_BEHIND = "left behind: containerd has no task for it"
NO_HYPERVISOR = "no hypervisor process"
NO_SHIM = "no shim process"
UNREADABLE = "its bundle's config.json cannot be read"


@dataclasses.dataclass(frozen=True)
class Container:
    """A container in a sandbox: its id, its name in the pod, and its image."""

    id: str
    name: str
    image: str


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """A Kata sandbox: a pod, or a lone container, in a virtual machine.

    Attributes:
        id: containerd's id of the sandbox.
        namespace: containerd's namespace, `k8s.io` for pods.
        pod_namespace: Kubernetes' namespace; empty for what is no pod, as are the next two.
        pod: the pod's name.
        uid: the pod's uid.
        handler: containerd's runtime handler; None where nobody could be asked.
        shim: `go` or `rust`; None where neither left its state.
        shim_pid: the shim's process.
        shim_program: the shim's executable, links followed.
        release: Kata's release, where the shim runs from a folder that says so.
        vm: the virtual machine.
        usage: the hypervisor's age, and the host's memory that it holds.
        network: path of the sandbox's network namespace.
        ips: its addresses.
        containers: those beside the sandbox's own.
        problems: what is missing or wrong.
    """

    id: str
    namespace: str = ""
    pod_namespace: str = ""
    pod: str = ""
    uid: str = ""
    handler: str | None = None
    shim: Shim | None = None
    shim_pid: int | None = None
    shim_program: str = ""
    release: str = ""
    vm: hypervisor.Vm = dataclasses.field(default_factory=hypervisor.Vm)
    usage: processes.Usage | None = None
    network: str = ""
    ips: tuple[str, ...] = ()
    containers: tuple[Container, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What a person calls it: namespace/pod, or the id of what is no pod."""
        return f"{self.pod_namespace}/{self.pod}" if self.pod else self.id


def find(
    node: kata_node.Node, state: str = "/run/containerd", handlers: Mapping[str, str] | None = None
) -> tuple[Sandbox, ...]:
    """Return the Kata sandboxes on the node, ordered by pod.

    Args:
        node: the machine.
        state: containerd's state folder.
        handlers: runtime handlers by sandbox id, as containerd's CRI knows them.
    """
    found = _found(node, state)
    if any(sandbox.problems for sandbox in found.values()):
        # What is about to start or to end is half there: what is wrong a moment later too counts.
        time.sleep(_MOMENT)
        found = _settled(found, _found(node, state))
    named = (
        dataclasses.replace(sandbox, handler=(handlers or {}).get(sandbox.id))
        for sandbox in found.values()
    )
    return tuple(sorted(named, key=lambda each: (each.pod_namespace, each.pod, each.id)))


def pick(found: Sequence[Sandbox], pod: str = "", sandbox: str = "") -> Sandbox:
    """Return the one that is meant.

    Args:
        found: the sandboxes of the node.
        pod: namespace/name of a pod, or else
        sandbox: the id of a sandbox, or its beginning.

    Raises:
        Blocked: none is meant, or none or more than one is there; the message says what to give.
    """
    if bool(pod) == bool(sandbox):
        raise problems.Blocked("give pod=namespace/name or sandbox=id; list-sandboxes shows both")
    if pod and pod.count("/") != 1:
        raise problems.Blocked(f"pod={pod}: expected namespace/name, as list-sandboxes shows it")
    asked = f"pod={pod}" if pod else f"sandbox={sandbox}"
    if pod:
        matching = [each for each in found if each.pod and each.title == pod]
        # What an earlier try of the pod has left behind is not what is meant.
        matching = [each for each in matching if not each.problems] or matching
    else:
        matching = [each for each in found if each.id.startswith(sandbox)]
    if not matching:
        raise problems.Blocked(
            f"{asked}: no such Kata sandbox on this machine; list-sandboxes shows those that are"
        )
    if len(matching) > 1:
        several = ", ".join(each.id[:12] for each in matching[:5])
        raise problems.Blocked(
            f"{asked}: {len(matching)} sandboxes fit ({several}); give sandbox="
        )
    return matching[0]


_Key = tuple[str, str]  # containerd's namespace and the sandbox's id


def _settled(before: Mapping[_Key, Sandbox], after: Mapping[_Key, Sandbox]) -> dict[_Key, Sandbox]:
    """Return what is there after as before, each as it was when it was whole."""
    settled: dict[_Key, Sandbox] = {}
    for key, now in after.items():
        earlier = before.get(key)
        if not now.problems or (earlier and earlier.problems):
            settled[key] = now
        elif earlier:
            settled[key] = earlier
    return settled


def _found(node: kata_node.Node, state: str) -> dict[_Key, Sandbox]:
    seen = _look(node, state)
    if any(bundles.path_of(node, state, name) for name in seen.strays):
        seen = _look(node, state)  # one came in between
    found: dict[_Key, Sandbox] = {}
    for task, containers in seen.tasks:
        sandbox = _sandbox(node, task, seen.shims.get(task.id), seen.running)
        if sandbox.problems and (not _is_one(sandbox, task) or not node.exists(task.path)):
            continue  # it ended in between
        found[task.namespace, task.id] = dataclasses.replace(sandbox, containers=containers)
    taken = {sandbox.vm.pid for sandbox in found.values()}
    for name, vm in seen.strays.items():
        if vm.pid not in taken and (usage := _usage(node, vm)):
            found["", name] = Sandbox(name, vm=vm, usage=usage, problems=(LEFT_BEHIND,))
    return found


def _is_one(sandbox: Sandbox, task: bundles.Bundle) -> bool:
    """Return whether a bundle is a sandbox's, and not that of a container that does not tell."""
    said = task.annotations.get("container-type") == "sandbox"
    return said or bool(sandbox.shim or sandbox.shim_pid)


class _Seen(NamedTuple):
    shims: Mapping[str, Shim]
    """Which shim has left state, by sandbox id."""
    tasks: Sequence[tuple[bundles.Bundle, tuple[Container, ...]]]
    running: processes.Running
    strays: Mapping[str, hypervisor.Vm]
    """Hypervisors that belong to no task, by the id that they name."""


def _look(node: kata_node.Node, state: str) -> _Seen:
    # A bundle is there before its processes: in this order, a task that has them is never seen
    # without.
    shims = _shims(node)
    tasks = _tasks(node, state, shims)
    running = processes.find(node)
    owners = {owner for task, _ in tasks for owner in (task.id, task.id[:_SHORT])}
    strays = {name: vm for name, vm in running.hypervisors.items() if name not in owners}
    return _Seen(shims, tasks, running, strays)


def _shims(node: kata_node.Node) -> dict[str, Shim]:
    rust: dict[str, Shim] = dict.fromkeys(vanishing.names(node, RUST_STATE), "rust")
    return {**rust, **dict.fromkeys(vanishing.names(node, GO_STATE), "go")}


def _tasks(
    node: kata_node.Node, state: str, shims: Mapping[str, Shim]
) -> list[tuple[bundles.Bundle, tuple[Container, ...]]]:
    """Return the bundle of each sandbox with the containers in it."""
    own: dict[tuple[str, str], bundles.Bundle] = {}
    inside: dict[tuple[str, str], list[Container]] = {}
    for bundle in bundles.find(node, state, shims.keys()):
        key = bundle.namespace, bundle.sandbox
        if bundle.id == bundle.sandbox:
            own[key] = bundle
            continue
        about = bundle.annotations
        container = Container(
            bundle.id, about.get("container-name", ""), about.get("image-name", "")
        )
        inside.setdefault(key, []).append(container)
    return [
        (bundle, tuple(sorted(inside.get(key, ()), key=lambda each: (each.name, each.id))))
        for key, bundle in own.items()
    ]


def _sandbox(
    node: kata_node.Node, task: bundles.Bundle, shim: Shim | None, running: processes.Running
) -> Sandbox:
    process = running.shims.get((task.namespace, task.id))
    program = (processes.program(node, process.pid) or process.program) if process else task.shim
    vm = _vm(node, task.id, shim, running, process)
    usage = _usage(node, vm)
    release = _RELEASE.search(program)
    about = task.annotations
    wanted = {NO_SHIM: process, NO_HYPERVISOR: usage, UNREADABLE: task.readable}
    return Sandbox(
        id=task.id,
        namespace=task.namespace,
        pod_namespace=about.get("sandbox-namespace", ""),
        pod=about.get("sandbox-name", ""),
        uid=about.get("sandbox-uid", ""),
        shim=shim,
        shim_pid=process.pid if process else None,
        shim_program=program,
        release=release[1] if release else "",
        vm=vm,
        usage=usage,
        network=task.network,
        ips=_ips(node, task.network, vm.pid),
        problems=tuple(problem for problem, there in wanted.items() if not there),
    )


def _vm(
    node: kata_node.Node,
    name: str,
    shim: Shim | None,
    running: processes.Running,
    process: processes.Shim | None,
) -> hypervisor.Vm:
    """Put together what the command line and Kata's state file tell of a virtual machine.

    The command line wins where both speak, except that only the state file knows of vCPUs and
    memory that were plugged in later.
    """
    told = hypervisor.Vm()
    if shim == "go":
        told = hypervisor.read_go_state(vanishing.text(node, f"{GO_STATE}/{name}/persist.json"))
    elif shim == "rust":
        told = hypervisor.read_rust_state(vanishing.text(node, f"{RUST_STATE}/{name}/state.json"))
    live = running.hypervisors.get(name) or running.hypervisors.get(name[:_SHORT])
    if live is None and told.pid:
        # A machine from Kata's factory has a name of its own.
        live = hypervisor.read_command_line(processes.command_line(node, told.pid))
        live = dataclasses.replace(live, pid=told.pid) if live else None
    if live:
        return hypervisor.Vm(vcpus=told.vcpus, memory=told.memory).completed(live).completed(told)
    # Dragonball is a thread of the shim.
    inside = told.hypervisor == "dragonball" and process
    return dataclasses.replace(told, pid=process.pid if process and inside else None)


def _usage(node: kata_node.Node, vm: hypervisor.Vm) -> processes.Usage | None:
    return processes.usage(node, vm.pid) if vm.pid else None


def _ips(node: kata_node.Node, namespace: str, pid: int | None) -> tuple[str, ...]:
    folder = processes.in_network(node, namespace, pid) if namespace and pid else None
    if folder is None:
        return ()
    return network.addresses(
        vanishing.text(node, f"{folder}/net/fib_trie"),
        vanishing.text(node, f"{folder}/net/if_inet6"),
    )
