"""The actions through the charm's real entry point, over real pods and real virtual machines.

`pods` makes them. One virtual machine boots Linux, the others stay at their first instruction. The
release that the charm has installed is a stand-in.
"""

import json

import pytest

from tests.functional import pods as node_pods
from tests.node import containers, juju, machine, snapshot, standin

RELEASE = "3.32.0"


def python_path(unit):
    return [f"{unit.folder}/{each}" for each in ("src", "lib", "venv")]


@pytest.fixture(scope="module")
def unit(tmp_path_factory):
    """The unit on a node of its own, after install."""
    booted = snapshot.booted(machine.Spec(variant="vmm", memory=3072))
    archive = standin.archive(RELEASE, tmp_path_factory.mktemp("archive"))
    with machine.Machine.restored(juju.with_charm(booted)) as node:
        node_pods.prepare(node)
        unit = juju.Unit(node, "kata/0")
        unit.relate("containerd", "kubernetes-worker")
        unit.attach("kata-archive", archive)
        result = unit.dispatch("install")
        assert result.ok, result.output
        yield unit


@pytest.fixture(scope="module")
def pods(unit):
    return node_pods.Pods(unit.node, python_path(unit))


@pytest.fixture(scope="module")
def go(pods):
    options = "console=ttyS0 quiet agent.debug_console agent.debug_console_vport=1026"
    return pods.run("nginx-kata").boot("go", 751925852, options)


@pytest.fixture(scope="module")
def rust(pods):
    return pods.run("kata-rust").boot("rust", 3141592653)


def listed(unit):
    result = unit.run_action("list-sandboxes")
    assert result.ok, result
    assert all(len(line) <= 80 for line in result.results["table"].splitlines())
    return {each["pod"]: each for each in json.loads(result.results["sandboxes"])}, result


def test_both_shims_sandboxes_and_no_ordinary_pod(unit, pods, go, rust):
    pods.run("plain", "runc")
    found, result = listed(unit)
    assert result.results["count"] == "2"
    assert set(found) == {"nginx-kata", "kata-rust"}
    for pod, shim, cid in ((go, "go", 751925852), (rust, "rust", 3141592653)):
        one = found[pod.name]
        assert (one["id"], one["uid"], one["pod_namespace"]) == (pod.id, pod.uid, "default")
        assert (one["shim"], one["handler"]) == (shim, "kata")
        assert (one["hypervisor"], one["hypervisor_pid"], one["cid"]) == ("qemu", pod.pid, cid)
        assert (one["vcpus"], one["memory_mib"]) == (1, node_pods.MEMORY)
        assert one["memory_in_use_bytes"] > 10 << 20
        assert one["ips"][0].startswith("10.1.39.")
        assert one["containers"] == [
            {"id": pod.container, "name": "app", "image": containers.IMAGE}
        ]
        assert one["problems"] == []


def test_a_sandbox_followed_to_the_bridge(unit, go):
    result = unit.run_action("inspect-sandbox", pod="default/nginx-kata")
    assert result.ok, result
    picture = result.results["picture"]
    print(picture)
    assert "✗" not in picture
    assert all(len(line) <= 80 for line in picture.splitlines())
    for words in (f"virtual machine qemu, pid {go.pid}", "vsock CID 751925852", "cni0 (bridge"):
        assert words in picture
    sandbox = json.loads(result.results["sandbox"])
    assert sandbox["kernel_parameters"].endswith("agent.debug_console_vport=1026")
    (way,) = sandbox["network"]["ways"]
    ends = [(way[end]["name"], way[end]["mtu"]) for end in ("tap", "inner", "bridge")]
    assert ends == [("tap0_kata", 1450), ("eth0", 1450), ("cni0", 1450)]
    said = go.node.run(f"ip -o link show {way['outer']['name']}").out
    assert f"{way['outer']['index']}: " in said
    assert "master cni0" in said
    assert sandbox["network"]["cni"] == "cbr0"


def test_a_broken_redirect_is_marked(unit, rust):
    rust.node.run(f"ip netns exec {rust.ns} tc qdisc del dev tap0_kata ingress")
    try:
        picture = unit.run_action("inspect-sandbox", sandbox=rust.id[:12]).results["picture"]
        assert "✗ no tc redirect from tap0_kata to eth0" in picture
    finally:
        rust.redirect("tap0_kata", "eth0")


def test_the_console_of_one_and_what_to_switch_on_for_the_other(unit, go, rust):
    command = unit.run_action("console-command", pod="default/nginx-kata").results["command"]
    assert command.startswith("sudo ")
    assert command.endswith((f"kata-runtime exec {go.id}", "vsock-connect:751925852:1026"))
    other = unit.run_action("console-command", pod="default/kata-rust").results
    assert other["command"] == ""
    assert "debug-console=true" in other["detail"]
