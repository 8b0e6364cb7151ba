"""The seven actions on sandboxes and the machine, as Juju calls them."""

import contextlib
import json
import time

import ops
import ops.testing
import pytest
import yaml

from actions import SandboxActions
from kata import limits, problems
from kata.containerd import cri
from kata.sandbox import network, probe, throwaway, verify, verify_pod
from tests.unit import containerd_machine, kata_machine, kata_releases
from tests.unit import sandbox_tree as tree

DEFINED = yaml.safe_load(kata_releases.CHARM.read_text())
NAMES = (
    *("list-sandboxes", "inspect-sandbox", "verify-sandbox", "check-host", "diagnose"),
    *("show-config", "console-command"),
)


@pytest.fixture
def machine(node, monkeypatch, tmp_path):
    kata_machine.make(node, monkeypatch, tmp_path)
    return node


@pytest.fixture
def run(machine):
    """Run an action on a unit of a charm that has nothing but these."""

    def run(action, server=None, config=None, **params):
        class Charm(ops.CharmBase):
            def __init__(self, framework):
                super().__init__(framework)
                give = contextlib.nullcontext
                self.answers = SandboxActions(self, machine, lambda: give(server))

        context = ops.testing.Context(
            Charm,
            meta={"name": "kata"},
            config=DEFINED["config"],
            actions={name: DEFINED["actions"][name] for name in NAMES},
        )
        state = ops.testing.State(config=config or {})
        context.run(context.on.action(action, params=params), state)
        return context

    return run


def failure(run, action, **params):
    with pytest.raises(ops.testing.ActionFailed) as caught:
        run(action, **params)
    return caught.value.message


@pytest.mark.parametrize("name", NAMES)
def test_every_action_is_described_and_takes_nothing_else(name):
    action = DEFINED["actions"][name]
    assert action["additionalProperties"] is False
    assert len(action["description"]) > 50
    for each in action.get("params", {}).values():
        assert each["description"]
        assert "default" in each


# list-sandboxes


def test_list_sandboxes(run, machine, monkeypatch):
    tree.lay_go(machine, 1)
    tree.lay_rust(machine, 2, pod=("default", "web"))
    monkeypatch.setattr(cri, "pod_handlers", lambda _: {tree.sid(2): "kata-clh"})
    results = run("list-sandboxes").action_results
    assert set(results) == {"count", "table", "sandboxes"}
    assert results["count"] == "2"
    assert results["table"].splitlines()[0].startswith("POD ")
    listed = json.loads(results["sandboxes"])
    assert [(each["pod"], each["shim"], each["handler"]) for each in listed] == [
        ("nginx", "go", None),
        ("web", "rust", "kata-clh"),
    ]


def test_containerd_is_asked_once_however_many_there_are(run, machine, monkeypatch):
    asked = []
    monkeypatch.setattr(cri, "pod_handlers", lambda path: asked.append(path) or {})
    for number in range(20):
        tree.lay_go(machine, number, pod=("default", f"p{number}"))
    assert run("list-sandboxes").action_results["count"] == "20"
    assert asked == [machine.path("/run/containerd/containerd.sock")]


def test_a_containerd_that_does_not_answer_costs_a_column(run, machine, monkeypatch):
    def fail(_):
        raise problems.Waiting("no answer")

    monkeypatch.setattr(cri, "pod_handlers", fail)
    tree.lay_go(machine)
    context = run("list-sandboxes")
    assert context.action_results["count"] == "1"
    assert context.action_logs == ["without handlers: no answer"]


def test_more_than_juju_takes_is_cut_in_whole_pieces_and_kept_in_a_file(run, machine):
    for number in range(600):
        tree.lay_go(machine, number, pod=("default", f"pod-{number:03}"))
    results = run("list-sandboxes").action_results
    assert all(len(value.encode()) < 128 << 10 for value in results.values())
    shown = json.loads(results["sandboxes"])
    assert 100 < len(shown) < 600
    assert results["count"] == "600"
    assert results["complete"] == "in /var/lib/kata-charm/list_sandboxes.json on this machine"
    whole = json.loads(machine.read("/var/lib/kata-charm/list_sandboxes.json"))
    assert len(whole["sandboxes"]) == 600
    assert whole["sandboxes"][: len(shown)] == shown
    assert machine.path("/var/lib/kata-charm/list_sandboxes.json").stat().st_mode & 0o77 == 0


def test_hostile_names_come_as_json_and_as_plain_text(run, machine):
    tree.lay_go(machine, pod=("default", "evil\x1b[2J\n"))
    results = run("list-sandboxes").action_results
    assert "\x1b" not in results["table"]
    assert json.loads(results["sandboxes"])[0]["pod"] == "evil\x1b[2J\n"


# inspect-sandbox, console-command


def test_inspect_sandbox(run, machine, monkeypatch):
    tree.lay_go(machine)
    way = network.Way(network.Link(3, "tap0_kata", "tun"), None, problems=("no device",))
    found = network.Network("/run/netns/x", "cbr0", (way,))
    monkeypatch.setattr(network, "look", lambda *_: found)
    results = run("inspect-sandbox", pod="default/nginx").action_results
    assert set(results) == {"picture", "mermaid", "sandbox"}
    assert "✗ no device" in results["picture"]
    assert results["mermaid"].startswith("flowchart TD")
    data = json.loads(results["sandbox"])
    assert data["network"]["ways"][0]["tap"]["name"] == "tap0_kata"
    assert data["hypervisor"] == "qemu"
    assert data["kernel_parameters"] == "quiet panic=1"


def test_inspect_sandbox_by_the_beginning_of_an_id(run, machine):
    tree.lay_go(machine)
    results = run("inspect-sandbox", sandbox=tree.sid(1)[:12]).action_results
    assert "cni-1 is gone" in results["picture"]


@pytest.mark.parametrize("action", ["inspect-sandbox", "console-command"])
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "give pod=namespace/name or sandbox=id"),
        ({"pod": "default/none"}, "pod=default/none: no such Kata sandbox on this machine"),
    ],
)
def test_what_is_not_there_is_said(run, action, params, words):
    assert words in failure(run, action, **params)


def test_console_command(run, machine):
    tree.lay_go(machine)
    results = run("console-command", pod="default/nginx").action_results
    assert results["command"] == ""
    assert "juju config kata debug-console=true" in results["detail"]
    assert json.loads(results["console"]) == {
        "pod": "default/nginx",
        "sandbox": tree.sid(1),
        "command": "",
        "detail": results["detail"],
    }


# verify-sandbox


VERDICT = verify.Verdict(
    "kata", probe.Kernel("6.8.0", "#1"), probe.Kernel("6.12", "#2"), 3.25, notes=("a note",)
)


def test_verify_sandbox(run, machine, monkeypatch):
    asked = []

    def prove(node, service, handler, **more):
        asked.append((service, handler, more))
        return VERDICT

    monkeypatch.setattr(verify, "sandbox", prove)
    results = run("verify-sandbox", timeout=77).action_results
    verdict = json.loads(results.pop("verdict"))
    assert verdict == results | {"verified": True}
    assert results == {
        "verified": "true",
        "handler": "kata",
        "host-kernel": "6.8.0 #1",
        "guest-kernel": "6.12 #2",
        "boot-seconds": "3.25",
        "detail": "a note\nthe sandbox is gone again without a trace",
    }
    service = throwaway.Service("/run/containerd/containerd.sock", "/usr/bin/ctr", (1, 7, 24))
    more = {"image": "", "timeout": 77.0}
    assert asked == [(service, "kata", more)]


def test_a_handler_that_does_not_isolate_fails_with_all_results(run, machine, monkeypatch):
    verdict = verify.Verdict("kata", VERDICT.host, VERDICT.host, 1, "not isolated: runc")
    monkeypatch.setattr(verify, "sandbox", lambda *_, **__: verdict)
    with pytest.raises(ops.testing.ActionFailed, match="not isolated") as caught:
        run("verify-sandbox", handler="kata-clh")
    assert caught.value.message == "not isolated: runc"


def test_a_known_cause_comes_with_its_remedy(run, machine, monkeypatch):
    import actions

    trouble = "no sandbox: failed to create shim task: not found"
    told = actions._told(verify.Verdict("kata", VERDICT.host, trouble=trouble))
    assert (told["guest-kernel"], told["boot-seconds"]) == ("", "")
    assert "remedy: remove the options table" in told["detail"]


def test_level_pod_goes_through_the_api(run, machine, monkeypatch):
    asked = []

    def prove(node, service, server, handler, **more):
        asked.append((server, handler))
        return VERDICT

    monkeypatch.setattr(verify_pod, "pod", prove)
    run("verify-sandbox", server="the API", level="pod", handler="untrusted")
    assert asked == [("the API", "untrusted")]


def test_level_pod_needs_the_relation(run):
    assert "integrate kube-control" in failure(run, "verify-sandbox", level="pod")


# The machine


def test_check_host(run, machine):
    results = run("check-host").action_results
    assert set(results) == {"ready", "report", "checks"}
    assert results["ready"] == "true"
    checks = json.loads(results["checks"])
    assert {"name", "found", "wanted", "ok", "remedy", "required"} == set(checks[0])


def test_check_host_of_a_machine_that_is_not_ready(run, machine):
    machine.path("/etc/kata-containers/configuration.toml").unlink()
    results = run("check-host").action_results
    assert results["ready"] == "false"
    assert "NO   kata: guest" in results["report"]


def test_diagnose(run, machine):
    line = 'one containerd[7]: level=error error="failed to create shim task: not found"'
    machine.on("journalctl --unit *", line)
    results = run("diagnose").action_results
    assert results["count"] == "1"
    assert results["report"].startswith("1. options-table")
    assert json.loads(results["findings"])[0]["name"] == "options-table"


def test_diagnose_a_pod(run, machine):
    assert "default/web no failure" in " ".join(
        run("diagnose", pod="default/web").action_results["report"].split()
    )
    assert "expected namespace/name" in failure(run, "diagnose", pod="web")


def test_show_config(run, machine):
    results = run("show-config").action_results
    assert results["containerd-config"] == containerd_machine.MAIN
    assert "runtimes.kata" in results["handlers"]
    assert (results["drift"], results["notes"]) == ("none", "none")
    assert results["kata-config"] == "as shipped\n"
    config = json.loads(results["config"])
    assert config["live"] == containerd_machine.MAIN
    assert config["kata"] == {"/etc/kata-containers/configuration.toml": "as shipped\n"}


# What they share


@pytest.mark.parametrize("action", [each for each in NAMES if each != "verify-sandbox"])
def test_an_answer_that_does_not_come_is_given_up(run, machine, monkeypatch, action):
    tree.lay_go(machine)
    within = limits.within
    monkeypatch.setattr(limits, "within", lambda seconds: within(min(seconds, 1)))

    def hang(*_):
        while True:
            time.sleep(1)

    for name in ("kata.settings.read", "kata.containerd.cri.pod_handlers"):
        monkeypatch.setattr(name, hang)
    known = DEFINED["actions"][action].get("params", {})
    params = {"pod": "default/nginx"} if "pod" in known else {}
    assert failure(run, action, **params).startswith("no answer within 1 s")


def test_control_characters_reach_no_terminal(run, machine):
    path = "/etc/kata-containers/configuration.toml"
    text = machine.read(path)
    machine.path(path).write_bytes(text.encode() + b"# \x1b[2J \xff \0 \xe2\x80\xae caf\xc3\xa9\n")
    results = run("show-config").action_results
    assert r"# \x1b[2J \udcff \x00 \u202e café" in results["kata-config"]
    assert results["config"].isascii()


@pytest.mark.parametrize("action", ["list-sandboxes", "check-host", "show-config", "diagnose"])
def test_a_bad_option_fails_in_its_own_words(run, action):
    assert "option shim='ocaml'" in failure(run, action, config={"shim": "ocaml"})


@pytest.mark.parametrize("action", ["verify-sandbox", "show-config"])
def test_no_containerd_fails_in_its_own_words(run, machine, action):
    machine.on("systemctl show *", "LoadState=not-found\n")
    assert "containerd not found" in failure(run, action)


def test_what_the_machine_refuses_is_said(run, machine, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/run/x")

    monkeypatch.setattr(network, "look", refuse)
    tree.lay_go(machine)
    said = failure(run, "inspect-sandbox", pod="default/nginx")
    assert said == "the machine refused: [Errno 13] Permission denied: '/run/x'"
