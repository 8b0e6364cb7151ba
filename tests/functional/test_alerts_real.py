"""The alert rules and the dashboard, by Prometheus' own programs.

Rules are checked and tested by promtool. A real Prometheus scrapes the real exporter, over a
machine that is a folder, and answers every question of the dashboard.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request

import pytest
import yaml

import cos_agent
from kata.observability import exporter, measures, told
from tests.unit import containerd_machine, kata_machine
from tests.unit import sandbox_tree as tree
from tests.unit.conftest import FakeNode

UNPACKED = pathlib.Path(__file__).parents[2] / ".cache/prometheus/usr/bin"
TOPOLOGY = {
    "juju_model": "k8s",
    "juju_model_uuid": "00000000-0000-4000-8000-000000000000",
    "juju_application": "kata",
    "juju_charm": "kata",
}
LABELS = {key: value for key, value in TOPOLOGY.items() if key != "juju_charm"} | {
    "juju_unit": "kata/0",
    "instance": "one",
}
# Of kata-monitor and the shims behind it (Kata 2.0.0 to 4.1.0: src/runtime/pkg/kata-monitor,
# src/runtime/pkg/containerd-shim-v2/shim_metrics.go, src/agent/src/metrics.rs).
KATAS = {"kata_shim_rpc_durations_histogram_milliseconds_bucket", "kata_guest_meminfo"}

# Each alert: series with which it comes, and with which it does not. Values are one a minute.
CASES = {
    "KataSandboxWithoutVM": (
        {'kata_charm_sandbox_vm{sandbox="a",namespace="default",pod="nginx"}': "0x30"},
        # Four minutes of booting are no reason to wake anybody.
        {'kata_charm_sandbox_vm{sandbox="a",namespace="default",pod="nginx"}': "0x3 1x26"},
    ),
    "KataVirtualMachineLeftBehind": (
        {"kata_charm_stray_vms": "2x30"},
        {"kata_charm_stray_vms": "0x30"},
    ),
    "KataSandboxesFailToStart": (
        {'kata_charm_sandbox_failures_total{cause="no-kvm"}': "0x20 1x10"},
        {'kata_charm_sandbox_failures_total{cause="no-kvm"}': "7x30"},
    ),
    "KataConfigurationDrift": (
        {"kata_charm_config_drift_files": "1x30"},
        # The next hook has put it back.
        {"kata_charm_config_drift_files": "0x10 1x5 0x15"},
    ),
    "KataRuntimeClassMissing": (
        {'kata_charm_runtime_class_present{runtime_class="kata"}': "0x30"},
        {'kata_charm_runtime_class_present{runtime_class="kata"}': "1x30"},
    ),
    "KataNodeLabelledButNotReady": (
        {"kata_charm_node_labelled": "1x30", "kata_charm_node_ready": "0x30"},
        {"kata_charm_node_labelled": "0x30", "kata_charm_node_ready": "0x30"},
    ),
    "KataOverheadTooSmall": (
        {
            'kata_charm_sandbox_overhead_bytes{sandbox="a",hypervisor="qemu"}': "400x30",
            'kata_charm_runtime_class_overhead_bytes{runtime_class="kata",hypervisor="qemu"}': "320x30",
            'kata_charm_runtime_class_overhead_bytes{runtime_class="kata-clh",hypervisor="clh"}': "900x30",
        },
        {
            'kata_charm_sandbox_overhead_bytes{sandbox="a",hypervisor="qemu"}': "400x30",
            'kata_charm_runtime_class_overhead_bytes{runtime_class="kata",hypervisor="qemu"}': "320x30",
            'kata_charm_runtime_class_overhead_bytes{runtime_class="kata-gpu",hypervisor="qemu"}': "900x30",
        },
    ),
    "KataMetricsIncomplete": (
        {'kata_charm_look_ok{subject="starts"}': "0x30"},
        {'kata_charm_look_ok{subject="starts"}': "1x30"},
    ),
    "KataMetricsDown": ({"up": "0x30"}, {"up": "1x30"}),
}


def program(name):
    found = shutil.which(name) or shutil.which(name, path=str(UNPACKED))
    assert found, f"{name} is missing: run `make set-up`"
    return found


def promtool(*words):
    done = subprocess.run(
        [program("promtool"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def rules(tmp_path):
    """The file of rules, as the other side of cos-agent writes it."""
    path = tmp_path / "kata.rules"
    path.write_text(json.dumps(cos_agent.rules(TOPOLOGY)))
    return path


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with the charm's work done, a sandbox, and one without its virtual machine."""
    node = FakeNode(tmp_path / "node")
    kata_machine.make(node, monkeypatch, tmp_path)
    node.remove(kata_machine.SHIM)
    listens = "0: 2 0 00010000 0001 01 1 /run/containerd/containerd.sock\n"
    node.lay({"/proc/net/unix": listens, kata_machine.SHIM: "shim"})
    tree.lay_go(node, 1, pod=("default", "nginx"))
    for pid in (each for each in node.names("/proc") if each.isdigit()):
        node.lay({f"/proc/{pid}/smaps": "Size: 4 kB\nPss: 400000 kB\n"})
    tree.lay_go(node, 2, pod=("default", "broken"), command=["/bin/other"], state={})
    told.save(
        node,
        told.Told(
            time=time.time(),
            release="3.32.0",
            shim="go",
            overheads={"kata": ("qemu", 320 << 20)},
            runtime_classes={"kata": False},
            labelled=True,
        ),
    )
    return node


@pytest.fixture
def exported(machine):
    """The exporter at work; the journal has a pod more at each look."""
    counts = iter(range(10_000))

    def journal(_):
        number = next(counts)
        pod = f"&PodSandboxMetadata{{Name:p{number},Uid:u,Namespace:default,Attempt:0,}}"
        asked = f'msg="RunPodSandbox for {pod}'
        answer = rf' returns sandbox id \"{tree.sid(1)}\""'
        why = ' failed, error" error="could not access KVM kernel module"'
        lines = [
            f'{number}.0 one containerd[1]: level=info {asked}"',
            f"{number}.9 one containerd[1]: level=info {asked}{answer}",
            f"{number}.9 one containerd[1]: level=error {asked}{why}",
            "-- cursor: s=1",
        ]
        return type(machine.run("systemctl daemon-reload"))(0, "\n".join(lines), "")

    machine.on("journalctl *", effect=journal)
    place = measures.Place(
        "containerd.service", "/run/containerd", "/run/containerd/containerd.sock"
    )
    with exporter.Server(0, measures.Measures(machine, place)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def prometheus(exported, tmp_path):
    """A real Prometheus that scrapes it each second, with the rules but for their patience."""
    made = cos_agent.rules(TOPOLOGY)
    for group in made["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    (tmp_path / "now.rules").write_text(json.dumps(made))
    job = {
        "job_name": "kata_kata-charm",
        "static_configs": [{"targets": [f"127.0.0.1:{exported}"], "labels": LABELS}],
    }
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(tmp_path / "now.rules")],
        "scrape_configs": [job],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        program("prometheus"),
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, "GOGC": "50"})

        def ask(path, **query):
            url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]

        yield ask
        process.terminate()
        process.wait()


def until(condition, seconds=40):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        time.sleep(0.5)
    return condition()


def expressions():
    """Every question of the dashboard, for one unit, over a quarter of an hour."""
    panels = json.loads(cos_agent._DASHBOARD.read_text())["panels"]
    found = [(p["title"], target["expr"]) for p in panels for target in p.get("targets", ())]
    values = {"$__rate_interval": "15m", "$__interval": "15m", "$juju_unit": "kata/0", **{
        f"${name}": LABELS[name] for name in ("juju_model", "juju_application")
    }}  # fmt: skip
    for title, asked in found:
        for name, value in values.items():
            asked = asked.replace(name, value)  # noqa: PLW2901 - one after the other
        yield title, asked


def names(expression):
    return set(re.findall(r"\bkata_[a-z_]+", expression))


def test_the_rules_are_well_formed(rules):
    assert "9 rules found" in promtool("check", "rules", str(rules))


def test_each_alert_comes_and_goes(rules, tmp_path):
    alerts = {
        rule["alert"]: rule
        for group in cos_agent.rules(TOPOLOGY)["groups"]
        for rule in group["rules"]
    }
    assert alerts.keys() == CASES.keys()
    tests = []
    for name, (comes, stays_away) in CASES.items():
        for series, expected in ((comes, True), (stays_away, False)):
            given = [
                {"series": _labelled(each, LABELS), "values": values}
                for each, values in series.items()
            ]
            # Another application's are nobody's business here.
            other = LABELS | {"juju_application": "other", "juju_unit": "other/0"}
            given += [
                {"series": _labelled(each, other), "values": values}
                for each, values in comes.items()
            ]
            question = f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)'
            asked = {
                "expr": question,
                "eval_time": "25m",
                "exp_samples": [{"labels": "{}", "value": int(expected)}],
            }
            tests.append(
                {
                    "name": name,
                    "interval": "1m",
                    "input_series": given,
                    "promql_expr_test": [asked],
                }
            )
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", str(path))


def _labelled(series, labels):
    name, _, given = series.rstrip("}").partition("{")
    pairs = [*filter(None, [given]), *(f'{key}="{value}"' for key, value in labels.items())]
    return f"{name}{{{','.join(pairs)}}}"


def test_the_dashboards_questions_are_well_formed(tmp_path):
    records = [
        {"record": f"question:{place}", "expr": expression}
        for place, (_, expression) in enumerate(expressions())
    ]
    path = tmp_path / "questions.rules"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": records}]}))
    assert f"{len(records)} rules found" in promtool("check", "rules", str(path))


def test_a_real_prometheus_has_an_answer_to_every_question(prometheus):
    until(lambda: len(prometheus("query", query="kata_charm_look_seconds[1m]")["result"]))
    # A rate needs two looks.
    until(
        lambda: [
            each
            for each in prometheus("query", query="kata_charm_look_seconds[1m]")["result"]
            if len(each["values"]) > 3
        ]
    )
    there = set(prometheus("label/__name__/values"))
    for title, expression in expressions():
        assert names(expression) <= there | KATAS, title
        if not names(expression) & KATAS:
            assert prometheus("query", query=expression)["result"], (title, expression)


def test_a_real_prometheus_raises_the_alarm(prometheus):
    expected = {
        "KataSandboxWithoutVM",
        "KataSandboxesFailToStart",
        "KataRuntimeClassMissing",
        "KataOverheadTooSmall",
    }

    def firing():
        return {each["labels"]["alertname"]: each for each in prometheus("alerts")["alerts"]}

    found = until(lambda: expected <= firing().keys() and firing())
    assert found.keys() == expected
    said = found["KataSandboxWithoutVM"]["annotations"]
    assert said["summary"] == "Sandbox of default/broken has no virtual machine"
    assert "kata/0" in said["description"]


def test_a_node_that_lost_something_while_labelled_is_told_of(machine, prometheus):
    machine.lay({containerd_machine.MAIN: containerd_machine.CONFIG})
    wanted = {"KataConfigurationDrift", "KataNodeLabelledButNotReady"}

    def firing():
        return {each["labels"]["alertname"] for each in prometheus("alerts")["alerts"]}

    assert until(lambda: wanted <= firing())
