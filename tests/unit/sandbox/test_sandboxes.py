"""Which sandboxes are on a node, whatever state they are in."""

import json
import os
import shutil

import pytest

from kata import problems
from kata.sandbox import bundles, processes, sandboxes
from tests import conftest
from tests.unit import sandbox_tree as tree

ID = tree.sid(1)


def only(node, **how):
    found = sandboxes.find(node, **how)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("lay", [tree.lay_go, tree.lay_rust])
def test_a_running_pod(node, lay):
    lay(node, rss=50_000)
    sandbox = only(node, handlers={ID: "kata"})
    assert sandbox.title == "default/nginx"
    assert (sandbox.id, sandbox.namespace, sandbox.uid) == (ID, "k8s.io", "uid-of-nginx")
    assert sandbox.handler == "kata"
    assert sandbox.shim == ("go" if lay is tree.lay_go else "rust")
    assert sandbox.release == "4.1.0"
    assert (sandbox.vm.hypervisor, sandbox.vm.cid) == ("qemu", 751925852)
    assert (sandbox.vm.vcpus, sandbox.vm.memory) == (1, 2048)
    assert sandbox.usage == (1000, 50_000 * tree.PAGE)
    assert sandbox.ips == ("10.1.39.154", "fd00::103")
    assert [each.name for each in sandbox.containers] == ["nginx"]
    assert sandbox.problems == ()


def test_no_sandbox_at_all(node):
    assert sandboxes.find(node) == ()


def test_ordinary_pods_are_no_sandboxes(node):
    tree.lay_bundle(node, ID, shim=tree.RUNC)
    tree.lay_process(node, tree.shim_words(ID, tree.RUNC))
    assert sandboxes.find(node) == ()


def test_a_lone_container_in_any_namespace_of_containerd(node):
    tree.lay_go(node, pod=None)
    sandbox = only(node)
    assert (sandbox.title, sandbox.namespace, sandbox.pod) == (ID, "test", "")
    assert sandbox.problems == ()


def test_another_state_folder_of_containerd(node):
    tree.lay_go(node)
    os.rename(node.path("/run/containerd"), node.path("/run/other"))
    assert only(node, state="/run/other").title == "default/nginx"


def test_before_containerd_1_6_a_bundle_does_not_name_its_shim(node):
    tree.lay_go(node)
    tree.lay_bundle(node, tree.sid(9), shim="", pod=("default", "plain"))
    for path in node.path("/run/containerd").rglob("shim-binary-path"):
        path.unlink()
    assert [each.name for each in only(node).containers] == ["nginx"]


def test_what_was_plugged_in_later_counts(node):
    name = tree.sid(1)
    state = tree.go_state(name, 1, HotpluggedMemory=1024, HotpluggedVCPUs=[{"ID": "c"}])
    tree.lay_go(node, state=state)
    vm = only(node).vm
    assert (vm.vcpus, vm.memory, vm.type) == (2, 3072, "q35")


@pytest.mark.parametrize(
    "command",
    [
        ["/opt/kata/bin/cloud-hypervisor", "--api-socket", f"/run/vc/vm/{ID}/clh-api.sock"],
        ["/firecracker", f"--id={ID[:32]}", "--config-file", "/fcConfig.json"],
    ],
)
def test_hypervisors_that_say_little_are_completed_from_the_state(node, command):
    tree.lay_go(node, command=command)
    vm = only(node).vm
    assert (vm.vcpus, vm.memory, vm.kernel, vm.cid) == (1, 2048, "/k", None)
    assert vm.pid is not None


def test_dragonball_is_a_thread_of_its_shim(node):
    network = tree.NETWORK.format(1)
    tree.lay_bundle(node, ID, network=network, shim=tree.RUST)
    pid = tree.lay_process(node, tree.shim_words(ID, tree.RUST), exe=tree.RUST, rss=7)
    tree.lay_network(node, network)
    top = node.path(f"/proc/{pid}")
    (top / "ns").mkdir()
    (top / "ns/net").touch()
    (top / "task/77/ns").mkdir(parents=True)
    os.link(node.path(network), top / "task/77/ns/net")
    shutil.move(top / "net", top / "task/77/net")
    state = tree.rust_state(ID, "dragonball", default_memory=256)
    node.lay({f"/run/kata/{ID}/state.json": json.dumps(state)})
    sandbox = only(node)
    assert (sandbox.vm.hypervisor, sandbox.vm.pid, sandbox.vm.memory) == ("dragonball", pid, 256)
    assert sandbox.usage.memory == 7 * tree.PAGE
    assert sandbox.ips == ("10.1.39.154", "fd00::103")
    assert sandbox.problems == ()


def test_a_machine_from_the_factory_has_a_name_of_its_own(node):
    tree.lay_go(node, command=tree.qemu("1c3f-template"))
    pid = next(p for p, vm in _hypervisors(node).items() if vm.sandbox == "1c3f-template")
    node.lay({f"/run/vc/sbs/{ID}/persist.json": json.dumps(tree.go_state(ID, pid))})
    sandbox = only(node)
    assert (sandbox.vm.pid, sandbox.problems) == (pid, ())


def _hypervisors(node):
    return {vm.pid: vm for vm in processes.find(node).hypervisors.values()}


# Half there


def test_a_hypervisor_that_is_gone(node):
    tree.lay_go(node)
    (pid,) = _hypervisors(node)
    shutil.rmtree(node.path(f"/proc/{pid}"))
    sandbox = only(node)
    assert sandbox.problems == (sandboxes.NO_HYPERVISOR,)
    assert (sandbox.vm.pid, sandbox.usage, sandbox.ips) == (None, None, ())
    assert sandbox.vm.memory == 2048, "what the state file knows is still shown"


def test_a_pid_that_another_process_has_now(node):
    tree.lay_go(node)
    (pid,) = _hypervisors(node)
    node.lay({f"/proc/{pid}/cmdline": "/usr/bin/vim\0notes\0"})
    assert only(node).problems == (sandboxes.NO_HYPERVISOR,)


def test_a_shim_that_is_gone(node):
    tree.lay_go(node)
    for shim in processes.find(node).shims.values():
        shutil.rmtree(node.path(f"/proc/{shim.pid}"))
    assert only(node).problems == (sandboxes.NO_SHIM,)


def test_a_hypervisor_whose_task_is_gone(node):
    tree.lay_go(node)
    shutil.rmtree(node.path("/run/containerd"))
    sandbox = only(node)
    assert (sandbox.id, sandbox.problems) == (ID, (sandboxes.LEFT_BEHIND,))
    assert sandbox.usage.seconds == 1000


def test_a_half_written_bundle(node):
    tree.lay_go(node)
    path = next(node.path("/run/containerd").rglob(f"{ID}/config.json"))
    path.write_text(path.read_text()[:80])
    sandbox = only(node)
    assert sandbox.problems == (sandboxes.UNREADABLE,)
    assert sandbox.vm.pid


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"annotations": 3}', '{"linux": []}'])
def test_any_half_written_file(node, text):
    tree.lay_go(node)
    for path in [*node.path("/run").rglob("config.json"), *node.path("/run").rglob("*.json")]:
        path.write_text(text)
    assert only(node).vm.pid


def test_a_task_that_vanishes_in_the_middle_is_left_out(node, monkeypatch):
    tree.lay_go(node, 1)
    tree.lay_go(node, 2, pod=("default", "stays"))
    looked = processes.find

    def find(where):
        shutil.rmtree(next(node.path("/run/containerd").rglob(ID)))
        for pid, vm in {vm.pid: vm for vm in looked(where).hypervisors.values()}.items():
            if vm.sandbox == ID:
                shutil.rmtree(node.path(f"/proc/{pid}"))
        monkeypatch.setattr(processes, "find", looked)
        return looked(where)

    monkeypatch.setattr(processes, "find", find)
    assert only(node).title == "default/stays"


def test_a_task_that_comes_in_the_middle_is_whole(node, monkeypatch):
    looked = bundles.find

    def find(*arguments):
        monkeypatch.setattr(bundles, "find", looked)
        before = list(looked(*arguments))
        tree.lay_go(node)
        return before

    monkeypatch.setattr(bundles, "find", find)
    sandbox = only(node)
    assert (sandbox.title, sandbox.problems) == ("default/nginx", ())


def in_a_moment(monkeypatch, happens):
    monkeypatch.setattr(sandboxes.time, "sleep", lambda _: happens())


def test_what_is_half_there_is_looked_at_again(node, monkeypatch):
    tree.lay_go(node)
    (pid,) = _hypervisors(node)
    there, away = node.path(f"/proc/{pid}"), node.path("/proc/away")
    there.rename(away)
    in_a_moment(monkeypatch, lambda: away.rename(there))
    assert only(node).problems == ()


def test_what_ends_in_between_is_shown_as_it_was(node, monkeypatch):
    tree.lay_go(node, 1)
    tree.lay_go(node, 2, pod=("default", "dead"))
    ending, dead = (_pid_of(node, number) for number in (1, 2))
    shutil.rmtree(node.path(f"/proc/{dead}"))
    in_a_moment(monkeypatch, lambda: shutil.rmtree(node.path(f"/proc/{ending}")))
    found = {each.pod: each for each in sandboxes.find(node)}
    assert found["dead"].problems == (sandboxes.NO_HYPERVISOR,)
    assert (found["nginx"].vm.pid, found["nginx"].problems) == (ending, ())


def test_what_has_gone_and_what_only_comes_are_left_out(node, monkeypatch):
    tree.lay_go(node)
    bundle = next(node.path("/run/containerd").rglob(ID))
    (bundle / "config.json").unlink()

    def happens():
        shutil.rmtree(bundle)
        shutil.rmtree(node.path("/proc"))
        tree.lay_bundle(node, tree.sid(2), pod=("default", "coming"))

    in_a_moment(monkeypatch, happens)
    assert sandboxes.find(node) == ()


def _pid_of(node, number):
    return processes.find(node).hypervisors[tree.sid(number)].pid


@pytest.mark.parametrize("gone", ["stat", "exe", "net", "ns"])
def test_a_process_that_ends_while_it_is_looked_at(node, gone):
    tree.lay_go(node)
    (pid,) = _hypervisors(node)
    place = node.path(f"/proc/{pid}/{gone}")
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert only(node).title == "default/nginx"


def test_containerds_helpers_are_no_shims(node):
    tree.lay_process(node, [*tree.shim_words(ID, tree.GO), "delete"])
    tree.lay_go(node)
    assert only(node).problems == ()
    tree.lay_process(node, ["/usr/bin/containerd-shim-kata-v2", "--version"])
    assert only(node).problems == ()


def test_the_sandbox_that_kata_1_really_left(node):
    for top in conftest.corpus("sandbox/*/persist.json"):
        folder = top.parent
        target = node.path("/run/containerd/io.containerd.runtime.v2.task/k8s.io")
        shutil.copytree(folder / "bundle", target)
        lines = (folder / "qemu-cmdline.txt").read_text().splitlines()
        sandbox_id = lines[lines.index("-name") + 1].removeprefix("sandbox-")
        node.lay({f"/run/vc/sbs/{sandbox_id}/persist.json": top.read_text()})
        tree.lay_process(node, lines)
        sandbox = only(node)
        assert sandbox.title == "default/nginx-kata"
        assert sandbox.uid == "0a1b2c3d-0000-4000-8000-000000000001"
        assert sandbox.network.startswith("/var/run/netns/cni-")
        assert [(c.name, c.image) for c in sandbox.containers] == [
            ("nginx-kata", "localhost/busybox:1")
        ]
        assert sandbox.problems == (sandboxes.NO_SHIM,)


def test_hundreds_of_sandboxes_are_all_there(node):
    for number in range(200):
        lay = tree.lay_go if number % 2 else tree.lay_rust
        lay(node, number, pod=("default", f"pod-{number:03}"), ip=f"10.0.0.{number}")
    found = sandboxes.find(node)
    assert [each.pod for each in found] == [f"pod-{number:03}" for number in range(200)]
    assert [each.ips[0] for each in found] == [f"10.0.0.{number}" for number in range(200)]
    assert not any(each.problems for each in found)


# Which one is meant


@pytest.fixture
def several(node):
    tree.lay_go(node, 1)
    tree.lay_go(node, 2, pod=("default", "web"))
    tree.lay_rust(node, 0x11111111, pod=("other", "web"))
    return sandboxes.find(node)


def test_a_pod_by_its_name_and_a_sandbox_by_its_beginning(several):
    assert sandboxes.pick(several, pod="other/web").shim == "rust"
    assert sandboxes.pick(several, sandbox=tree.sid(2)).pod == "web"
    assert sandboxes.pick(several, sandbox="1").title == "other/web"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "give pod=namespace/name or sandbox=id"),
        ({"pod": "a/b", "sandbox": "1"}, "give pod=namespace/name or sandbox=id"),
        ({"pod": "web"}, "pod=web: expected namespace/name"),
        ({"pod": "default/none"}, "pod=default/none: no such Kata sandbox"),
        ({"sandbox": "f"}, "sandbox=f: no such Kata sandbox"),
        ({"sandbox": "0000000"}, "sandbox=0000000: 2 sandboxes fit"),
    ],
)
def test_none_or_several_are_said(several, asked, words):
    with pytest.raises(problems.Blocked, match=words):
        sandboxes.pick(several, **asked)


def test_of_two_tries_of_a_pod_the_one_that_lives(node):
    tree.lay_bundle(node, tree.sid(1))
    tree.lay_go(node, 2)
    found = sandboxes.find(node)
    assert len(found) == 2
    assert sandboxes.pick(found, pod="default/nginx").id == tree.sid(2)
