"""A sandbox drawn."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.sandbox import hypervisor, network, picture, processes
from kata.sandbox.network import Link
from kata.sandbox.sandboxes import Container, Sandbox

ETH0 = Link(
    *(2, "eth0", "veth", "f6:45"),
    mtu=1450,
    peer=4,
    redirects=(3,),
    addresses=("10.1.39.154/24",),
)
TAP0 = Link(3, "tap0_kata", "tun", mtu=1450, redirects=(2,))
VETH = Link(4, "vethfaabff91", "veth", mtu=1450, peer=2, master=7)
CNI0 = Link(7, "cni0", "bridge", addresses=("10.1.39.1/24",))
SANDBOX = Sandbox(
    "604b217ec06a75823965475124491685b2a5a721ef6da13904188d2204b607bf",
    "k8s.io",
    "default",
    "nginx-kata",
    "0a1b2c3d-0000-4000-8000-000000000001",
    handler="kata",
    shim="go",
    shim_pid=12780,
    shim_program="/opt/kata-releases/4.1.0-0123456789ab/bin/containerd-shim-kata-v2",
    release="4.1.0",
    vm=hypervisor.Vm(
        "qemu",
        type="q35",
        kernel="/opt/kata/share/vmlinux.container",
        image="/opt/kata/share/kata.img",
        vcpus=1,
        memory=2048,
        cid=751925852,
        mac="f6:45:6e:18:f8:36",
        pid=12796,
    ),
    usage=processes.Usage(8040, 229 << 20),
    containers=(Container("fd1cf62c3f55d0d3", "nginx-kata", "docker.io/library/nginx"),),
)
DRAWN = """\
┌ default/nginx-kata ──────────────────────────────────────────────────────────┐
│ uid       0a1b2c3d-0000-4000-8000-000000000001                               │
│ sandbox   604b217ec06a75823965475124491685b2a5a721ef6da13904188d2204b607bf   │
│ handler   kata                                                               │
│ shim      go 4.1.0, pid 12780                                                │
│           /opt/kata-releases/4.1.0-0123456789ab/bin/containerd-shim-kata-v2  │
│ container fd1cf62c3f55 nginx-kata, docker.io/library/nginx                   │
└──────────────────────────────────────────────────────────────────────────────┘
┌ virtual machine qemu, pid 12796 ─────────────────────────────────────────────┐
│ machine   q35, 1 vCPU, 2048 MiB                                              │
│ in use    229 MiB of the host's memory; up 2h14m                             │
│ kernel    /opt/kata/share/vmlinux.container                                  │
│ image     /opt/kata/share/kata.img                                           │
│ agent     vsock CID 751925852                                                │
└──────┬───────────────────────────────────────────────────────────────────────┘
       │ network card f6:45:6e:18:f8:36
┌──────┴ network namespace cni-42d0400b-c2c9-f365-0497-3f170429a55f ───────────┐
│ tap0_kata (tun 3, mtu 1450)                                                  │
│      │ ↓ tc redirect to eth0                                                 │
│      │ ↑ tc redirect to tap0_kata                                            │
│ eth0 (veth 2, mtu 1450) 10.1.39.154/24                                       │
└──────┬───────────────────────────────────────────────────────────────────────┘
       │ veth pair
  vethfaabff91 (veth 4, mtu 1450)
       │ port of
  cni0 (bridge 7) 10.1.39.1/24, network cbr0"""


def net(inside=(ETH0, TAP0), host=(VETH, CNI0), **more):
    ways = tuple(network.follow(inside, {link.index: link for link in host}))
    path = "/var/run/netns/cni-42d0400b-c2c9-f365-0497-3f170429a55f"
    return network.Network(path, "cbr0", ways, **more)


def change(link, **what):
    return dataclasses.replace(link, **what)


def test_the_deploy_records_sandbox():
    assert picture.draw(SANDBOX, net()) == DRAWN


@pytest.mark.parametrize(
    ("inside", "host", "lines"),
    [
        (
            (change(ETH0, redirects=()), TAP0),
            (VETH, CNI0),
            ["✗ tc redirect to tap0_kata", "✗ no tc redirect from eth0 to tap0_kata"],
        ),
        ((ETH0,), (VETH, CNI0), ["✗ tap of the virtual machine not found"]),
        ((ETH0, TAP0), (), ["✗ other end on the host not found"]),
        ((TAP0,), (), ["✗ device of the pod not found"]),
        ((ETH0, TAP0), (change(VETH, up=False), CNI0), ["vethfaabff91 (veth 4, mtu 1450, down)"]),
        ((ETH0, TAP0), (change(VETH, name="cali1", master=None),), ["Calico, network cbr0"]),
        ((ETH0, TAP0), (change(VETH, master=None),), ["the CNI plugin, network cbr0"]),
        ((ETH0, change(TAP0, kind="macvtap", peer=2)), (VETH, CNI0), ["macvtap on top of"]),
    ],
)
def test_what_is_missing_or_otherwise_is_seen(inside, host, lines):
    drawn = picture.draw(SANDBOX, net(inside, host))
    for line in lines:
        assert line in drawn


def test_a_sandbox_of_which_next_to_nothing_is_known():
    drawn = picture.draw(Sandbox("abc", problems=("no shim process",)), network.Network(""))
    assert "│ ✗ no shim process" in drawn
    assert "virtual machine unknown" in drawn


def test_what_is_wrong_with_the_network_stands_at_the_end():
    missing = network.Network("", problems=("it has no network namespace of its own",))
    drawn = picture.draw(SANDBOX, missing)
    assert drawn.endswith("✗ it has no network namespace of its own")


@given(st.text(), st.text(), st.text())
def test_hostile_names_keep_the_frame(pod, container, device):
    sandbox = dataclasses.replace(
        SANDBOX, pod=pod or "p", containers=(Container("a", container, container),)
    )
    link = change(ETH0, name=device)
    lines = picture.draw(sandbox, net((link, TAP0))).split("\n")
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    assert all(len(line) == 80 for line in lines if line[:1] in "┌│└")


# Mermaid


def test_the_same_for_mermaid():
    lines = picture.mermaid(SANDBOX, net()).splitlines()
    assert lines[0] == "flowchart TD"
    for line in (
        'subgraph pod["pod default/nginx-kata"]',
        '  vm["virtual machine<br>qemu, pid 12796<br>vsock CID 751925852"]',
        "tap0 <-->|tc redirect| in0",
        'in0 --- out0["vethfaabff91 (4)"]',
        'out0 --- br0["cni0 (7)<br>10.1.39.1/24"]',
    ):
        assert line in lines


def test_what_is_wrong_is_marked_for_mermaid():
    drawn = picture.mermaid(SANDBOX, net((change(ETH0, redirects=()), TAP0)))
    assert "tap0 -.- in0" in drawn
    assert "no tc redirect from eth0 to tap0_kata" in drawn


@given(st.text())
def test_no_name_leaves_its_label_in_mermaid(name):
    sandbox = dataclasses.replace(SANDBOX, pod=name or "p", containers=())
    drawn = picture.mermaid(sandbox, net())
    (line,) = [each for each in drawn.splitlines() if each.startswith("subgraph pod")]
    label = line.removeprefix('subgraph pod["').removesuffix('"]')
    assert not set(label) & set('"<>[]{}\n\\')
