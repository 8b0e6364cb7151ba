"""How a sandbox's network cards are followed to the host."""

import json

import pytest

from kata.machine import node as kata_node
from kata.sandbox import network
from kata.sandbox.network import Link
from tests import conftest

ETH0 = Link(2, "eth0", "veth", "42:1e:e1:ac:e7:5e", peer=4, redirects=(3,))
TAP0 = Link(3, "tap0_kata", "tun", redirects=(2,))
VETH = Link(4, "vethe5709128", "veth", peer=2, master=7)
CNI0 = Link(7, "cni0", "bridge")
LO = Link(1, "lo", addresses=("127.0.0.1/8",))


def change(link, **what):
    return Link(**{**vars(link), **what})


def follow(inside=(LO, ETH0, TAP0), host=(VETH, CNI0)):
    return list(network.follow(inside, {link.index: link for link in host}))


def test_the_whole_way():
    assert follow() == [network.Way(TAP0, ETH0, VETH, CNI0)]


def test_several_cards_are_told_apart_by_their_redirects():
    net1 = Link(5, "net1", "veth", peer=9, redirects=(6,))
    tap1 = Link(6, "tap1_kata", "tun", redirects=(5,))
    other = Link(9, "veth9", "veth", peer=5)
    ways = follow((LO, tap1, ETH0, TAP0, net1), (VETH, CNI0, other))
    assert [(way.tap.name, way.inner.name) for way in ways] == [
        ("tap1_kata", "net1"),
        ("tap0_kata", "eth0"),
    ]
    assert not any(way.problems for way in ways)


def test_a_macvtap_needs_no_redirects():
    tap = Link(3, "tap0_kata", "macvtap", peer=2)
    (way,) = follow((change(ETH0, redirects=()), tap))
    assert (way.tap, way.inner.name, way.problems) == (tap, "eth0", ())


@pytest.mark.parametrize(
    ("name", "owner"), [("cali0123", "Calico"), ("lxc0123", "Cilium"), ("veth1", "")]
)
def test_a_way_without_bridge_is_routed_by_the_cni_plugin(name, owner):
    (way,) = follow(host=(change(VETH, name=name, master=None),))
    assert (way.bridge, way.owner, way.problems) == (None, owner, ())


@pytest.mark.parametrize(
    ("inside", "host", "problem"),
    [
        ((change(ETH0, redirects=()), TAP0), None, "no tc redirect from eth0 to tap0_kata"),
        ((ETH0, change(TAP0, redirects=())), None, "no tc redirect from tap0_kata to eth0"),
        ((ETH0,), None, "eth0 is joined with no tap: the virtual machine lacks this card"),
        ((TAP0,), None, "tap0_kata is joined with no device of the pod"),
        (None, (CNI0,), "the other end of eth0 is not on this host"),
        (None, (change(VETH, peer=99), CNI0), "vethe5709128 is not the other end of eth0"),
        (
            (ETH0, change(TAP0, carrier=False)),
            None,
            "tap0_kata has no carrier: no hypervisor holds it open",
        ),
        ((change(ETH0, up=False), TAP0), None, "eth0 is down"),
        (None, (VETH, change(CNI0, up=False)), "cni0 is down"),
    ],
)
def test_what_is_missing_or_wrong_is_named(inside, host, problem):
    (way,) = follow(inside or (LO, ETH0, TAP0), host or (VETH, CNI0))
    assert way.problems == (problem,)


def test_both_redirects_missing_still_shows_the_only_two_that_can_belong_together():
    (way,) = follow((change(ETH0, redirects=()), change(TAP0, redirects=())))
    assert (way.tap.name, way.inner.name) == ("tap0_kata", "eth0")
    assert len(way.problems) == 2


def test_the_devices_of_a_real_sandbox():
    for path in conftest.corpus("sandbox/*/addr-netns.json"):
        inside = [_from_iproute2(each, path.parent) for each in json.loads(path.read_text())]
        host = json.loads((path.parent / "link-host.json").read_text())
        (way,) = follow(inside, [_from_iproute2(each, path.parent, host) for each in host])
        assert [link.name for link in (way.tap, way.inner, way.outer, way.bridge)] == [
            *("tap0_kata", "eth0", "vethe5709128", "cni0")
        ]
        assert way.problems == ()


def _from_iproute2(each, folder, host=()):
    numbers = {link["ifname"]: link["ifindex"] for link in host}
    filters = folder / f"tc-{each['ifname']}.json"
    redirects = {"eth0": (3,), "tap0_kata": (2,)} if filters.exists() else {}
    return Link(
        each["ifindex"],
        each["ifname"],
        each.get("linkinfo", {}).get("info_kind", ""),
        peer=each.get("link_index"),
        master=numbers.get(each.get("master")),
        redirects=redirects.get(each["ifname"], ()),
    )


def test_no_namespace_is_said():
    found = network.look(kata_node.Node(), "s", "")
    assert found.problems == ("it has no network namespace of its own",)


def test_a_namespace_that_is_gone_is_said(node):
    found = network.look(node, "s", "/run/netns/cni-1")
    assert found.problems == ("network namespace /run/netns/cni-1 is gone",)
    assert not node.exists("/run/netns/cni-1"), "looking must not make one"


def test_the_networks_name_comes_from_cnis_cache(node):
    node.lay(
        {
            "/var/lib/cni/results/k8s-pod-network-abc-eth0": '{"networkName": "k8s-pod-network"}',
            "/var/lib/cni/results/other-abd-eth0": '{"networkName": "other"}',
            "/var/lib/cni/results/bad-abe-eth0": "[",
        }
    )
    assert network.look(node, "abc", "").cni == "k8s-pod-network"
    assert network.look(node, "abe", "").cni == ""


def test_redirects_are_found_in_any_classifier():
    mirred = [("TCA_MIRRED_PARMS", {"eaction": 1, "ifindex": 3})]
    actions = {"attrs": [("TCA_ACT_PRIO_1", {"attrs": [("TCA_ACT_OPTIONS", {"attrs": mirred})]})]}
    for kind in ("TCA_U32_ACT", "TCA_MATCHALL_ACT"):
        options = {"attrs": [("TCA_U32_HASH", 1), (kind, actions)]}
        assert list(network._redirected([("TCA_OPTIONS", options)])) == [3]
    mirred[0][1]["eaction"] = 2  # TCA_EGRESS_MIRROR: a copy goes there, the packet goes on
    assert list(network._redirected([("TCA_OPTIONS", options)])) == []


def test_addresses_of_a_namespace():
    trie = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.1.39.0/24 2 0 1
        |-- 10.1.39.0
           /24 link UNICAST
        |-- 10.1.39.160
           /32 host LOCAL
        |-- 10.1.39.255
           /32 link BROADCAST
        |-- 127.0.0.1
           /32 host LOCAL
"""
    inet6 = "fd000000000000000000000000000003 02 40 00 80 eth0\nhalf a line\n"
    assert network.addresses(trie + trie, inet6) == ("10.1.39.160", "fd00::3")
    assert network.addresses("", "") == ()
