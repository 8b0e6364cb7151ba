"""RuntimeClasses in a cluster: made, kept, and removed, and those of others left alone.

With KUBERNETES_API=FILE the tests that break nothing run against a real API server too, as in
test_api_server.py.
"""

import json
import os
import pathlib
import types

import kubernetes_validate
import pytest

from kata import problems
from kata.cluster import api, credentials, runtime_classes
from tests import api_objects, api_server

REAL = os.environ.get("KUBERNETES_API")
PATH = "/apis/node.k8s.io/v1/runtimeclasses"
US = runtime_classes.Owner("kata", "5f2c1f0e-6d7a-4c58-8d1b-6a9b0d0a7b11")
OTHERS = runtime_classes.Owner("kata", "00000000-6d7a-4c58-8d1b-6a9b0d0a7b11")
KATA = runtime_classes.RuntimeClass(
    "stand-in", "kata", "320Mi", "250m", {"katacontainers.io/kata-runtime": "true"}
)
SECOND = runtime_classes.RuntimeClass("stand-in-2", "kata-clh", "130Mi", "250m")


@pytest.fixture(params=["stand-in", *(["real"] if REAL else [])])
def server(request):
    """A conversation with an API server that has no RuntimeClasses of ours."""
    if request.param == "real":
        given = types.SimpleNamespace(**json.loads(pathlib.Path(REAL).read_text()))
        yield from conversation(credentials.Access(given.server, given.token, given.ca))
        return
    with api_server.ApiServer() as running:
        yield from conversation(credentials.Access(running.url, running.token, running.ca))


def conversation(access):
    server = api.Server(access)
    clear(server)
    yield server
    clear(server)
    server.close()


def clear(server):
    for name in (KATA.name, SECOND.name):
        if server.read(f"{PATH}/{name}"):
            delete(server, name)


@pytest.fixture
def stand_in():
    with api_server.ApiServer() as running:
        running.server = api.Server(credentials.Access(running.url, running.token, running.ca))
        yield running
        running.server.close()


def ensure(server, *wanted, owner=US):
    return runtime_classes.ensure_runtime_classes(server, owner, wanted)


def live(server, name=KATA.name):
    return server.read(f"{PATH}/{name}")


def edit(server, patch, name=KATA.name, manager="kubectl-edit"):
    """Change an object as `kubectl edit` does."""
    from lightkube.resources import node_v1
    from lightkube.types import PatchType

    with server._writing("test") as client:
        client.patch(
            node_v1.RuntimeClass, name, patch, patch_type=PatchType.MERGE, field_manager=manager
        )


def create(server, manifest, manager="kubectl-create"):
    """Make an object as `kubectl create` does."""
    from lightkube import codecs

    with server._writing("test") as client:
        client.create(codecs.from_dict(manifest), field_manager=manager)


def delete(server, name):
    from lightkube.resources import node_v1

    server.delete(node_v1.RuntimeClass, name)


def foreign(name=KATA.name, **labels):
    metadata = {"name": name, "labels": labels}
    return {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": metadata,
        "handler": "kata",
    }


# The object


def test_the_manifest_fits_kubernetes_schema():
    made = runtime_classes.manifest(KATA, US, ["stand-in", "another"])
    for version in ("1.25", "1.31", "1.37"):
        kubernetes_validate.validate(made, version, strict=True)
    assert made == {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {
            "name": "stand-in",
            "labels": {
                "app.kubernetes.io/managed-by": "kata-charm",
                "juju.io/application": "kata",
                "juju.io/model": "5f2c1f0e-6d7a-4c58-8d1b-6a9b0d0a7b11",
            },
            "annotations": {"juju.io/runtime-classes": "another,stand-in"},
        },
        "handler": "kata",
        "overhead": {"podFixed": {"memory": "320Mi", "cpu": "250m"}},
        "scheduling": {"nodeSelector": {"katacontainers.io/kata-runtime": "true"}},
    }


def test_what_is_not_wanted_is_not_in_the_manifest():
    made = runtime_classes.manifest(runtime_classes.RuntimeClass("kata", "kata"), US, ["kata"])
    kubernetes_validate.validate(made, "1.34", strict=True)
    assert set(made) == {"apiVersion", "kind", "metadata", "handler"}


# Made and kept


def test_they_are_made(server):
    assert ensure(server, KATA, SECOND) is True
    assert live(server)["handler"] == "kata"
    assert live(server)["overhead"]["podFixed"] == {"memory": "320Mi", "cpu": "250m"}
    assert live(server)["scheduling"]["nodeSelector"] == KATA.node_selector
    assert live(server, SECOND.name)["handler"] == "kata-clh"
    assert "scheduling" not in live(server, SECOND.name)


def test_a_second_time_nothing_changes(server):
    ensure(server, KATA, SECOND)
    before = live(server)
    assert ensure(server, KATA, SECOND) is False
    assert live(server) == before


def test_when_nothing_has_changed_it_costs_one_read_for_each_class(stand_in):
    ensure(stand_in.server, KATA, SECOND)
    stand_in.requests.clear()
    ensure(stand_in.server, KATA, SECOND)
    assert stand_in.requests == {
        ("GET", f"{PATH}/stand-in"): 1,
        ("GET", f"{PATH}/stand-in-2"): 1,
    }
    assert stand_in.writes() == 0


@pytest.mark.parametrize(
    ("memory", "cpu"),
    [("10240Mi", "1"), ("0.5Gi", "0.25"), ("1000M", "1000m"), ("2048", "1500m"), ("1Ti", "0.1")],
)
def test_amounts_are_equal_however_they_are_written(server, memory, cpu):
    wanted = runtime_classes.RuntimeClass("stand-in", "kata", memory, cpu)
    assert ensure(server, wanted) is True
    assert ensure(server, wanted) is False


@pytest.mark.parametrize(
    "other",
    [
        runtime_classes.RuntimeClass("stand-in", "kata", "350Mi", "250m", KATA.node_selector),
        runtime_classes.RuntimeClass("stand-in", "kata", "320Mi", "1", KATA.node_selector),
        runtime_classes.RuntimeClass("stand-in", "kata", "320Mi", "", KATA.node_selector),
        runtime_classes.RuntimeClass("stand-in", "kata", "", "", KATA.node_selector),
        runtime_classes.RuntimeClass("stand-in", "kata", "320Mi", "250m"),
        runtime_classes.RuntimeClass("stand-in", "kata", "320Mi", "250m", {"other": "label"}),
        runtime_classes.RuntimeClass("stand-in", "kata"),
    ],
)
def test_options_that_change_are_followed_to_and_fro(server, other):
    for wanted in (KATA, other, KATA):
        assert ensure(server, wanted) is True
        assert ensure(server, wanted) is False
        made = live(server)
        fixed = {"memory": wanted.memory, "cpu": wanted.cpu}
        fixed = {key: value for key, value in fixed.items() if value}
        assert made.get("overhead", {}).get("podFixed", {}) == fixed
        assert made.get("scheduling", {}).get("nodeSelector", {}) == wanted.node_selector


def test_another_handler_means_another_object(server):
    ensure(server, KATA)
    before = live(server)["metadata"]["uid"]
    assert ensure(server, runtime_classes.RuntimeClass("stand-in", "kata-2")) is True
    assert live(server)["handler"] == "kata-2"
    assert live(server)["metadata"]["uid"] != before


def test_after_a_crash_between_deletion_and_creation_it_is_made(stand_in):
    ensure(stand_in.server, KATA)
    stand_in.faults = [api_server.Fault(verb="PATCH", drop=True)]
    wanted = runtime_classes.RuntimeClass("stand-in", "kata-2")
    with pytest.raises(problems.Waiting):
        ensure(stand_in.server, wanted)
    assert live(stand_in.server) is None
    stand_in.faults = []
    assert ensure(stand_in.server, wanted) is True
    assert live(stand_in.server)["handler"] == "kata-2"


# Those that are no longer wanted


def test_a_class_that_was_dropped_goes(server):
    ensure(server, KATA, SECOND)
    assert ensure(server, KATA) is True
    assert live(server, SECOND.name) is None
    assert ensure(server, KATA) is False


def test_with_another_name_the_old_one_goes(server):
    ensure(server, KATA)
    ensure(server, SECOND)
    assert live(server) is None
    assert live(server, SECOND.name)


def test_after_a_crash_on_the_way_the_dropped_class_still_goes(stand_in):
    ensure(stand_in.server, KATA, SECOND)
    for fault in (
        api_server.Fault(verb="DELETE", drop=True),
        api_server.Fault(verb="PATCH", drop=True),
    ):
        stand_in.faults = [fault]
        with pytest.raises(problems.Waiting):
            ensure(stand_in.server, KATA)
    stand_in.faults = []
    ensure(stand_in.server, KATA)
    assert live(stand_in.server, SECOND.name) is None


def test_another_leader_needs_to_know_nothing(server):
    """All that is needed is in the cluster: a new leader drops what the old one has made."""
    ensure(server, KATA, SECOND)
    other = api.Server(server.access)
    assert ensure(other, KATA, SECOND) is False
    assert ensure(other, KATA) is True
    assert live(server, SECOND.name) is None
    other.close()


def test_they_go_with_the_application(server):
    ensure(server, KATA, SECOND)
    assert runtime_classes.remove_runtime_classes(server, US) is True
    assert live(server) is None
    assert live(server, SECOND.name) is None
    assert runtime_classes.remove_runtime_classes(server, US) is False


def test_one_that_is_gone_a_moment_before_it_is_removed_is_gone(stand_in, monkeypatch):
    ensure(stand_in.server, KATA)
    monkeypatch.setattr(runtime_classes, "_names", lambda *_: {"stand-in", "gone-already"})
    assert runtime_classes.remove_runtime_classes(stand_in.server, US) is True
    assert live(stand_in.server) is None


# Others


def test_one_that_somebody_has_deleted_is_made_again(server):
    ensure(server, KATA)
    delete(server, KATA.name)
    assert ensure(server, KATA) is True
    assert live(server)


@pytest.mark.parametrize(
    "patch",
    [
        {"overhead": {"podFixed": {"memory": "1Mi"}}},
        {"overhead": {"podFixed": {"memory": None}}},
        {"overhead": None},
        {"scheduling": {"nodeSelector": {"other": "x"}}},
        {"scheduling": {"nodeSelector": {"katacontainers.io/kata-runtime": "false"}}},
        {"scheduling": None},
        {"metadata": {"annotations": None}},
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}},
        {"metadata": {"labels": {"juju.io/model": None, "juju.io/application": None}}},
        {"metadata": {"labels": None}},
        {"metadata": {"labels": None, "annotations": None}, "overhead": None},
    ],
)
def test_what_somebody_changes_of_ours_is_put_back(server, patch):
    ensure(server, KATA)
    before = live(server)
    edit(server, patch)
    assert live(server) != before
    assert ensure(server, KATA) is True
    after = live(server)
    for field in ("handler", "overhead", "scheduling"):
        assert after[field] == before[field]
    for field in ("labels", "annotations"):
        assert after["metadata"][field] == before["metadata"][field]
    assert ensure(server, KATA) is False


def test_what_somebody_adds_to_ours_is_left_alone(server):
    ensure(server, runtime_classes.RuntimeClass("stand-in", "kata", "320Mi"))
    toleration = {"key": "a", "operator": "Exists"}
    edit(
        server,
        {
            "metadata": {"labels": {"theirs": "1"}, "annotations": {"theirs": "2"}},
            "scheduling": {"tolerations": [toleration]},
            "overhead": {"podFixed": {"cpu": "1"}},
        },
    )
    assert ensure(server, runtime_classes.RuntimeClass("stand-in", "kata", "320Mi")) is False
    assert ensure(server, runtime_classes.RuntimeClass("stand-in", "kata", "350Mi")) is True
    after = live(server)
    assert after["metadata"]["labels"]["theirs"] == "1"
    assert after["metadata"]["annotations"]["theirs"] == "2"
    assert after["scheduling"] == {"tolerations": [toleration]}
    assert after["overhead"]["podFixed"] == {"cpu": "1", "memory": "350Mi"}


@pytest.mark.parametrize(
    ("manifest", "manager", "whose"),
    [
        (foreign(), "kubectl-client-side-apply", "kubectl-client-side-apply"),
        (foreign(**{"app.kubernetes.io/managed-by": "Helm"}), "helm", "Helm"),
        (foreign(**{"juju.io/application": "other"}), "x", "application other of model None"),
        (
            runtime_classes.manifest(KATA, OTHERS, ["stand-in"]),
            "kata-charm",
            "application kata of model 00000000-6d7a-4c58-8d1b-6a9b0d0a7b11",
        ),
    ],
)
def test_one_of_that_name_that_is_not_ours_is_left_alone(server, manifest, manager, whose):
    create(server, manifest, manager)
    before = live(server)
    with pytest.raises(problems.Blocked) as caught:
        ensure(server, KATA)
    assert str(caught.value) == (
        f"RuntimeClass stand-in belongs to {whose}: delete it, or give ours another name"
    )
    assert len(str(caught.value)) <= 160
    assert live(server) == before
    assert runtime_classes.remove_runtime_classes(server, US) is False
    assert live(server) == before


def test_the_others_of_ours_do_not_wait_for_the_one_that_is_not(server):
    create(server, foreign())
    for _ in range(2):
        with pytest.raises(problems.Blocked):
            ensure(server, KATA, SECOND)
        assert live(server, SECOND.name)["handler"] == "kata-clh"
        assert live(server)["metadata"].get("labels", {}) == {}


def test_once_it_is_gone_ours_takes_its_place(server):
    create(server, foreign())
    with pytest.raises(problems.Blocked):
        ensure(server, KATA)
    delete(server, KATA.name)
    assert ensure(server, KATA) is True


def test_one_that_comes_into_being_while_we_look_is_not_taken_over(stand_in, monkeypatch):
    server = stand_in.server
    read = server.read

    def and_then(*arguments, **query):
        found = read(*arguments, **query)
        if "labelSelector" in query:
            create(server, {**foreign(), "overhead": {"podFixed": {"memory": "1Gi"}}})
        return found

    monkeypatch.setattr(server, "read", and_then)
    with pytest.raises(problems.Waiting, match="409"):
        ensure(server, KATA)
    monkeypatch.setattr(server, "read", read)
    assert live(server)["overhead"]["podFixed"] == {"memory": "1Gi"}
    with pytest.raises(problems.Blocked, match="kubectl-create"):
        ensure(server, KATA)


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.pop("metadata"),
        lambda made: made["metadata"].update(labels=None, managedFields=None),
        lambda made: made["metadata"].update(labels=[], managedFields={}),
        lambda made: made["metadata"].update(managedFields=[None, 7, {}]),
        lambda made: made.update(overhead=[], scheduling="x"),
        lambda made: made["metadata"]["managedFields"][0].update(fieldsV1={"f:overhead": 7}),
        lambda made: made["metadata"]["managedFields"][0].update(fieldsV1=[]),
    ],
)
def test_an_object_of_a_form_that_should_not_be_is_no_crash(stand_in, change):
    ensure(stand_in.server, KATA)
    strange = live(stand_in.server)
    change(strange)
    body = json.dumps(strange)
    stand_in.faults = [api_server.Fault(verb="GET", path=f"{PATH}/*", status=200, body=body)]
    try:
        ensure(stand_in.server, KATA)
    except problems.Problem as problem:
        assert "\n" not in str(problem)


@pytest.mark.parametrize("listed", ["{}", '{"items": null}', '{"items": [null, {}, 7]}'])
def test_a_list_of_a_form_that_should_not_be_is_no_crash(stand_in, listed):
    stand_in.faults = [api_server.Fault(verb="GET", path=PATH, status=200, body=listed)]
    runtime_classes.remove_runtime_classes(stand_in.server, US)


def test_the_store_of_the_stand_in_and_the_server_agree_on_amounts():
    for text in ("1", "1500m", "0.25", "320Mi", "10240Mi", "0.5Gi", "1000M", "2048", "1.5Ki"):
        assert runtime_classes._same(text) == runtime_classes._same(api_objects.quantity(text))
    assert (
        runtime_classes._same("1Gi")
        == runtime_classes._same("1024Mi")
        != runtime_classes._same("1G")
    )
