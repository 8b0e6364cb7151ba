"""The containerd that serves the node's pods: its unit, its configuration, its release."""

import dataclasses
import os
import re
from collections.abc import Mapping

from kata import problems, settings
from kata.containerd import files as containerd_files
from kata.containerd import toml_statements, version
from kata.containerd.files import Release
from kata.machine import node

# Canonical Kubernetes brings a containerd of its own; where it runs, another one is Docker's.
UNITS = ("snap.k8s.containerd.service", "containerd.service")
CONFIG = "/etc/containerd/config.toml"
ADDRESS = "/run/containerd/containerd.sock"
STATE = "/run/containerd"

_SNAP = "/snap/k8s/current/bin/containerd"
_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "MainPID",
    "InvocationID",
    "ExecStart",
    "NeedDaemonReload",
)


@dataclasses.dataclass(frozen=True)
class Containerd:
    """A containerd that systemd runs.

    Attributes:
        unit: its systemd unit.
        active: the unit's state as systemd says it: `active`, `inactive`, `failed`, `activating`…
        invocation: what tells this run of it from all others; empty before the first.
        pid: its process; 0 when it does not run.
        config: path of its main configuration file.
        binary: path of the program, as it will be started next.
        release: the program's release.
        arguments: what it is started with.
        reload: whether systemd has not read the latest of the unit's files.
    """

    unit: str
    active: str
    invocation: str
    pid: int
    config: str
    binary: str
    release: Release
    arguments: tuple[str, ...] = ()
    reload: bool = False

    @property
    def ctr(self) -> str:
        """Path of containerd's own client: it comes beside it."""
        return os.path.join(os.path.dirname(self.binary), "ctr")

    @property
    def is_active(self) -> bool:
        """Whether it runs."""
        return self.active == "active"

    def address(self, machine: node.Node) -> str:
        """Return the path of its socket."""
        return _argument(self.arguments, "address", "a") or self._said(
            machine,
            ADDRESS,
            ("grpc", "address"),
            ("plugins", "io.containerd.server.v1.grpc", "address"),
        )

    def state(self, machine: node.Node) -> str:
        """Return the folder of what lives as long as the node is up: its tasks' bundles."""
        return _argument(self.arguments, "state") or self._said(machine, STATE, ("state",))

    def _said(self, machine: node.Node, default: str, *keys: tuple[str, ...]) -> str:
        try:
            files = containerd_files.read(self.config, machine)
        except toml_statements.Malformed:
            return default
        return next(filter(None, (containerd_files.value(files, *key) for key in keys)), default)


def find(machine: node.Node, options: settings.Settings) -> Containerd:
    """Find the containerd that serves the node's pods.

    Args:
        machine: the node.
        options: the charm's: `containerd-service` and `containerd-config`.

    Raises:
        Blocked: there is none.
    """
    named = options.containerd_service
    units = UNITS if named == "auto" else (named if "." in named else f"{named}.service",)
    shown = _show(machine, units)
    running = [unit for unit in units if shown[unit]["ActiveState"] == "active"]
    loaded = [unit for unit in units if shown[unit]["LoadState"] == "loaded"]
    if not loaded:
        remedy = "install it" if named == "auto" else "correct the option containerd-service"
        raise problems.Blocked(f"containerd not found: no unit {' or '.join(units)}; {remedy}")
    unit = (running or loaded)[0]
    said = shown[unit]
    pid = int(said["MainPID"] or 0)
    arguments = _arguments(machine, pid, said["ExecStart"])
    config = options.containerd_config
    if config == "auto":
        config = os.path.join("/", _argument(arguments, "config", "c") or CONFIG)
    binary = _binary(machine, pid, arguments)
    return Containerd(
        unit=unit,
        active=said["ActiveState"],
        invocation=said["InvocationID"],
        pid=pid,
        config=config,
        binary=binary,
        release=version.release(machine, binary),
        arguments=arguments,
        reload=said["NeedDaemonReload"] == "yes",
    )


def _show(machine: node.Node, units: tuple[str, ...]) -> Mapping[str, dict[str, str]]:
    """Ask systemd for several units at once."""
    asked = [f"--property={each}" for each in _PROPERTIES]
    ran = machine.run("systemctl", "show", *asked, "--", *units, check=False, timeout=30)
    shown: dict[str, dict[str, str]] = {unit: dict.fromkeys(_PROPERTIES, "") for unit in units}
    for unit, block in zip(units, ran.out.strip().split("\n\n"), strict=False):
        for line in block.splitlines():
            key, _, value = line.partition("=")
            shown[unit][key] = value
    return shown


def _arguments(machine: node.Node, pid: int, start: str) -> tuple[str, ...]:
    """Return the command line of the process, else the one that the unit gives."""
    line = machine.read(f"/proc/{pid}/cmdline") if pid else None
    if line:
        return tuple(line.rstrip("\0").split("\0"))
    given = re.search(r"argv\[\]=(.*?) ;", start)
    return tuple(given[1].split()) if given else ()


def _argument(arguments: tuple[str, ...], *names: str) -> str:
    """Return the value of an option; Go takes one dash or two, and the value after = or a space."""
    found = ""
    for position, each in enumerate(arguments):
        option, equals, value = each.partition("=")
        if option.startswith("-") and option.lstrip("-") in names:
            found = value if equals else "".join(arguments[position + 1 : position + 2])
    return found


def _binary(machine: node.Node, pid: int, arguments: tuple[str, ...]) -> str:
    """Return the program that is to be started next: where the running one was, if any is there."""
    try:
        running = os.readlink(machine.path(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
    except OSError:
        running = ""
    candidates = (running, *arguments[:1], _SNAP, "/usr/bin/containerd")
    for path in candidates:
        if os.path.basename(path) == "containerd" and machine.exists(path):
            return path
    raise problems.Blocked("containerd not found: its unit names no program; reinstall containerd")
