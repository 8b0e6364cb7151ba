"""The hook tools of the throwaway node, called by ops as it calls Juju's own."""

import datetime as dt
import json
import pathlib
import subprocess
import sys
import time

import ops
import pytest
import yaml
from ops import hookcmds, model, storage

from tests.node import hooktools, image, juju

# ops notes a refusal for the security log, which a charm sets up and this test does not.
pytestmark = pytest.mark.filterwarnings("ignore:JujuLogHandler")

CHARM = pathlib.Path(juju.__file__).parent / "empty_charm"
REMOTE = {"token": "abc"}


class Controller:
    """What Juju knows, in the file that the tools read, and ops' way to ask for it."""

    def __init__(self, folder, monkeypatch):
        self.path = folder / "state.json"
        self.monkeypatch = monkeypatch
        tools = folder / "tools"
        tools.mkdir()
        image.ensure_commands()
        client = juju.compiled(juju.TOOL)
        socket = f"{folder}/socket"
        self.server = subprocess.Popen([sys.executable, "-IS", hooktools.__file__, socket])
        while not pathlib.Path(socket).exists():
            assert self.server.poll() is None
            time.sleep(0.01)
        for name in hooktools.TOOLS:
            (tools / name).symlink_to(client)
        self.environment = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "HOOKTOOLS_STATE": str(self.path),
            "HOOKTOOLS_SOCKET": socket,
        }
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        self.unit = juju.Unit(node=None, name="empty/0", source=CHARM)
        self.config = {"greeting": "hello", "count": None}
        self.action = None
        self.send()

    def send(self):
        """Write what Juju knows, as at the start of a hook."""
        begun = {"config": self.config, "action": self.action, "statuses": [], "reboot": None}
        self.path.write_text(json.dumps({**self.unit.state, **begun}))

    @property
    def state(self):
        return json.loads(self.path.read_text())

    def lead(self, leader):
        self.unit.leader = leader
        self.send()

    def relate(self, **data):
        relation = self.unit.relate("partner", "friend", units=2, **data)
        self.send()
        return relation

    def act(self, **parameters):
        self.action = {"params": parameters, "results": {}, "failure": None, "log": []}
        self.send()

    def backend(self, **context):
        for name, value in context.items():
            self.monkeypatch.setenv(name, value)
        return model._ModelBackend("empty/0", "demo", "uuid")

    def ask(self, *command):
        return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def controller(tmp_path, monkeypatch):
    monkeypatch.setenv("JUJU_VERSION", "3.6.9")
    found = Controller(tmp_path, monkeypatch)
    yield found
    found.server.kill()
    found.server.wait()


@pytest.fixture
def backend(controller):
    return controller.backend()


# Configuration and leadership


def test_options_without_a_value_are_left_out(backend):
    assert backend.config_get() == {"greeting": "hello"}


def test_one_option(controller):
    assert hookcmds.config_get("greeting") == "hello"
    assert hookcmds.config_get("count") is None
    assert controller.ask("config-get", "greeting").stdout == "hello\n"


@pytest.mark.parametrize("leader", [True, False])
def test_leadership(controller, backend, leader):
    controller.lead(leader)
    assert backend.is_leader() is leader
    assert controller.ask("is-leader").stdout == f"{leader}\n"


def test_only_the_leader_writes_leader_settings(controller):
    assert controller.ask("leader-set", "a=1").returncode == 0
    assert controller.ask("leader-get", "a").stdout == "1\n"
    controller.lead(False)
    refused = controller.ask("leader-set", "a=2")
    assert (refused.returncode, refused.stderr[:5]) == (1, "ERROR")


def test_facts(controller, backend):
    assert backend.planned_units() == 1
    (bound,) = backend.network_get("partner")["bind-addresses"]
    assert bound["addresses"][0]["value"] == juju.ADDRESS
    assert controller.ask("unit-get", "private-address").stdout == f"{juju.ADDRESS}\n"
    with pytest.raises(ops.ModelError, match="no network config found"):
        backend.network_get("nowhere")
    with pytest.raises(ops.ModelError, match="cannot access cloud credentials"):
        backend.credential_get()


def test_resources(controller, backend):
    with pytest.raises(ops.ModelError, match="could not download resource"):
        backend.resource_get("thing")
    controller.unit.state["resources"]["thing"] = "/somewhere/thing.bin"
    controller.send()
    assert backend.resource_get("thing") == "/somewhere/thing.bin"


# Relations


def test_an_endpoint_without_relations(backend):
    assert backend.relation_ids("partner") == []


def test_a_relation(controller, backend):
    relation = controller.relate(unit_data=REMOTE, app_data={"of": "all"})
    assert backend.relation_ids("partner") == [relation.id]
    assert backend.relation_list(relation.id, relation_name="partner") == ["friend/0", "friend/1"]
    assert backend.relation_remote_app_name(relation.id) == "friend"
    assert backend.relation_get(relation.id, "friend/1", False)["token"] == "abc"
    assert backend.relation_get(relation.id, "friend", True) == {"of": "all"}
    assert backend.relation_get(relation.id, "empty/0", False)["ingress-address"]
    assert backend.relation_model_get(relation.id)["uuid"]
    assert "friend/0" in hookcmds.goal_state().relations["partner"]


def test_one_key_of_a_relation(controller):
    relation = controller.relate(unit_data=REMOTE)
    assert hookcmds.relation_get(relation.id, key="token", unit="friend/0") == "abc"
    assert hookcmds.relation_get(relation.id, key="none", unit="friend/0") is None


def test_writing_to_a_relation(controller, backend):
    relation = controller.relate()
    backend.relation_set(relation.id, {"a": "1", "b": "2"}, False, relation_name="partner")
    backend.relation_set(relation.id, {"a": ""}, False)
    backend.relation_set(relation.id, {"c": "3"}, True)
    data = controller.state["relations"][str(relation.id)]["data"]
    assert ("a" in data["empty/0"], data["empty/0"]["b"], data["empty"]) == (
        False,
        "2",
        {"c": "3"},
    )


def test_a_follower_does_not_touch_its_applications_data(controller, backend):
    relation = controller.relate()
    controller.lead(False)
    with pytest.raises(ops.ModelError, match="cannot write relation settings"):
        backend.relation_set(relation.id, {"c": "3"}, True)
    with pytest.raises(ops.ModelError, match="permission denied"):
        backend.relation_get(relation.id, "empty", True)


@pytest.mark.parametrize("given", ["7", "partner:7", "placement:0", "nonsense"])
def test_a_relation_that_is_gone(controller, given):
    controller.relate()
    answer = controller.ask("relation-list", "-r", given)
    assert answer.returncode == 2
    assert answer.stderr == f'ERROR invalid value "{given}" for option -r: relation not found\n'


def test_ops_understands_that_a_relation_is_gone(backend):
    with pytest.raises(ops.RelationNotFoundError):
        backend.relation_list(7, relation_name="partner")


def test_the_relation_of_the_hook_is_the_default(controller):
    relation = controller.relate(unit_data=REMOTE)
    assert controller.ask("relation-list").returncode == 2
    controller.monkeypatch.setenv("JUJU_RELATION_ID", f"partner:{relation.id}")
    controller.monkeypatch.setenv("JUJU_REMOTE_UNIT", "friend/1")
    controller.monkeypatch.setenv("JUJU_REMOTE_APP", "friend")
    assert hookcmds.relation_list() == ["friend/0", "friend/1"]
    assert hookcmds.relation_get(key="token") == "abc"
    assert controller.ask("relation-list").stdout == "friend/0\nfriend/1\n"


# Status and logs


def test_statuses(controller, backend):
    assert backend.status_get()["status"] == "unknown"
    backend.status_set("maintenance", "-- 50 %")
    backend.status_set("active", "", is_app=True)
    assert backend.status_get() == {"status": "maintenance", "message": "-- 50 %"}
    assert backend.status_get(is_app=True)["status"] == "active"
    assert [each["whose"] for each in controller.state["statuses"]] == ["unit", "app"]
    assert controller.ask("status-get").stdout == "maintenance\n"


def test_refused_statuses(controller, backend):
    answer = controller.ask("status-set", "error", "no")
    assert (answer.returncode, "invalid status" in answer.stderr) == (2, True)
    controller.lead(False)
    with pytest.raises(ops.ModelError, match="not the leader"):
        backend.status_set("active", is_app=True)


def test_log_and_version(controller, backend):
    backend.juju_log("WARNING", "--odd\nsecond line")
    backend.application_version_set("-1.2")
    written = json.loads(controller.path.with_suffix(".json.log").read_text())
    assert written[1:] == ["WARNING", "--odd\nsecond line"]
    assert controller.state["version"] == "-1.2"


# Actions


def test_an_action(controller, backend):
    controller.act(word="x", nested={"deep": 1})
    assert backend.action_get() == {"word": "x", "nested": {"deep": 1}}
    assert hookcmds.action_get("nested.deep") == 1
    assert hookcmds.action_get("nothing") is None
    backend.action_set({"a": {"b": "1", "c": "x=y"}})
    backend.action_log("--half")
    backend.action_fail("-no")
    action = controller.state["action"]
    assert action["results"] == {"a": {"b": "1", "c": "x=y"}}
    assert (action["log"], action["failure"]) == (["--half"], "-no")


def test_a_hook_is_no_action(backend):
    with pytest.raises(ops.ModelError, match="not running an action"):
        backend.action_get()


# Secrets


def test_a_secret_of_ours(controller, backend):
    relation = controller.relate()
    uri = backend.secret_add(
        {"key": "one\ntwo"}, label="mine", description="for a test", owner="application"
    )
    assert backend.secret_get(label="mine") == {"key": "one\ntwo"}
    info = backend.secret_info_get(id=uri)
    assert (info.revision, info.label, info.description) == (1, "mine", "for a test")
    backend.secret_set(
        uri, content={"key": "new"}, expire=dt.datetime(2030, 1, 1, tzinfo=dt.timezone.utc)
    )
    assert backend.secret_get(id=uri) == {"key": "one\ntwo"}
    assert backend.secret_get(id=uri, peek=True) == {"key": "new"}
    assert backend.secret_get(id=uri, refresh=True) == {"key": "new"}
    assert backend.secret_get(id=uri) == {"key": "new"}
    assert backend.secret_info_get(label="mine").revision == 2
    backend.secret_grant(uri, relation.id)
    assert len(next(iter(controller.state["secrets"].values()))["grants"]) == 1
    backend.secret_revoke(uri, relation.id)
    assert hookcmds.secret_ids() == [uri.removeprefix("secret:")]
    backend.secret_remove(uri)
    with pytest.raises(ops.SecretNotFoundError):
        backend.secret_get(id=uri)


def test_a_secret_of_another_application(controller, backend):
    uri = controller.unit.grant_secret({"token": "1"})
    controller.send()
    assert backend.secret_get(id=uri, label="theirs") == {"token": "1"}
    assert backend.secret_get(label="theirs") == {"token": "1"}
    with pytest.raises(ops.SecretNotFoundError):
        backend.secret_info_get(id=uri)
    # Juju takes over the label and the revision seen, and the owner then writes another.
    controller.unit.state = {**controller.unit.state, "secrets": controller.state["secrets"]}
    assert controller.unit.update_secret(uri, {"token": "2"}) == 2
    controller.send()
    assert backend.secret_get(label="theirs") == {"token": "1"}
    assert backend.secret_get(label="theirs", refresh=True) == {"token": "2"}


def test_a_secret_that_was_not_granted(controller, backend):
    uri = controller.unit.grant_secret({"token": "1"}, granted=False)
    controller.send()
    with pytest.raises(ops.ModelError, match="permission denied"):
        backend.secret_get(id=uri)


def test_a_secret_that_nobody_knows(backend):
    with pytest.raises(ops.SecretNotFoundError):
        backend.secret_get(label="nobody's")


# What the charm leaves with Juju


def test_stored_state_as_ops_keeps_it(controller):
    store = storage._JujuStorageBackend()
    store.set("here", {"a": [1, 2], "b": "x: y\n"})
    assert store.get("here") == {"a": [1, 2], "b": "x: y\n"}
    assert yaml.safe_load(controller.state["stored"]["here"])["a"] == [1, 2]
    with pytest.raises(KeyError):
        store.get("gone")
    store.delete("here")
    assert hookcmds.state_get(None) == {}


def test_ports(backend):
    backend.open_port("tcp", 80)
    backend.open_port("icmp")
    backend.open_port("tcp", 8080)
    backend.close_port("tcp", 8080)
    assert backend.opened_ports() == {ops.Port("tcp", 80), ops.Port("icmp", None)}


def test_a_wish_to_reboot(controller, backend):
    backend.reboot()
    assert controller.state["reboot"] == "after"
    script = "import subprocess; subprocess.run(['juju-reboot', '--now']); print('still here')"
    killed = controller.ask(sys.executable, "-c", script)
    assert (killed.returncode, killed.stdout) == (-9, "")
    assert controller.state["reboot"] == "now"


def test_an_option_that_no_tool_knows(controller):
    answer = controller.ask("relation-ids", "--nothing", "partner")
    assert answer.returncode == 2
    assert answer.stderr == "ERROR option provided but not defined: --nothing\n"
