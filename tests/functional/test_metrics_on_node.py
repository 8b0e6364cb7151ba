"""What is served to Prometheus, by real systemd units on a real node, from coming to going.

The release is a stand-in, and so is its kata-monitor: it takes the real one's options and has its
names. The exporter is the charm's own, as it runs on any machine.
"""

import json
import re
import time

import pytest

import cos_agent
from tests.node import containers, image, juju, machine, scrape, standin, view

RELEASE = "3.32.0"
UNITS = ("kata-charm-monitor", "kata-charm-metrics")
GET = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:{}/metrics').read().decode())"
# `systemd-analyze security` counts from 0 to 10; services of Debian's own are at 9.6.
EXPOSURE = 2.5
PAUSE = "registry.k8s.io/pause:3.6"
# A pod on the host's network, as kubelet asks containerd for it; prints its sandbox's id.
POD = """
import contextlib, pathlib, sys
from kata.containerd import grpc, protobuf
name, handler = sys.argv[1:]
context = protobuf.message((1, protobuf.message((1, 2))))
pod = protobuf.message(
    (1, protobuf.message((1, name), (2, "uid-of-" + name), (3, "default"))),
    (8, protobuf.message((2, context))),
)
with contextlib.closing(grpc.Channel(pathlib.Path("/run/containerd/containerd.sock"))) as channel:
    request = protobuf.message((1, pod), (2, handler))
    answer = channel.call("runtime.v1.RuntimeService/RunPodSandbox", request, 60)
print(protobuf.text(answer, 1))
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    program = image.ready().sleep.read_bytes()
    return standin.archives((RELEASE, "4.1.0"), folder, hypervisor=program)


@pytest.fixture(scope="module")
def unit(booted, archives):
    """The unit, related to a collector. The tests of this file are its life, in order."""
    with machine.Machine.restored(juju.with_charm(booted)) as node:
        containers.load_image(node)
        containers.load_image(node, PAUSE)
        unit = juju.Unit(node, "kata/0")
        unit.relate("containerd", "kubernetes-worker")
        unit.attach("kata-archive", archives[RELEASE])
        unit.before = view.look(node)
        unit.collector = unit.relate("cos-agent", "opentelemetry-collector")
        result = unit.dispatch("install")
        assert result.ok, result.output
        yield unit


def metrics(unit, port=8091):
    # Under emulation it takes seconds from the start of a service to its first answer.
    ask = ["python3", "-S", "-c", GET.format(port)]
    served = until(lambda: unit.node.run(ask, check=False).out, 30)
    assert served, f"nobody answers on {port}"
    return scrape.Metrics.of(served)


def active(unit):
    words = unit.node.run(["systemctl", "is-active", *UNITS], check=False).out.split()
    return dict(zip(UNITS, words, strict=True))


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.3)
    return found


def test_both_are_served_on_the_loopback_address(unit):
    assert unit.status.name == "active", unit.status
    assert set(active(unit).values()) == {"active"}
    assert metrics(unit, 8090).value("kata_monitor_running_shim_count") == 0
    assert metrics(unit).value("kata_charm_info", version=RELEASE, shim="go") == 1
    listening = unit.node.run("cat /proc/net/tcp /proc/net/tcp6").out
    for port in (8090, 8091):
        places = re.findall(rf"(\w+):{port:04X} \w+:0000 0A", listening)
        assert places == ["0100007F"]


def test_the_collector_is_told(unit):
    sent = json.loads(unit.collector.data()[cos_agent.KEY])
    targets = [job["static_configs"][0]["targets"][0] for job in sent["metrics_scrape_jobs"]]
    assert sorted(targets) == ["127.0.0.1:8090", "127.0.0.1:8091"]


def test_nothing_is_missed_for_being_hardened(unit):
    found = metrics(unit)
    assert set(found.values_of("kata_charm_look_ok")) == {1}
    assert {1} == set(found.values_of("kata_charm_check"))
    assert found.value("kata_charm_node_ready") == 1
    for name in UNITS:
        said = unit.node.run(["systemd-analyze", "security", "--no-pager", name]).out
        exposure = float(re.search(r"exposure level[^\d]*([\d.]+)", said)[1])
        print(name, exposure)
        assert exposure <= EXPOSURE, said
    # Credentials are kept where the exporter's own word lies, and it does not see them.
    pid = unit.node.run(["systemctl", "show", "-P", "MainPID", UNITS[1]]).out.strip()
    assert unit.node.run(f"ls /proc/{pid}/root/var/lib/kata-charm").out.split() == [
        "containerd",
        "metrics",
    ]


def test_sandboxes_with_and_without_a_machine(unit):
    unit.node.run(
        "nohup ctr -n k8s.io run --rm --runtime io.containerd.kata.v2 --runtime-config-path"
        f" /etc/kata-containers/configuration.toml {containers.IMAGE} long sleep 600"
        " >/dev/null 2>&1 & for i in $(seq 300); do"
        " ctr -n k8s.io tasks ls | grep -q 'long.*RUNNING' && exit 0; sleep 0.2; done; exit 1"
    )
    found = metrics(unit)
    assert found.value("kata_charm_sandboxes") == 1
    assert found.value("kata_charm_sandbox_vm", sandbox="long") == 0
    unit.node.run(
        "exec -a /opt/kata/bin/qemu-system-x86_64 sh -c 'sleep 600; :' -name sandbox-long -m 2048M"
        " >/dev/null 2>&1 & sleep 0.5",
    )
    found = metrics(unit)
    assert found.value("kata_charm_sandbox_vm", sandbox="long", hypervisor="qemu") == 1
    assert found.value("kata_charm_sandbox_guest_memory_bytes", sandbox="long") == 2 << 30
    assert 100_000 < found.value("kata_charm_sandbox_overhead_bytes", sandbox="long") < 50_000_000
    unit.node.run("pkill -f [s]andbox-long; ctr -n k8s.io tasks kill -s KILL long")
    assert until(lambda: metrics(unit).value("kata_charm_sandboxes") == 0)


def run_pod(unit, name, handler, check=True):
    places = ":".join(f"{unit.folder}/{each}" for each in ("src", "lib", "venv"))
    words = ["python3", "-c", POD, name, handler]
    return unit.node.run(words, env={"PYTHONPATH": places}, check=check, timeout=100)


def test_how_pods_start_is_counted(unit):
    sandbox = run_pod(unit, "good", "kata").out.strip()
    assert not run_pod(unit, "bad", "nowhere", check=False).out
    assert until(lambda: metrics(unit).value("kata_charm_sandbox_start_seconds_count") == 1)
    found = metrics(unit)
    assert found.value("kata_charm_sandbox_vm", namespace="default", pod="good") == 0
    assert 0 < found.value("kata_charm_sandbox_start_seconds_sum") < 30
    assert found.value("kata_charm_sandbox_failures_total", cause="no-handler") == 1
    assert sum(found.values_of("kata_charm_sandbox_failures_total")) == 1
    unit.node.run(f"ctr -n k8s.io tasks kill -s KILL {sandbox}; sleep 1")


def test_drift_is_seen_and_healed(unit):
    was = unit.node.copy_out(view.CONFIG)
    unit.node.copy_in("version = 2\n", view.CONFIG)
    found = metrics(unit)
    assert found.value("kata_charm_config_drift_files") == 1
    assert found.value("kata_charm_check", check="handlers") == 0
    assert found.value("kata_charm_node_ready") == 0
    unit.node.copy_in(was, view.CONFIG)
    found = metrics(unit)
    assert found.value("kata_charm_config_drift_files") == 0
    assert found.value("kata_charm_node_ready") == 1


def test_another_release_is_another_monitor(unit, archives):
    first = unit.node.run(["systemctl", "show", "-P", "InvocationID", *UNITS]).out.split()
    assert unit.dispatch("update-status").ok
    assert unit.node.run(["systemctl", "show", "-P", "InvocationID", *UNITS]).out.split() == first
    unit.attach("kata-archive", archives["4.1.0"])
    assert unit.dispatch("upgrade-charm").ok
    assert active(unit) == {UNITS[0]: "inactive", UNITS[1]: "active"}
    assert "Kata 4.1.0 ships no kata-monitor" in unit.status.message


def test_a_port_that_is_taken_is_named(unit):
    unit.node.run("nohup python3 -m http.server --bind 127.0.0.1 9001 >/dev/null 2>&1 & sleep 1.5")
    unit.config["metrics-port"] = 9000
    assert unit.dispatch("config-changed").ok
    # systemd tries again every 15 seconds.
    assert until(lambda: active(unit)[UNITS[1]] == "activating", 30)
    assert unit.dispatch("update-status").ok
    assert "port 9001 taken?" in unit.status.message
    unit.config["metrics-port"] = 9002
    assert unit.dispatch("config-changed").ok
    assert metrics(unit, 9003).value("kata_charm_node_ready") == 1


def test_without_the_relation_nothing_of_it_is_left(unit):
    assert all(result.ok for result in unit.collector.leave())
    assert set(active(unit).values()) == {"inactive"}
    left = unit.node.run(
        "ls /etc/systemd/system /usr/local/lib/kata-charm /var/lib/kata-charm"
    ).out
    assert "metrics" not in left
    assert "monitor" not in left
