"""What the exporter measures, on a machine on which the charm has done its work."""

import http.client
import threading

import pytest

from kata.observability import exporter, exposition, measures, told
from tests.node import scrape
from tests.unit import containerd_machine, kata_machine
from tests.unit import sandbox_tree as tree

PLACE = measures.Place("containerd.service", "/run/containerd", "/run/containerd/containerd.sock")
UNIX = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000: 00000002 00000000 00010000 0001 01 1 /run/containerd/containerd.sock
0000: 00000003 00000000 00000000 0001 03 2
"""
SMAPS = "Size:  20000 kB\nPss:  {} kB\nSize: 2097152 kB\nPss: 900000 kB\n"


@pytest.fixture
def machine(node, monkeypatch, tmp_path):
    kata_machine.make(node, monkeypatch, tmp_path)
    # A link that leads out of the folder that stands for the machine would dangle.
    node.remove(kata_machine.SHIM)
    node.lay({"/proc/net/unix": UNIX, kata_machine.SHIM: "shim"})
    node.on("journalctl *", out="-- cursor: s=1\n")
    return node


def look(node):
    return scrape.Metrics.of(exposition.text(measures.Measures(node, PLACE).families()))


class TestSandboxes:
    @pytest.mark.parametrize("lay", [tree.lay_go, tree.lay_rust])
    def test_each_is_told_by_its_pod(self, machine, lay):
        name = lay(machine, 1, rss=50)
        found = look(machine)
        about = {"sandbox": name, "namespace": "default", "pod": "nginx", "hypervisor": "qemu"}
        assert found.value("kata_charm_sandboxes") == 1
        assert found.value("kata_charm_sandbox_vm", **about) == 1
        assert found.value("kata_charm_sandbox_age_seconds", **about) == tree.UPTIME - 9000
        assert found.value("kata_charm_sandbox_memory_bytes", **about) == 50 * tree.PAGE
        assert found.value("kata_charm_sandbox_guest_memory_bytes", **about) == 2 << 30

    def test_overhead_is_that_of_all_its_processes(self, machine):
        name = tree.lay_go(machine, 1)
        shared = f"--shared-dir=/run/kata-containers/shared/sandboxes/{name}/shared"
        tree.lay_process(machine, ["/opt/kata/libexec/virtiofsd", shared])
        tree.lay_process(machine, ["/usr/bin/vim", shared])
        kib = 100
        for pid in sorted(int(each) for each in machine.names("/proc") if each.isdigit()):
            if pid >= 1000:
                machine.lay({f"/proc/{pid}/smaps": SMAPS.format(kib)})
                kib *= 10
        # In the order in which they were laid: shim, hypervisor, virtiofsd, and another's.
        overhead = look(machine).value("kata_charm_sandbox_overhead_bytes", sandbox=name)
        assert overhead == (100 + 1000 + 10000) << 10

    def test_one_without_a_machine(self, machine):
        name = tree.lay_go(machine, 1, command=["/bin/other"], state={})
        found = look(machine)
        assert found.value("kata_charm_sandbox_vm", sandbox=name) == 0
        assert found.value("kata_charm_sandbox_memory_bytes", sandbox=name) is None
        assert found.value("kata_charm_sandbox_overhead_bytes", sandbox=name) is None

    def test_a_machine_without_a_sandbox(self, machine):
        tree.lay_process(machine, tree.qemu("f" * 64))
        found = look(machine)
        assert found.value("kata_charm_stray_vms") == 1
        assert found.value("kata_charm_sandboxes") == 0
        assert found.value("kata_charm_sandbox_vm") is None


class TestNode:
    def test_a_node_that_is_as_it_should_be(self, machine):
        found = look(machine)
        assert set(found.values_of("kata_charm_check")) == {1}
        assert found.value("kata_charm_node_ready") == 1
        assert found.value("kata_charm_config_drift_files") == 0
        assert set(found.values_of("kata_charm_look_ok")) == {1}

    @pytest.mark.parametrize(
        ("change", "check"),
        [
            (lambda node: node.remove("/dev/vhost-vsock"), "/dev/vhost-vsock"),
            (lambda node: node.remove(kata_machine.SHIM), "shim"),
            (lambda node: node.remove("/proc/net/unix"), "containerd"),
            (lambda node: node.lay({containerd_machine.MAIN: "version = 2\n"}), "handlers"),
        ],
    )
    def test_what_is_missing_is_named(self, machine, change, check):
        change(machine)
        found = look(machine)
        assert found.value("kata_charm_check", check=check) == 0
        assert found.value("kata_charm_node_ready") == 0

    def test_a_rewrite_is_drift_and_one_that_keeps_us_is_none(self, machine):
        text = machine.read(containerd_machine.MAIN)
        machine.lay({containerd_machine.MAIN: containerd_machine.CONFIG})
        assert look(machine).value("kata_charm_config_drift_files") == 1
        machine.lay({containerd_machine.MAIN: text.replace("3.9", "3.10")})
        assert look(machine).value("kata_charm_config_drift_files") == 0


class TestHooks:
    TOLD = told.Told(
        time=1763990000,
        release="3.32.0",
        shim="go",
        overheads={"kata": ("qemu", 320 << 20)},
        runtime_classes={"kata": True, "kata-clh": False},
        labelled=True,
        problem="",
    )

    def test_what_they_leave_is_told(self, machine):
        told.save(machine, self.TOLD)
        found = look(machine)
        assert found.value("kata_charm_info", version="3.32.0", shim="go") == 1
        assert found.value("kata_charm_hook_timestamp_seconds") == 1763990000
        assert found.value("kata_charm_unit_problem") == 0
        assert found.value("kata_charm_node_labelled") == 1
        assert found.value("kata_charm_runtime_class_present", runtime_class="kata") == 1
        assert found.value("kata_charm_runtime_class_present", runtime_class="kata-clh") == 0
        overhead = found.value("kata_charm_runtime_class_overhead_bytes", hypervisor="qemu")
        assert overhead == 320 << 20

    @pytest.mark.parametrize("text", [None, "", "{", "[]", '{"overheads": 1}', '{"other": 1}'])
    def test_what_nobody_knows_is_not_told(self, machine, text):
        if text is not None:
            machine.lay({told.FILE: text})
        found = look(machine)
        assert found.value("kata_charm_node_labelled") is None
        assert found.value("kata_charm_runtime_class_present") is None
        assert found.value("kata_charm_look_ok", subject="hooks") == 1

    def test_it_is_kept_as_it_was_said(self, node):
        told.save(node, self.TOLD)
        assert told.load(node) == self.TOLD


def test_what_cannot_be_looked_at_does_not_hide_the_rest(machine):
    machine.on("journalctl *", err="no journal", status=1)
    tree.lay_go(machine, 1)
    found = look(machine)
    assert found.value("kata_charm_look_ok", subject="starts") == 0
    assert found.value("kata_charm_look_ok", subject="sandboxes") == 1
    assert found.value("kata_charm_sandboxes") == 1


class TestExporter:
    @pytest.fixture
    def connection(self, machine):
        with exporter.Server(0, measures.Measures(machine, PLACE)) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            connection = http.client.HTTPConnection(*server.server_address, timeout=5)
            yield connection
            connection.close()
            server.shutdown()
            thread.join()

    def ask(self, connection, method, path):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()

    def test_it_answers_prometheus(self, connection):
        status, headers, body = self.ask(connection, "GET", "/metrics?x=1")
        assert status == 200
        assert headers["Content-Type"] == exposition.CONTENT_TYPE
        assert scrape.Metrics.of(body).value("kata_charm_node_ready") == 1

    def test_it_answers_nothing_else(self, connection):
        assert self.ask(connection, "GET", "/")[0] == 404
        assert self.ask(connection, "POST", "/metrics")[0] == 501

    def test_it_listens_on_the_loopback_address_alone(self, connection):
        assert connection.host == "127.0.0.1"
