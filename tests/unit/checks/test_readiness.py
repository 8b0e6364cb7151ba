"""Whether pods with Kata can run, from the CPU to the files of the guest."""

import dataclasses

import pytest

from kata import problems
from kata.checks import readiness
from kata.containerd import cri
from kata.containerd import service as containerd_service
from tests.unit import containerd_machine, kata_machine

CONFIG = "/etc/kata-containers/configuration.toml"


@pytest.fixture
def containerd(node, monkeypatch, tmp_path):
    return kata_machine.make(node, monkeypatch, tmp_path)


def look(node, **options):
    return {each.name: each for each in readiness.checks(node, kata_machine.options(**options))}


def failing(node, **options):
    return {name: each for name, each in look(node, **options).items() if not each.ok}


def load(monkeypatch, **handlers):
    """Let containerd have loaded other handlers."""
    status = cri.Status({}, {**kata_machine.LOADED, **handlers})
    monkeypatch.setattr(cri, "status", lambda _: status)


def test_a_machine_on_which_all_is_as_it_should_be(node, containerd):
    assert failing(node) == {}
    found = look(node)
    assert found["containerd"].found == "containerd.service 1.7.24, active"
    assert found["live configuration"].found == containerd_machine.MAIN
    assert found["Kata release"].found == "3.32.0 with the go and rust shim"
    assert found["kata: handler as loaded"].found == kata_machine.SHIM
    assert "vmlinux" in found["kata: guest"].found


def test_options_are_shown_as_they_are_written(node, containerd, monkeypatch):
    for options, shown in (({"ConfigPath": CONFIG}, f"ConfigPath={CONFIG}"), ({}, "{}")):
        handler = cri.Handler("kata", "io.containerd.kata.v2", kata_machine.SHIM, options)
        load(monkeypatch, kata=handler)
        found = look(node)["kata: handler as loaded"].found
        assert found == f"{kata_machine.SHIM}, options {shown}"


def test_before_the_charm_has_done_anything(node, monkeypatch):
    monkeypatch.setattr(cri, "status", lambda _: cri.Status({}, {}))
    containerd_machine.FakeContainerd(node)
    found = failing(node)
    assert found["Kata release"].found == "none installed"
    assert found["our handlers in it"].found == "never written"


def test_no_containerd_at_all(node):
    node.on("systemctl show *", "LoadState=not-found\n")
    assert "containerd not found" in failing(node)["containerd"].found


def test_a_system_container_is_all_that_there_is_to_say(node):
    node.lay({"/run/systemd/container": "lxc"})
    (check,) = readiness.checks(node, kata_machine.options())
    assert (check.found, check.ok) == ("a system container (lxc)", False)


def test_the_machines_own_checks_are_among_them(node, containerd):
    node.path("/dev/kvm").unlink()
    assert "/dev/kvm" in look(node)
    node.lay({"/proc/cpuinfo": "flags : fpu\n"})
    assert "CPU virtualisation" in failing(node)


def test_another_file_than_the_live_one(node, containerd):
    node.lay({"/etc/other.toml": "version = 2\n"})
    check = failing(node, containerd_config="/etc/other.toml")["live configuration"]
    assert (check.found, check.wanted) == (containerd_machine.MAIN, "/etc/other.toml")
    assert "set containerd-config to auto" in check.remedy


def test_somebody_has_rewritten_the_file(node, containerd):
    node.lay({containerd_machine.MAIN: containerd_machine.CONFIG})
    check = failing(node)["our handlers in it"]
    assert check.found == f"changed by others: {containerd_machine.MAIN}"
    assert "restart containerd" in check.remedy


def test_somebody_has_broken_the_file(node, containerd):
    node.lay({containerd_machine.MAIN: "[broken"})
    assert "is no TOML" in failing(node)["our handlers in it"].found


def test_containerd_does_not_serve(node, containerd, monkeypatch):
    monkeypatch.setattr(containerd_service, "trouble", lambda *_: "no runtime runc")
    assert failing(node)["CRI plugin"].found == "no runtime runc"


def test_containerd_is_down(node, containerd):
    containerd.active = "failed"
    found = failing(node)
    assert found["containerd"].found.endswith("failed")
    assert found["CRI plugin"].found == "containerd is down"


def test_a_handler_that_containerd_has_not_loaded(node, containerd, monkeypatch):
    runc = {"runc": kata_machine.LOADED["runc"]}
    monkeypatch.setattr(cri, "status", lambda _: cri.Status({}, runc))
    check = failing(node)["kata: handler as loaded"]
    assert check.found == "not among runc"
    assert "restart containerd" in check.remedy


def test_containerd_that_does_not_say_what_it_has_loaded(node, containerd, monkeypatch):
    def fail(_):
        raise problems.Waiting("no answer")

    monkeypatch.setattr(cri, "status", fail)
    assert failing(node)["untrusted: handler as loaded"].found == "containerd does not say"


def test_runc_under_a_kata_name(node, containerd, monkeypatch):
    load(monkeypatch, kata=cri.Handler("kata", "io.containerd.runc.v2"))
    check = failing(node)["kata: handler as loaded"]
    assert (check.found, check.wanted) == ("io.containerd.runc.v2", "Kata's shim")


def test_an_options_table_that_the_shim_can_take(node, containerd, monkeypatch):
    fine = cri.Handler("kata", "io.containerd.kata.v2", options={"Runtime": "kata"})
    load(monkeypatch, kata=fine)
    assert failing(node) == {}


@pytest.mark.parametrize("table", [{}, {"Runtime": "kata", "RuntimeRoot": "/x"}])
def test_an_options_table_that_it_cannot_take(table):
    handler = dataclasses.make_dataclass("H", [("name", str)])("kata")
    loaded = {"kata": cri.Handler("kata", "io.containerd.kata.v2", options=table)}
    check = readiness._loaded(handler, loaded, allowed=False)
    assert not check.ok
    assert "remove its options table" in check.remedy


@pytest.mark.parametrize("key", ["kernel", "image", "path"])
def test_a_file_of_the_guest_that_is_missing(node, containerd, key):
    path = readiness.configured(node.read(CONFIG))[key]
    node.path(path).resolve().unlink()
    assert failing(node)["kata: guest"].found == f"missing: {key} {path}"


def test_a_configuration_that_is_gone(node, containerd):
    node.path(CONFIG).unlink()
    assert failing(node)["kata: guest"].found == f"{CONFIG} is missing"


def test_a_shim_that_is_gone(node, containerd):
    node.path("/opt/kata/bin/containerd-shim-kata-v2").resolve().unlink()
    assert failing(node)["kata: shim"].found.endswith("containerd-shim-kata-v2 is missing")


def test_releases_that_do_not_go_together(node, containerd):
    containerd.release = "1.6.20"
    node.lay({"/usr/bin/containerd": "another"})
    check = failing(node, snapshotter="devmapper")["Kata and containerd"]
    assert "option snapshotter=devmapper: needs containerd 1.7.0" in check.found


@pytest.mark.parametrize(
    "text", ["", "[broken", "hypervisor = 3", "[hypervisor.qemu]\npath = 3\n"]
)
def test_a_configuration_that_names_nothing(text):
    assert readiness.configured(text) == {}


def test_the_report_fits_a_terminal(node, containerd):
    node.path(CONFIG).unlink()
    lines = readiness.report(readiness.checks(node, kata_machine.options())).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "ok   architecture: amd64" in lines
    at = lines.index(f"NO   kata: guest: {CONFIG} is missing")
    assert lines[at + 1 : at + 3] == [
        "     wanted: files",
        "     remedy: config-changed writes it anew",
    ]
