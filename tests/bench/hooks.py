"""Hooks through the charm's real entry point, beside a charm of the same ops that does nothing.

Runs in a root of its own (`private`), and prints rows as JSON. Juju's side is that of the
throwaway node, on this machine: the same hook tools, the same environment.
"""

import collections
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench import guard, meter, private
from tests.bench.rows import Row
from tests.node import agent, charm, juju, standin

EMPTY = charm.REPOSITORY / "tests/node/empty_charm"
NOTHING = "a charm that does nothing"
# Which a hook that has nothing to do must do without.
HEAVY = ("charmhelpers", "lightkube", "jinja2", "httpx2", "httpx", "pydantic", "tomlkit")


class Here:
    """This machine, as far as `juju.Unit` asks it for what it asks a throwaway node for."""

    def copy_in(self, what: pathlib.Path | str | bytes, path: str, mode: int = 0o644) -> None:
        """Write a file."""
        data = what.read_bytes() if isinstance(what, pathlib.Path) else what
        place = pathlib.Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data.encode() if isinstance(data, str) else data)
        place.chmod(mode)

    def copy_in_tree(self, tree: pathlib.Path, path: str) -> None:
        """Copy a folder."""
        shutil.copytree(tree, path, dirs_exist_ok=True, symlinks=True)

    def copy_out(self, path: str) -> bytes:
        """Read a file."""
        return pathlib.Path(path).read_bytes()

    def run(self, command: Sequence[str] | str, check: bool = True, **_: Any) -> agent.Result:
        """Run a command."""
        done = subprocess.run(
            command, shell=isinstance(command, str), capture_output=True, check=False
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        if check and done.returncode:
            raise RuntimeError(f"{command}: {out}{err}")
        return agent.Result(done.returncode, out, err, 0, done.stdout)

    def start(self, argv: Sequence[str], cwd: str, timeout: float) -> "Ended":
        """Run a command to its end."""
        return Ended(argv, cwd, timeout)


class Ended:
    """A command that has ended; the last one is what `prepared` measures."""

    last: tuple[Sequence[str], str]

    def __init__(self, argv: Sequence[str], cwd: str, timeout: float):
        Ended.last = argv, cwd
        began = time.monotonic()
        done = subprocess.run(argv, cwd=cwd, capture_output=True, timeout=timeout, check=False)
        texts = done.stdout.decode(), done.stderr.decode()
        self._result = agent.Result(done.returncode, *texts, time.monotonic() - began, done.stdout)

    def wait(self) -> agent.Result:
        """Return how it ended."""
        return self._result


def main() -> None:
    """Measure, and print the rows."""
    rounds = int(sys.argv[1])
    here = Here()
    kata, empty = juju.Unit(here), juju.Unit(here, "empty/0", source=EMPTY)
    for unit in (kata, empty):
        pathlib.Path(unit.folder).mkdir(parents=True)
        os.symlink(charm.wheels(), f"{unit.folder}/venv")
        unit._lay_out_sources()
    kata.leader = False
    kata.relate("containerd", "kubernetes-worker")
    kata.attach("kata-archive", standin.archive("3.32.0", pathlib.Path(tempfile.mkdtemp())))
    for event in ("install", "config-changed", "update-status"):
        _dispatch(kata, event)
    _dispatch(empty, "update-status")
    rows = [*_unchanged(kata, empty, rounds), *_looked_at(kata)]
    rows += _changed(kata, empty, rounds)
    rows += guard.rows(rounds)
    rows += _with_cluster(kata, empty, rounds)
    json.dump([each.data() for each in rows], sys.stdout)


def _dispatch(unit: juju.Unit, event: str, relation: juju.Relation | None = None) -> None:
    more = {"remote_unit": relation.units[0]} if relation else {}
    result = unit.dispatch(event, relation, **more)
    if not result.ok or result.status.name not in ("active", "unknown", "waiting"):
        raise RuntimeError(f"{unit.name} {event}: {result}")


def _prepared(
    unit: juju.Unit, event: str, options: Sequence[Mapping[str, Any]] = ({},), apart: str = ""
) -> meter.Contender:
    """Return a hook as a command that can be run again and again, each with the next options."""
    files: list[Mapping[str, str]] = []
    for each in options:
        unit.config.update(each)
        _dispatch(unit, event)
        sent = _sent(unit)
        files.append({unit._state: sent, f"{unit._state}.log": ""})
    return meter.Contender(*Ended.last, files, apart)


def _sent(unit: juju.Unit) -> str:
    """Return the state as it goes into a hook."""
    options = unit._definition.get("config", {}).get("options", {})
    config = {name: each.get("default") for name, each in options.items()} | unit.config
    more = {"config": config, "action": None, "statuses": [], "reboot": None}
    return json.dumps({**unit.state, **more})


def _ratios(what: str, costs: Mapping[str, meter.Cost], aims: Mapping[str, float]) -> list[Row]:
    ours, theirs = costs["kata"], costs["empty"]
    names = {"wall": "time", "cpu": "CPU", "memory": "memory"}
    units = {"wall": ("ms", 1000), "cpu": ("ms", 1000), "memory": ("MiB", 1)}
    return [
        Row(
            f"{what}: {names[kind]}",
            getattr(ours, kind) * units[kind][1],
            units[kind][0],
            NOTHING,
            getattr(theirs, kind) * units[kind][1],
            f"at most {bound:g} times" if bound else "",
            bound or None,
        )
        for kind, bound in aims.items()
    ]


def _unchanged(kata: juju.Unit, empty: juju.Unit, rounds: int) -> list[Row]:
    hooks = {
        "kata": _prepared(kata, "update-status"),
        "empty": _prepared(empty, "update-status"),
    }
    aims = {"wall": 1.3, "cpu": 1.3, "memory": 1.5}
    rows = _ratios("hook, nothing changed", meter.measured(hooks, rounds), aims)
    hooks["kata"] = _prepared(kata, "config-changed")
    aims = dict.fromkeys(aims, 0)
    return rows + _ratios(
        "hook that looks at everything", meter.measured(hooks, rounds), {**aims, "memory": 1.5}
    )


def _looked_at(kata: juju.Unit) -> list[Row]:
    """Count modules and processes of a hook that finds nothing to do."""
    _dispatch(kata, "update-status")
    argv, cwd = Ended.last
    timed = [*argv[:2], "PYTHONPROFILEIMPORTTIME=1", *argv[2:]]
    said = subprocess.run(timed, cwd=cwd, capture_output=True, text=True, check=True).stderr
    modules = re.findall(r"^import time: .*\|\s+(\S+)$", said, re.MULTILINE)
    heavy = {name.partition(".")[0] for name in modules} & set(HEAVY)
    own = [name for name in modules if name.partition(".")[0] in ("kata", "charms")]
    trace = f"{tempfile.mkdtemp()}/trace"
    traced = ["strace", "-f", "-qq", "-e", "trace=execve", "-e", "status=successful"]
    subprocess.run([*traced, "-o", trace, *argv], cwd=cwd, capture_output=True, check=True)
    started = re.findall(r'execve\("([^"]+)"', pathlib.Path(trace).read_text())
    # What Juju starts, and what it starts itself with: /usr/bin/env, dispatch, env, Python.
    others = [path for path in started if not path.startswith(f"{juju.JUJU}/tools/")][4:]
    tools = len(started) - len(others) - 4
    return [
        Row(
            "that hook: modules it does not need",
            len(heavy),
            "",
            aim="none",
            bound=0,
            note=f"{len(modules)} in all, {len(own)} of them ours: {', '.join(own)}",
        ),
        Row(
            "that hook: processes beside Juju's own tools",
            len(others),
            "",
            aim="at most 2",
            bound=2,
            note=f"{tools} calls of Juju's tools; others: {', '.join(others) or 'none'}",
        ),
    ]


def _changed(kata: juju.Unit, empty: juju.Unit, rounds: int) -> list[Row]:
    rows: list[Row] = []
    aims = {"wall": 3.0, "cpu": 3.0}
    for what, options in {
        "hook that changes a setting of Kata": [{"default-memory": 512}, {"default-memory": 1024}],
        "hook that changes a handler": [
            {"extra-runtime-classes": "kata-clh=clh"},
            {"extra-runtime-classes": ""},
        ],
    }.items():
        hooks = {
            "kata": _prepared(kata, "config-changed", options, private.APART),
            "empty": _prepared(empty, "config-changed"),
        }
        rows += _ratios(what, meter.measured(hooks, rounds - rounds % 2 or 2), aims)
    _dispatch(kata, "config-changed")
    _dispatch(kata, "update-status")
    return rows


# With a control plane


def _with_cluster(kata: juju.Unit, empty: juju.Unit, rounds: int) -> list[Row]:
    machine_id = pathlib.Path("/etc/machine-id")
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    folder = tempfile.mkdtemp()
    node = f"{socket.gethostname()}={machine_id.read_text().strip()}"
    command = [sys.executable, "-m", "tests.api_server", "--state", folder, "--node", node]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout
        server.stdout.readline()
        try:
            return _asked(
                kata, empty, json.loads(pathlib.Path(folder, "access.json").read_text()), rounds
            )
        finally:
            server.terminate()


def _asked(kata: juju.Unit, empty: juju.Unit, access: Mapping[str, str], rounds: int) -> list[Row]:
    secret = kata.grant_secret({"ca-certificate": access["ca"]})
    said = {
        "api-endpoints": json.dumps([access["server"]]),
        "ca-certificate-secret-id": secret,
    }
    relation = kata.relate("kube-control", "kubernetes-control-plane", unit_data=said)
    _dispatch(kata, "kube-control-relation-changed", relation)
    tokens = dict.fromkeys(("client_token", "kubelet_token", "proxy_token"), access["token"])
    rows: list[Row] = []
    for leader, what, most in ((False, "other units", 1), (True, "leader", 2)):
        kata.leader = leader
        _dispatch(kata, "kube-control-relation-changed", relation)
        user = kata.relations("kube-control")[0].data()["kubelet_user"]
        creds = {user: {**tokens, "scope": kata.name}}
        relation.data(relation.units[0])["creds"] = json.dumps(creds)
        for event in ("kube-control-relation-changed", "config-changed"):
            _dispatch(kata, event, relation if event.startswith("kube") else None)
        _requests(access, clear=True)
        _dispatch(kata, "update-status")
        asked = _requests(access, clear=True)
        words = ", ".join(f"{verb} {path.rpartition('/v1/')[2]}" for verb, path in asked)
        aim = "none, or one read" if most == 1 else "one read a RuntimeClass"
        rows.append(
            Row(
                f"API calls of that hook: {what}",
                sum(asked.values()),
                "",
                aim=aim + (" and one for the node's label" if leader else ""),
                bound=most,
                note=words,
            )
        )
        hooks = {
            "kata": _prepared(kata, "update-status"),
            "empty": _prepared(empty, "update-status"),
        }
        costs = meter.measured(hooks, rounds)
        aims = {"wall": 0, "cpu": 0}
        rows += _ratios(f"hook, nothing changed, kube-control, {what}", costs, aims)
    return rows


def _requests(access: Mapping[str, str], clear: bool) -> collections.Counter[tuple[str, str]]:
    import ssl

    context = ssl.create_default_context(cadata=access["ca"])
    ask = urllib.request.Request(f"{access['server']}/stand-in/requests")
    with urllib.request.urlopen(ask, context=context) as answer:
        counted = json.load(answer)["requests"]
    if clear:
        ask.method = "POST"
        urllib.request.urlopen(ask, context=context).close()
    return collections.Counter({(verb, path): count for verb, path, count in counted})


if __name__ == "__main__":
    main()
