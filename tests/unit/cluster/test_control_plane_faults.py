"""Whatever the control plane does: the node goes on as it is, the unit says what is the matter,
and when it is over the next event makes good. Nothing is done twice and nothing of others undone.
"""

import dataclasses
import json
import re

import ops.testing
import pytest

import charm
from kata import problems
from kata.cluster import api
from tests import api_server
from tests.api_objects import RUNTIME_CLASS
from tests.unit.test_charm import (  # noqa: F401 - fixtures among them
    AVAILABLE,
    Deployment,
    archives,
    cluster,
    go,
    kata,
    relate_cluster,
)

CLASSES = {"kata", "kata-clh"}
LABEL = "katacontainers.io/kata-runtime"
# What the server does, and a part of what the unit must say of it.
ANSWERS = {
    "drops": ({"drop": True}, "ends half-way|disconnected"),
    "breaks off": ({"half": True}, "not Kubernetes'|closed connection"),
    "is slow": ({"delay": 3}, "no answer within"),
    "401": ({"status": 401}, "refuses our credentials .401."),
    "403": ({"status": 403}, "does not let us"),
    "404": ({"status": 404}, "404"),
    "409": ({"status": 409}, "409"),
    "429": ({"status": 429, "headers": {"Retry-After": "300"}}, "429"),
    "500": ({"status": 500}, "500"),
    "503": ({"status": 503}, "503"),
    "is a web page": ({"status": 200, "body": "<html>Sign in</html>"}, "not Kubernetes'"),
    "leads elsewhere": ({"status": 302, "headers": {"Location": "https://x.invalid/"}}, "302"),
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(api, "TIMEOUT", 2.0)


class Node:
    """How a node is, but for the credentials that a unit keeps."""

    def __init__(self, kata):
        self.kata = kata
        self.before = self.look()

    def look(self):
        files = self.kata.node.tree()
        kept = {path: text for path, text in files.items() if "/access-" not in path}
        return kept, self.kata.containerd.restarts

    def is_as_before(self):
        return self.look() == self.before


def classes(cluster):
    return set(cluster.objects.stored["runtimeclasses"])


def labels(cluster):
    return cluster.objects.stored["nodes"]["one"]["metadata"]["labels"]


def fail(cluster, **what):
    cluster.faults[:] = [api_server.Fault(**what)]


def settled(kata, cluster):
    """Let the next event come, and see that all is well."""
    kata.run(kata.context.on.update_status())
    assert kata.unit == ("active", kata.unit[1])
    assert "Kata runtime available" in kata.unit[1]
    assert kata.app[0] == "active", kata.app
    assert labels(cluster)[LABEL] == "true"
    writes = cluster.writes()
    kata.run(kata.context.on.update_status())
    assert cluster.writes() == writes, "and nothing is left to do"


@pytest.mark.parametrize("what", ANSWERS)
def test_a_server_that_fails_while_nothing_is_to_be_done(kata, cluster, what):
    relate_cluster(kata, cluster)
    node, writes = Node(kata), cluster.writes()
    answer, words = ANSWERS[what]
    fail(cluster, **answer)
    kata.run(kata.context.on.update_status())
    for name, message in (kata.unit, kata.app):
        assert name == "waiting", message
        assert re.search(words, message)
        assert "tried again at the next event" in message
        assert "\n" not in message
    assert node.is_as_before()
    assert cluster.writes() == writes
    assert classes(cluster) == {"kata"}
    cluster.faults.clear()
    settled(kata, cluster)
    assert node.is_as_before()


@pytest.mark.parametrize("what", ANSWERS)
def test_a_server_that_fails_between_two_writes(kata, cluster, what):
    """The first RuntimeClass gets through, the second does not."""
    relate_cluster(kata, cluster)
    answer, words = ANSWERS[what]
    fail(cluster, verb="PATCH", path="*/runtimeclasses/kata-clh", **answer)
    kata.config(extra_runtime_classes="kata-clh=clh").run()
    assert "runtimes.kata-clh]" in kata.file, "the node does not wait"
    assert "kata-clh" in kata.unit[1]
    assert kata.app[0] == "waiting"
    assert re.search(words, kata.app[1])
    node = Node(kata)
    cluster.faults.clear()
    settled(kata, cluster)
    assert classes(cluster) == CLASSES
    assert node.is_as_before()


@pytest.mark.parametrize("what", ANSWERS)
def test_a_server_that_fails_while_the_unit_goes(kata, cluster, what):
    relate_cluster(kata, cluster)
    fail(cluster, **ANSWERS[what][0])
    kata.change(planned_units=0)
    go(kata)
    assert "kata charm" not in kata.file
    assert not kata.node.exists("/var/lib/kata-charm")
    said = [line.message for line in kata.context.juju_log if line.level == "WARNING"]
    assert [each for each in said if each.startswith("labels or RuntimeClasses may be left")]


def test_nobody_listens(kata):
    with api_server.ApiServer() as gone:
        gone.add_node("one", "0123456789abcdef0123456789abcdef")
        relate_cluster(kata, gone)
    node = Node(kata)
    kata.run(kata.context.on.update_status())
    assert kata.unit[0] == kata.app[0] == "waiting"
    assert "refused" in kata.unit[1].lower()
    assert node.is_as_before()


@pytest.mark.parametrize("event", ["secret_changed", "stop"])
@pytest.mark.parametrize(
    "error", [problems.Blocked("cannot write x: Read-only file system"), OSError(30, "Read-only")]
)
def test_a_disk_that_refuses_is_no_traceback(kata, cluster, monkeypatch, event, error):
    relate_cluster(kata, cluster)

    def refuse(*_, **__):
        raise error

    for name in ("write", "remove", "read"):
        monkeypatch.setattr(kata.node, name, refuse)
    on = kata.context.on
    if event == "secret_changed":
        kata.run(on.secret_changed(next(iter(kata.state.secrets))))
        assert kata.unit[0] == "blocked"
    else:
        kata.run(on.stop())
    assert [line for line in kata.context.juju_log if "Read-only" in line.message]


# Certificates and tokens


def send(kata, relation, **changed):
    """Have the control plane send something else."""
    now = kata.state.get_relation(relation.id)
    data = {key: value for key, value in (now.remote_units_data[0] | changed).items() if value}
    kata.relate(dataclasses.replace(now, remote_units_data={0: data}))
    kata.run(kata.context.on.relation_changed(kata.state.get_relation(relation.id), remote_unit=0))


def test_a_certificate_that_changed_is_not_believed_until_its_ca_is_sent(kata, cluster):
    relation = relate_cluster(kata, cluster)
    node, asked = Node(kata), sum(cluster.requests.values())
    cluster.renew_certificate()
    kata.run(kata.context.on.update_status())
    assert "its certificate is not the one expected" in kata.unit[1]
    assert sum(cluster.requests.values()) == asked, "nothing was said to it, no token above all"
    assert node.is_as_before()
    (secret,) = kata.state.secrets
    renewed = ops.testing.Secret({"ca-certificate": cluster.ca}, owner=None)
    kata.change(secrets=[secret, renewed])
    send(kata, relation, **{"ca-certificate-secret-id": renewed.id})
    settled(kata, cluster)


def test_a_ca_that_is_renewed_within_its_secret_is_read(kata, cluster):
    relate_cluster(kata, cluster)
    cluster.renew_certificate()
    (secret,) = kata.state.secrets
    secret = dataclasses.replace(
        secret,
        latest_content={"ca-certificate": cluster.ca},
        tracked_content=secret.latest_content,
    )
    kata.change(secrets=[secret])
    kata.run(kata.context.on.secret_changed(secret))
    settled(kata, cluster)


def test_a_token_that_was_rotated_is_taken_over(kata, cluster):
    relation = relate_cluster(kata, cluster)
    node = Node(kata)
    cluster.users = {"another": api_server.User()}
    kata.run(kata.context.on.update_status())
    assert "refuses our credentials (401)" in kata.unit[1]
    creds = json.loads(kata.state.get_relation(relation.id).remote_units_data[0]["creds"])
    (entry,) = creds.values()
    entry |= {"client_token": "another", "kubelet_token": "another"}
    send(kata, relation, creds=json.dumps(creds))
    settled(kata, cluster)
    assert node.is_as_before()


def test_rights_that_were_taken_away_are_named(kata, cluster):
    relate_cluster(kata, cluster)
    may = {"nodes": ["get", "patch"], "runtimeclasses": ["get", "list"]}
    cluster.users[cluster.token] = api_server.User(may=may)
    kata.config(extra_runtime_classes="kata-clh=clh").run()
    assert "does not let us patch RuntimeClass kata (403)" in kata.app[1]
    assert "Kata runtime available" in kata.unit[1]
    cluster.users[cluster.token] = api_server.User()
    settled(kata, cluster)
    assert classes(cluster) == CLASSES


# Others at work


def foreign(name="kata"):
    return {"metadata": {"name": name}, "handler": "runc"}


def test_a_class_that_others_made_is_theirs(kata, cluster):
    theirs = cluster.objects.create(RUNTIME_CLASS, foreign(), "kubectl-create")
    relate_cluster(kata, cluster)
    assert kata.app[0] == "blocked"
    assert kata.app[1].startswith("RuntimeClass kata belongs to kubectl-create: delete it, or")
    assert "Kata runtime available" in kata.unit[1]
    stored = cluster.objects.stored["runtimeclasses"]
    assert stored["kata"] == theirs
    del stored["kata"]
    settled(kata, cluster)
    assert stored["kata"]["handler"] == "kata"


def test_a_class_that_others_made_outlives_us(kata, cluster):
    cluster.objects.create(RUNTIME_CLASS, foreign("mine"), "kubectl-create")
    relate_cluster(kata, cluster)
    kata.change(planned_units=0)
    go(kata)
    assert classes(cluster) == {"mine"}


def test_a_class_that_others_deleted_is_made_again(kata, cluster):
    relate_cluster(kata, cluster)
    cluster.objects.stored["runtimeclasses"].clear()
    settled(kata, cluster)
    assert classes(cluster) == {"kata"}


def test_a_class_that_others_edited_is_put_right(kata, cluster):
    relate_cluster(kata, cluster)
    stored = cluster.objects.stored["runtimeclasses"]
    stored["kata"]["overhead"]["podFixed"]["memory"] = "1Mi"
    stored["kata"]["metadata"]["labels"]["team"] = "theirs"
    settled(kata, cluster)
    assert stored["kata"]["overhead"]["podFixed"]["memory"] == "320Mi"
    assert stored["kata"]["metadata"]["labels"]["team"] == "theirs"


def test_a_label_that_others_took_off_is_put_back(kata, cluster):
    relate_cluster(kata, cluster)
    del labels(cluster)[LABEL]
    settled(kata, cluster)


# Leaders


def another(kata):
    """A second unit, on a machine of its own that is a node of the same cluster."""
    second = Deployment.__new__(Deployment)
    second.__dict__.update(kata.__dict__)
    second.context = ops.testing.Context(charm.KataCharm, app_name="kata", unit_id=1)
    return second


@pytest.mark.parametrize("moment", ["before the first", "between two", "after the deletion"])
def test_a_leader_that_is_deposed_in_the_middle_is_finished_by_the_next(kata, cluster, moment):
    relation = relate_cluster(kata, cluster)
    stuck = {
        "before the first": {"verb": "*", "path": "*/runtimeclasses*"},
        "between two": {"verb": "PATCH", "path": "*/runtimeclasses/kata-clh"},
        "after the deletion": {"verb": "PATCH", "path": "*/runtimeclasses*"},
    }[moment]
    fail(cluster, status=500, **stuck)
    kata.config(extra_runtime_classes="kata-clh=clh", runtime_class="isolated").run()
    assert kata.app[0] == "waiting"
    kata.change(leader=False)
    cluster.faults.clear()
    asked = cluster.requests.copy()
    kata.run(kata.context.on.update_status())
    new = {path for _, path in cluster.requests - asked}
    assert not [path for path in new if "runtimeclasses" in path], "it leads no more"

    second = another(kata)
    now = kata.state.get_relation(relation.id)
    creds = json.loads(now.remote_units_data[0]["creds"])
    user = now.local_unit_data["kubelet_user"].replace("kata/0", "kata/1")
    creds[user] = {**next(iter(creds.values())), "scope": "kata/1"}
    data = now.remote_units_data[0] | {"creds": json.dumps(creds)}
    second.relate(
        dataclasses.replace(now, local_unit_data={}, remote_units_data={0: data})
    ).change(leader=True)
    second.run(second.context.on.leader_elected())
    assert second.app == ("active", "RuntimeClass isolated, kata-clh")
    assert classes(cluster) == {"isolated", "kata-clh"}, "and the old name is gone"


# What comes over the relation

PARTS = ("api-endpoints", "creds", "ca-certificate-secret-id")
RUBBISH = ["", "{", "null", "[" * 5000, "é\u2028\x1b[2J", "[null, 7, {}]"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("text", RUBBISH)
def test_rubbish_on_the_relation_waits_for_better(kata, cluster, part, text):
    relation = relate_cluster(kata, cluster)
    node, good = Node(kata), kata.state.get_relation(relation.id).remote_units_data[0][part]
    send(kata, relation, **{part: text})
    assert kata.unit[0] == kata.app[0] == "waiting"
    assert kata.unit[1].startswith("waiting for kubernetes-control-plane: ")
    assert kata.unit[1].isprintable()
    assert node.is_as_before()
    assert classes(cluster) == {"kata"}
    send(kata, relation, **{part: good})
    assert kata.unit == ("active", AVAILABLE)
