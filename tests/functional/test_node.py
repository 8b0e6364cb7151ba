"""The throwaway node itself: what the other functional tests take for granted."""

import pathlib
import threading
import time

import pytest

from tests.node import agent, containers, juju, machine, pci, snapshot, standin

EMPTY = pathlib.Path(juju.__file__).parent / "empty_charm"
GPU = "0000:04:00.0"


@pytest.fixture(scope="module")
def with_charm(booted):
    return juju.with_charm(booted, "empty/0", EMPTY)


@pytest.fixture(scope="module")
def shared(booted):
    """One node for all that leave it as it was."""
    with machine.Machine.restored(containers.with_image(booted)) as node:
        yield node


@pytest.fixture
def with_image(booted):
    """A fresh node with an image to run containers from."""
    with machine.Machine.restored(containers.with_image(booted)) as node:
        yield node


@pytest.fixture
def unit(with_charm):
    with machine.Machine.restored(with_charm) as node:
        yield juju.Unit(node, "empty/0", EMPTY)


# The machine


def test_a_restored_node_is_whole(shared):
    assert shared.run(["systemctl", "is-system-running"]).out == "running\n"
    assert abs(float(shared.run(["date", "+%s.%N"]).out) - time.time()) < 5
    assert "ok" in shared.run("ctr plugins ls | grep -w cri").out
    assert shared.run(["stat", "-fc%T", "/sys/fs/cgroup"]).out == "cgroup2fs\n"


def test_commands(shared):
    assert shared.run("echo out; echo err >&2; exit 3", check=False)[:3] == (3, "out\n", "err\n")
    assert shared.run(["cat"], stdin="ä\n").out == "ä\n"
    assert shared.run("echo $A; pwd", env={"A": "x y"}, cwd="/etc").out == "x y\n/etc\n"
    assert shared.run(["nothing-like-it"], check=False).rc == 127
    assert shared.run("sleep 60 & sleep 60", timeout=0.2, check=False).rc == 124
    with pytest.raises(agent.Failed, match="false: 1"):
        shared.run(["false"])


def test_commands_side_by_side(shared):
    slow = shared.start(["sleep", "60"])
    assert shared.run(["echo", "quick"]).out == "quick\n"
    assert not slow.done()
    assert slow.kill()
    assert slow.wait().rc == -9


def test_files(shared, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("content")
    (tmp_path / "link").symlink_to("folder/file")
    shared.copy_in_tree(tmp_path, "/srv/tree")
    shared.copy_in(b"\0\1" * 100_000, "/srv/deep/binary", 0o640)
    assert shared.copy_out("/srv/tree/link") == b"content"
    assert shared.copy_out("/srv/deep/binary") == b"\0\1" * 100_000
    assert shared.run("stat -c %a:%u /srv/deep/binary").out == "640:0\n"


def test_a_large_file(shared, tmp_path):
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 200_000 + b"end")
    shared.copy_in(large, "/srv/large")
    there = shared.run("stat -c %s /srv/large; tail -c 3 /srv/large; ls /dev/vd*").out
    assert there.startswith(f"{large.stat().st_size}\nend")


def test_nodes_do_not_see_each_other(booted, node):
    node.copy_in("here", "/root/mark")
    with machine.Machine.restored(booted) as other:
        assert other.run(["cat", "/root/mark"], check=False).rc == 1


def test_a_prepared_state_is_kept(booted):
    runs: list[machine.Machine] = []

    def prepare(node):
        runs.append(node)
        node.run("mkdir /srv/a && systemctl stop containerd")

    name = f"test {time.time()}"
    for _ in range(2):
        with machine.Machine.restored(snapshot.after(booted, name, prepare)) as node:
            assert (
                node.run("test -d /srv/a && systemctl is-active containerd", check=False).rc == 3
            )
    assert len(runs) == 1


def test_a_power_cut_takes_what_was_not_flushed(node):
    node.run("echo kept > /root/kept && sync /root/kept && echo lost > /root/lost")
    hanging = node.start(["sleep", "60"])
    node.power_cut()
    assert not node.running
    with pytest.raises(agent.Gone):
        hanging.wait()
    node.boot()
    assert node.run("cat /root/kept; systemctl is-active containerd").out == "kept\nactive\n"
    assert node.run("cat /root/lost", check=False).out != "lost\n"
    assert node.run(["systemctl", "--failed", "--no-legend"]).out == ""


# What Kata needs of a machine


def test_guests_run_under_the_nodes_own_kvm(shared):
    shared.copy_in(pathlib.Path(__file__).parent / "kvm_run.py", "/srv/kvm_run.py")
    assert shared.run(["python3", "/srv/kvm_run.py"], timeout=30).out == "halted\n"


def test_vsock_for_guests(shared):
    assert shared.run("modprobe vhost_vsock vhost_net && test -c /dev/vhost-vsock").ok


def test_containers_run(shared):
    assert containers.run(shared, "echo", "inside").out == "inside\n"


# A GPU


def test_a_gpu_in_a_group_of_its_own(with_functions):
    node = with_functions
    assert node.plug_gpu() == [GPU]
    shown = node.run(["lspci", "-vvnn", "-s", GPU]).out
    assert "3D controller [0302]: NVIDIA" in shown
    assert "[10de:2330]" in shown
    assert "(64-bit, prefetchable)" in shown
    assert "[size=16G]" in shown
    group = f"/sys/bus/pci/devices/{GPU}/iommu_group/devices"
    assert node.run(["ls", group]).out.split() == [GPU]
    with pytest.raises(ValueError, match="unplug"):
        node.save(pathlib.Path("/nowhere"))
    node.unplug("gpu0")
    assert GPU not in node.run(["lspci", "-D"]).out


def test_a_gpu_that_shares_its_group_with_a_sound_card_in_use(with_functions):
    node = with_functions
    gpu, sound = node.plug_gpu(functions=pci.WITH_AUDIO)
    group = f"/sys/bus/pci/devices/{gpu}/iommu_group/devices"
    assert node.run(["ls", group]).out.split() == [gpu, sound]
    assert "Kernel driver in use: snd_hda_intel" in node.run(["lspci", "-k", "-s", sound]).out
    # Bound to vfio-pci, the group has a device node for user space to open.
    node.run("modprobe vfio-pci")
    for function in (gpu, sound):
        device = f"/sys/bus/pci/devices/{function}"
        node.run(f"echo vfio-pci > {device}/driver_override")
        node.run(f"! test -e {device}/driver || echo {function} > {device}/driver/unbind")
        node.run(f"echo {function} > /sys/bus/pci/drivers_probe")
    number = node.run(f"basename $(realpath {group}/..)").out.strip()
    assert node.run(["test", "-c", f"/dev/vfio/{number}"]).ok


# Juju


def test_a_hook(unit):
    unit.config["greeting"] = "good day"
    result = unit.dispatch("install")
    assert (result.rc, result.output) == (0, "")
    assert result.logged("Emitting Juju event install.")
    assert unit.status == ("active", "good day")


def test_a_relation_and_an_action(unit):
    partner = unit.relate("partner", "friend")
    result = unit.dispatch("partner-relation-changed", partner, remote_unit="friend/0")
    assert result.logged("met friend")
    assert partner.data()["greeting"] == "hello"
    assert unit.version == "1.0"
    action = unit.run_action("echo", word="echo")
    assert (action.ok, action.results, action.progress) == (True, {"word": "echo"}, ("listening",))


def test_a_hook_that_is_killed_leaves_juju_as_it_was(unit):
    before = dict(unit.state)
    hook = unit.begin("config-changed")
    assert hook.kill()
    assert hook.wait().rc == -9
    assert unit.status == ("error", 'hook failed: "config-changed"')
    assert {**unit.state, "status": None} == {**before, "status": None}


def test_a_power_cut_in_the_middle_of_a_hook(unit):
    hook = unit.begin("install")
    threading.Timer(0.5, unit.node.power_cut).start()
    with pytest.raises(agent.Gone):
        hook.wait()
    assert unit.status.name == "unknown"


# A release that stands in for Kata


@pytest.mark.parametrize(
    ("release", "runs"), [("3.2.0", True), ("2.0.0", False)], ids=["knows it", "does not"]
)
def test_containers_of_a_stand_in_release(with_image, tmp_path, release, runs):
    node = with_image
    archive = standin.archive(
        release, tmp_path, compression="gz", hypervisor=node.image.sleep.read_bytes()
    )
    node.copy_in(archive, "/srv/kata.tar.gz")
    node.run("tar -xzf /srv/kata.tar.gz -C /")
    node.run(["ln", "-s", "/opt/kata/bin/containerd-shim-kata-v2", "/usr/local/bin/"])
    plain = containers.run(node, "echo", "inside", runtime="io.containerd.kata.v2")
    assert plain.out == "inside\n"
    # What Kata's generations differ in: containerd's way to name a configuration file.
    named = containers.run(
        node,
        "true",
        runtime="io.containerd.kata.v2",
        config_path="/etc/kata-containers/configuration.toml",
        check=False,
    )
    assert named.ok is runs
    assert runs or "failed to create shim task: not found" in named.err
