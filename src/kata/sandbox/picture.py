"""A sandbox drawn from its containers down to the host's network: as text, and for Mermaid."""

from collections.abc import Iterable, Iterator

from kata.sandbox.network import Link, Network, Way
from kata.sandbox.sandboxes import Sandbox
from kata.terminal import WIDTH, age, mebibytes, plain, tail, wrapped

MISSING = "✗"
"""Marks what is missing or wrong."""

_INSIDE = WIDTH - 4  # columns between the walls of a box
_LABEL = 10
_STEM = 7  # the column in which one thing leads to the next


def draw(sandbox: Sandbox, net: Network) -> str:
    """Return a drawing of 80 columns."""
    lines = [*_box(sandbox.title if sandbox.pod else "no pod", _pod(sandbox), up=False)]
    lines += _box(_machine_title(sandbox), _machine(sandbox), up=False, down=bool(net.ways))
    for way in net.ways:
        mac = sandbox.vm.mac or (way.inner.mac if way.inner else "")
        lines += _leads_to(f"network card {plain(mac)}")
        title = f"network namespace {tail(net.namespace.rpartition('/')[2], 50)}"
        lines += _box(title, _namespace(way), down=bool(way.inner))
        lines += _host(way, net)
    lines += _marks(net.problems)
    return "\n".join(line.rstrip() for line in lines)


def _pod(sandbox: Sandbox) -> Iterator[str]:
    if sandbox.uid:
        yield _row("uid", sandbox.uid)
    yield _row("sandbox", sandbox.id)
    if sandbox.handler:
        yield _row("handler", sandbox.handler)
    words = [f"{sandbox.shim or 'unknown'} {sandbox.release}".rstrip()]
    words += [f"pid {sandbox.shim_pid}"] if sandbox.shim_pid else []
    yield _row("shim", ", ".join(words))
    if sandbox.shim_program:
        yield _row("", tail(sandbox.shim_program, _INSIDE - _LABEL))
    for each in sandbox.containers:
        yield _row("container", f"{each.id[:12]} {each.name}, {each.image}")
    yield from _marks(sandbox.problems)


def _machine_title(sandbox: Sandbox) -> str:
    pid = f", pid {sandbox.vm.pid}" if sandbox.vm.pid else ""
    return f"virtual machine {sandbox.vm.hypervisor or 'unknown'}{pid}"


def _machine(sandbox: Sandbox) -> Iterator[str]:
    vm, usage = sandbox.vm, sandbox.usage
    size = f"{vm.vcpus or '?'} vCPU, {vm.memory or '?'} MiB"
    yield _row("machine", f"{vm.type}, {size}" if vm.type else size)
    if usage:
        held = f"{mebibytes(usage.memory)} MiB of the host's memory"
        yield _row("in use", f"{held}; up {age(usage.seconds)}")
    for label, path in (("kernel", vm.kernel), ("image", vm.image), ("initrd", vm.initrd)):
        if path:
            yield _row(label, tail(path, _INSIDE - _LABEL))
    yield _row("agent", f"vsock CID {vm.cid}" if vm.cid else "no vsock CID: over a socket file")


def _namespace(way: Way) -> Iterator[str]:
    tap, inner = way.tap, way.inner
    yield _device(tap, "tap of the virtual machine")
    if tap and inner and tap.kind == "macvtap":
        yield from _leads_to("macvtap on top of", 2)
    elif tap and inner:
        down, up = inner.index in tap.redirects, tap.index in inner.redirects
        yield from _leads_to(f"{'↓' if down else MISSING} tc redirect to {plain(inner.name)}", 2)
        yield from _leads_to(f"{'↑' if up else MISSING} tc redirect to {plain(tap.name)}", 2)
    yield _device(inner, "device of the pod")
    yield from _marks(way.problems)


def _host(way: Way, net: Network) -> Iterator[str]:
    if not way.inner:
        return
    pair = way.inner.kind == "veth"
    yield from _leads_to("veth pair" if pair else "")
    yield f"  {_device(way.outer, 'other end on the host')}"
    network = f", network {plain(net.cni)}" if net.cni else ""
    if way.bridge:
        yield from _leads_to("port of")
        yield f"  {_device(way.bridge, '')}{network}"
    elif way.outer:
        yield from _leads_to("no bridge: routed by")
        yield f"  {way.owner or 'the CNI plugin'}{network}"


def _device(link: Link | None, wanted: str) -> str:
    if link is None:
        return f"{MISSING} {wanted} not found"
    state = (f", mtu {link.mtu}" if link.mtu else "") + ("" if link.up else ", down")
    addresses = f" {', '.join(link.addresses)}" if link.addresses else ""
    return f"{plain(link.name)} ({link.kind or 'device'} {link.index}{state}){addresses}"


def _row(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{plain(text)}"


def _marks(problems: Iterable[str]) -> Iterator[str]:
    for problem in problems:
        first, *rest = wrapped(problem, 2)
        yield f"{MISSING} {first[2:]}"
        yield from rest


def _leads_to(label: str, walls: int = 0) -> Iterator[str]:
    yield f"{' ' * (_STEM - walls)}│ {label}"


def _box(title: str, rows: Iterable[str], *, up: bool = True, down: bool = False) -> Iterator[str]:
    """Yield a box of 80 columns, with stems that lead up and down to others."""
    name = plain(title)[: _INSIDE - _STEM - 2]
    head = f"┌{'─' * (_STEM - 1)}┴ {name} " if up else f"┌ {name} "
    yield f"{head:─<{WIDTH - 1}}┐"
    for row in rows:
        short = row if len(row) <= _INSIDE else f"{row[: _INSIDE - 1]}…"
        yield f"│ {short:<{_INSIDE}} │"
    foot = f"└{'─' * (_STEM - 1)}┬" if down else "└"
    yield f"{foot:─<{WIDTH - 1}}┘"


# Mermaid


def mermaid(sandbox: Sandbox, net: Network) -> str:
    """Return a flowchart in Mermaid's language, for what renders Markdown."""
    vm = sandbox.vm
    lines = ["flowchart TD"]
    machine = f"{vm.hypervisor or 'unknown'}, pid {vm.pid or '?'}<br>vsock CID {vm.cid or 'none'}"
    lines += [_group("pod", f"pod {_quoted(sandbox.title)}")]
    lines += [
        f'  c{number}["{_quoted(each.name or each.id[:12])}"]'
        for number, each in enumerate(sandbox.containers)
    ]
    lines += [f'  vm["virtual machine<br>{machine}"]', "end"]
    lines += [f"c{number} --- vm" for number in range(len(sandbox.containers))]
    lines += [f'shim["{sandbox.shim or "unknown"} shim, pid {sandbox.shim_pid or "?"}"] --- vm']
    for number, way in enumerate(net.ways):
        lines += _mermaid_way(number, way, net)
    wrong = [*sandbox.problems, *net.problems, *(p for way in net.ways for p in way.problems)]
    lines += [
        f'wrong{number}["{MISSING} {_quoted(each)}"]:::wrong' for number, each in enumerate(wrong)
    ]
    return "\n".join([*lines, "classDef wrong stroke:#c00,stroke-width:2px"])


def _mermaid_way(number: int, way: Way, net: Network) -> Iterator[str]:
    yield _group(f"ns{number}", _quoted(net.namespace))
    yield f"  tap{number}{_mermaid_link(way.tap, 'tap')}"
    yield f"  in{number}{_mermaid_link(way.inner, 'device')}"
    yield "end"
    yield f"vm --- tap{number}"
    if way.tap and way.inner:
        both = way.inner.index in way.tap.redirects and way.tap.index in way.inner.redirects
        yield f"tap{number} {'<-->|tc redirect|' if both else '-.-'} in{number}"
    if way.inner:
        yield f"in{number} --- out{number}{_mermaid_link(way.outer, 'other end')}"
    if way.bridge:
        yield f"out{number} --- br{number}{_mermaid_link(way.bridge, 'bridge')}"
    elif way.outer:
        yield f'out{number} --- br{number}["{way.owner or "CNI plugin"}"]'


def _group(name: str, title: str) -> str:
    return f'subgraph {name}["{title}"]'


def _mermaid_link(link: Link | None, wanted: str) -> str:
    if link is None:
        return f'["{MISSING} {wanted}"]:::wrong'
    addresses = "".join(f"<br>{address}" for address in link.addresses)
    return f'["{_quoted(link.name)} ({link.index}){addresses}"]'


def _quoted(text: str) -> str:
    """Return text for a quoted label: Mermaid reads HTML and its own #codes; in it."""
    return "".join(
        each if each.isalnum() or each in " -_./:," else f"#{ord(each)};" for each in plain(text)
    )
