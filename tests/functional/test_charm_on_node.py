"""The charm through its real entry point, on a real node: systemd, containerd, Juju's hook tools.

`CONTAINERD=/path/to/containerd` runs it with another containerd than Debian's; `ctr` and
`containerd-shim-runc-v2` are taken from beside it.
"""

import os
import pathlib
import time

import pytest

from tests.node import containers, image, juju, machine, standin, view

OTHER = os.environ.get("CONTAINERD")
RELEASE = "3.32.0"
AVAILABLE = f"Kata runtime available ({RELEASE}; kata, untrusted)"
# A check of the site's own, by which containerd does not start with a certain handler.
VETO = """\
[Service]
ExecStartPre=/bin/sh -c '! grep -q runtimes.kata-clh /etc/containerd/config.toml'
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    # A real program: it is what runs from the release while a sandbox does.
    program = image.ready().sleep.read_bytes()
    return standin.archives((RELEASE, "4.1.0"), folder, hypervisor=program)


@pytest.fixture(scope="module")
def clean(booted):
    """A node with the charm laid out, as it was before any hook."""
    with machine.Machine.restored(juju.with_charm(booted)) as node:
        if OTHER:
            for name in ("containerd", "ctr", "containerd-shim-runc-v2"):
                node.copy_in(pathlib.Path(OTHER).with_name(name), f"/usr/bin/{name}", 0o755)
            node.run(["systemctl", "restart", "containerd"], timeout=120)
        containers.load_image(node)
        yield node


@pytest.fixture(scope="module")
def before(clean):
    return view.look(clean)


@pytest.fixture(scope="module")
def unit(clean, before, archives):
    """The unit, after its first hook. The tests of this file are its life, in order."""
    unit = juju.Unit(clean, "kata/0")
    unit.relate("containerd", "kubernetes-worker")
    unit.attach("kata-archive", archives[RELEASE])
    result = unit.dispatch("install")
    assert result.ok, result.output
    return unit


def ready(node):
    """Wait until containerd serves, as kubelet would."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        seen = view.look(node)
        if seen.cri == "ok":
            return seen
        time.sleep(0.3)
    return view.look(node)


def test_the_handlers_are_loaded(unit):
    assert unit.status == ("active", AVAILABLE)
    assert unit.version == RELEASE
    seen = view.look(unit.node)
    assert (seen.active, seen.cri) == ("active", "ok")
    dump = unit.node.run(["containerd", "config", "dump"]).out
    for handler in ("kata", "untrusted"):
        assert f"runtimes.{handler}]" in dump
    assert {"vhost_net", "vhost_vsock"} <= seen.modules


def test_kata_and_ordinary_containers_run(unit):
    assert containers.run(unit.node, "echo", "ordinary").out == "ordinary\n"
    path = "/etc/kata-containers/configuration.toml"
    kata = containers.run(
        unit.node, "echo", "kata", runtime="io.containerd.kata.v2", config_path=path
    )
    assert kata.out == "kata\n"


def test_a_second_reconcile_changes_nothing(unit):
    assert unit.dispatch("config-changed").ok  # notes that there was nothing to do
    first = view.look(unit.node)
    assert "/run/kata-charm/unchanged.json" in first.files
    for event in ("config-changed", "update-status"):
        assert unit.dispatch(event).ok
    assert view.look(unit.node) == first


def test_a_setting_of_kata_restarts_nothing(unit):
    first = view.look(unit.node)
    unit.config["default-memory"] = 1024
    assert unit.dispatch("config-changed").ok
    seen = view.look(unit.node)
    assert seen.run == first.run
    assert view.change(first, seen).altered == ("/etc/kata-containers/configuration.toml",)


def test_an_upgrade_restarts_nothing_and_keeps_what_runs(unit, archives):
    first = view.look(unit.node)
    unit.node.run(
        "nohup ctr -n k8s.io run --rm --runtime io.containerd.kata.v2 --runtime-config-path"
        f" /etc/kata-containers/configuration.toml {containers.IMAGE} long sleep 600"
        " >/dev/null 2>&1 & for i in $(seq 300); do"
        " ctr -n k8s.io tasks ls | grep -q 'long.*RUNNING' && exit 0; sleep 0.2; done; exit 1"
    )
    unit.attach("kata-archive", archives["4.1.0"])
    assert unit.dispatch("upgrade-charm").ok
    assert unit.version == "4.1.0"
    assert view.look(unit.node).run == first.run
    folders = unit.node.run(["ls", "/opt/kata-releases"]).out.split()
    assert len(folders) == 2, "the release of a running sandbox stays"
    unit.node.run("ctr -n k8s.io tasks kill -s KILL long; sleep 2")
    unit.attach("kata-archive", archives[RELEASE])
    assert unit.dispatch("upgrade-charm").ok
    assert unit.status == ("active", AVAILABLE)


def test_a_rewrite_is_healed_before_containerd_starts(unit):
    node = unit.node
    node.copy_in(
        "version = 2\n"
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\n'
        '  runtime_type = "io.containerd.runc.v2"\n'
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]\n'
        '  runtime_type = "io.containerd.kata.v2"\n'
        '  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata.options]\n'
        '    Runtime = "kata-runtime"\n',
        view.CONFIG,
    )
    node.run(["systemctl", "restart", "containerd"], timeout=120)
    seen = ready(node)
    live = [line for line in seen.config.splitlines() if not line.startswith("#")]
    assert not [line for line in live if "Runtime =" in line]
    assert any("runtimes.untrusted]" in line for line in live)
    assert unit.dispatch("update-status").ok
    assert view.look(node).run == seen.run, "no second restart"
    assert unit.status == ("active", AVAILABLE)


def test_what_containerd_does_not_start_with_is_rolled_back(unit):
    node, first = unit.node, view.look(unit.node)
    veto = "/etc/systemd/system/containerd.service.d/site.conf"
    node.copy_in(VETO, veto)
    node.run(["systemctl", "daemon-reload"])
    unit.config["extra-runtime-classes"] = "kata-clh=clh"
    assert unit.dispatch("config-changed").ok
    seen = ready(node)
    assert unit.status.name == "blocked"
    assert (seen.config, seen.cri) == (first.config, "ok")
    node.run(["rm", veto])
    node.run(["systemctl", "daemon-reload"])
    assert unit.dispatch("config-changed").ok
    assert unit.status.name == "active"
    unit.config["extra-runtime-classes"] = ""


def test_a_broken_file_is_named_and_left(unit):
    node, first = unit.node, view.look(unit.node)
    broken = first.config + '[x]\npassword = "a"b"\n'
    node.copy_in(broken, view.CONFIG)
    unit.config["runtime-class"] = "other"
    assert unit.dispatch("config-changed").ok
    seen = view.look(node)
    assert unit.status.name == "blocked"
    assert view.CONFIG in unit.status.message
    assert (seen.config, seen.run) == (broken, first.run)
    node.copy_in(first.config, view.CONFIG)
    unit.config["runtime-class"] = "kata"
    assert unit.dispatch("update-status").ok
    assert unit.status == ("active", AVAILABLE)


def test_removal_leaves_the_node_as_it_was(unit, before):
    unit.state["planned_units"] = []
    assert unit.dispatch("stop").ok
    seen = ready(unit.node)
    left = view.change(before, seen)
    assert not left.removed
    # containerd made its own folder when it restarted; the file is the last rewrite's.
    assert {path for path in left.added if not path.startswith("/opt/containerd")} == set()
    assert set(left.altered) <= {view.CONFIG}
    assert "kata charm" not in seen.config
    assert containers.run(unit.node, "echo", "ordinary").out == "ordinary\n"
