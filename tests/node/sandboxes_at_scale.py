"""Sandboxes by the thousand on one machine, from real parts, to look at and to measure.

    from tests.node import sandboxes_at_scale as scale
    laid = scale.lay_out(100)      # root; better below `alone`

    python3 -m tests.node.sandboxes_at_scale 1000 -- python3 measure.py

    with scale.standing(100, containerd=True) as beside:
        beside.run("ctr", "-n", "k8s.io", "containers", "ls")

A sandbox is a shim's process, a virtiofsd's and a hypervisor's with Kata's own command lines (each
a real process that sleeps), a network namespace with `eth0`, `tap0_kata` held open by the
hypervisor, both tc redirects, and a veth pair to a bridge, made by iproute2; containerd's task
bundles with whole specifications; and the state files of the Go and the Rust shim, in turn. With
`containerd` each is a pod and a container of a real containerd too, which its CRI plugin knows.

The latter two run it all in namespaces of its own (mount, pid, network), with an empty /run and
layers over /opt and /var/lib: the machine sees nothing of it, and it is gone at the end. A sandbox takes 50 ms to make, most of it for its network.
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import platform
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tests.node import kata_state, pod_records

BUNDLES = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"
SHIMS = {
    "go": "/opt/kata/bin/containerd-shim-kata-v2",
    "rust": "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
}
BRIDGE_PORTS = 1000  # the kernel's limit is 1023 (net/bridge, BR_MAX_PORTS)
_TUNSETIFF, _TAP, _NO_INFORMATION, _VNET = 0x400454CA, 2, 0x1000, 0x4000
_NEW_NETWORK = 0x40000000  # linux/sched.h, CLONE_NEWNET


class Laid(NamedTuple):
    """A sandbox that was laid out: what every way to look at it has to find."""

    id: str
    pod: str
    shim: str
    shim_pid: int
    hypervisor_pid: int
    cid: int
    network: str
    ip: str
    veth: str
    container: str
    pids: tuple[int, ...]


def lay_out(
    count: int, *, first: int = 0, network: bool = True, containerd: bool = False
) -> list[Laid]:
    """Lay out that many sandboxes, half of them the Go shim's and half the Rust shim's.

    Args:
        count: how many.
        first: the number of the first; another one for each further call.
        network: give each a network namespace with all that is in it.
        containerd: make containers in the containerd behind `pod_records.CONTAINERD` as well. It has to be
            running; it is not to be restarted afterwards, as it would tidy up bundles whose shims
            do not answer. Its CRI plugin reads what there is when it starts: see `alone`.
    """
    programs = _programs()
    numbers = range(first, first + count)
    if network:
        _make_namespaces(numbers)
    if containerd:
        pod_records.describe(numbers)
    laid = [_lay(number, programs, network) for number in numbers]
    if network:
        _join(laid)
    return laid


def remove(laid: Iterable[Laid]) -> None:
    """Take sandboxes away again, in the order in which they end."""
    for each in laid:
        for pid in each.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        for folder in (
            *(f"/run/vc/sbs/{each.id}", f"/run/vc/vm/{each.id}", f"/run/kata/{each.id}"),
            *(f"{BUNDLES}/{each.container}", f"{BUNDLES}/{each.id}"),
        ):
            shutil.rmtree(folder, ignore_errors=True)
        if each.network:
            subprocess.run(["ip", "netns", "del", each.network.rpartition("/")[2]], check=False)


# Processes


def _programs() -> dict[str, str]:
    """Put a program that sleeps where each of Kata's would be, and return the paths."""
    from kata.sandbox import probe

    # It says which kernel it runs on, and waits without an end.
    program = probe.program("arm64" if platform.machine() == "aarch64" else "amd64")
    paths = {**SHIMS, "virtiofsd": "/opt/kata/libexec/virtiofsd", "qemu": kata_state.QEMU}
    for path in map(pathlib.Path, paths.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(program)
            path.chmod(0o755)
    return paths


def _start(words: Sequence[str], held: Sequence[int] = ()) -> int:
    nothing = os.open(os.devnull, os.O_RDWR)
    actions: list[Any] = [(os.POSIX_SPAWN_DUP2, nothing, each) for each in (0, 1, 2)]
    for each in held:
        os.set_inheritable(each, True)
    try:
        return os.posix_spawn(words[0], words, {}, file_actions=actions, setsid=True)
    finally:
        os.close(nothing)


def _lay(number: int, programs: dict[str, str], network: bool) -> Laid:
    """Make one, in containerd's and Kata's order: bundles, shim, virtual machine, state."""
    sandbox, container = pod_records.identity(number)
    shim = ("go", "rust")[number % 2]
    cid = 3 + number
    path = f"/var/run/netns/{pod_records.space(number)}" if network else ""
    for name in (sandbox, container):
        specification = pod_records.specification(number, name, path)
        _write(f"{BUNDLES}/{name}/config.json", json.dumps(specification))
        _write(f"{BUNDLES}/{name}/shim-binary-path", programs[shim])
        _write(f"{BUNDLES}/{name}/address", f"unix:///run/containerd/s/{number:064x}")
        os.makedirs(f"{BUNDLES}/{name}/rootfs", exist_ok=True)
    words = [programs[shim], "-namespace", "k8s.io", "-address", pod_records.CONTAINERD]
    shim_pid = _start([*words, "-publish-binary", "/usr/bin/containerd", "-id", sandbox])
    shared = f"/run/kata-containers/shared/sandboxes/{sandbox}/shared"
    daemon_pid = _start([programs["virtiofsd"], "--fd=3", "-o", f"source={shared}"])
    with _inside(path) as tap:
        pid = _start(kata_state.qemu(sandbox, cid), [] if tap is None else [tap])
    if shim == "go":
        _write(f"/run/vc/vm/{sandbox}/pid", str(pid))
        state = json.dumps(kata_state.go(sandbox, pid, path), separators=(",", ":"))
        _write(f"/run/vc/sbs/{sandbox}/persist.json", state)
    else:
        _write(f"/run/kata/{sandbox}/state.json", json.dumps(kata_state.rust(sandbox), indent=2))
    for name in (sandbox, container):
        _write(f"{BUNDLES}/{name}/init.pid", str(shim_pid))
    return Laid(
        *(sandbox, pod_records.pod(number), shim, shim_pid, pid, cid, path),
        *(pod_records.address(number) if network else "", f"veth{number:08x}", container),
        (pid, daemon_pid, shim_pid),
    )


def _write(path: str, text: str) -> None:
    place = pathlib.Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


# The network, made by iproute2


def _bridge(number: int) -> str:
    return f"cni{number // BRIDGE_PORTS}"


def _make_namespaces(numbers: Iterable[int]) -> None:
    lines: list[str] = []
    bridges = {_bridge(number) for number in numbers}
    for bridge in sorted(each for each in bridges if not os.path.exists(f"/sys/class/net/{each}")):
        lines += [f"link add {bridge} type bridge", f"link set {bridge} up"]
    for number in numbers:
        veth = f"veth{number:08x}"
        lines += [
            f"netns add {pod_records.space(number)}",
            f"link add {veth} type veth peer name eth0 netns {pod_records.space(number)}",
            f"link set {veth} master {_bridge(number)} up",
        ]
    _batch(["ip"], lines)
    for number in numbers:
        inside = [
            "link set lo up",
            f"addr add {pod_records.address(number)}/8 dev eth0",
            "link set eth0 up",
        ]
        _batch(["ip", "-n", pod_records.space(number)], inside)


def _join(laid: Iterable[Laid]) -> None:
    for each in laid:
        space = each.network.rpartition("/")[2]
        _batch(["ip", "-n", space], [f"link set {kata_state.TAP} up"])
        lines: list[str] = []
        for one, other in (("eth0", kata_state.TAP), (kata_state.TAP, "eth0")):
            match = f"filter add dev {one} parent ffff: protocol all u32 match u32 0 0"
            lines += [
                f"qdisc add dev {one} ingress",
                f"{match} action mirred egress redirect dev {other}",
            ]
        _batch(["tc", "-n", space], lines)


def _batch(words: list[str], lines: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        [*words, "-batch", "-"], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def _inside(network: str):
    """Be in a network namespace, with a new tap of it open, as a shim starts its hypervisor."""
    if not network:
        yield None
        return
    enter = ctypes.CDLL(None, use_errno=True).setns
    own, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(network, os.O_RDONLY)
    try:
        if enter(there, _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")
        tap = os.open("/dev/net/tun", os.O_RDWR)
        try:
            flags = _TAP | _NO_INFORMATION | _VNET
            fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", kata_state.TAP.encode(), flags))
            yield tap
        finally:
            os.close(tap)
    finally:
        enter(own, _NEW_NETWORK)
        os.close(own)
        os.close(there)


# In namespaces of its own


def alone(
    count: int, command: Sequence[str], *, network: bool = True, containerd: bool = False
) -> int:
    """Run a command beside that many sandboxes, where nothing else is; return its exit status.

    Args:
        count: how many sandboxes.
        command: what to run; `LAID` names a JSON file that lists them.
        network: as of `lay_out`.
        containerd: run a containerd of its own, whose CRI plugin knows the sandboxes.
    """
    return subprocess.run(_command(count, command, network, containerd), check=False).returncode


class Beside:
    """A place where sandboxes are; see `standing`."""

    def __init__(self, pid: int, laid: list[Laid]):
        self.laid = laid
        self._enter = ["nsenter", f"--target={pid}", "--mount", "--net", "--pid"]

    def run(self, *command: str) -> str:
        """Run a command there, and return what it prints."""
        done = subprocess.run(
            [*self._enter, *command], stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout


@contextlib.contextmanager
def standing(count: int, *, network: bool = True, containerd: bool = False) -> Iterator[Beside]:
    """Give a place as of `alone` in which one command after the other can be run."""
    words = _command(count, ["sh", "-c", "cat $LAID; read _"], network, containerd)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        try:
            laid = [Laid(**each) for each in json.loads(process.stdout.readline())]
            (child,) = (
                pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
                .read_text()
                .split()
            )
            yield Beside(int(child), laid)
        finally:
            process.stdin.close()


def _command(count: int, command: Sequence[str], network: bool, containerd: bool) -> list[str]:
    own = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    me = [sys.executable, "-m", "tests.node.sandboxes_at_scale", "--here", str(count)]
    options = [*([] if network else ["--no-network"]), *(["--containerd"] if containerd else [])]
    return [*own, *me, *options, "--", *command]


def _here(count: int, command: Sequence[str], network: bool, containerd: bool) -> int:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    for folder in ("/opt", "/var/lib"):
        layers = {each: f"/run/layers{folder}/{each}" for each in ("upperdir", "workdir")}
        for layer in layers.values():
            os.makedirs(layer)
        options = ",".join(
            f"{key}={value}" for key, value in {"lowerdir": folder, **layers}.items()
        )
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", folder], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if containerd:
        server = _containerd()
        pod_records.describe(range(count))
        server.terminate()
        server.wait()
        server = _containerd()
    laid = lay_out(count, network=network)
    _write("/run/laid.json", json.dumps([each._asdict() for each in laid]) + "\n")
    return subprocess.run(
        command, check=False, env={**os.environ, "LAID": "/run/laid.json"}
    ).returncode


def _containerd() -> subprocess.Popen[bytes]:
    """Start a containerd with its usual places, which are empty here, and wait for it."""
    log = open("/run/containerd.log", "ab")
    process = subprocess.Popen(["containerd"], stdout=log, stderr=log)
    until = time.monotonic() + 60
    from kata import problems
    from kata.containerd import cri

    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(problems.Problem):
            cri.pod_handlers(pathlib.Path(pod_records.CONTAINERD))
            return process
        time.sleep(0.1)
    raise RuntimeError(pathlib.Path("/run/containerd.log").read_text()[-2000:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("command", nargs="+", help="what to run beside them, after --")
    parser.add_argument("--no-network", action="store_true")
    parser.add_argument("--containerd", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    run = _here if given.here else alone
    how = {"network": not given.no_network, "containerd": given.containerd}
    sys.exit(run(given.count, given.command, **how))
