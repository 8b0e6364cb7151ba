"""The way from a sandbox's virtual machine to the host's network.

    virtual machine - tap<N>_kata = eth0 - veth - bridge, or what the CNI plugin made

The first two are in the sandbox's network namespace, where Kata joins them: by default with a tc
filter on each that redirects all that comes in to the other (virtcontainers, network_linux.go;
runtime-rs, tc_filter_model.rs), or by making the tap a macvtap on top of eth0.
"""

import contextlib
import dataclasses
import fcntl
import ipaddress
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from kata.machine import node as kata_node
from kata.machine import vanishing

# linux/pkt_cls.h, linux/pkt_sched.h, linux/if.h
_INGRESS = 0xFFFF0000
_EGRESS_REDIRECT = 1
_UP = 1
# linux/nsfs.h, linux/sched.h
_GET_TYPE = 0xB703
_NETWORK = 0x40000000
# libcni's cache of what each plugin answered (containernetworking/cni, libcni/api.go).
_RESULTS = "/var/lib/cni/results"
# Which CNI plugin names the host's end of a veth pair so; others call it veth….
_OWNERS = {
    "cali": "Calico",
    "lxc": "Cilium",
    "ovn": "OVN",
    "azv": "Azure CNI",
    "eni": "AWS VPC CNI",
}
_TAP_KINDS = ("tun", "macvtap")


@dataclasses.dataclass(frozen=True)
class Link:
    """A network device, as netlink describes it.

    Attributes:
        index: its number in its namespace.
        name: its name.
        kind: `veth`, `tun`, `bridge` and so on; empty for hardware.
        mac: its hardware address.
        up: whether it is switched on.
        carrier: whether something holds its other end.
        mtu: bytes of the largest packet.
        peer: number of the device at its other end or below it, in whatever namespace.
        master: number of the bridge that it is a port of.
        addresses: with prefix lengths, IPv4 first, without link-local ones.
        redirects: numbers of the devices that what comes in is sent to.
    """

    index: int
    name: str
    kind: str = ""
    mac: str = ""
    up: bool = True
    carrier: bool = True
    mtu: int | None = None
    peer: int | None = None
    master: int | None = None
    addresses: tuple[str, ...] = ()
    redirects: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Way:
    """The way of one network card of a virtual machine; None is what was not found.

    Attributes:
        tap: the device that the hypervisor holds open.
        inner: the pod's own device, eth0 most often.
        outer: its other end on the host.
        bridge: the bridge that the other end is a port of.
        owner: the CNI plugin that routes the other end, as far as its name tells.
        problems: what is missing or wrong.
    """

    tap: Link | None
    inner: Link | None
    outer: Link | None = None
    bridge: Link | None = None
    owner: str = ""
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Network:
    """A sandbox's network.

    Attributes:
        namespace: path of the network namespace.
        cni: name of the network in CNI's configuration.
        ways: one for each network card.
        problems: what is wrong beside them.
    """

    namespace: str
    cni: str = ""
    ways: tuple[Way, ...] = ()
    problems: tuple[str, ...] = ()


def look(node: kata_node.Node, sandbox: str, namespace: str) -> Network:
    """Follow a sandbox's network cards to the host's network; nothing is changed.

    Args:
        node: the machine.
        sandbox: the sandbox's id.
        namespace: path of its network namespace.
    """
    cni = _cni(node, sandbox)
    if not namespace:
        return Network("", cni, problems=("it has no network namespace of its own",))
    if not _is_network(node, namespace):
        return Network(namespace, cni, problems=(f"network namespace {namespace} is gone",))
    # pyroute2 takes 0.2 s to import, and only this needs it.
    import pyroute2  # pyright: ignore[reportMissingTypeStubs]

    # Every record of a hook is a process of its own.
    for name in ("asyncio", "pyroute2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with pyroute2.IPRoute(netns=str(node.path(namespace)), flags=0) as there:
            inside = tuple(_links(there))
    except (OSError, pyroute2.NetlinkError) as error:
        problem = f"network namespace {namespace} cannot be entered: {error}"
        return Network(namespace, cni, problems=(problem,))
    with pyroute2.IPRoute() as here:
        wanted = {link.peer for link in inside if link.peer is not None}
        host = {link.index: link for index in wanted for link in _links(here, index)}
        masters = {link.master for link in host.values() if link.master is not None}
        host |= {link.index: link for index in masters for link in _links(here, index)}
    ways = tuple(follow(inside, host))
    return Network(namespace, cni, ways, () if ways else ("it has no network card",))


def _is_network(node: kata_node.Node, path: str) -> bool:
    """Return whether a network namespace is bound to that file, as it is until its pod ends."""
    try:
        with node.path(path).open("rb") as file:
            return fcntl.ioctl(file.fileno(), _GET_TYPE) == _NETWORK
    except OSError:
        return False


def follow(inside: Iterable[Link], host: Mapping[int, Link]) -> Iterator[Way]:
    """Join the devices of a sandbox's namespace with those of the host, into one way a card.

    Args:
        inside: the devices of the sandbox's namespace.
        host: the host's devices by number, those at least that the former lead to.
    """
    links = {link.index: link for link in inside if link.name != "lo"}
    taps = [link for link in links.values() if link.kind in _TAP_KINDS]
    inner = {link.index: link for link in links.values() if link.kind not in _TAP_KINDS}
    for tap in taps:
        yield _way(tap, inner.pop(_partner(tap, taps, inner), None), host)
    for link in inner.values():
        if link.peer is not None or link.addresses:
            yield _way(None, link, host)


def _partner(tap: Link, taps: list[Link], inner: Mapping[int, Link]) -> int:
    """Return the number of the device that a tap is joined with, 0 for none."""
    joined = [*tap.redirects, *([tap.peer] if tap.peer is not None else [])]
    joined += [link.index for link in inner.values() if tap.index in link.redirects]
    # Where nothing joins them, the only two that can belong together do.
    if len(taps) == len(inner) == 1:
        joined += inner
    return next((index for index in joined if index in inner), 0)


def _way(tap: Link | None, inner: Link | None, host: Mapping[int, Link]) -> Way:
    outer = host.get(inner.peer) if inner and inner.peer is not None else None
    bridge = host.get(outer.master) if outer and outer.master is not None else None
    problems: list[str] = []
    if inner is None:
        problems.append(f"{tap.name if tap else 'it'} is joined with no device of the pod")
    elif tap is None:
        problems.append(f"{inner.name} is joined with no tap: the virtual machine lacks this card")
    elif tap.kind == "tun":
        problems += _redirect_problems(inner, tap)
    if inner and outer is None:
        problems.append(f"the other end of {inner.name} is not on this host")
    elif inner and outer and outer.kind == "veth" and outer.peer != inner.index:
        problems.append(f"{outer.name} is not the other end of {inner.name}")
    if tap and tap.up and not tap.carrier:
        problems.append(f"{tap.name} has no carrier: no hypervisor holds it open")
    downs = [link for link in (tap, inner, outer, bridge) if link and not link.up]
    problems += [f"{link.name} is down" for link in downs]
    owner = ""
    if outer and bridge is None:
        owner = next((own for start, own in _OWNERS.items() if outer.name.startswith(start)), "")
    return Way(tap, inner, outer, bridge, owner, tuple(problems))


def _redirect_problems(inner: Link, tap: Link) -> list[str]:
    return [
        f"no tc redirect from {source.name} to {target.name}"
        for source, target in ((inner, tap), (tap, inner))
        if target.index not in source.redirects
    ]


def _cni(node: kata_node.Node, sandbox: str) -> str:
    """Return the name that CNI's configuration gives to a sandbox's network."""
    for name in sorted(vanishing.names(node, _RESULTS)):
        if f"-{sandbox}-" in name:
            with contextlib.suppress(ValueError, AttributeError):
                return str(
                    json.loads(vanishing.text(node, f"{_RESULTS}/{name}")).get("networkName", "")
                )
    return ""


# Netlink


def _links(route: Any, index: int | None = None) -> Iterator[Link]:
    """Yield the devices of a namespace, or the one with that number."""
    addresses: dict[int, list[str]] = {}
    for each in route.get_addr(**({} if index is None else {"index": index})):
        if each["scope"] == 0:
            text = f"{each.get('address')}/{each['prefixlen']}"
            addresses.setdefault(each["index"], []).append(text)
    for each in _found(route, index):
        number: int = each["index"]
        filters = route.get_filters(index=number, parent=_INGRESS) if index is None else ()
        yield Link(
            index=number,
            name=each.get("ifname"),
            kind=each.get(("linkinfo", "kind")) or "",
            mac=each.get("address") or "",
            up=bool(each["flags"] & _UP),
            carrier=each.get("carrier") != 0,
            mtu=each.get("mtu"),
            peer=each.get("link"),
            master=each.get("master"),
            addresses=tuple(sorted(addresses.get(number, []), key=lambda a: ":" in a)),
            redirects=tuple(i for each in filters for i in _redirected(each.get("attrs", ()))),
        )


def _found(route: Any, index: int | None) -> Iterable[Any]:
    import pyroute2  # pyright: ignore[reportMissingTypeStubs]

    if index is None:
        return route.get_links()
    try:
        return route.get_links(index)
    except pyroute2.NetlinkError:  # ENODEV: it is in another namespace, or gone
        return ()


def _redirected(attributes: Any) -> Iterator[int]:
    """Yield the devices that a filter's actions redirect to, whichever classifier it is."""
    for name, value in attributes:
        if name == "TCA_MIRRED_PARMS":
            if value["eaction"] == _EGRESS_REDIRECT:
                yield value["ifindex"]
        elif isinstance(value, dict):
            yield from _redirected(cast("dict[str, Any]", value).get("attrs", ()))


# /proc


def addresses(fib_trie: str, if_inet6: str) -> tuple[str, ...]:
    """Return the addresses of a network namespace, IPv4 first, without loopback and link-local.

    Args:
        fib_trie: /proc/<pid>/net/fib_trie; a host's own addresses are its `/32 host LOCAL`.
        if_inet6: /proc/<pid>/net/if_inet6; the fourth column is the scope, 0 being global.
    """
    found = re.findall(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL", fib_trie)
    # The trie lists both the main and the local table.
    old = dict.fromkeys(each for each in found if not each.startswith("127."))
    new = [
        str(ipaddress.IPv6Address(int(fields[0], 16)))
        for fields in map(str.split, if_inet6.splitlines())
        if len(fields) == 6 and fields[3] == "00"
    ]
    return (*old, *new)
