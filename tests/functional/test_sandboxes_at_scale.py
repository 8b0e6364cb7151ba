"""Many sandboxes at once, real but for what is in their virtual machines: found, and found right.

They are laid out in namespaces of this machine, with a containerd of their own. Needs root.
"""

import json
import sys

import pytest

from tests.node import sandboxes_at_scale as scale

COUNT = 20


@pytest.fixture(scope="module")
def beside():
    with scale.standing(COUNT, containerd=True) as beside:
        yield beside


def ask(beside, *words):
    return json.loads(beside.run(sys.executable, "-m", "tests.functional.sandbox_driver", *words))


def test_all_are_there_and_nothing_is_mixed_up(beside):
    answer = ask(beside, "list")
    seen = {each["id"]: each for each in answer["sandboxes"]}
    assert len(answer["sandboxes"]) == len(seen) == COUNT
    for laid in beside.laid:
        each = seen[laid.id]
        assert (each["pod_namespace"], each["pod"], each["handler"]) == (
            "default",
            laid.pod,
            "kata",
        )
        assert (each["shim"], each["shim_pid"]) == (laid.shim, laid.shim_pid)
        assert (each["vm"]["pid"], each["vm"]["cid"]) == (laid.hypervisor_pid, laid.cid)
        assert each["ips"] == [laid.ip]
        assert [container["id"] for container in each["containers"]] == [laid.container]
        assert each["problems"] == []
    assert all(len(line) <= 80 for line in answer["table"].splitlines())


def test_the_same_as_by_hand(beside):
    by_hand = ask(beside, "by-hand")
    assert len(by_hand) == COUNT
    actions = ask(beside, "inspect", *(each["id"] for each in by_hand))
    for hand, ours in zip(by_hand, actions, strict=True):
        (way,) = ours["way"]["ways"]
        assert way["problems"] == []
        assert hand == {
            "pod": ours["pod"],
            "id": ours["id"],
            "pid": ours["hypervisor_pid"],
            "cid": ours["cid"],
            "network": ours["network"],
            "ip": ours["ips"][0],
            "redirects": [[way["tap"]["name"]], [way["inner"]["name"]]],
            "outer": way["outer"]["name"],
            "bridge": way["bridge"]["name"],
        }


def test_those_that_stay_are_whole_while_others_come_and_go(beside):
    staying = [[each.pod, each.cid, []] for each in beside.laid]
    looks = ask(beside, "churn", str(COUNT), "5", "40")
    assert any(len(look) > COUNT for look in looks), "nobody came in between"
    for look in looks:
        assert [each for each in look if each[0] < f"pod-{COUNT:04}"] == staying
        # Those others may be half there, but they are never taken for what nobody cares for.
        assert not [each for each in look if "left behind" in " ".join(each[2])]


def test_each_of_a_thousand_is_found():
    with scale.standing(1000, network=False) as beside:
        answer = ask(beside, "list")
    assert len(answer["sandboxes"]) == 1000
    assert [each for each in answer["sandboxes"] if each["problems"]] == []
