"""Labels of the node that a machine is, and of no other."""

import logging

import pytest

from kata import problems
from kata.cluster import node_labels
from tests import api_server

ID = "0123456789abcdef0123456789abcdef"
LABELS = {node_labels.READY: "true", node_labels.GPU: "true"}
READY = {node_labels.READY: "true"}
PATH = "/api/v1/nodes"


@pytest.fixture
def machine(node):
    node.lay({"/etc/machine-id": f"{ID}\n", "/proc/sys/kernel/hostname": "One\n"})
    return node


def ours(server, name="one"):
    """Return the labels of a node that are no one's but this charm's."""
    labels = server.read(f"{PATH}/{name}")["metadata"]["labels"]
    return {label: value for label, value in labels.items() if "katacontainers" in label}


def edit(stand_in, labels, name="one", manager="kubectl-label"):
    from tests.api_objects import NODE

    stand_in.objects.patch(NODE, name, {"metadata": {"labels": labels}}, manager)


def test_labels_are_set_kept_and_removed(stand_in, server, machine):
    stand_in.add_node("one", ID)
    before = server.read(f"{PATH}/one")["metadata"]["labels"]
    assert node_labels.ensure(server, machine, LABELS) is True
    assert ours(server) == LABELS
    assert node_labels.ensure(server, machine, LABELS) is False
    assert node_labels.ensure(server, machine, {**READY, node_labels.GPU: None}) is True
    assert ours(server) == READY
    assert node_labels.ensure(server, machine, dict.fromkeys(LABELS)) is True
    assert server.read(f"{PATH}/one")["metadata"]["labels"] == before
    assert node_labels.ensure(server, machine, {}) is False


def test_when_nothing_has_changed_it_costs_one_read(stand_in, server, machine):
    stand_in.add_node("one", ID)
    node_labels.ensure(server, machine, READY)
    stand_in.requests.clear()
    node_labels.ensure(server, machine, READY)
    assert stand_in.requests == {("GET", f"{PATH}/one"): 1}
    assert machine.ran == []


def test_what_somebody_changes_is_put_back(stand_in, server, machine):
    stand_in.add_node("one", ID)
    node_labels.ensure(server, machine, READY)
    for theirs in ({node_labels.READY: "false"}, {node_labels.READY: None}):
        edit(stand_in, theirs)
        assert node_labels.ensure(server, machine, READY) is True
        assert ours(server) == READY


def test_a_label_that_another_program_has_set_outlives_ours(stand_in, server, machine):
    stand_in.add_node("one", ID)
    edit(stand_in, READY, manager="kata-deploy")
    node_labels.ensure(server, machine, READY)
    node_labels.ensure(server, machine, {})
    assert ours(server) == READY


def test_other_labels_and_other_nodes_are_left_alone(stand_in, server, machine):
    stand_in.add_node("one", ID, zone="a")
    other = stand_in.add_node("two", ID.replace("0", "f"))
    node_labels.ensure(server, machine, READY)
    assert server.read(f"{PATH}/one")["metadata"]["labels"]["zone"] == "a"
    assert server.read(f"{PATH}/two") == other


# Which node


def test_a_node_of_the_same_name_on_another_machine_is_never_labelled(stand_in, server, machine):
    stand_in.add_node("one", "f" * 32)
    assert node_labels.ensure(server, machine, READY) is False
    assert ours(server) == {}


def test_a_node_that_has_not_said_yet_which_machine_it_is_is_not_labelled(
    stand_in, server, machine
):
    stand_in.add_node("one", "")
    assert node_labels.ensure(server, machine, READY) is False
    machine.lay({"/etc/machine-id": "\n"})
    assert node_labels.ensure(server, machine, READY) is False
    assert ours(server) == {}


def test_the_name_that_kubelet_was_told_counts(stand_in, server, machine):
    stand_in.add_node("other", ID)
    machine.lay({"/proc/12/cmdline": "/snap/kubelet/1/kubelet\0--hostname-override=other\0"})
    assert node_labels.ensure(server, machine, READY) is True
    assert ours(server, "other") == READY


def test_the_long_name_counts(stand_in, server, machine):
    stand_in.add_node("one.example", ID)
    machine.on("hostname --fqdn", out="one.example\n")
    assert node_labels.ensure(server, machine, READY) is True
    assert ours(server, "one.example") == READY


def test_a_machine_that_is_no_node_is_told_so(stand_in, server, machine, caplog):
    caplog.set_level(logging.INFO)
    assert node_labels.ensure(server, machine, READY) is False
    assert "this machine is no node of the cluster" in caplog.text
    assert stand_in.writes() == 0


def test_a_node_may_read_no_other_but_itself(stand_in, server, machine, monkeypatch):
    """As a node of Kubernetes 1.32 and later, whose name is not the machine's."""
    stand_in.add_node("other", ID)
    stand_in.faults.append(
        api_server.Fault(path=f"{PATH}/one", status=403, body='{"message": "may not"}')
    )
    machine.lay({"/proc/12/cmdline": "kubelet\0--hostname-override\0other\0"})
    assert node_labels.ensure(server, machine, READY) is True
    assert ours(server, "other") == READY


@pytest.mark.parametrize("name", ["a/../two", "two?x", "two#", "a b", "tökén", "%74wo", "a\0b"])
def test_a_machine_whose_name_no_node_can_have(stand_in, server, machine, name):
    stand_in.add_node("two", ID)
    machine.lay({"/proc/sys/kernel/hostname": name})
    assert node_labels.ensure(server, machine, READY) is False
    assert ours(server, "two") == {}


def test_a_permission_that_is_missing_is_told(stand_in, server, machine):
    stand_in.add_node("one", ID)
    stand_in.users[stand_in.token].may = {}
    with pytest.raises(problems.Waiting, match="does not let us get nodes/one"):
        node_labels.ensure(server, machine, READY)
    stand_in.users[stand_in.token].may = {"nodes": ["get"]}
    with pytest.raises(problems.Waiting, match="does not let us patch Node one"):
        node_labels.ensure(server, machine, READY)


def test_a_node_that_is_made_anew_while_we_look_is_not_labelled(
    stand_in, server, machine, monkeypatch
):
    stand_in.add_node("one", ID)
    read = server.read

    def and_then(path):
        found = read(path)
        from tests.api_objects import NODE

        stand_in.objects.delete(NODE, "one")
        stand_in.add_node("one", "f" * 32)
        return found

    monkeypatch.setattr(server, "read", and_then)
    with pytest.raises(problems.Waiting):
        node_labels.ensure(server, machine, READY)
    monkeypatch.setattr(server, "read", read)
    assert ours(server) == {}


def test_a_node_that_goes_while_we_look_is_not_made(stand_in, server, machine, monkeypatch):
    stand_in.add_node("one", ID)
    read = server.read

    def and_then(path):
        found = read(path)
        stand_in.objects.stored["nodes"].clear()
        return found

    monkeypatch.setattr(server, "read", and_then)
    with pytest.raises(problems.Waiting):
        node_labels.ensure(server, machine, READY)
    assert stand_in.objects.stored["nodes"] == {}
