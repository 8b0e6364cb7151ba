"""What is sent over cos-agent, read as the library on the other side reads it."""

import json
import re

import cosl
import ops
import ops.testing
import pytest
from cosl.rules import AlertRules

import cos_agent
from kata.observability import services

TARGETS = (services.Target("kata-charm", 8091), services.Target("kata-monitor", 8090))
TOPOLOGY = {
    "juju_model": "k8s",
    "juju_model_uuid": "00000000-0000-4000-8000-000000000000",
    "juju_application": "kata",
    "juju_charm": "kata",
}


SEEN = {}


class Charm(ops.CharmBase):
    """A charm that sends what `targets` says."""

    targets = TARGETS

    def __init__(self, framework):
        super().__init__(framework)
        self.cos_agent = cos_agent.Provider(self)
        framework.observe(self.on.update_status, self.send)
        framework.observe(self.on["cos-agent"].relation_broken, self.send)

    def send(self, _):
        SEEN["asked"] = self.cos_agent.is_asked
        SEEN["changed"] = self.cos_agent.publish(self.targets)


@pytest.fixture
def context():
    meta = {
        "name": "kata",
        "subordinate": True,
        "requires": {"node": {"interface": "juju-info", "scope": "container"}},
        "provides": {"cos-agent": {"interface": "cos_agent", "limit": 1}},
    }
    return ops.testing.Context(Charm, meta=meta, app_name="kata", unit_id=0)


def run(context, *relations, event=None):
    model = ops.testing.Model(name="k8s", uuid=TOPOLOGY["juju_model_uuid"])
    state = ops.testing.State(relations=list(relations), model=model)
    return context.run(event or context.on.update_status(), state)


def sent(state, relation):
    return json.loads(state.get_relation(relation.id).local_unit_data["config"])


def test_the_fields_are_those_of_the_library(context):
    relation = ops.testing.Relation("cos-agent")
    said = sent(run(context, relation), relation)
    # grafana_agent.v0.cos_agent, CosAgentProviderUnitData: those without a default.
    assert {key: type(value) for key, value in said.items()} == {
        "metrics_alert_rules": dict,
        "log_alert_rules": dict,
        "dashboards": list,
        "metrics_scrape_jobs": list,
        "log_slots": list,
    }


def test_each_target_is_a_job_of_its_own(context):
    relation = ops.testing.Relation("cos-agent")
    jobs = sent(run(context, relation), relation)["metrics_scrape_jobs"]
    assert jobs == [
        {
            "job_name": f"kata_{name}",
            "metrics_path": "/metrics",
            "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
        }
        for name, port in TARGETS
    ]


def test_the_dashboard_is_read_as_it_was(context):
    relation = ops.testing.Relation("cos-agent")
    (dashboard,) = sent(run(context, relation), relation)["dashboards"]
    read = json.loads(cosl.LZMABase64.decompress(dashboard))
    assert read == json.loads(cos_agent._DASHBOARD.read_text())
    assert cosl.DashboardPath40UID.is_valid(read["uid"])
    assert "charm: kata" in read["tags"]


def test_the_rules_are_those_that_the_library_would_send():
    topology = cosl.JujuTopology(
        model="k8s",
        model_uuid=TOPOLOGY["juju_model_uuid"],
        application="kata",
        unit="kata/0",
        charm_name="kata",
    )
    theirs = AlertRules(query_type="promql", topology=topology)
    theirs.add_path(cos_agent._RULES.parent)
    (there,), (here,) = theirs.as_dict()["groups"], cos_agent.rules(TOPOLOGY)["groups"]
    assert theirs._is_already_modified(here["name"])
    assert here["name"].startswith(topology.identifier)
    for one, other in zip(there["rules"], here["rules"], strict=True):
        expression = re.sub(
            r'juju_(?:model|model_uuid|application)="[^"]*",? ?', "", other["expr"]
        )
        assert expression == one["expr"]
        assert topology.alert_expression_str in other["expr"]
        assert {**one, "expr": ""} == {**other, "expr": ""}


def test_the_same_is_not_sent_again(context):
    relation = ops.testing.Relation("cos-agent")
    state = run(context, relation)
    assert SEEN["changed"]
    run(context, state.get_relation(relation.id))
    assert not SEEN["changed"]


def test_a_unit_that_serves_nothing_asks_for_nothing(context, monkeypatch):
    monkeypatch.setattr(Charm, "targets", ())
    relation = ops.testing.Relation("cos-agent")
    said = sent(run(context, relation), relation)
    assert not any(said.values())


def test_who_leaves_no_longer_asks(context):
    relation = ops.testing.Relation("cos-agent")
    run(context, relation)
    assert SEEN["asked"]
    run(context, relation, event=context.on.relation_broken(relation))
    assert not SEEN["asked"]
    run(context)
    assert not SEEN["asked"]
