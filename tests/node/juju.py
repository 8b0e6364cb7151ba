"""Juju's side of a unit: its charm on a node, its state, and the hooks that Juju would run.

    unit = juju.Unit(node, "kata/0")
    unit.lay_out()
    unit.config["shim"] = "go"
    assert unit.dispatch("install").rc == 0
    assert unit.status == ("active", "Kata runtime available")

The state (what Juju's controller knows) is a dictionary here. It goes into the node with each
hook, where the hook tools read and change it. Juju takes over relation data, secrets, ports and
stored state only from a hook that succeeded; statuses, logs and the workload's version at once.
"""

import dataclasses
import json
import pathlib
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.node import agent, cache, charm, hooktools, machine, snapshot

ADDRESS = "10.0.2.15"
JUJU = "/var/lib/juju"
PROGRAM = f"{JUJU}/tools/hooktools"
CLIENT = f"{JUJU}/tools/hooktool"
TOOL = pathlib.Path(__file__).with_name("hooktool.c")
SOCKET = "/run/hooktools.sock"


class Status(NamedTuple):
    """A status as `juju status` shows it."""

    name: str
    message: str


class Line(NamedTuple):
    """A line of the unit's log."""

    level: str
    message: str


@dataclasses.dataclass(frozen=True)
class HookResult:
    """How a hook ended."""

    rc: int
    seconds: float
    log: tuple[Line, ...]
    output: str  # what it printed itself: a traceback, most often
    status: Status
    statuses: tuple[Status, ...]  # that the unit set on the way, in order
    results: dict[str, Any] = dataclasses.field(default_factory=dict)  # of an action
    failure: str | None = None  # an action's own word that it failed
    progress: tuple[str, ...] = ()  # an action's log

    @property
    def ok(self) -> bool:
        """Whether it succeeded; an action that says that it failed did not."""
        return self.rc == 0 and self.failure is None

    def logged(self, text: str) -> bool:
        """Whether a line of the log holds a text."""
        return any(text in line.message for line in self.log)


class Hook:
    """A hook that runs in the node."""

    def __init__(self, unit: "Unit", command: agent.Command):
        self._unit = unit
        self._command = command

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._command.done()

    def kill(self) -> bool:
        """Kill the charm's process; return False if it has ended already."""
        return self._command.kill(signal.SIGKILL)

    def wait(self) -> HookResult:
        """Wait until it has ended, and let Juju take over what it did.

        Raises:
            agent.Gone: the node stopped meanwhile. Juju knows nothing of the hook then, and
                would run it again.
        """
        return self._unit._finish(self._command.wait())


class Relation:
    """A relation of a unit."""

    def __init__(self, unit: "Unit", number: int):
        self.unit = unit
        self.id = number

    @property
    def _known(self) -> dict[str, Any]:
        return self.unit.state["relations"][str(self.id)]

    @property
    def endpoint(self) -> str:
        """The charm's endpoint."""
        return self._known["endpoint"]

    @property
    def app(self) -> str:
        """The application on the other side."""
        return self._known["app"]

    @property
    def units(self) -> list[str]:
        """The units on the other side."""
        return self._known["units"]

    def data(self, name: str | None = None) -> dict[str, str]:
        """Return the data that a unit or an application wrote, to read or to change.

        The unit's own by default.
        """
        return self._known["data"].setdefault(name or self.unit.name, {})

    def join(self) -> list[HookResult]:
        """Dispatch what Juju does when a relation is made: created, joined, changed."""
        results = [self.unit.dispatch(f"{self.endpoint}-relation-created", self)]
        for each in self.units:
            for event in ("joined", "changed"):
                hook = f"{self.endpoint}-relation-{event}"
                results.append(self.unit.dispatch(hook, self, remote_unit=each))
        return results

    def leave(self) -> list[HookResult]:
        """Dispatch what Juju does when a relation is removed: departed, broken; forget it."""
        results: list[HookResult] = []
        while self.units:
            gone = self.units.pop()
            hook = f"{self.endpoint}-relation-departed"
            results.append(self.unit.dispatch(hook, self, remote_unit=gone, departing_unit=gone))
        results.append(self.unit.dispatch(f"{self.endpoint}-relation-broken", self))
        del self.unit.state["relations"][str(self.id)]
        return results


class Unit:
    """A unit of a charm on a node.

    Args:
        node: the machine it is on; may be replaced by another with the same disk.
        name: its name; several units can share a machine.
        source: the charm's source tree.
        principal: the unit that a subordinate sits beside.
    """

    def __init__(
        self,
        node: machine.Machine,
        name: str = "kata/0",
        source: pathlib.Path = charm.REPOSITORY,
        principal: str = "kubernetes-worker/0",
    ):
        self.node = node
        self.name = name
        self.app = name.partition("/")[0]
        self.source = source
        self.environment: dict[str, str] = {}  # for every hook, such as JUJU_CHARM_HTTPS_PROXY
        self.config: dict[str, Any] = {}  # what `juju config` has set; the rest is the default
        self.failed: str | None = None  # the hook that failed last, until one succeeds
        self._definition = charm.definition(source)
        self._principal = principal
        blank = {"status": "unknown", "message": ""}
        self.state: dict[str, Any] = {
            "unit": name,
            "leader": True,
            "leader_settings": {},
            "address": ADDRESS,
            "endpoints": [
                endpoint
                for role in ("requires", "provides", "peers", "extra-bindings")
                for endpoint in self._definition.get(role, {})
            ],
            "planned_units": [name],
            # number: endpoint, app, units, model, and data by unit or application
            "relations": {},
            # id: owner (application, unit, remote), label, revisions, the one tracked, granted
            "secrets": {},
            "secrets_made": 0,
            "resources": {},
            "credential": None,
            "status": {"unit": blank, "app": dict(blank)},
            "version": "",
            "stored": {},
            "ports": [],
        }

    @property
    def folder(self) -> str:
        """Where its charm lies in the node."""
        return f"{JUJU}/agents/unit-{self.name.replace('/', '-')}/charm"

    @property
    def _tools(self) -> str:
        return f"{JUJU}/tools/unit-{self.name.replace('/', '-')}"

    @property
    def _state(self) -> str:
        return f"{JUJU}/agents/unit-{self.name.replace('/', '-')}/state.json"

    # The charm

    def lay_out(self) -> bool:
        """Put the charm, its wheels and the hook tools on the node; a charm there is refreshed.

        Returns:
            True if anything was not there yet.
        """
        return self._lay_out_wheels() | self._lay_out_sources()

    def _lay_out_wheels(self) -> bool:
        key, mark = charm.wheels_key(), f"{self.folder}/venv/.key"
        if self.node.run(["cat", mark], check=False).out == key:
            return False
        self.node.copy_in_tree(charm.wheels(), f"{self.folder}/venv")
        self.node.copy_in(key, mark)
        return True

    def _lay_out_sources(self) -> bool:
        key, mark = _sources_key(self.source), f"{self.folder}/.key"
        if self.node.run(["cat", mark], check=False).out == key:
            return False
        self.node.run(f"cd {self.folder} 2>/dev/null && rm -rf src lib templates || true")
        with tempfile.TemporaryDirectory() as scratch:
            charm.stage(self.source, pathlib.Path(scratch))
            self.node.copy_in_tree(pathlib.Path(scratch), self.folder)
        self.node.copy_in(pathlib.Path(hooktools.__file__), PROGRAM, 0o755)
        self.node.copy_in(compiled(TOOL), CLIENT, 0o755)
        links = " ".join(f"{self._tools}/{name}" for name in hooktools.TOOLS)
        self.node.run(f"mkdir -p {self._tools}; for f in {links}; do ln -sf {CLIENT} $f; done")
        self._serve()  # it goes into the snapshot
        self.node.copy_in(key, mark)
        return True

    def attach(self, resource: str, file: pathlib.Path | bytes | None) -> None:
        """Attach a resource, as `juju attach-resource`; None detaches it."""
        known = self._definition.get("resources", {})[resource]
        path = f"{self.folder.removesuffix('charm')}resources/{resource}/{known['filename']}"
        if file is None:
            self.state["resources"].pop(resource, None)
        else:
            self.node.copy_in(file, path, 0o600)
            self.state["resources"][resource] = path

    # What Juju knows

    @property
    def status(self) -> Status:
        """The unit's status; "error" after a failed hook."""
        if self.failed:
            return Status("error", f'hook failed: "{self.failed}"')
        return Status(*self.state["status"]["unit"].values())

    @property
    def app_status(self) -> Status:
        """The application's status, as its leader set it."""
        return Status(*self.state["status"]["app"].values())

    @property
    def version(self) -> str:
        """The workload's version."""
        return self.state["version"]

    @property
    def leader(self) -> bool:
        """Whether it is its application's leader."""
        return self.state["leader"]

    @leader.setter
    def leader(self, leader: bool) -> None:
        self.state["leader"] = leader

    def relate(
        self,
        endpoint: str,
        app: str,
        units: int = 1,
        unit_data: Mapping[str, str] | None = None,
        app_data: Mapping[str, str] | None = None,
    ) -> Relation:
        """Make a relation, with the same data on each remote unit; dispatches nothing."""
        if endpoint not in self.state["endpoints"]:
            raise KeyError(f"the charm has no endpoint {endpoint}")
        number = 1 + max([int(each) for each in self.state["relations"]], default=-1)
        names = [f"{app}/{each}" for each in range(units)]
        given = {
            "egress-subnets": f"{ADDRESS}/32",
            "ingress-address": ADDRESS,
            "private-address": ADDRESS,
        }
        self.state["relations"][str(number)] = {
            "endpoint": endpoint,
            "app": app,
            "units": names,
            "model": str(uuid.uuid5(uuid.NAMESPACE_DNS, "model")),
            "data": {
                **{name: {**given, **(unit_data or {})} for name in names},
                app: dict(app_data or {}),
                self.name: dict(given),
                self.app: {},
            },
        }
        return Relation(self, number)

    def relations(self, endpoint: str) -> list[Relation]:
        """Return the relations of an endpoint."""
        known = self.state["relations"].items()
        return [Relation(self, int(n)) for n, each in known if each["endpoint"] == endpoint]

    def grant_secret(self, content: Mapping[str, str], granted: bool = True) -> str:
        """Make a secret that another application owns; return its URI."""
        number = f"remote{len(self.state['secrets']):014d}"
        self.state["secrets"][number] = {
            "owner": "remote",
            "label": "",
            "revisions": [dict(content)],
            "tracked": None,
            "granted": granted,
        }
        return f"secret:{number}"

    def update_secret(self, uri: str, content: Mapping[str, str]) -> int:
        """Add a revision to a secret that another application owns; return its number."""
        revisions = self.state["secrets"][uri.removeprefix("secret:")]["revisions"]
        revisions.append(dict(content))
        return len(revisions)

    # Hooks and actions

    def dispatch(self, event: str, relation: Relation | None = None, **more: Any) -> HookResult:
        """Run a hook and wait for it; arguments as of `begin`."""
        return self.begin(event, relation, **more).wait()

    def begin(
        self,
        event: str,
        relation: Relation | None = None,
        *,
        remote_unit: str | None = None,
        departing_unit: str | None = None,
        secret: str | None = None,
        revision: int | None = None,
        timeout: float = 900,
        env: Mapping[str, str] | None = None,
    ) -> Hook:
        """Start a hook as Juju would, such as "install" or "kube-control-relation-changed".

        Args:
            event: the hook's name.
            relation: of a relation hook.
            remote_unit: the unit that a relation hook is about.
            departing_unit: the unit that leaves.
            secret: URI, of a secret hook.
            revision: the secret's.
            timeout: seconds until the hook is killed.
            env: variables for this hook alone.
        """
        context: dict[str, str] = {
            "JUJU_DISPATCH_PATH": f"hooks/{event}",
            "JUJU_HOOK_NAME": event,
        }
        if relation:
            context["JUJU_RELATION"] = relation.endpoint
            context["JUJU_RELATION_ID"] = f"{relation.endpoint}:{relation.id}"
            context["JUJU_REMOTE_APP"] = relation.app
            context["JUJU_REMOTE_UNIT"] = remote_unit or ""
            if departing_unit:
                context["JUJU_DEPARTING_UNIT"] = departing_unit
        if secret:
            known = self.state["secrets"][secret.removeprefix("secret:")]
            context["JUJU_SECRET_ID"] = secret
            context["JUJU_SECRET_LABEL"] = known["label"]
            context["JUJU_SECRET_REVISION"] = str(revision or len(known["revisions"]))
        return self._begin(event, None, {**context, **(env or {})}, timeout)

    def run_action(self, action: str, timeout: float = 900, **parameters: Any) -> HookResult:
        """Run an action and wait for it; underscores in parameters' names stand for hyphens."""
        known = self._definition["actions"][action].get("params", {})
        given = {name.replace("_", "-"): value for name, value in parameters.items()}
        if unknown := set(given) - set(known):
            raise KeyError(f"{action} has no parameter {unknown}")
        defaults = {name: each["default"] for name, each in known.items() if "default" in each}
        running = {"params": {**defaults, **given}, "results": {}, "failure": None, "log": []}
        number = "1"
        context = {
            "JUJU_DISPATCH_PATH": f"actions/{action}",
            "JUJU_HOOK_NAME": "",
            "JUJU_ACTION_NAME": action,
            "JUJU_ACTION_UUID": number,
            "JUJU_ACTION_TAG": f"action-{number}",
        }
        return self._begin(None, running, context, timeout).wait()

    def peek(self) -> Status:
        """Return the unit's status as the running hook has set it so far."""
        said = json.loads(self.node.copy_out(self._state))["status"]["unit"]
        return Status(*said.values())

    def _begin(
        self,
        event: str | None,
        action: dict[str, Any] | None,
        context: Mapping[str, str],
        timeout: float,
    ) -> Hook:
        options = self._definition.get("config", {}).get("options", {})
        if unknown := set(self.config) - set(options):
            raise KeyError(f"the charm has no option {unknown}")
        defaults = {name: each.get("default") for name, each in options.items()}
        self._event = event
        sent = {
            **self.state,
            "config": {**defaults, **self.config},
            "action": action,
            "statuses": [],
            "reboot": None,
        }
        model = str(uuid.uuid5(uuid.NAMESPACE_DNS, "demo"))
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"
        environment = {
            "HOOKTOOLS_SOCKET": SOCKET,
            "HOOKTOOLS_STATE": self._state,
            "CHARM_DIR": self.folder,
            "JUJU_CHARM_DIR": self.folder,
            "JUJU_CONTEXT_ID": f"{self.name}-{event or 'action'}-1",
            "JUJU_MACHINE_ID": "0",
            "JUJU_MODEL_NAME": "demo",
            "JUJU_MODEL_UUID": model,
            "JUJU_PRINCIPAL_UNIT": self._principal,
            "JUJU_UNIT_NAME": self.name,
            "JUJU_VERSION": "3.6.9",
            "JUJU_API_ADDRESSES": f"{ADDRESS}:17070",
            "JUJU_AVAILABILITY_ZONE": "zone1",
            "JUJU_METER_STATUS": "AMBER",
            "PATH": f"{self._tools}:{path}",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "APT_LISTCHANGES_FRONTEND": "none",
            "TERM": "tmux-256color",
            **self.environment,
            **context,
        }
        self.node.copy_in(json.dumps(sent), self._state, 0o600)
        self.node.copy_in("", self._state + ".log", 0o600)
        self._serve()
        words = ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in environment.items())]
        command = self.node.start([*words, "./dispatch"], cwd=self.folder, timeout=timeout)
        return Hook(self, command)

    def _serve(self) -> None:
        """Have the hook tools served, unless they are since the node booted."""
        self.node.run(
            f"test -S {SOCKET} || {{ setsid {PROGRAM} {SOCKET} </dev/null >/dev/null 2>&1 & }}; "
            f"until test -S {SOCKET}; do sleep 0.05; done"
        )

    def _finish(self, ended: agent.Result) -> HookResult:
        state = json.loads(self.node.copy_out(self._state))
        log = self.node.copy_out(self._state + ".log").decode().splitlines()
        action, statuses = state.pop("action"), state.pop("statuses")
        reboot, _ = state.pop("reboot"), state.pop("config")
        if reboot:
            # A hook that wanted it now was killed there; Juju runs it again after the reboot.
            self.node.reboot()
        if ended.rc == 0:
            self.state = state
            self.failed = self.failed if action else None
        else:
            for name in ("status", "version"):
                self.state[name] = state[name]
            self.failed = self._event or self.failed
        own = [Status(s["status"], s["message"]) for s in statuses if s["whose"] == "unit"]
        about = action or {"results": {}, "failure": None, "log": []}
        return HookResult(
            rc=ended.rc,
            seconds=ended.seconds,
            log=tuple(Line(*json.loads(line)[1:]) for line in log),
            output=ended.out + ended.err,
            status=self.status,
            statuses=tuple(own),
            results=about["results"],
            failure=about["failure"],
            progress=tuple(about["log"]),
        )


def with_charm(
    base: machine.Snapshot, name: str = "kata/0", source: pathlib.Path = charm.REPOSITORY
) -> machine.Snapshot:
    """Return a snapshot in which a unit's charm is laid out; made anew when the charm changes.

    The wheels, which change seldom, are a layer of their own below the charm's sources.
    """
    wheels = snapshot.after(
        base,
        cache.key("wheels", name, charm.wheels_key()),
        lambda node: Unit(node, name, source)._lay_out_wheels(),
    )
    return snapshot.after(
        wheels,
        cache.key("charm", name, _sources_key(source)),
        lambda node: Unit(node, name, source)._lay_out_sources(),
    )


def compiled(source: pathlib.Path) -> pathlib.Path:
    """Return the program of a file in C."""

    def make(folder: pathlib.Path) -> None:
        # It is small, and so is what it needs beside it.
        command = ["tcc", "-Wall", "-Werror", "-o", str(folder / source.stem), str(source)]
        subprocess.run(command, check=True)

    return cache.made("programs", cache.key(source), make) / source.stem


def _sources_key(source: pathlib.Path) -> str:
    return cache.key(charm.sources_key(source), pathlib.Path(hooktools.__file__), TOOL)
