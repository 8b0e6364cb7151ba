"""Sandboxes that run while everything around them changes; the tests of this file are their life.

The shim of the stand-ins is no Kata's, but what runs here are real processes of real programs from
the release's folder: what has to stay for as long as they do.
"""

import pytest

from tests.node import containers, image, juju, machine, standin, view

MAIN = "/etc/kata-containers/configuration.toml"
SHIM = "/usr/local/bin/containerd-shim-kata-v2"
RELEASES = ("1.13.0", "2.5.2", "3.32.0", "4.1.0")
# What runs from a release, or from a package of Kata's, by process.
PROCESSES = (
    "for p in /proc/[0-9]*; do exe=$(readlink $p/exe) || continue; case $exe in"
    " /opt/kata-releases/*|/usr/bin/qemu-system-x86_64*) echo ${p#/proc/} $exe ;; esac; done"
)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    program = image.ready().sleep.read_bytes()
    return standin.archives(RELEASES, folder, hypervisor=program)


@pytest.fixture(scope="module")
def clean(booted):
    with machine.Machine.restored(juju.with_charm(booted)) as node:
        containers.load_image(node)
        yield node


@pytest.fixture(scope="module")
def before(clean):
    return view.look(clean)


@pytest.fixture(scope="module")
def unit(clean, before, archives):
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
    # The shims of 1.x fail with options, and find this file without.
    options = "" if name.startswith("1.") else f"--runtime-config-path {MAIN}"
    node.run(
        f"nohup ctr -n k8s.io run --rm --runtime io.containerd.kata.v2 {options}"
        f" {containers.IMAGE} {name} sleep 100000 >/dev/null 2>&1 &"
        f" for i in $(seq 300); do ctr -n k8s.io tasks ls | grep -q '{name}.*RUNNING' && exit 0;"
        " sleep 0.2; done; exit 1"
    )
    mine = {pid: exe for pid, exe in processes(node).items() if pid not in known}
    assert mine, f"nothing runs from the release for {name}"
    return mine


def end(node, name):
    # Whoever started it with `ctr run --rm` has lost containerd with its restart.
    node.run(
        f"ctr -n k8s.io tasks rm --force {name}; for i in $(seq 100); do"
        f" ctr -n k8s.io tasks ls | grep -q '^{name} ' || exit 0; sleep 0.1; done; exit 1"
    )


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


@pytest.mark.parametrize(
    ("release", "kept"),
    [
        ("4.1.0", ["3.32.0", "4.1.0"]),
        ("1.13.0", ["3.32.0", "4.1.0"]),
        ("2.5.2", ["2.5.2", "3.32.0", "4.1.0"]),
    ],
    ids=["from Go to Rust", "down to packages of 1.x", "up from packages"],
)
def test_kata_goes_up_and_down(unit, sandboxes, archives, release, kept):
    node = unit.node
    run = view.look(node).run
    move(unit, archives, release)
    all_live(node, sandboxes)
    assert releases(node) == kept
    assert runtime_paths(node) == {f'runtime_path = "{SHIM}"'}
    if "1.13.0" not in (release, *sandboxes):
        # The shims of 1.x fail with an options table: for them it goes, and comes back after.
        assert view.look(node).run == run
    sandboxes[release] = start(node, release)
    all_live(node, sandboxes)


def test_a_release_goes_with_its_last_sandbox(unit, sandboxes):
    end(unit.node, "first")
    del sandboxes["first"]
    assert unit.dispatch("update-status").ok
    assert releases(unit.node) == ["2.5.2", "4.1.0"]
    all_live(unit.node, sandboxes)


def test_removal_leaves_what_a_sandbox_needs_and_names_it(unit, sandboxes, before):
    node = unit.node
    unit.state["planned_units"] = []
    result = unit.dispatch("stop")
    assert result.ok
    all_live(node, sandboxes)
    left = view.change(before, view.look(node))
    assert not left.removed
    folders = {"/".join(path.split("/")[:4]) for path in left.added if path.count("/") > 2}
    for folder in folders:
        if folder.startswith("/opt/kata-releases/"):
            assert result.logged(folder), f"{folder} stays, and the log does not name it"
    assert releases(node) == ["2.5.2", "4.1.0"]
    assert result.logged("kata-runtime"), "the packages of a running sandbox stay, and are named"
    assert not [path for path in left.added if path.startswith("/etc/")]
