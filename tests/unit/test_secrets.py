"""What is given in confidence is said nowhere: not in a log, a status, an answer or a relation.

Every token that a control plane can hand out has a mark in it. The unit lives a whole life, with
every fault of the API server and every action, and then everything that it said is searched.
"""

import dataclasses
import json
import logging
import re
import stat

import ops.testing
import pytest
import yaml

from kata.machine import tenancy
from tests import api_server
from tests.unit import kata_releases
from tests.unit.test_charm import archives, cluster, kata  # noqa: F401 - fixtures

MARK = "s3cr3t-MARK"
ACTIONS = yaml.safe_load(kata_releases.CHARM.read_text())["actions"]
# All that the API is ever asked for, but for the pod of verify-sandbox with level=pod.
MAY = {
    "/apis/node.k8s.io/v1/runtimeclasses": ("GET",),
    "/apis/node.k8s.io/v1/runtimeclasses/[a-z0-9-]+": ("GET", "PATCH", "DELETE"),
    "/api/v1/nodes/one": ("GET", "PATCH"),
    "/api/v1/namespaces/[a-z0-9-]+/(pods|events)(/kata-[a-z0-9-]+)?": ("GET", "PATCH", "DELETE"),
}
ECHO = f'{{"kind": "Status", "message": "no: Bearer {MARK}-{{}}", "code": 500}}'
FAULTS = [
    api_server.Fault(drop=True),
    api_server.Fault(half=True),
    *(api_server.Fault(status=status) for status in (401, 403, 404, 409, 429, 500)),
    *(api_server.Fault(status=status, body="{echo}") for status in (200, 403, 409, 422, 500)),
    api_server.Fault(verb="PATCH", status=500, body="{echo}"),
]
EVENTS = ("config_changed", "update_status", "leader_elected", "upgrade_charm")


def marked(kind):
    return f"{MARK}-{kind}"


def handed_out(schema, kubelet_token):
    """Return credentials as each schema has them, and the secret that they are in."""
    tokens = {
        "client_token": marked("client"),
        "kubelet_token": marked("kubelet") if kubelet_token else "",
        "proxy_token": marked("proxy"),
    }
    if schema == 0:
        return tokens, None
    content = {name.replace("_", "-"): token for name, token in tokens.items()}
    secret = ops.testing.Secret(content, owner=None)
    return {**dict.fromkeys(tokens, ""), "secret-id": secret.id}, secret


def relate(kata, cluster, schema, kubelet_token):
    """Have a control plane answer the unit's request."""
    ca = ops.testing.Secret({"ca-certificate": cluster.ca}, owner=None)
    endpoints = {
        "api-endpoints": json.dumps([cluster.url]),
        "ca-certificate-secret-id": ca.id,
    }
    relation = ops.testing.Relation(
        "kube-control", remote_app_name="k8s", remote_units_data={0: endpoints}
    )
    kata.change(secrets=[ca]).relate(relation).run(kata.context.on.relation_created(relation))
    asked = kata.state.get_relation(relation.id)
    creds, secret = handed_out(schema, kubelet_token)
    entry = {asked.local_unit_data["kubelet_user"]: {**creds, "scope": "kata/0"}}
    if secret:
        kata.change(secrets=[ca, secret])
    answer = {0: {**endpoints, "creds": json.dumps(entry)}}
    kata.relate(dataclasses.replace(asked, remote_units_data=answer))
    kata.run(kata.context.on.relation_changed(kata.state.get_relation(relation.id), remote_unit=0))
    return relation.id


def said(kata, caplog, capfd):
    """Everything that has come out of the unit so far, by where."""
    context = kata.context
    statuses = [*context.unit_status_history, *context.app_status_history]
    statuses += [kata.state.unit_status, kata.state.app_status]
    yield "juju debug-log", [line.message for line in context.juju_log]
    yield "juju status", [each.message for each in statuses]
    yield "logging", [record.getMessage() for record in caplog.records]
    yield "logging", [str(record.exc_text or record.exc_info or "") for record in caplog.records]
    yield "output", [*capfd.readouterr()]
    yield "relations", [str(each.local_unit_data) for each in kata.state.relations]
    yield "relations", [str(getattr(each, "local_app_data", "")) for each in kata.state.relations]
    yield "command lines", kata.node.ran
    yield "file names", list(kata.node.tree())


def answer_to(kata, action):
    """Run an action as an operator would, and return all that it answers."""
    params = {"verify-sandbox": {"level": "pod"}, "inspect-sandbox": {"pod": "a/b"}}
    context = kata.context
    context.action_results = None
    try:
        context.run(context.on.action(action, params=params.get(action, {})), kata.state)
        failure = ""
    except ops.testing.ActionFailed as failed:
        failure = failed.message
    return str([failure, context.action_results, context.action_logs])


@pytest.mark.parametrize(
    ("schema", "kubelet_token"), [(0, True), (1, False)], ids=["charmed, in clear", "canonical"]
)
def test_a_whole_life_says_no_token(
    kata, cluster, caplog, capfd, monkeypatch, schema, kubelet_token
):
    caplog.set_level(logging.DEBUG)
    token = marked("kubelet" if kubelet_token else "client")
    cluster.users = {token: api_server.User()}
    relation = relate(kata, cluster, schema, kubelet_token)
    assert kata.app == ("active", "RuntimeClass kata"), "the token is used"

    for fault in FAULTS:
        body = fault.body and ECHO.replace("{}", token.removeprefix(f"{MARK}-"))
        cluster.faults[:] = [dataclasses.replace(fault, body=body)]
        # A class that is not there yet, so that something is to be written as well.
        kata.config(runtime_class=f"kata-{len(kata.context.juju_log)}").run()
        assert kata.app[0] in ("waiting", "active"), (fault, kata.app)
    for event in EVENTS:
        kata.run(getattr(kata.context.on, event)())
    answers = [answer_to(kata, action) for action in ACTIONS]
    cluster.faults.clear()
    answers += [answer_to(kata, action) for action in ACTIONS]
    kata.run()
    assert kata.app[0] == "active"

    for verb, path in cluster.requests:
        assert [each for each, verbs in MAY.items() if verb in verbs and re.fullmatch(each, path)]

    kept = {path: text for path, text in kata.node.tree().items() if MARK in text}
    assert list(kept) == ["/var/lib/kata-charm/access-kata-0.json"]
    assert "proxy" not in str(kept), "what is of no use is not kept"
    assert stat.S_IMODE(kata.node.path(*kept).stat().st_mode) == 0o600
    assert stat.S_IMODE(kata.node.path(tenancy.STATE).stat().st_mode) == 0o700
    for place, words in [*said(kata, caplog, capfd), ("actions", answers)]:
        assert not [each for each in words if MARK in each], place

    kata.run(
        kata.context.on.relation_departed(
            kata.state.get_relation(relation), remote_unit=0, departing_unit=0
        )
    )
    kata.run(kata.context.on.stop())
    assert not [path for path, text in kata.node.tree().items() if MARK in text]


@pytest.mark.parametrize(
    "creds",
    [
        '{"USER": {"client_token": "MARK", "kubelet_token": 5, "proxy_token": "MARK"}}',
        '{"USER": {"client_token": "MARK MARK", "kubelet_token": "", "proxy_token": "", "scope": "x"}}',
        '{"USER": {"client_token": ["MARK"], "kubelet_token": {"MARK": "MARK"}, "scope": "MARK"}}',
        '{"USER": "MARK"}',
        '["MARK"]',
        '{"USER": {"client_token": "MARK"',
    ],
)
def test_malformed_credentials_are_not_quoted(kata, cluster, caplog, capfd, creds):
    caplog.set_level(logging.DEBUG)
    identity = relate(kata, cluster, 0, kubelet_token=True)
    relation = kata.state.get_relation(identity)
    user = relation.local_unit_data["kubelet_user"]
    sent = {
        **relation.remote_units_data[0],
        "creds": creds.replace("USER", user).replace("MARK", MARK),
    }
    kata.relate(dataclasses.replace(relation, remote_units_data={0: sent}))
    kata.run(kata.context.on.relation_changed(kata.state.get_relation(identity), remote_unit=0))
    assert kata.unit[0] == "waiting"
    assert "kube-control" in kata.unit[1]
    for place, words in said(kata, caplog, capfd):
        assert not [each for each in words if MARK in each], place


@pytest.mark.parametrize(
    "options",
    [
        {"archive_url": f"https://me:{MARK}@mirror.example/{{name}}"},
        {"archive_url": f"http://me:{MARK}@mirror.example/{{name}}"},
        {"package_source": f"deb https://me:{MARK}@mirror.example/kata ./"},
    ],
)
def test_credentials_in_an_address_are_not_quoted(kata, caplog, capfd, options):
    caplog.set_level(logging.DEBUG)
    kata.config(**options).run()
    assert kata.unit[0] == "blocked"
    for place, words in said(kata, caplog, capfd):
        assert not [each for each in words if MARK in each], place
