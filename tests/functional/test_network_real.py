"""A sandbox's network followed through real namespaces, veth pairs, bridges, taps and tc rules.

Made by iproute2 on this machine, as the CNI bridge plugin and Kata's shims make them; all of it
is gone with the namespaces. Needs root.
"""

import contextlib
import fcntl
import os
import struct
import subprocess
import uuid

import pytest

from kata.machine import node as kata_node
from kata.sandbox import network

_TUNSETIFF = 0x400454CA
_TAP, _NO_INFORMATION, _VNET, _MULTI_QUEUE = 2, 0x1000, 0x4000, 0x0100
HOST = kata_node.Node()


def ip(line, check=True):
    """Run iproute2: `ip …`, `tc …`."""
    subprocess.run(line.split(), check=check, capture_output=True, timeout=30)


class Pod:
    """A namespace with a card that leads to a bridge, and a tap that a hypervisor holds open."""

    def __init__(self, bridge):
        self.tag = uuid.uuid4().hex[:8]
        self.name = f"cni-{self.tag}"
        self.path = f"/run/netns/{self.name}"
        self.veth = f"veth{self.tag}"
        self._taps = []
        ip(f"ip netns add {self.name}")
        self.card("eth0", self.veth, "10.231.7.3/24")
        ip(f"ip link set {self.veth} master {bridge}")

    def inside(self, line):
        ip(f"ip netns exec {self.name} {line}")

    def card(self, name, veth, address):
        ip(f"ip link add {veth} type veth peer name {name} netns {self.name}")
        ip(f"ip link set {veth} up")
        self.inside(f"ip link set {name} up")
        self.inside(f"ip addr add {address} dev {name}")

    def tap(self, name="tap0_kata"):
        """Make a tap and hold it open, from within the namespace as a shim does."""
        self.inside(f"ip tuntap add {name} mode tap vnet_hdr multi_queue")
        self.inside(f"ip link set {name} up")
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(self.path, os.O_RDONLY)
        try:
            _enter(there)
            tun = os.open("/dev/net/tun", os.O_RDWR)
            flags = _TAP | _NO_INFORMATION | _VNET | _MULTI_QUEUE
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            self._taps.append(tun)
        finally:
            _enter(own)
            os.close(own)
            os.close(there)

    def let_go(self):
        for tun in self._taps:
            os.close(tun)
        self._taps.clear()

    def redirect(self, source, target):
        self.inside(f"tc qdisc add dev {source} ingress")
        self.inside(
            f"tc filter add dev {source} parent ffff: protocol all u32 match u32 0 0"
            f" action mirred egress redirect dev {target}"
        )

    def join(self, tap="tap0_kata", inner="eth0"):
        self.redirect(tap, inner)
        self.redirect(inner, tap)

    def close(self):
        self.let_go()
        ip(f"ip link del {self.veth}", check=False)
        ip(f"ip netns del {self.name}", check=False)


def _enter(descriptor):
    import ctypes

    assert ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) == 0


@pytest.fixture
def bridge():
    name = f"cni{uuid.uuid4().hex[:8]}"
    ip(f"ip link add {name} type bridge")
    ip(f"ip addr add 10.231.7.1/24 dev {name}")
    ip(f"ip link set {name} up")
    yield name
    ip(f"ip link del {name}", check=False)


@pytest.fixture
def pod(bridge):
    with contextlib.closing(Pod(bridge)) as made:
        yield made


def look(pod):
    return network.look(HOST, "a-sandbox", pod.path)


def test_a_sandbox_as_kata_makes_it(pod, bridge):
    pod.tap()
    pod.join()
    found = look(pod)
    (way,) = found.ways
    assert (way.tap.name, way.tap.kind) == ("tap0_kata", "tun")
    assert (way.inner.name, way.inner.addresses) == ("eth0", ("10.231.7.3/24",))
    assert (way.outer.name, way.outer.peer) == (pod.veth, way.inner.index)
    assert (way.bridge.name, way.bridge.addresses) == (bridge, ("10.231.7.1/24",))
    assert way.tap.redirects == (way.inner.index,)
    assert way.inner.redirects == (way.tap.index,)
    assert (way.problems, found.problems) == ((), ())


def test_a_pod_without_virtual_machine(pod):
    (way,) = look(pod).ways
    assert way.problems == ("eth0 is joined with no tap: the virtual machine lacks this card",)


def test_a_redirect_that_somebody_removed(pod):
    pod.tap()
    pod.join()
    pod.inside("tc qdisc del dev eth0 ingress")
    (way,) = look(pod).ways
    assert way.tap.name == "tap0_kata"
    assert way.problems == ("no tc redirect from eth0 to tap0_kata",)


def test_a_tap_that_the_hypervisor_has_let_go(pod):
    pod.tap()
    pod.join()
    pod.let_go()
    (way,) = look(pod).ways
    assert way.problems == ("tap0_kata has no carrier: no hypervisor holds it open",)


def test_a_veth_that_is_down(pod):
    pod.tap()
    pod.join()
    ip(f"ip link set {pod.veth} down")
    (way,) = look(pod).ways
    assert f"{pod.veth} is down" in way.problems


def test_a_card_that_no_bridge_carries(pod):
    pod.tap()
    pod.join()
    ip(f"ip link set {pod.veth} nomaster")
    (way,) = look(pod).ways
    assert (way.bridge, way.problems) == (None, ())


def test_two_cards_are_two_ways(pod):
    second = f"vetx{pod.tag}"
    pod.card("net1", second, "10.232.7.3/24")
    pod.tap()
    pod.join()
    pod.tap("tap1_kata")
    pod.join("tap1_kata", "net1")
    ways = {way.tap.name: (way.inner.name, way.outer.name) for way in look(pod).ways}
    assert ways == {"tap0_kata": ("eth0", pod.veth), "tap1_kata": ("net1", second)}


def test_a_macvtap_on_top_of_the_card(pod):
    pod.inside("ip link add link eth0 name tap0_kata type macvtap mode bridge")
    pod.inside("ip link set tap0_kata up")
    (way,) = look(pod).ways
    assert (way.tap.kind, way.inner.name, way.problems) == ("macvtap", "eth0", ())


def test_a_namespace_that_was_removed(pod):
    pod.close()
    assert look(pod).problems == (f"network namespace {pod.path} is gone",)


def test_a_file_that_is_no_namespace(tmp_path):
    (tmp_path / "netns").touch()
    found = network.look(kata_node.Node(tmp_path), "s", "/netns")
    assert found.problems == ("network namespace /netns is gone",)


def test_a_look_logs_nothing(pod, caplog):
    caplog.set_level(0)
    look(pod)
    assert caplog.records == []


def test_the_way_is_the_same_among_hundreds_of_devices(pod, bridge):
    pod.tap()
    pod.join()
    alone = look(pod)
    made = [f"d{pod.tag}{n}" for n in range(100)]
    try:
        for name in made:
            ip(f"ip link add {name} type bridge")
        assert look(pod) == alone
    finally:
        for name in made:
            ip(f"ip link del {name}", check=False)
