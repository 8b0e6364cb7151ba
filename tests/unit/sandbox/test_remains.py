"""What is left of a sandbox that containerd has forgotten: real processes, over a laid-out /proc."""

import os
import signal
import subprocess
import sys

import pytest

from kata.sandbox import remains

STATE, SPACE, NAME = "/run/containerd", "kata-charm-verify", "verify-0123456789ab"
SHIM = ("/opt/kata/bin/containerd-shim-kata-v2", "-namespace", SPACE, "-id", NAME)
QEMU = ("/opt/kata/bin/qemu-system-x86_64", "-name", f"sandbox-{NAME}")


class Process:
    """A process that sleeps, under a command line and a parent of our choice."""

    def __init__(self, node, words, parent):
        code = "import time; time.sleep(100)"
        self.started = subprocess.Popen([sys.executable, "-c", code])
        self.pid = self.started.pid
        self.place = node.path(f"/proc/{self.pid}")
        node.write(f"/proc/{self.pid}/cmdline", "\0".join(words) + "\0")
        node.write(f"/proc/{self.pid}/stat", f"{self.pid} (a) b) S {parent} 0")

    def forget(self):
        """Let /proc show that it has ended, as it would by itself."""
        (self.place / "cmdline").write_text("")
        (self.place / "stat").write_text(f"{self.pid} (x) Z 1 0")


@pytest.fixture
def start(node, monkeypatch):
    started = []
    kill = os.kill

    def killed(pid, number):
        (process,) = [each for each in started if each.pid == pid]
        kill(pid, number)
        process.forget()

    def start(*words, parent=1):
        started.append(Process(node, words, parent))
        return started[-1]

    monkeypatch.setattr(os, "kill", killed)
    yield start
    monkeypatch.undo()  # or whoever a test made unkillable is waited for
    for each in started:
        each.started.kill()
        each.started.wait()


def ended(process):
    return process.started.wait(5) == -signal.SIGKILL


def test_an_orphaned_sandbox_is_ended_with_all_that_it_has_started(node, start):
    shim = start(*SHIM)
    vm = start(*QEMU, parent=shim.pid)
    helper = start("/opt/kata/libexec/virtiofsd", parent=shim.pid)
    helpers_own = start("/opt/kata/libexec/virtiofsd", parent=helper.pid)
    other = start(*SHIM[:-1], "verify-ba9876543210")
    assert remains.end(node, STATE, SPACE, NAME, 0) == ()
    assert all(ended(each) for each in (shim, vm, helper, helpers_own))
    assert other.started.poll() is None


def test_a_hypervisor_without_its_shim_is_found_by_its_name(node, start):
    vm = start(*QEMU)
    assert remains.end(node, STATE, SPACE, NAME, 0) == ()
    assert ended(vm)


def test_who_goes_by_himself_is_not_killed(node, start, monkeypatch):
    shim = start(*SHIM)
    monkeypatch.setattr(remains.time, "sleep", lambda _: shim.forget())
    assert remains.end(node, STATE, SPACE, NAME, 5) == ()
    assert shim.started.poll() is None


def test_a_pod_of_that_name_in_another_namespace_is_left_alone(node, start):
    pods = start(SHIM[0], "-namespace", "k8s.io", "-id", NAME)
    assert remains.names(node, STATE, SPACE) == set()
    assert remains.end(node, STATE, SPACE, NAME, 0) == ()
    assert pods.started.poll() is None


def test_who_does_not_end_is_told(node, start, monkeypatch):
    shim = start(*SHIM)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setattr(remains, "_ENDED", 0)
    node.write(f"/run/vc/sbs/{NAME}/persist.json", "{}")
    assert remains.end(node, STATE, SPACE, NAME, 0) == (
        f"process {shim.pid} of {NAME} does not end",
    )
    assert node.exists(f"/run/vc/sbs/{NAME}"), "who lives needs his state"


@pytest.mark.parametrize(
    "place", ["/run/vc/sbs", "/run/vc/vm", "/run/kata", "/run/kata-containers/shared/sandboxes"]
)
def test_what_shims_know_of_it_is_removed(node, place):
    node.write(f"{place}/{NAME}/state", "")
    node.write(f"{place}/other/state", "")
    assert remains.end(node, STATE, SPACE, NAME, 0) == ()
    assert os.listdir(node.path(place)) == ["other"]


def test_its_bundle_is_removed_with_its_other_half_on_the_disk(node):
    bundle = f"{STATE}/io.containerd.runtime.v2.task/{SPACE}/{NAME}"
    work = f"/var/lib/containerd/io.containerd.runtime.v2.task/{SPACE}/{NAME}"
    node.write(f"{bundle}/config.json", "{}")
    node.path(work).mkdir(parents=True)
    node.path(f"{bundle}/work").symlink_to(work)
    assert remains.names(node, STATE, SPACE) == {NAME}
    assert remains.end(node, STATE, SPACE, NAME, 0) == ()
    assert not node.exists(bundle)
    assert not node.exists(work)


def test_nothing_below_a_mount_that_stays_is_removed(node, monkeypatch):
    place = f"/run/kata-containers/shared/sandboxes/{NAME}"
    node.write(f"{place}/shared/data", "dear")
    mounted = str(node.path(f"{place}/shared"))
    monkeypatch.setattr(remains, "_mounts", lambda top: [mounted] if place in str(top) else [])
    node.on("umount *", err="busy", status=32)
    assert remains.end(node, STATE, SPACE, NAME, 0) == (f"{mounted} is still mounted",)
    assert node.read(f"{place}/shared/data") == "dear"
    assert node.ran == [f"umount -- {mounted}"]
