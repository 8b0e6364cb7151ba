"""How to open a shell in a sandbox's guest: Kata's debug console.

The agent offers it on a vsock port of its own if the guest's kernel was told so. Kata 1.x has it
on the machine's serial console instead.
"""

import contextlib
import dataclasses
import http.client
import pathlib
import shlex
import socket
import urllib.parse

from kata import problems
from kata.machine import node as kata_node
from kata.release import release
from kata.sandbox.sandboxes import GO_STATE, RUST_STATE, Sandbox

PORT = 1026  # kata_types, agent.rs, DEFAULT_DEBUG_CONSOLE_PORT; virtcontainers, kata_agent.go
_TIMEOUT = 3
_RAW = "stdin,raw,echo=0,escape=0x11"
_HINT = "leave it with exit, or with ctrl-q where socat is used"


@dataclasses.dataclass(frozen=True)
class Console:
    """How to get in.

    Attributes:
        command: what root runs on the machine; empty where something is to be switched on first.
        detail: what to know about it, or what to switch on.
    """

    command: str
    detail: str


def find(node: kata_node.Node, sandbox: Sandbox, *, wanted: bool) -> Console:
    """Return how to open the debug console of a sandbox.

    Args:
        node: the machine.
        sandbox: the sandbox.
        wanted: whether the option debug-console is set. A sandbox keeps what it was started with.

    Raises:
        Blocked: it has no virtual machine that could be entered.
    """
    if sandbox.vm.pid is None:
        raise problems.Blocked(f"{sandbox.title}: no virtual machine runs; see inspect-sandbox")
    offered = sandbox.vm.console
    if offered == "none" or (not offered and not wanted):
        switch = "" if wanted else "juju config kata debug-console=true; then "
        return Console("", f"not switched on for this sandbox: {switch}start the pod anew")
    doubt = (
        "" if offered else "; if nothing answers, the pod is older than debug-console: renew it"
    )
    url = _agent_url(node, sandbox)
    if offered == "serial":
        command = f"socat {_RAW} unix-connect:/run/vc/vm/{sandbox.id}/console.sock"
    elif tool := _tool(node, sandbox):
        command = f"{tool} exec {sandbox.id}"
    elif sandbox.vm.cid or (url and url.scheme == "vsock"):
        cid = sandbox.vm.cid or (url.hostname if url else "")
        command = f"socat {_RAW} vsock-connect:{cid}:{PORT}"
    elif url and url.scheme == "hvsock":
        # The hypervisor's own way from a socket file to a port (Firecracker, docs/vsock.md).
        file = shlex.quote(url.path.rpartition(":")[0] or url.path)
        talk = f"(echo CONNECT {PORT}; cat) | socat - unix-connect:{file}"
        command = f"sh -c {shlex.quote(f'stty raw -echo; {talk}; stty sane')}"
    else:
        raise problems.Blocked(
            f"{sandbox.title}: its shim does not tell where the agent is; see inspect-sandbox"
        )
    return Console(f"sudo {command}", f"{_HINT}{doubt}")


def _tool(node: kata_node.Node, sandbox: Sandbox) -> str:
    """Return Kata's own program for it, of the release that the sandbox runs on if possible."""
    own = pathlib.PurePath(sandbox.shim_program).parent
    folders = (own, own.parent.parent / "bin", pathlib.PurePath(release.PREFIX, "bin"))
    # kata-runtime speaks to both shims from 2.0 on; kata-ctl is in archives up to 3.24 only.
    for name in ("kata-runtime", "kata-ctl"):
        for folder in folders:
            if node.exists(folder / name):
                return str(folder / name)
    return ""


def _agent_url(node: kata_node.Node, sandbox: Sandbox) -> urllib.parse.SplitResult | None:
    """Ask the shim where its agent listens: `vsock://<cid>:<port>` or `hvsock://<file>:<port>`.

    Both shims tell (Go: shim_management.go, from 2.0; Rust: shim_mgmt/handlers.rs).
    """
    folder = RUST_STATE if sandbox.shim == "rust" else GO_STATE
    path = node.path(f"{folder}/{sandbox.id}/shim-monitor.sock")
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        connection = _Shim(path)
        with contextlib.closing(connection):
            connection.request("GET", "/agent-url")
            answer = connection.getresponse()
            if answer.status == http.HTTPStatus.OK:
                return urllib.parse.urlsplit(answer.read(4096).decode().strip())
    return None


class _Shim(http.client.HTTPConnection):
    def __init__(self, path: pathlib.Path) -> None:
        super().__init__("shim", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """Connect to the shim's socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
