"""A hook that finds nothing to do looks at what the last one looked at, and at nothing else."""

import json
import os

import pytest

from kata import unchanged
from kata.machine import node as kata_node
from tests.unit.test_charm import AVAILABLE, CONTAINERD, KATA, archives, kata  # noqa: F401

RUN = "/run/systemd/units/invocation:containerd.service"
GUARD = "/etc/systemd/system/containerd.service.d/kata-charm.conf"


@pytest.fixture
def settled(kata):
    """A unit whose last hook found nothing to do."""
    kata.node.path("/run/systemd/units").mkdir(parents=True)
    kata.node.path(RUN).symlink_to("1")
    kata.run()
    kata.run()
    assert kata.node.exists(unchanged._FILE)
    return kata


def update(deployment):
    deployment.node.ran.clear()
    return deployment.run(deployment.context.on.update_status())


def test_nothing_is_run_and_nothing_written(settled):
    before = settled.node.tree()
    update(settled)
    assert settled.node.ran == []
    assert settled.node.tree() == before
    assert settled.unit == ("active", AVAILABLE)
    assert settled.app[0] == "active"


def test_what_other_parts_of_a_hook_keep_does_not_count(settled):
    settled.node.lay({"/var/lib/kata-charm/access-kata-0.json": "{}"})
    test_nothing_is_run_and_nothing_written(settled)


def test_any_other_event_looks_at_everything(settled):
    settled.node.ran.clear()
    settled.run(settled.context.on.config_changed())
    assert settled.node.ran


def remove(*paths):
    def disturb(deployment):
        for path in paths:
            os.unlink(deployment.node.path(path))

    return disturb


def rewrite(path, text):
    return lambda deployment: deployment.node.path(path).write_text(text)


DISTURBED = {
    "containerd's file is written anew": rewrite(CONTAINERD, "version = 2\n"),
    "Kata's file is gone": remove(KATA),
    "Kata's file is edited": lambda unit: rewrite(KATA, unit.node.read(KATA) + "#\n")(unit),
    "the shim's link is gone": remove("/usr/local/bin/containerd-shim-kata-v2"),
    "the release's link is gone": remove("/opt/kata"),
    "the guard's drop-in is gone": remove(GUARD),
    "the guard's program is edited": rewrite("/usr/local/lib/kata-charm/guard.pyz", "x"),
    "the modules are not listed": remove("/etc/modules-load.d/kata-charm.conf"),
}


@pytest.mark.parametrize("disturbed", DISTURBED)
def test_what_somebody_undid_is_done_again(settled, disturbed):
    whole = settled.node.tree()
    DISTURBED[disturbed](settled)
    update(settled)
    assert settled.unit == ("active", AVAILABLE)
    after = settled.node.tree()
    ours = [path for path in whole if path.startswith(("/opt", "/usr/local", "/etc/systemd"))]
    assert {path: after.get(path) for path in ours} == {path: whole[path] for path in ours}
    for path in (KATA, "/etc/modules-load.d/kata-charm.conf"):
        assert after[path] == whole[path]
    assert "runtimes.kata]" in settled.file


@pytest.mark.parametrize("place", ["/dev/kvm", "/dev/vhost-net", "/proc/100/cmdline"])
def test_what_the_machine_lost_is_noticed(settled, place):
    os.unlink(settled.node.path(place))
    update(settled)
    assert settled.node.ran


def test_another_run_of_containerd_is_looked_at(settled):
    settled.node.path(RUN).unlink()
    settled.node.path(RUN).symlink_to("2")
    update(settled)
    assert any(each.startswith("systemctl show") for each in settled.node.ran)


def test_an_option_counts(settled):
    settled.config(default_memory=1024)
    update(settled)
    assert "default_memory = 1024" in settled.node.read(KATA)


def test_a_record_that_is_none_is_passed_over(settled):
    for text in ("", "[]", "{}", '{"key": 1, "seen": []}', "\0"):
        settled.node.path(unchanged._FILE).write_text(text)
        update(settled)
        assert settled.unit == ("active", AVAILABLE)


def test_without_a_way_to_tell_runs_of_containerd_apart_everything_is_looked_at(settled):
    settled.node.path(RUN).unlink()
    settled.run()
    assert not settled.node.exists(unchanged._FILE)


# By itself


def seen(node, *paths):
    witness = unchanged.Witness(node)
    for path in paths:
        witness.read(path)
    assert unchanged.keep(witness, "key", {"a": 1})
    return witness


def test_what_was_seen_is_recalled(node):
    node.lay({"/a": "1", "/proc/b": "2", "/c/d": "3"})
    seen(node, "/a", "/proc/b", "/c", "/missing")
    assert unchanged.recall(node, "key") == {"a": 1}
    assert unchanged.recall(node, "other") is None


@pytest.mark.parametrize("changed", ["/a", "/proc/b", "/c/e", "/missing"])
def test_each_kind_of_place_counts(node, changed):
    node.lay({"/a": "1", "/proc/b": "2", "/c/d": "3"})
    seen(node, "/a", "/proc/b", "/c", "/missing")
    node.lay({changed: "4"})
    assert unchanged.recall(node, "key") is None


def test_the_look_is_from_before_the_read(node, monkeypatch):
    """What changes while it is read is not taken for what was read."""
    node.lay({"/a": "1"})
    read = kata_node.Node.read

    def slow(self, path):
        text = read(self, path)
        node.lay({"/a": "22"})
        return text

    monkeypatch.setattr(kata_node.Node, "read", slow)
    seen(node, "/a")
    monkeypatch.undo()
    assert unchanged.recall(node, "key") is None


@pytest.mark.parametrize(
    "act",
    [
        lambda node: node.write("/a", "new"),
        lambda node: node.link("/l", "/a"),
        lambda node: node.remove("/a"),
        lambda node: node.move("/a", "/b"),
        lambda node: node.put("/a", "1"),
        lambda node: node.run("modprobe", "vhost", check=False),
    ],
)
def test_work_that_did_something_is_not_kept(node, act):
    node.lay({"/a": "1"})
    witness = unchanged.Witness(node)
    act(witness)
    assert not unchanged.keep(witness, "key", {})
    assert unchanged.recall(node, "key") is None


def test_work_that_would_write_the_same_is_kept(node):
    node.lay({"/a": "1"})
    witness = unchanged.Witness(node)
    assert not witness.write("/a", "1")
    assert unchanged.keep(witness, "key", {})


def test_it_can_be_forgotten(node):
    seen(node, "/a")
    assert unchanged.forget(node)
    assert unchanged.recall(node, "key") is None
    assert not unchanged.forget(node)


def test_it_is_for_root_alone(node):
    seen(node, "/a")
    assert node.path(unchanged._FILE).stat().st_mode & 0o777 == 0o600
    assert json.loads(node.read(unchanged._FILE))["key"] == "key"


def test_looking_at_everything_again_comes_to_the_same_record(settled):
    before = settled.node.tree()
    settled.run(settled.context.on.config_changed())
    assert settled.node.tree() == before
