"""The two services that answer Prometheus: Kata's own monitor, where the release has it, and ours.

They are there as long as somebody asks for them, and listen on the loopback address alone.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kata.containerd.daemon import Containerd
from kata.machine import node, program
from kata.observability import told
from kata.release import release

UNITS = "/etc/systemd/system"
MONITOR = "kata-charm-monitor.service"
EXPORTER = "kata-charm-metrics.service"
ADDRESS = "127.0.0.1"

_TEMPLATE = pathlib.Path(__file__).parents[3] / "templates" / "metrics.service"
_PROGRAM = program.Program(
    path="/usr/local/lib/kata-charm/metrics.pyz",
    main="observability/exporter",
    modules=(
        "__init__",
        "checks/__init__",
        "checks/causes",
        "containerd/__init__",
        "containerd/config",
        "containerd/files",
        "containerd/memory",
        "containerd/toml_statements",
        "containerd/version",
        "machine/__init__",
        "machine/facts",
        "machine/host",
        "machine/modules",
        "machine/node",
        "machine/tenancy",
        "machine/vanishing",
        "observability/__init__",
        "observability/exposition",
        "observability/measures",
        "observability/overhead",
        "observability/starts",
        "observability/told",
        "problems",
        "sandbox/__init__",
        "sandbox/bundles",
        "sandbox/hypervisor",
        "sandbox/network",
        "sandbox/processes",
        "sandbox/sandboxes",
    ),
    record=f"{told.FOLDER}/program",
)
# What kata-monitor calls containerd's socket (src/runtime/cmd/kata-monitor/main.go).
_RUNTIME_ENDPOINT: release.Number = (2, 2, 0)


class Target(NamedTuple):
    """What Prometheus can scrape: a name for it, and its port on the loopback address."""

    name: str
    port: int


@dataclasses.dataclass(frozen=True)
class Services:
    """What is served, and what the operator should know of it."""

    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Service:
    """A service to have.

    Attributes:
        description: what systemd calls it; a new one restarts it.
        target: where it answers.
        command: what is run.
        capabilities: what of root's power it keeps.
        processes: which processes it sees, as ProtectProc= has it.
        files: which of the charm's own files it sees.
        devices: what it may open.
    """

    description: str
    target: Target
    command: Sequence[str]
    capabilities: str
    processes: str
    files: Sequence[str]
    devices: Sequence[str] = ()

    def unit(self, containerd: Containerd) -> str:
        """Return the text of its unit."""
        return _TEMPLATE.read_text().format(
            description=self.description,
            after=containerd.unit,
            command=" ".join(self.command),
            capabilities=self.capabilities,
            processes=self.processes,
            port=self.target.port,
            files="\n".join(self.files),
            devices="\n".join(self.devices),
        )


def ensure(
    machine: node.Node, installed: release.Release, containerd: Containerd, port: int
) -> Services:
    """Have the metrics served.

    Args:
        machine: the node.
        installed: the release in use.
        containerd: the one that serves the pods.
        port: of kata-monitor; ours is the next.

    Raises:
        Blocked: a file cannot be written.
        CommandFailed: systemd does not take it.
    """
    told.make_folder(machine)
    stale = {EXPORTER} if _PROGRAM.ensure(machine) else set[str]()
    monitor = _monitor(machine, installed, containerd, port)
    wanted = {EXPORTER: _exporter(machine, containerd, port + 1)}
    if monitor:
        wanted[MONITOR] = monitor
    else:
        _remove(machine, [MONITOR])
    stale |= {
        name
        for name, service in wanted.items()
        if machine.write(f"{UNITS}/{name}", service.unit(containerd))
    }
    if stale:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--quiet", *sorted(stale))
        machine.run("systemctl", "restart", *sorted(stale))
    notes = () if monitor else (f"Kata {installed.version} ships no kata-monitor",)
    return Services(
        tuple(service.target for service in wanted.values()),
        (*notes, *_doubts(machine, wanted)),
    )


def remove(machine: node.Node) -> bool:
    """Take the services away.

    Returns:
        True if there were any.

    Raises:
        Blocked: a file cannot be removed.
        CommandFailed: systemd does not take it.
    """
    if not machine.exists(told.FOLDER):
        return False  # it comes first and goes last
    changed = _remove(machine, [MONITOR, EXPORTER])
    changed |= _PROGRAM.remove(machine)
    for path in (told.FILE, os.path.dirname(told.FILE), told.FOLDER):
        changed |= machine.remove(path)
    return changed


def _remove(machine: node.Node, units: Sequence[str]) -> bool:
    there = [unit for unit in units if machine.exists(f"{UNITS}/{unit}")]
    if not there:
        return False
    machine.run("systemctl", "disable", "--quiet", "--now", *there)
    for unit in there:
        machine.remove(f"{UNITS}/{unit}")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", *there, check=False)
    return True


def _monitor(
    machine: node.Node, installed: release.Release, containerd: Containerd, port: int
) -> _Service | None:
    """Return Kata's own monitor; None where the release does not ship it."""
    root = machine.path(installed.root)
    # The folder behind the link: with another release it is another service, and is restarted.
    top = str(root.readlink()) if root.is_symlink() else installed.root
    binary = f"{top}/bin/kata-monitor"
    if not machine.exists(binary):
        return None
    knows = installed.number >= _RUNTIME_ENDPOINT
    option = "--runtime-endpoint" if knows else "--containerd-address"
    return _Service(
        description=f"Metrics of Kata's sandboxes (kata-monitor {installed.version})",
        target=Target("kata-monitor", port),
        command=(
            binary,
            f"--listen-address={ADDRESS}:{port}",
            f"{option}={containerd.address(machine)}",
        ),
        capabilities="",
        processes="invisible",
        files=("InaccessiblePaths=-/var/lib/kata-charm",),
    )


def _exporter(machine: node.Node, containerd: Containerd, port: int) -> _Service:
    return _Service(
        description="Metrics of the Juju charm kata",
        target=Target("kata-charm", port),
        command=(
            *("/usr/bin/python3", "-I", "-S", _PROGRAM.path, "--port", str(port)),
            *("--unit", containerd.unit, "--state", containerd.state(machine)),
            *("--socket", containerd.address(machine)),
        ),
        # Of processes with more power than one's own, the kernel tells only who may trace them.
        capabilities="CAP_SYS_PTRACE",
        processes="default",
        # Credentials for the Kubernetes API lie in the same folder.
        files=(
            "TemporaryFileSystem=/var/lib/kata-charm:ro",
            "BindReadOnlyPaths=-/var/lib/kata-charm/containerd -/var/lib/kata-charm/metrics",
        ),
        devices=("DeviceAllow=/dev/kvm rw",),
    )


def _doubts(machine: node.Node, wanted: Mapping[str, _Service]) -> tuple[str, ...]:
    """Say which services do not run: most often, somebody else has the port."""
    asked = ("systemctl", "show", "--property=ActiveState", "--value", "--", *wanted)
    states = machine.run(*asked, check=False, timeout=30).out.split()
    return tuple(
        f"{service.target.name} is {state}: is port {service.target.port} taken? see "
        f"journalctl --unit {name}, and set metrics-port"
        for (name, service), state in zip(wanted.items(), states, strict=False)
        if state not in ("active", "reloading")
    )
