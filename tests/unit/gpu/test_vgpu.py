"""vGPUs: types found, instances made, kept and removed."""

import json
import pathlib
import subprocess
import sys

import pytest

from kata import problems
from kata.gpu import mdev, pci, vgpu, vgpu_boot, vgpu_driver
from tests.unit import cards

GPU = "0000:04:00.0"
TYPES = {"nvidia-105": ("GRID P100-8Q", 2), "nvidia-102": ("GRID P100-4Q", 4)}


@pytest.fixture
def machine(tmp_path):
    machine = cards.Machine(tmp_path / "root")
    machine.card(GPU, **cards.P100, group=45, driver="nvidia")
    return machine.offers(GPU, TYPES)


@pytest.fixture
def ampere(tmp_path):
    """An A100 whose virtual functions make one vGPU each, three in all, once they are on."""
    machine = cards.Machine(tmp_path / "root")
    machine.card(GPU, ids="10de:20f1", group=45, driver="nvidia", sriov=(4, 0))
    machine.lay({vgpu.SRIOV_MANAGE: ""})

    def enable(argv):
        machine.lay({f"/sys/devices/{GPU}/sriov_numvfs": "4\n"})
        for number in range(4):
            bdf = f"0000:04:00.{number + 4}"
            machine.card(bdf, ids="10de:20f1", physfn=GPU, driver="nvidia", group=60 + number)
            machine.offers(bdf, {"nvidia-474": ("GRID A100-20C", 3)}, gpu=GPU)

    machine.on(f"{vgpu.SRIOV_MANAGE} -e {GPU}", effect=enable)
    machine.on(f"{vgpu.SRIOV_MANAGE} -d {GPU}")
    return machine


def gpus(machine):
    return pci.chosen(pci.functions(machine), ("all",))


def made(machine):
    return {each.uuid: (each.parent, each.type) for each in mdev.instances(machine)}


def test_types_are_as_the_driver_shows_them(machine):
    assert [(each.id, each.name, each.available) for each in mdev.types(machine)] == [
        ("nvidia-102", "GRID P100-4Q", 4),
        ("nvidia-105", "GRID P100-8Q", 2),
    ]


@pytest.mark.parametrize("wanted", ["nvidia-105", "GRID P100-8Q"])
def test_a_type_is_found_by_id_and_by_name(machine, wanted):
    assert vgpu.ensure_instances(machine, gpus(machine), wanted, 1)
    assert list(made(machine).values()) == [(GPU, "nvidia-105")]


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (0, 2)])
def test_as_many_as_asked_and_all_that_fit_for_none(machine, count, expected):
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", count)
    assert len(made(machine)) == expected
    assert not vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", count)


def test_each_can_be_given_to_a_sandbox(machine):
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    for each in mdev.instances(machine):
        assert machine.exists(f"/dev/vfio/{each.group}")


def test_more_than_fit_are_refused_before_any_is_made(machine):
    before = machine.tree()
    with pytest.raises(problems.Blocked, match=r"vgpu-count=3: only 2 of type nvidia-105"):
        vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 3)
    assert machine.tree() == before


def test_a_type_that_is_not_offered(machine):
    with pytest.raises(problems.Blocked, match=r"vgpu-type=nvidia-9: not offered.*nvidia-105 \(G"):
        vgpu.ensure_instances(machine, gpus(machine), "nvidia-9", 1)


def test_no_driver_no_types(tmp_path):
    machine = cards.Machine(tmp_path).card(GPU, **cards.P100, group=45, driver="nvidia")
    with pytest.raises(problems.Blocked, match="attach it as the resource vgpu-driver"):
        vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 1)


def test_a_driver_without_vgpus_is_named(tmp_path):
    machine = cards.Machine(tmp_path).card(GPU, **cards.P100, group=45, driver="nvidia")
    machine.lay({vgpu_driver.VERSION: "550.54.15\n"})
    with pytest.raises(problems.Blocked, match=r"550\.54\.15 offers no vGPU types here"):
        vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 1)


def test_a_driver_that_makes_vgpus_without_mdev(tmp_path):
    machine = cards.Machine(tmp_path).card(GPU, **cards.P100, group=45, driver="nvidia")
    machine.lay({f"/sys/devices/{GPU}/nvidia/creatable_vgpu_types": "ID : vGPU Name\n"})
    with pytest.raises(problems.Blocked, match="without mediated devices"):
        vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 1)


def test_fewer_are_kept_when_fewer_are_wanted_and_one_in_use_is_the_last_to_go(machine):
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    _, second = sorted(mdev.instances(machine), key=lambda each: each.uuid)
    machine.process(4711, "qemu-system-x86", f"/dev/vfio/{second.group}")
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 1)
    assert list(made(machine)) == [second.uuid]


def test_none_is_destroyed_while_a_sandbox_uses_it(machine):
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    user = mdev.instances(machine)[0]
    machine.process(4711, "qemu-system-x86", f"/dev/vfio/{user.group}")
    before = made(machine)
    with pytest.raises(problems.Waiting, match=rf"{user.uuid} is still used by qemu.*4711"):
        vgpu.remove(machine)
    assert made(machine) == before
    assert not machine.exists(vgpu.BOOT_UNIT), "the next boot makes none"
    machine.ends(4711)
    assert vgpu.remove(machine)
    assert made(machine) == {}


def test_another_type_replaces_the_first(machine):
    # While there is one of the first, the GPU has no room for any of the other.
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    assert vgpu.ensure_instances(machine, gpus(machine), "nvidia-102", 4)
    assert [each for _, each in made(machine).values()] == ["nvidia-102"] * 4


def test_not_while_a_sandbox_uses_one(machine):
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    before = made(machine)
    machine.process(4711, "qemu-system-x86", f"/dev/vfio/{mdev.instances(machine)[0].group}")
    with pytest.raises(problems.Waiting, match="still used by qemu"):
        vgpu.ensure_instances(machine, gpus(machine), "nvidia-102", 4)
    assert made(machine) == before


@pytest.mark.parametrize("count", [0, 1])
def test_no_room_at_all_is_said(machine, count):
    theirs = "b3b7e0f2-0000-0000-0000-000000000001"
    machine.put(f"/sys/class/mdev_bus/{GPU}/mdev_supported_types/nvidia-105/create", theirs)
    with pytest.raises(problems.Blocked, match="only 0 of type nvidia-102 fit"):
        vgpu.ensure_instances(machine, gpus(machine), "nvidia-102", count)
    assert list(made(machine)) == [theirs]


def test_a_boot_that_made_none_is_no_reason_to_make_too_many_later(machine):
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    machine.boot()
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 1)
    assert json.loads(machine.read(vgpu.RECORD))["instances"].keys() == made(machine).keys()


def test_nor_while_it_is_used_by_the_newer_kernels_file(machine):
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 1)
    (uuid,) = made(machine)
    machine.lay(
        {f"/sys/devices/{GPU}/{uuid}/vfio-dev/vfio7/dev": "", "/dev/vfio/devices/vfio7": ""}
    )
    machine.process(4711, "qemu-system-x86", "/dev/vfio/devices/vfio7")
    with pytest.raises(problems.Waiting, match="still used by qemu"):
        vgpu.remove(machine)


def test_somebody_elses_count_and_stay(machine):
    theirs = "b3b7e0f2-0000-0000-0000-000000000001"
    machine.put(f"/sys/class/mdev_bus/{GPU}/mdev_supported_types/nvidia-105/create", theirs)
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    assert len(made(machine)) == 2
    vgpu.remove(machine)
    assert list(made(machine)) == [theirs]


def test_removal_leaves_no_trace(machine):
    before = machine.tree("/etc"), machine.tree("/usr"), machine.tree("/var")
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    assert vgpu.remove(machine)
    assert (machine.tree("/etc"), machine.tree("/usr"), machine.tree("/var")) == before
    assert not vgpu.remove(machine)


def test_the_same_ones_come_back_after_a_boot(machine):
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    before = made(machine)
    machine.boot()
    assert made(machine) == {}
    assert vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    assert made(machine) == before


def test_the_boot_itself_makes_them_from_the_record(machine, tmp_path):
    """The program writes what the kernel expects; here plain files take it."""
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 2)
    record = json.loads(machine.read(vgpu.RECORD))
    create = tmp_path / "bus" / GPU / "mdev_supported_types" / "nvidia-105" / "create"
    create.parent.mkdir(parents=True)
    create.write_text("")
    assert vgpu_boot.create(record["instances"], tmp_path / "bus", 0) == 0
    assert create.read_text() in record["instances"]


def test_the_boot_tells_what_it_could_not_make(tmp_path, capsys):
    record = {"u-1": {"parent": GPU, "type": "nvidia-105"}}
    assert vgpu_boot.create(record, tmp_path, 0) == 1
    assert "vGPU u-1 (nvidia-105)" in capsys.readouterr().err


def test_the_boots_program_runs_as_the_unit_runs_it(machine):
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 1)
    record = machine.path(vgpu.RECORD)
    record.write_text('{"instances": {}, "sriov": []}')
    command = [sys.executable, "-I", machine.path(vgpu.BOOT_PROGRAM), record]
    assert subprocess.run(command, check=False).returncode == 0


def test_the_boots_program_stands_alone_and_is_enabled(machine):
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 1)
    assert "systemctl enable kata-charm-vgpu.service" in machine.ran
    unit = machine.read(vgpu.BOOT_UNIT)
    assert f"ExecStart=/usr/bin/python3 -I -S {vgpu.BOOT_PROGRAM} {vgpu.RECORD}" in unit
    assert "Before=containerd.service snap.k8s.containerd.service\n" in unit
    program = machine.read(vgpu.BOOT_PROGRAM)
    assert program == pathlib.Path(vgpu_boot.__file__).read_text()
    assert "kata import" not in program


def test_ampere_gets_its_virtual_functions_first(ampere):
    vgpu.ensure_instances(ampere, gpus(ampere), "GRID A100-20C", 2)
    assert f"{vgpu.SRIOV_MANAGE} -e {GPU}" in ampere.ran
    assert len(made(ampere)) == 2


def test_the_functions_share_the_memory_of_one_gpu(ampere):
    vgpu.ensure_instances(ampere, gpus(ampere), "nvidia-474", 0)
    assert len(made(ampere)) == 3  # not 3 for each of 4 functions


def test_virtual_functions_go_when_we_enabled_them(ampere):
    vgpu.ensure_instances(ampere, gpus(ampere), "nvidia-474", 1)
    vgpu.remove(ampere)
    assert f"{vgpu.SRIOV_MANAGE} -d {GPU}" in ampere.ran


def test_a_t4_makes_its_own_though_it_could_have_functions(tmp_path):
    machine = cards.Machine(tmp_path / "root").card(GPU, **cards.T4, group=45, driver="nvidia")
    machine.offers(GPU, {"nvidia-222": ("GRID T4-8Q", 2)})
    assert vgpu.by_virtual_functions(machine, gpus(machine)) == ()
    vgpu.ensure_instances(machine, gpus(machine), "GRID T4-8Q", 2)
    assert list(made(machine).values()) == [(GPU, "nvidia-222")] * 2
    assert not any("sriov-manage" in command for command in machine.ran)


def test_ampere_without_nvidias_driver(ampere):
    ampere.remove(vgpu.SRIOV_MANAGE)
    with pytest.raises(problems.Blocked, match="sriov-manage is missing: attach"):
        vgpu.ensure_instances(ampere, gpus(ampere), "nvidia-474", 1)


def test_ampere_whose_firmware_has_no_sriov(ampere):
    ampere.on(f"{vgpu.SRIOV_MANAGE} *", err="write error: Cannot allocate memory", status=1)
    with pytest.raises(problems.Blocked, match="is SR-IOV on in the firmware"):
        vgpu.ensure_instances(ampere, gpus(ampere), "nvidia-474", 1)


def test_only_looking(machine):
    with pytest.raises(problems.Blocked, match="0 of type nvidia-105 exist"):
        vgpu.require(machine, gpus(machine), "nvidia-105", 1)
    vgpu.ensure_instances(machine, gpus(machine), "nvidia-105", 1)
    vgpu.require(machine, gpus(machine), "nvidia-105", 0)
