"""What the charm leaves on a real machine is root's alone, and an API server that fails moves nothing.

The API server runs on this machine; the node reaches it as QEMU's guests do.
"""

import json
import re

import pytest

from kata.gpu import vgpu
from tests import api_server
from tests.node import charm, juju, machine, standin, view

HOST = "10.0.2.2"
RELEASE = "3.32.0"
CONTROL = "kubernetes-control-plane/0"
EXPOSURE = 2.9  # of ten, by `systemd-analyze security`; see docs/reliability.md


@pytest.fixture(scope="module")
def api():
    with api_server.ApiServer() as server:
        yield server


@pytest.fixture(scope="module")
def before(booted):
    """A node with the charm on it, before its first hook, and its files then."""
    with machine.Machine.restored(juju.with_charm(booted), network=True) as node:
        yield node, view.look(node).files


@pytest.fixture(scope="module")
def unit(before, api, tmp_path_factory):
    """A leader that has made the RuntimeClass, by credentials that are in a secret."""
    node, _ = before
    api.add_node("node", node.run(["cat", "/etc/machine-id"]).out.strip())
    unit = juju.Unit(node, "kata/0")
    unit.attach("kata-archive", standin.archive(RELEASE, tmp_path_factory.mktemp("archive")))
    control = unit.relate(
        "kube-control",
        CONTROL.partition("/")[0],
        unit_data={
            "api-endpoints": json.dumps([api.url.replace("127.0.0.1", HOST)]),
            "ca-certificate-secret-id": unit.grant_secret({"ca-certificate": api.ca}),
        },
    )
    assert unit.dispatch("install").ok
    token = {"client-token": api.token, "kubelet-token": api.token, "proxy-token": api.token}
    creds = dict.fromkeys(("client_token", "kubelet_token", "proxy_token"), "")
    creds |= {"scope": unit.name, "secret-id": unit.grant_secret(token)}
    user = control.data()["kubelet_user"]
    control.data(CONTROL)["creds"] = json.dumps({user: creds})
    result = unit.dispatch("kube-control-relation-changed", control, remote_unit=CONTROL)
    assert result.ok, result.output
    assert unit.app_status == ("active", "RuntimeClass kata")
    return unit


def test_every_file_of_ours_is_roots_and_what_is_private_is_private(before, unit):
    node, clean = before
    files = view.look(node).files
    for path, said in files.items():
        kind, mode, owner = said.rsplit(" ", 2)
        if path in clean or kind.startswith("->"):
            continue
        assert owner == "0:0", path
        assert not int(mode, 8) & 0o6022, f"{path}: {mode}"
        if path.startswith("/var/lib/kata-charm/") and "downloads" not in path:
            assert mode in ("600", "700"), f"{path}: {mode}"
    assert node.run(["stat", "-c", "%a %u", "/var/lib/kata-charm"]).out == "700 0\n"
    assert files["/var/lib/kata-charm/access-kata-0.json"].endswith(" 600 0:0")


def test_the_token_is_in_one_file_and_nowhere_else(before, unit, api):
    node, _ = before
    folders = [
        "/etc",
        "/var/lib/kata-charm",
        "/var/log",
        "/run/kata-charm",
        "/tmp",
        "/opt",
        "/root",
    ]
    found = node.run(["grep", "-rlF", "--", api.token, *folders], check=False).out.splitlines()
    assert found == ["/var/lib/kata-charm/access-kata-0.json"]
    assert api.token not in node.run(["journalctl", "--no-pager", "--quiet"]).out
    result = unit.dispatch("update-status")
    said = [*result.log, *result.statuses, result.output, unit.status, unit.app_status]
    assert api.token not in str(said)
    assert api.token not in str([each.data(unit.name) for each in unit.relations("kube-control")])


def test_faults_of_the_api_server_move_nothing_on_the_node(before, unit, api):
    node, _ = before
    first, ca = view.look(node), (api.ca, api.context)
    api.faults[:] = [api_server.Fault(status=500)]
    assert unit.dispatch("update-status").ok
    assert unit.status.name == unit.app_status.name == "waiting"
    assert "(500" in unit.status.message
    api.faults.clear()
    api.renew_certificate()
    assert unit.dispatch("update-status").ok
    assert "its certificate is not the one expected" in unit.status.message
    api.ca, api.context = ca
    assert unit.dispatch("update-status").ok
    assert unit.status.name == unit.app_status.name == "active"
    seen = view.look(node)
    change = view.change(first, seen)
    # What hooks have seen, and the credentials that were read anew.
    own = {"/run/kata-charm/unchanged.json", "/var/lib/kata-charm/access-kata-0.json"}
    assert {*change.added, *change.removed, *change.altered} <= own
    assert (seen.run, seen.config) == (first.run, first.config)


def test_the_unit_for_vgpus_runs_in_its_sandbox(before):
    node, _ = before
    node.copy_in(charm.REPOSITORY / "src/kata/gpu/vgpu_boot.py", vgpu.BOOT_PROGRAM)
    node.copy_in(vgpu._UNIT_TEXT, vgpu.BOOT_UNIT)
    node.run(["mkdir", "-p", "/var/lib/kata-charm"])
    node.copy_in('{"instances": {}, "sriov": []}\n', vgpu.RECORD)
    name = vgpu.BOOT_UNIT.rpartition("/")[2]
    node.run(["systemctl", "daemon-reload"])
    node.run(["systemctl", "start", name], timeout=60)
    state = node.run(["systemctl", "show", "--property=Result,ExecMainStatus", name]).out
    assert state.split() == ["Result=success", "ExecMainStatus=0"]
    said = node.run(["systemd-analyze", "security", "--no-pager", name], check=False).out
    (figure,) = re.findall(r"exposure level for .*: ([0-9.]+)", said)
    assert float(figure) <= EXPOSURE
