"""The stand-in answers as Kubernetes' own API server does.

With KUBERNETES_API=FILE, an `access.json` as the stand-in writes it, the same is asked of a real
API server (Kubernetes 1.34.1 gave these answers). It makes and removes RuntimeClasses there whose
names begin with `stand-in`, and a node of that name.
"""

import http.client
import json
import os
import pathlib
import ssl
import subprocess
import sys
import time
import types
import urllib.parse

import kubernetes_validate
import pytest

from tests import api_objects, api_server

REAL = os.environ.get("KUBERNETES_API")
CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
NODES = "/api/v1/nodes"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


@pytest.fixture(params=["stand-in", *(["real"] if REAL else [])])
def server(request):
    if request.param == "real":
        yield types.SimpleNamespace(**json.loads(pathlib.Path(REAL).read_text()))
        return
    with api_server.ApiServer() as stand_in:
        yield types.SimpleNamespace(server=stand_in.url, token=stand_in.token, ca=stand_in.ca)


@pytest.fixture
def ask(server):
    """Return a function that sends a request: (status, answer)."""
    context = ssl.create_default_context(cadata=server.ca)
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)

    def send(verb, target, body=None, kind="application/json", token=server.token):
        place = urllib.parse.urlsplit(server.server).netloc
        connection = http.client.HTTPSConnection(place, context=context, timeout=10)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind, "User-Agent": "t/1"}
        try:
            sent = json.dumps(body) if isinstance(body, dict) else body
            connection.request(verb, target, sent, headers)
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(said) if is_json else said.decode()

    for path in (f"{CLASSES}/stand-in", f"{CLASSES}/stand-in-2", f"{NODES}/stand-in"):
        send("DELETE", path)
    yield send
    for path in (f"{CLASSES}/stand-in", f"{CLASSES}/stand-in-2", f"{NODES}/stand-in"):
        send("DELETE", path)


def runtime_class(name="stand-in", handler="kata", **more):
    return {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": name},
        "handler": handler,
        **more,
    }


def apply(ask, made, manager, force=""):
    target = f"{CLASSES}/{made['metadata']['name']}?fieldManager={manager}{force}"
    return ask("PATCH", target, made, APPLY)


def managed(answer):
    """Return who manages what: manager and operation to field paths, written with slashes."""
    return {
        (entry["manager"], entry["operation"]): {
            "/".join(path) for path in api_objects.paths(entry["fieldsV1"])
        }
        for entry in answer["metadata"]["managedFields"]
    }


def test_an_object_is_created_read_listed_and_deleted(ask):
    status, made = ask("POST", f"{CLASSES}?fieldManager=me", runtime_class())
    assert (status, made["handler"]) == (201, "kata")
    kubernetes_validate.validate(made, "1.34", strict=True)

    status, there = ask("GET", f"{CLASSES}/stand-in")
    assert (status, there) == (200, made)

    status, listed = ask("GET", CLASSES)
    assert (status, listed["kind"], listed["apiVersion"]) == (
        200,
        "RuntimeClassList",
        "node.k8s.io/v1",
    )
    [item] = [each for each in listed["items"] if each["metadata"]["name"] == "stand-in"]
    assert item == {key: made[key] for key in made if key not in ("kind", "apiVersion")}

    status, done = ask("DELETE", f"{CLASSES}/stand-in")
    assert status == 200
    assert done == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {
            "name": "stand-in",
            "group": "node.k8s.io",
            "kind": "runtimeclasses",
            "uid": made["metadata"]["uid"],
        },
    }
    assert ask("GET", f"{CLASSES}/stand-in")[0] == 404


def test_what_is_not_there(ask):
    status, said = ask("GET", f"{CLASSES}/stand-in")
    assert status == 404
    assert said == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'runtimeclasses.node.k8s.io "stand-in" not found',
        "reason": "NotFound",
        "details": {"name": "stand-in", "group": "node.k8s.io", "kind": "runtimeclasses"},
        "code": 404,
    }
    assert ask("DELETE", f"{NODES}/stand-in")[1]["message"] == 'nodes "stand-in" not found'
    assert ask("PATCH", f"{NODES}/stand-in", {"metadata": {}}, MERGE)[0] == 404
    status, said = ask("GET", "/apis/node.k8s.io/v9/runtimeclasses/stand-in")
    assert (status, said["reason"], said["details"]) == (404, "NotFound", {})


def test_who_has_no_valid_token(ask):
    status, said = ask("GET", CLASSES, token="wrong")
    assert status == 401
    assert said == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "Unauthorized",
        "reason": "Unauthorized",
        "code": 401,
    }


def test_labels_select(ask):
    for name, labels in (("stand-in", {"a": "1", "b": "2"}), ("stand-in-2", {"a": "1"})):
        made = runtime_class(name)
        made["metadata"]["labels"] = labels
        assert ask("POST", CLASSES, made)[0] == 201

    def chosen(selector):
        query = urllib.parse.urlencode({"labelSelector": selector})
        items = ask("GET", f"{CLASSES}?{query}")[1]["items"]
        return [each["metadata"]["name"] for each in items]

    assert chosen("a=1") == ["stand-in", "stand-in-2"]
    assert chosen("a=1,b=2") == ["stand-in"]
    assert chosen("a=1,!b") == ["stand-in-2"]
    assert chosen("b") == ["stand-in"]
    assert chosen("a!=1,b=2") == []


def test_the_same_twice(ask):
    assert ask("POST", CLASSES, runtime_class())[0] == 201
    status, said = ask("POST", CLASSES, runtime_class())
    assert (status, said["reason"]) == (409, "AlreadyExists")
    assert said["message"] == 'runtimeclasses.node.k8s.io "stand-in" already exists'


def test_quantities_are_written_in_one_form(ask):
    amounts = {"memory": "10240Mi", "cpu": "0.25"}
    made = runtime_class(overhead={"podFixed": amounts})
    status, live = apply(ask, made, "me")
    assert status == 201
    assert live["overhead"]["podFixed"] == {"memory": "10Gi", "cpu": "250m"}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        *(("1", "1"), ("0", "0"), ("1000", "1k"), ("1500", "1500"), ("1500m", "1500m")),
        *(
            ("2000m", "2"),
            ("0.5", "500m"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("0.5Gi", "512Mi"),
        ),
        *(
            ("1.5Gi", "1536Mi"),
            ("320M", "320M"),
            ("1000M", "1G"),
            ("1Ti", "1Ti"),
            ("100u", "100u"),
        ),
    ],
)
def test_every_form_of_a_quantity(ask, given, written):
    made = runtime_class(overhead={"podFixed": {"memory": given}})
    assert apply(ask, made, "me")[1]["overhead"]["podFixed"] == {"memory": written}


def test_a_quantity_that_is_none(ask):
    made = runtime_class(overhead={"podFixed": {"memory": "lots"}})
    status, said = ask("POST", CLASSES, made)
    assert (status, said["reason"]) == (400, "BadRequest")


def test_the_handler_cannot_be_changed(ask):
    apply(ask, runtime_class(), "me")
    status, said = apply(ask, runtime_class(handler="other"), "me")
    assert (status, said["reason"], said["details"]) == (
        422,
        "Invalid",
        {
            "name": "stand-in",
            "group": "node.k8s.io",
            "kind": "RuntimeClass",
            "causes": [
                {
                    "reason": "FieldValueInvalid",
                    "message": 'Invalid value: "other": field is immutable',
                    "field": "handler",
                }
            ],
        },
    )
    assert said["message"] == (
        'RuntimeClass.node.k8s.io "stand-in" is invalid: '
        'handler: Invalid value: "other": field is immutable'
    )


def test_apply_creates_and_remembers_who_manages_what(ask):
    made = runtime_class(
        overhead={"podFixed": {"memory": "1Gi"}}, scheduling={"nodeSelector": {"a/b": "c"}}
    )
    made["metadata"]["labels"] = {"x.y/z": "1"}
    status, live = apply(ask, made, "me")
    assert status == 201
    assert managed(live) == {
        ("me", "Apply"): {
            "handler",
            "metadata/labels/x.y/z",
            "overhead/podFixed/memory",
            "scheduling/nodeSelector",
        }
    }
    kubernetes_validate.validate(live, "1.34", strict=True)


def test_apply_of_the_same_changes_nothing(ask):
    _, first = apply(ask, runtime_class(), "me")
    status, second = apply(ask, runtime_class(), "me")
    assert (status, second) == (200, first)


def test_apply_removes_what_it_no_longer_names(ask):
    made = runtime_class(
        overhead={"podFixed": {"memory": "1Gi", "cpu": "1"}},
        scheduling={"nodeSelector": {"a": "b"}},
    )
    apply(ask, made, "me")
    status, live = apply(ask, runtime_class(overhead={"podFixed": {"memory": "1Gi"}}), "me")
    assert status == 200
    assert live["overhead"] == {"podFixed": {"memory": "1Gi"}}
    assert "scheduling" not in live


def test_apply_leaves_what_others_manage(ask):
    apply(ask, runtime_class(overhead={"podFixed": {"memory": "1Gi"}}), "me")
    patch = {"metadata": {"labels": {"theirs": "1"}}}
    ask("PATCH", f"{CLASSES}/stand-in?fieldManager=them", patch, MERGE)
    _, live = apply(ask, runtime_class(), "me")
    assert live["metadata"]["labels"] == {"theirs": "1"}
    assert "overhead" not in live
    assert managed(live) == {
        ("me", "Apply"): {"handler"},
        ("them", "Update"): {"metadata/labels/theirs"},
    }


def test_apply_needs_force_against_another_manager(ask):
    mine = runtime_class(overhead={"podFixed": {"memory": "1Gi"}})
    apply(ask, mine, "me")
    patch = {"overhead": {"podFixed": {"memory": "2Gi"}}}
    _, live = ask("PATCH", f"{CLASSES}/stand-in?fieldManager=them", patch, STRATEGIC)
    assert managed(live) == {
        ("me", "Apply"): {"handler"},
        ("them", "Update"): {"overhead/podFixed/memory"},
    }

    status, said = apply(ask, mine, "me")
    assert (status, said["reason"]) == (409, "Conflict")
    assert said["message"] == (
        'Apply failed with 1 conflict: conflict with "them" using node.k8s.io/v1: '
        ".overhead.podFixed.memory"
    )
    assert said["details"]["causes"] == [
        {
            "reason": "FieldManagerConflict",
            "message": 'conflict with "them" using node.k8s.io/v1',
            "field": ".overhead.podFixed.memory",
        }
    ]

    status, live = apply(ask, mine, "me", "&force=true")
    assert (status, live["overhead"]["podFixed"]["memory"]) == (200, "1Gi")
    assert managed(live) == {("me", "Apply"): {"handler", "overhead/podFixed/memory"}}


def test_apply_needs_a_manager(ask):
    status, said = ask("PATCH", f"{CLASSES}/stand-in", runtime_class(), APPLY)
    assert (status, said["reason"]) == (422, "Invalid")
    assert "fieldManager: Required value" in said["message"]


def test_a_patch_of_a_form_that_it_does_not_know(ask):
    apply(ask, runtime_class(), "me")
    status, said = ask("PATCH", f"{CLASSES}/stand-in", "{}", "application/unknown")
    assert (status, said["reason"]) == (415, "UnsupportedMediaType")


def node(**metadata):
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "stand-in", **metadata}}


@pytest.mark.parametrize("form", [MERGE, STRATEGIC])
def test_a_label_of_a_node_comes_and_goes(ask, form):
    ask("POST", f"{NODES}?fieldManager=kubelet", node(labels={"os": "linux"}))

    patch = {"metadata": {"labels": {"a.b/c": "true"}}}
    status, live = ask("PATCH", f"{NODES}/stand-in?fieldManager=me", patch, form)
    assert (status, live["metadata"]["labels"]) == (200, {"a.b/c": "true", "os": "linux"})
    assert managed(live)["me", "Update"] == {"metadata/labels/a.b/c"}

    patch = {"metadata": {"labels": {"a.b/c": None}}}
    status, live = ask("PATCH", f"{NODES}/stand-in?fieldManager=me", patch, form)
    assert (status, live["metadata"]["labels"]) == (200, {"os": "linux"})
    assert ("me", "Update") not in managed(live)


def test_an_object_without_managers_gets_them_by_the_first_apply(ask):
    ask("POST", f"{NODES}?fieldManager=kubelet", node())
    patch = {"metadata": {"labels": {"a": "b"}}}
    _, live = ask("PATCH", f"{NODES}/stand-in?fieldManager=me", patch, MERGE)
    assert "managedFields" not in live["metadata"]

    given = node(labels={"c": "d"})
    _, live = ask("PATCH", f"{NODES}/stand-in?fieldManager=me", given, APPLY)
    assert managed(live)["me", "Apply"] == {"metadata/labels/c"}
    assert "metadata/labels/a" in managed(live)["before-first-apply", "Update"]


def test_a_label_that_two_apply_outlives_one_of_them(ask):
    ask("POST", f"{NODES}?fieldManager=kubelet", node(labels={"os": "linux"}))
    for manager in ("me", "them"):
        ask("PATCH", f"{NODES}/stand-in?fieldManager={manager}", node(labels={"a": "b"}), APPLY)
    for manager, left in (("me", {"a": "b", "os": "linux"}), ("them", {"os": "linux"})):
        _, live = ask("PATCH", f"{NODES}/stand-in?fieldManager={manager}", node(), APPLY)
        assert live["metadata"]["labels"] == left


@pytest.mark.parametrize("form", [MERGE, APPLY])
def test_a_patch_of_an_object_that_was_made_anew(ask, form):
    ask("POST", NODES, node())
    given = node(uid="00000000-0000-0000-0000-000000000000", labels={"a": "b"})
    status, said = ask("PATCH", f"{NODES}/stand-in?fieldManager=me", given, form)
    assert (status, said["reason"]) == (422, "Invalid")
    assert "field is immutable" in said["message"]


def test_an_apply_with_a_uid_creates_nothing(ask):
    given = node(uid="00000000-0000-0000-0000-000000000000", labels={"a": "b"})
    status, said = ask("PATCH", f"{NODES}/stand-in?fieldManager=me&force=true", given, APPLY)
    assert (status, said["reason"]) == (409, "Conflict")
    assert "no existing object was found" in said["message"]
    assert ask("GET", f"{NODES}/stand-in")[0] == 404


# What only the stand-in has


def test_what_a_user_may_not():
    with api_server.ApiServer() as stand_in:
        stand_in.users["few"] = api_server.User("few", {"nodes": ["get"]})
        headers = {"Authorization": "Bearer few"}
        status, _, body = stand_in.answer("GET", CLASSES, headers, b"")
        assert (status, json.loads(body)["reason"]) == (403, "Forbidden")
        assert json.loads(body)["message"] == (
            'runtimeclasses.node.k8s.io is forbidden: User "few" cannot list resource '
            '"runtimeclasses" in API group "node.k8s.io" at the cluster scope'
        )
        assert stand_in.answer("GET", f"{NODES}/none", headers, b"")[0] == 404


def test_a_node_that_it_makes_up_fits_the_schema():
    with api_server.ApiServer() as stand_in:
        node = stand_in.add_node("one", "0123456789abcdef0123456789abcdef")
        kubernetes_validate.validate(node, "1.34", strict=True)


def test_a_fault_meets_what_it_names_as_often_as_it_says():
    fault = api_server.Fault(verb="P*", path="/api/v1/nodes/*", times=2)
    assert not fault.meets("GET", "/api/v1/nodes/one")
    assert not fault.meets("PATCH", CLASSES)
    assert [fault.meets("PATCH", "/api/v1/nodes/one") for _ in range(3)] == [True, True, False]


def test_as_a_program_it_keeps_its_objects(tmp_path):
    def conversation(*steps):
        command = [sys.executable, "-m", "tests.api_server", "--state", str(tmp_path)]
        with subprocess.Popen([*command, "--node", "one=abc"], stdout=subprocess.PIPE) as running:
            try:
                assert running.stdout.readline().startswith(b"https://127.0.0.1:")
                access = json.loads((tmp_path / "access.json").read_text())
                context = ssl.create_default_context(cadata=access["ca"])
                place = urllib.parse.urlsplit(access["server"]).netloc
                connection = http.client.HTTPSConnection(place, context=context, timeout=10)
                headers = {"Authorization": f"Bearer {access['token']}"}
                answers = []
                for verb, target, body in steps:
                    connection.request(verb, target, json.dumps(body), headers)
                    answer = connection.getresponse()
                    answers.append((answer.status, json.loads(answer.read())))
                connection.close()
                return answers
            finally:
                running.terminate()

    [(status, _), (_, told), _, (failed, _)] = conversation(
        ("POST", CLASSES, runtime_class()),
        ("GET", "/stand-in/requests", {}),
        ("POST", "/stand-in/faults", [{"status": 503}]),
        ("GET", CLASSES, {}),
    )
    assert (status, failed) == (201, 503)
    assert told == {"requests": [["POST", CLASSES, 1]]}

    [(status, there), (_, node)] = conversation(
        ("GET", f"{CLASSES}/stand-in", {}), ("GET", f"{NODES}/one", {})
    )
    assert (status, there["handler"]) == (200, "kata")
    assert node["status"]["nodeInfo"]["machineID"] == "abc"


def test_a_slow_client_does_not_hold_up_another(ask, server):
    import socket

    parts = urllib.parse.urlsplit(server.server)
    with socket.create_connection((parts.hostname, parts.port)):  # no TLS handshake follows
        started = time.monotonic()
        assert ask("GET", CLASSES)[0] == 200
        assert time.monotonic() - started < 5
