"""Who else is on the machine: a second unit, the older charm and what it left, and the cluster."""

import json

import pytest

from tests import api_server
from tests.node import containerd_charm, containers, image, juju, machine, standin, view

HOST = "10.0.2.2"  # this machine, for QEMU's guests
RELEASE = "3.32.0"
SHIM = "/usr/local/bin/containerd-shim-kata-v2"
DEAD = "/etc/apt/sources.list.d/kata-containers.list"
# What the reactive charm wrote (charmed-kubernetes/charm-kata, reactive/kata.py).
DEAD_SOURCE = (
    "deb http://download.opensuse.org/repositories/home:/katacontainers:/releases:/x86_64:/master"
    "/xUbuntu_20.04/ /\n"
)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    program = image.ready().sleep.read_bytes()
    return standin.archives((RELEASE, "1.13.0"), folder, hypervisor=program)


@pytest.fixture
def node(booted):
    with machine.Machine.restored(juju.with_charm(booted), network=True) as node:
        containers.load_image(node)
        yield node


def whole(node):
    """All that a charm could have changed, beside what `view` sees."""
    units = node.run("systemctl list-unit-files --no-legend; systemctl list-units --failed").out
    modules = {line.split()[0] for line in node.run("cat /proc/modules").out.splitlines()}
    return view.look(node), set(units.splitlines()), modules


def related(unit, api):
    """Relate a unit with a control plane, as Charmed Kubernetes answers it."""
    secret = unit.grant_secret({"ca-certificate": api.ca})
    control = unit.relate(
        "kube-control",
        "kubernetes-control-plane",
        unit_data={
            "api-endpoints": json.dumps([api.url.replace("127.0.0.1", HOST)]),
            "ca-certificate-secret-id": secret,
        },
    )
    assert unit.dispatch("kube-control-relation-created", control).ok
    tokens = dict.fromkeys(("client_token", "kubelet_token", "proxy_token"), api.token)
    creds = {control.data().get("kubelet_user", ""): {**tokens, "scope": unit.name}}
    control.data("kubernetes-control-plane/0")["creds"] = json.dumps(creds)
    event = "kube-control-relation-changed"
    assert unit.dispatch(event, control, remote_unit="kubernetes-control-plane/0").ok
    return control


def test_after_removal_the_node_and_the_cluster_are_as_before(node, archives):
    with api_server.ApiServer() as api:
        api.add_node("node", node.run(["cat", "/etc/machine-id"]).out.strip())
        objects = json.dumps(api.objects.stored, default=str, sort_keys=True)
        before, units, modules = whole(node)
        unit = juju.Unit(node, "kata/0")
        unit.relate("containerd", "kubernetes-worker")
        unit.attach("kata-archive", archives[RELEASE])
        assert unit.dispatch("install").ok
        control = related(unit, api)
        assert unit.status.name == "active"
        assert "kata" in api.objects.stored["runtimeclasses"]
        unit.state["planned_units"] = []
        event = "kube-control-relation-departed"
        gone = "kubernetes-control-plane/0"
        assert unit.dispatch(event, control, remote_unit=gone, departing_unit=unit.name).ok
        assert unit.dispatch("stop").ok
        after, units_after, modules_after = whole(node)
        left = view.change(before, after)
        # containerd made its own folder when it restarted.
        assert [path for path in left.added if not path.startswith("/opt/containerd")] == []
        assert (left.removed, left.altered) == ((), ())
        assert (units_after, after.cri) == (units, "ok")
        # Loaded modules stay: others may use them by now.
        assert modules <= modules_after <= modules | {"vhost", "vhost_net", "vhost_vsock", "vsock",
            "vhost_iotlb", "tap", "tun", "vmw_vsock_virtio_transport_common"}  # fmt: skip
        labels = api.objects.stored["nodes"]["node"]["metadata"]["labels"]
        assert not api.objects.stored["runtimeclasses"]
        assert not [label for label in labels if "kata" in label]
        now = json.loads(json.dumps(api.objects.stored, default=str, sort_keys=True))
        for kept in (then := json.loads(objects))["nodes"].values():
            kept["metadata"].pop("resourceVersion", None)
            kept["metadata"].pop("managedFields", None)
        for kept in now["nodes"].values():
            kept["metadata"].pop("resourceVersion", None)
            kept["metadata"].pop("managedFields", None)
        assert now == then


def test_two_units_on_one_machine(node, archives):
    first = juju.Unit(node, "kata/0")
    second = juju.Unit(node, "other/1")
    # Juju unpacks the charm for each; here the second has the first's files.
    node.run(f"mkdir -p {second.folder.removesuffix('/charm')}")
    node.run(f"cp -a {first.folder} {second.folder} && rm {second.folder}/.key")
    second.lay_out()
    for unit in (first, second):
        unit.relate("containerd", "kubernetes-worker")
        unit.attach("kata-archive", archives[RELEASE])
    before = view.look(node)
    assert first.dispatch("install").ok
    working = view.look(node)
    second.config["runtime-class"] = "mine"
    assert second.dispatch("install").ok
    assert "kata/0 runs Kata here" in second.status.message
    for unit in (second, first):
        assert unit.dispatch("config-changed").ok
    seen = view.look(node)
    assert (seen.config, seen.run) == (working.config, working.run)
    # The one that stands by goes: nothing of the other's is undone.
    second.state["planned_units"] = []
    assert second.dispatch("stop").ok
    seen = view.look(node)
    assert (seen.config, seen.run) == (working.config, working.run)
    # The one that works goes: the other takes over at its next hook.
    assert second.dispatch("install").ok
    assert first.dispatch("stop").ok
    assert second.dispatch("update-status").ok
    assert second.status.name == "active"
    assert "mine" in second.status.message
    # The last one cleans up.
    assert second.dispatch("stop").ok
    left = view.change(before, view.look(node))
    assert [path for path in left.added if not path.startswith("/opt/containerd")] == []
    assert (left.removed, left.altered) == ((), ())


def test_from_the_older_charm(node, archives):
    """Its dead apt source goes, its packages stay, and what the containerd charm wrote works."""
    node.copy_in(archives["1.13.0"], "/root/debs.tar")
    node.run(
        "mkdir /root/debs && tar -xf /root/debs.tar -C /root/debs && dpkg -i /root/debs/*.deb"
    )
    node.copy_in(DEAD_SOURCE, DEAD)
    node.copy_in(containerd_charm.WRITTEN, view.CONFIG)
    node.run(["systemctl", "restart", "containerd"], timeout=120)
    before = view.look(node)
    packages = node.run("dpkg -l 'kata-*' | grep ^ii").out
    unit = juju.Unit(node, "kata/0")
    unit.relate("containerd", "containerd")
    unit.attach("kata-archive", archives[RELEASE])
    # What Juju runs when a charm takes another's place.
    assert unit.dispatch("upgrade-charm").ok
    assert unit.dispatch("config-changed").ok
    assert (unit.status.name, unit.version) == ("active", RELEASE)
    seen = view.look(node)
    assert DEAD not in seen.files
    live = [line for line in seen.config.splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in live if "Runtime" in line and "runtime_" not in line]
    assert node.run("dpkg -l 'kata-*' | grep ^ii").out == packages
    main = "/etc/kata-containers/configuration.toml"
    kata = containers.run(node, "echo", "kata", runtime="io.containerd.kata.v2", config_path=main)
    assert kata.out == "kata\n"
    unit.state["planned_units"] = []
    assert unit.dispatch("stop").ok
    left = view.change(before, view.look(node))
    assert left.removed == (DEAD,)
    assert [path for path in left.added if not path.startswith("/opt/containerd")] == []
    assert left.altered == (), "the containerd charm's own text is back"
    assert node.run("dpkg -l 'kata-*' | grep ^ii").out == packages
