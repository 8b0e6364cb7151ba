"""The services that answer Prometheus, as systemd is told of them."""

import os
import re
import subprocess
import sys

import pytest

from kata import problems
from kata.observability import services, told
from kata.release import release
from tests.unit import kata_machine

MONITOR = f"{services.UNITS}/{services.MONITOR}"
EXPORTER = f"{services.UNITS}/{services.EXPORTER}"
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


@pytest.fixture
def machine(node, monkeypatch, tmp_path):
    node.containerd = kata_machine.make(node, monkeypatch, tmp_path)
    node.states = "active\nactive\n"
    node.on("systemctl daemon-reload")
    node.on("systemctl enable *")
    node.on("systemctl disable *")
    node.on("systemctl reset-failed *")
    node.on("systemctl restart *kata-charm*")
    node.on(
        "systemctl show --property=ActiveState --value *",
        effect=lambda _: type(node.run("systemctl daemon-reload"))(0, node.states, ""),
    )
    node.ran.clear()
    return node


def ensure(machine, port=8090, **other):
    installed = release.installed(machine)
    if other:
        installed = type(installed)(**{**vars(installed), **other})
    return services.ensure(machine, installed, machine.containerd.find(), port)


def restarted(machine):
    lines = [line for line in machine.ran if line.startswith("systemctl restart")]
    return {unit for line in lines for unit in line.split()[2:]}


def directives(machine, path):
    found = re.findall(r"^(\w+)=(.*)$", machine.read(path), re.MULTILINE)
    return dict(found)


def test_both_are_made_and_started(machine):
    found = ensure(machine)
    assert found.targets == (("kata-charm", 8091), ("kata-monitor", 8090))
    assert found.notes == ()
    assert restarted(machine) == {services.MONITOR, services.EXPORTER}
    assert "systemctl daemon-reload" in machine.ran


def test_a_second_time_nothing_is_touched(machine):
    ensure(machine)
    before = machine.tree()
    machine.ran.clear()
    ensure(machine)
    assert machine.tree() == before
    assert not [line for line in machine.ran if " show " not in line and "reload" not in line]


def test_the_monitor_is_the_release_s_own_and_told_of_containerd(machine):
    ensure(machine)
    command = directives(machine, MONITOR)["ExecStart"].split()
    assert re.fullmatch(r"/opt/kata-releases/3.32.0-[0-9a-f]{12}/bin/kata-monitor", command[0])
    assert command[1:] == [
        "--listen-address=127.0.0.1:8090",
        "--runtime-endpoint=/run/containerd/containerd.sock",
    ]


def test_an_older_monitor_is_told_in_its_words(machine):
    ensure(machine, version="2.1.1")
    command = directives(machine, MONITOR)["ExecStart"]
    assert "--containerd-address=/run/containerd/containerd.sock" in command
    assert "--runtime-endpoint" not in command


def test_another_release_restarts_the_monitor_alone(machine):
    ensure(machine)
    machine.ran.clear()
    ensure(machine, version="3.33.0")
    assert restarted(machine) == {services.MONITOR}


def test_a_release_without_a_monitor_has_none(machine):
    ensure(machine)
    root = machine.path("/opt/kata").readlink()
    machine.remove(f"{root}/bin/kata-monitor")
    found = ensure(machine)
    assert found.targets == (("kata-charm", 8091),)
    assert found.notes == ("Kata 3.32.0 ships no kata-monitor",)
    assert not machine.exists(MONITOR)
    assert f"systemctl disable --quiet --now {services.MONITOR}" in machine.ran


def test_another_port_moves_both(machine):
    ensure(machine)
    found = ensure(machine, port=9000)
    assert {target.port for target in found.targets} == {9000, 9001}
    assert "--listen-address=127.0.0.1:9000" in machine.read(MONITOR)
    assert "ipv4:tcp:9000" in machine.read(MONITOR)
    assert "--port 9001" in machine.read(EXPORTER)


def test_one_that_does_not_run_is_named_with_what_to_do(machine):
    machine.states = "active\nactivating\n"
    found = ensure(machine)
    (note,) = found.notes
    assert note == (
        "kata-monitor is activating: is port 8090 taken? see journalctl --unit "
        "kata-charm-monitor.service, and set metrics-port"
    )


def test_a_systemd_that_refuses_is_a_problem(machine):
    machine.on("systemctl restart *", err="no", status=1)
    with pytest.raises(problems.Problem):
        ensure(machine)


def test_removed_nothing_is_left(machine):
    before = machine.tree()
    ensure(machine)
    told.save(machine, told.Told())
    assert services.remove(machine)
    assert machine.tree() == before
    machine.ran.clear()
    assert not services.remove(machine)
    assert machine.ran == []


@pytest.mark.parametrize("path", [MONITOR, EXPORTER])
def test_what_a_service_may_do_is_little(machine, path):
    ensure(machine)
    said = directives(machine, path)
    assert said["CapabilityBoundingSet"] in ("", "CAP_SYS_PTRACE")
    assert said["ProtectSystem"] == "strict"
    assert said["IPAddressDeny"] == "any"
    assert said["IPAddressAllow"] == "localhost"
    assert "access" not in said.get("BindReadOnlyPaths", "")


def test_the_program_needs_nothing_but_python(machine):
    ensure(machine)
    program = machine.path(services._PROGRAM.path)
    code = (
        "import importlib, pkgutil, runpy, sys; sys.path.insert(0, sys.argv[1]); "
        "runpy.run_path(sys.argv[1], run_name='not-main'); import kata; "
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(kata.__path__, 'kata.')]"
    )
    done = subprocess.run(
        [PYTHON, "-I", "-S", "-c", code, program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
