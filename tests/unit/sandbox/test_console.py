"""How to get into a guest."""

import dataclasses
import http.server
import socketserver
import threading

import pytest

from kata import problems
from kata.sandbox import console, sandboxes
from tests.unit import sandbox_tree as tree

OFFERS = ("-append", "quiet agent.debug_console agent.debug_console_vport=1026")
SERIAL = ("-append", "quiet agent.use_vsock=true agent.debug_console")


def laid(node, lay=tree.lay_go, *, offers=OFFERS, **more):
    words = tree.qemu(tree.sid(1))
    if offers:
        words[words.index("-append") : words.index("-append") + 2] = offers
    lay(node, command=words, **more)
    (sandbox,) = sandboxes.find(node)
    return sandbox


@pytest.fixture
def shim(node, monkeypatch):
    """Let a sandbox's shim tell where its agent listens."""
    servers = []

    def start(url, folder="/run/kata"):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = url.encode()
                self.send_response(200 if self.path == "/agent-url" else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self):
                return "shim"

            def log_message(self, *_):
                pass

        # The path of a Unix socket is short, that of a test's folder is not.
        place = node.path(f"{folder}/{tree.sid(1)}")
        monkeypatch.chdir(place)
        server = socketserver.ThreadingUnixStreamServer("shim-monitor.sock", Handler)
        monkeypatch.setattr(console, "_Shim", lambda path: real(path.name), raising=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)

    real = console._Shim
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_go_shims_own_tool_of_the_same_release(node):
    sandbox = laid(node)
    tool = "/opt/kata-releases/4.1.0-0123456789ab/bin/kata-runtime"
    node.lay({tool: "", "/opt/kata/bin/kata-runtime": ""})
    found = console.find(node, sandbox, wanted=True)
    assert found.command == f"sudo {tool} exec {tree.sid(1)}"


def test_the_rust_shims_tool_if_its_release_has_it(node):
    sandbox = laid(node, tree.lay_rust)
    node.lay({"/opt/kata-releases/4.1.0-0123456789ab/bin/kata-ctl": ""})
    found = console.find(node, sandbox, wanted=True)
    assert found.command.endswith(f"/bin/kata-ctl exec {tree.sid(1)}")


def test_without_a_tool_by_the_guests_cid(node):
    found = console.find(node, laid(node, tree.lay_rust), wanted=True)
    assert found.command == (
        "sudo socat stdin,raw,echo=0,escape=0x11 vsock-connect:751925852:1026"
    )
    assert "ctrl-q" in found.detail


def test_kata_1_has_it_on_the_serial_console_as_in_the_deploy_record(node):
    sandbox = laid(node, offers=SERIAL)
    node.lay({"/opt/kata/bin/kata-runtime": ""})
    found = console.find(node, sandbox, wanted=True)
    assert found.command == (
        "sudo socat stdin,raw,echo=0,escape=0x11 "
        f"unix-connect:/run/vc/vm/{tree.sid(1)}/console.sock"
    )


def test_a_hypervisor_with_a_socket_file_for_vsock(node, shim):
    words = ["/opt/kata/bin/cloud-hypervisor", "--api-socket", f"/run/kata/{tree.sid(1)}/a.sock"]
    state = tree.rust_state(tree.sid(1), "cloud-hypervisor")
    tree.lay_rust(node, command=words, state=state)
    (sandbox,) = sandboxes.find(node)
    shim("hvsock:///run/kata/x/ch-vm.sock:1024")
    found = console.find(node, sandbox, wanted=True)
    assert "echo CONNECT 1026; cat" in found.command
    assert "unix-connect:/run/kata/x/ch-vm.sock" in found.command
    assert "older than debug-console" in found.detail, "what it was told cannot be seen"


def test_the_shim_tells_the_cid_where_the_command_line_does_not(node, shim):
    sandbox = laid(node, tree.lay_rust)
    shim("vsock://31513974:1024\n")
    without = dataclasses.replace(sandbox, vm=dataclasses.replace(sandbox.vm, cid=None))
    found = console.find(node, without, wanted=True)
    assert found.command.endswith("vsock-connect:31513974:1026")


def test_a_shim_that_does_not_tell(node):
    sandbox = laid(node)
    without = dataclasses.replace(sandbox, vm=dataclasses.replace(sandbox.vm, cid=None))
    with pytest.raises(problems.Blocked, match="does not tell where the agent is"):
        console.find(node, without, wanted=True)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (False, "juju config kata debug-console=true; then start the pod anew"),
        (True, "not switched on for this sandbox: start the pod anew"),
    ],
)
def test_what_to_switch_on_first(node, wanted, words):
    found = console.find(node, laid(node, offers=()), wanted=wanted)
    assert found.command == ""
    assert words in found.detail


def test_no_virtual_machine_no_console(node):
    tree.lay_bundle(node, tree.sid(1))
    (sandbox,) = sandboxes.find(node)
    with pytest.raises(problems.Blocked, match="default/nginx: no virtual machine runs"):
        console.find(node, sandbox, wanted=True)
