"""A charm's life on a node, in stages that can be cut short, and what must hold after each.

An undisturbed life says what is right: `Expected`. A disturbed one is the same life, in which a
hook is killed, or the power cut, at a point of `points`; then the hook runs again, as Juju would
run it, and the node must be as after the undisturbed stage.
"""

import dataclasses
import pathlib
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping

from tests.node import (
    agent,
    containerd_charm,
    containers,
    image,
    juju,
    machine,
    points,
    standin,
    view,
)

# The guard as its drop-in starts it, but with Python's site packages: they count.
_COUNTED_GUARD = """\
[Service]
ExecStartPre=
ExecStartPre=-/usr/bin/timeout --kill-after=1 20 /usr/bin/python3 -I /usr/local/lib/kata-charm/guard.pyz
"""
_DROP_IN = "/run/systemd/system/containerd.service.d/zz-points.conf"
# The first is there after a hook that found nothing to do. The second is known only of a run of
# containerd that a hook or the guard saw start: one after a power cut may not be.
_NOTES = ("/run/kata-charm/unchanged.json", "/run/kata-charm/read")
# What these say depends on times and inodes.
_FLEETING = re.compile(
    r"/run/kata-charm/|/var/lib/kata-charm/(containerd/(facts|guard|wanted\.json)|release\.json"
    r"|attached\.json|packages\.json)"
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a life.

    Attributes:
        name: what it is called.
        event: the hook that Juju runs, again and again until it succeeds.
        kata: the release whose archive is attached before.
        options: what `juju config` sets before.
        rewritten: somebody writes containerd's file anew before and restarts containerd; it is the
            guard that is cut short then.
    """

    name: str
    event: str
    kata: str = ""
    options: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    rewritten: bool = False


STAGES = (
    Stage("install", "install", kata="3.32.0"),
    Stage("handler", "config-changed", options={"extra-runtime-classes": "kata-clh=clh"}),
    Stage("guard", "update-status", rewritten=True),
    Stage("upgrade to Rust", "upgrade-charm", kata="4.1.0"),
    Stage("back to 1.x", "upgrade-charm", kata="1.13.0", options={"extra-runtime-classes": ""}),
    Stage("up from 1.x", "upgrade-charm", kata="3.32.0"),
    Stage("removal", "stop"),
)
SHORT = tuple(stage for stage in STAGES if "1.x" not in stage.name)
"""Without packages: dpkg takes its time."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """What an undisturbed stage comes to.

    Attributes:
        before: the files as the stage began.
        after: the files as it ended.
        status: of the unit.
        version: of the workload.
        points: where it can be cut short.
    """

    before: Mapping[str, str]
    after: Mapping[str, str]
    status: juju.Status
    version: str
    points: tuple[points.Point, ...]


Undisturbed = Mapping[str, Expected]
"""An undisturbed life, by the names of its stages."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A stage that was cut short once.

    Attributes:
        stage: its name.
        how: "kill" or "cut".
        point: where it was cut short; None if it ended before.
        faults: what was not as it must be, right after or after the hook that followed.
    """

    stage: str
    how: str
    point: points.Point | None
    faults: tuple[str, ...]


class Life:
    """A unit on a node of its own, and the archives that can be attached."""

    def __init__(self, node: machine.Machine, archives: Mapping[str, pathlib.Path]):
        self.node = node
        self.archives = archives
        self.unit = juju.Unit(node, "kata/0")
        self.unit.relate("containerd", "kubernetes-worker")
        points.prepare(node)
        containers.load_image(node)

    def begin(self, stage: Stage) -> None:
        """Do what others do before the hook."""
        if stage.kata:
            self.unit.attach("kata-archive", self.archives[stage.kata])
        self.unit.config.update(stage.options)
        if stage.event == "stop":
            self.unit.state["planned_units"] = []
        if stage.rewritten:
            self.node.copy_in(containerd_charm.WRITTEN, view.CONFIG)
        self.node.run("sync")

    def start(self, stage: Stage, env: Mapping[str, str]) -> juju.Hook | agent.Command:
        """Start what is counted: the hook, or the guard as containerd is restarted."""
        if not stage.rewritten:
            return self.unit.begin(stage.event, env=env)
        lines = [f'Environment="{name}={value}"\n' for name, value in env.items()]
        self.node.copy_in(_COUNTED_GUARD + "".join(lines), _DROP_IN)
        self.node.run(["systemctl", "daemon-reload"])
        return self.node.start(["systemctl", "restart", "containerd"])

    def undisturbed(self, stages: Iterable[Stage]) -> Undisturbed:
        """Live undisturbed."""
        return {stage.name: self._undisturbed(stage) for stage in stages}

    def undergo(self, stage: Stage, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Live through a stage undisturbed; return the files as it began."""
        self.begin(stage)
        before = files(view.look(self.node))
        ended = self.start(stage, env or {}).wait()
        assert ended.rc == 0, f"{stage.name}: {ended}"
        if stage.rewritten:
            self.finish(stage)
        return before

    def _undisturbed(self, stage: Stage) -> Expected:
        """Live through a stage, and note its points."""
        before = self.undergo(stage, points.RECORD)
        found = tuple(points.recorded(self.node))
        after = files(view.look(self.node))
        assert stage.event == "stop" or self.unit.status.name == "active", self.unit.status
        return Expected(before, after, self.unit.status, self.unit.version, found)

    def interrupt(
        self, stage: Stage, how: str, point: points.Point, seconds: float
    ) -> points.Point | None:
        """Cut a stage short; return where, or None if it ended before it came to the point.

        Args:
            stage: it.
            how: "kill" for the process alone, "cut" for the power.
            point: where.
            seconds: how long after it.
        """
        before = len(points.stops(self.node))
        disturb = points.killing if how == "kill" else points.cutting
        started = self.start(stage, disturb(point.number, seconds))
        while not started.done() and len(points.stops(self.node)) == before:
            time.sleep(0.005)
        if how == "kill" or started.done():
            started.wait()
        came = points.stops(self.node)[before:]
        if how == "cut" and came:
            time.sleep(seconds)
            self.node.power_cut()
            self.node.boot()
        return came[0] if came else None

    def finish(self, stage: Stage) -> None:
        """Let the hook run undisturbed."""
        if stage.rewritten:
            self.node.run(f"rm -f {_DROP_IN}; systemctl daemon-reload")
        result = self.unit.dispatch(stage.event)
        assert result.ok, f"{stage.name}: {result.output}"

    def disturbed(
        self,
        stage: Stage,
        undisturbed: Undisturbed,
        how: str,
        count: int,
        chance: random.Random,
    ) -> Iterator[Trial]:
        """Live through a stage, cut short so many times one after the other.

        Args:
            stage: it.
            undisturbed: an undisturbed life.
            how: "kill" or "cut".
            count: times.
            chance: chooses the points.
        """
        expected = undisturbed[stage.name]
        self.begin(stage)
        for number, point in enumerate(points.spread(expected.points, count, chance), 1):
            waits = point.event == "subprocess.Popen"
            came = self.interrupt(
                stage, how, point, chance.uniform(0, point.lasts) if waits else 0
            )
            faults = self.hazards(expected, undisturbed)
            if number == count:
                self.finish(stage)
                faults += self.faults(stage, expected)
            yield Trial(stage.name, how, came, tuple(faults))

    def faults(self, stage: Stage, expected: Expected) -> list[str]:
        """Say in which ways the node is not as after an undisturbed stage."""
        seen = served(self.node)
        now = files(seen)
        found = [
            f"{path}: {now.get(path, 'missing')}, not {expected.after.get(path, 'missing')}"
            for path in sorted(now.keys() | expected.after.keys())
            if now.get(path) != expected.after.get(path)
        ]
        if (seen.active, seen.cri) != ("active", "ok"):
            found.append(f"containerd is {seen.active}, its CRI plugin {seen.cri}")
        if (self.unit.status, self.unit.version) != (expected.status, expected.version):
            found.append(f"{self.unit.status} {self.unit.version}, not {expected.status}")
        return found

    def hazards(self, expected: Expected, undisturbed: Undisturbed) -> list[str]:
        """Say what is dangerous about a node on which a stage was cut short, before the next hook.

        Args:
            expected: of the stage.
            undisturbed: an undisturbed life: it knows the releases when they are whole.
        """
        seen = served(self.node)
        now = files(seen)
        found = []
        if (seen.active, seen.cri) != ("active", "ok"):
            found.append(f"containerd is {seen.active}, its CRI plugin {seen.cri}")
        link = now.get("/opt/kata", "").partition("-> ")[2].split(" ")[0]
        whole = [releases(each.after).get(link) for each in undisturbed.values()]
        if link and releases(now).get(link) not in filter(None, whole):
            found.append(f"/opt/kata leads to {link}, which is not whole")
        allowed = (expected.before, expected.after)
        found += [
            f"{path}: {what} is neither what was there before nor what is wanted"
            for path, what in now.items()
            if path.startswith(("/etc/", "/usr/local/")) and "/." not in path
            if what not in [each.get(path) for each in allowed]
        ]
        live = [line for line in seen.config.splitlines() if not line.lstrip().startswith("#")]
        if any("runtimes.kata]" in line for line in live) and not any(
            "Runtime =" in line for line in live
        ):
            shim = self.node.run("/usr/local/bin/containerd-shim-kata-v2 --version", check=False)
            if not shim.ok:
                found.append(f"containerd has handlers, and no shim answers: {shim.err.strip()}")
        return found


def archives(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Make a stand-in of each release that the stages need."""
    releases = sorted({stage.kata for stage in STAGES} - {""})
    return standin.archives(releases, folder, hypervisor=image.ready().sleep.read_bytes())


def served(node: machine.Machine) -> view.View:
    """Look at a node, once containerd has had time to answer."""
    for _ in range(40):
        seen = view.look(node)
        # A restart that a killed hook asked for goes on without it.
        if (seen.active, seen.cri) == ("active", "ok"):
            break
        node.run(["sleep", "0.5"])
    return seen


def files(seen: view.View) -> dict[str, str]:
    """Return a view's files, without what is different at each time."""
    return {
        path: re.sub(r"^[0-9a-f]{64}", "a file", what) if _FLEETING.match(path) else what
        for path, what in seen.files.items()
        if path not in _NOTES and "__pycache__" not in path
    }


def releases(found: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Return what each unpacked release consists of, by its folder."""

    def parts() -> Iterator[tuple[str, str]]:
        for path, what in found.items():
            if match := re.match(r"(/opt/kata-releases/[^./][^/]*)(/.*)?", path):
                yield match[1], f"{match[2]} {what}"

    made: dict[str, set[str]] = {}
    for folder, part in parts():
        made.setdefault(folder, set()).add(part)
    return {folder: frozenset(each) for folder, each in made.items()}
