"""Sandboxes that run while everything around them changes; the tests of this file are their life.

The shim of the stand-ins is no Kata's, but what runs here are real processes of real programs from
the release's folder: what has to stay for as long as they do.
"""

import pytest

from tests.node import containers, image, juju, machine, standin, view

MAIN = "/etc/kata-containers/configuration.toml"
SHIM = "/usr/local/bin/containerd-shim-kata-v2"
RELEASES = ("3.32.0", "4.1.0")
# What runs from a release, by process.
PROCESSES = (
    "for p in /proc/[0-9]*; do exe=$(readlink $p/exe) || continue; case $exe in"
    " /opt/kata-releases/*) echo ${p#/proc/} $exe ;; esac; done"
)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    program = image.ready().sleep.read_bytes()
    return {each: standin.archive(each, folder, hypervisor=program) for each in RELEASES}


@pytest.fixture(scope="module")
def clean(booted):
    with machine.Machine.restored(juju.with_charm(booted)) as node:
        containers.load_image(node)
        yield node


@pytest.fixture(scope="module")
def unit(clean, archives):
    unit = juju.Unit(clean, "kata/0")
    unit.relate("containerd", "kubernetes-worker")
    move(unit, archives, "3.32.0", "install")
    return unit


@pytest.fixture(scope="module")
def sandboxes(unit):
    """The sandboxes that run, by name: the processes of each."""
    return {"first": start(unit.node, "first")}


def processes(node):
    return dict(line.split(" ", 1) for line in node.run(PROCESSES).out.splitlines())


def start(node, name):
    """Start a sandbox, and return what runs for it from the release."""
    known = processes(node)
    node.run(
        f"nohup ctr -n k8s.io run --rm --runtime io.containerd.kata.v2 --runtime-config-path {MAIN}"
        f" {containers.IMAGE} {name} sleep 100000 >/dev/null 2>&1 &"
        f" for i in $(seq 300); do ctr -n k8s.io tasks ls | grep -q '{name}.*RUNNING' && exit 0;"
        " sleep 0.2; done; exit 1"
    )
    mine = {pid: exe for pid, exe in processes(node).items() if pid not in known}
    assert mine, f"nothing runs from the release for {name}"
    return mine


def all_live(node, sandboxes):
    now = processes(node)
    for name, mine in sandboxes.items():
        assert {pid: now.get(pid) for pid in mine} == mine, f"{name} was touched"
        said = node.run(
            ["ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", "e", name, "echo", "here"]
        )
        assert said.out == "here\n"


def move(unit, archives, release, event="upgrade-charm"):
    unit.attach("kata-archive", archives[release])
    result = unit.dispatch(event)
    assert result.ok, result.output
    assert (unit.status.name, unit.version) == ("active", release), unit.status
    return result


def releases(node):
    return [name.partition("-")[0] for name in node.run("ls /opt/kata-releases").out.split()]


def runtime_paths(node):
    dump = node.run(["containerd", "config", "dump"]).out
    return {
        line.strip() for line in dump.splitlines() if "runtime_path" in line and "kata" in line
    }


def test_a_setting_changes_and_containerd_restarts(unit, sandboxes):
    first = view.look(unit.node)
    unit.config |= {"default-memory": 1024, "extra-runtime-classes": "kata-clh=clh"}
    assert unit.dispatch("config-changed").ok
    assert view.look(unit.node).run != first.run
    all_live(unit.node, sandboxes)
    unit.node.run(["systemctl", "restart", "containerd"], timeout=120)
    all_live(unit.node, sandboxes)
    del unit.config["extra-runtime-classes"]
    assert unit.dispatch("config-changed").ok


def test_kata_goes_from_go_to_rust(unit, sandboxes, archives):
    node = unit.node
    run = view.look(node).run
    move(unit, archives, "4.1.0")
    all_live(node, sandboxes)
    assert releases(node) == ["3.32.0", "4.1.0"]
    assert runtime_paths(node) == {f'runtime_path = "{SHIM}"'}
    assert view.look(node).run == run
    sandboxes["4.1.0"] = start(node, "4.1.0")
    all_live(node, sandboxes)
