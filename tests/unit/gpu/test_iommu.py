"""The IOMMU: as it is, and as it will be after the next boot."""

import gzip
import re

import pytest

from kata import problems
from kata.gpu import iommu
from tests.unit import cards

GRUB = "/etc/default/grub.d/90-kata-charm-iommu.cfg"


@pytest.fixture
def machine(tmp_path):
    return cards.Machine(tmp_path / "root")


def cpu(machine, vendor, cmdline="root=/dev/sda1"):
    text = f"vendor_id\t: {vendor}\n" if vendor else "CPU implementer\t: 0x41\n"
    machine.lay({"/proc/cpuinfo": text, "/proc/cmdline": f"{cmdline}\n"})


@pytest.mark.parametrize(
    ("vendor", "parameter"),
    [("GenuineIntel", "intel_iommu=on"), ("AuthenticAMD", "amd_iommu=on"), ("", None)],
)
def test_each_cpu_has_its_word(machine, vendor, parameter):
    cpu(machine, vendor)
    state = iommu.state(machine)
    assert (state.parameter, state.active, state.reboot_helps) == (
        parameter,
        False,
        bool(parameter),
    )


def test_it_is_active_when_devices_are_in_groups(machine):
    machine.card("0000:04:00.0", **cards.P100, group=45)
    assert iommu.state(machine).active


def test_groups_without_an_iommu_do_not_count(machine):
    # vfio's unsafe no-IOMMU mode makes groups too.
    machine.lay({"/sys/kernel/iommu_groups/0/name": "vfio-noiommu\n"})
    assert not iommu.state(machine).active


@pytest.mark.parametrize("word", ["intel_iommu=on", "intel_iommu=on,sm_on"])
def test_the_word_is_there_and_it_is_off_all_the_same(machine, word):
    cpu(machine, "GenuineIntel", f"quiet {word}")
    state = iommu.state(machine)
    assert not state.reboot_helps
    assert state.remedy == "switch on Intel VT-d in the firmware (BIOS), then reboot"


def test_firmware_that_announces_none_is_the_one_to_mend(machine):
    cpu(machine, "AuthenticAMD")
    machine.lay({"/sys/firmware/acpi/tables/FACP": ""})
    state = iommu.state(machine)
    assert state.announced is False
    assert "AMD-Vi (IOMMU) in the firmware" in state.remedy


@pytest.mark.parametrize("word", ["intel_iommu=off", "intel_iommu=strict,off", "iommu=off"])
def test_a_word_that_switches_it_off_comes_first(machine, word):
    cpu(machine, "GenuineIntel", f"quiet {word}")
    machine.lay({"/sys/firmware/acpi/tables/DMAR": ""})
    assert iommu.state(machine).remedy.startswith(f"take {word} off")


def test_options_come_from_boot(machine):
    options = iommu.host_options(machine)
    assert options["CONFIG_VFIO_PCI"] == "m"
    assert options["CONFIG_VFIO_NOIOMMU"] == "n"


def test_or_from_the_kernel_itself(node):
    node.lay({"/proc/sys/kernel/osrelease": "6.18.0\n", "/proc/config.gz": ""})
    node.path("/proc/config.gz").write_bytes(gzip.compress(b'CONFIG_VFIO=y\nCONFIG_X="a b"\n'))
    assert iommu.host_options(node) == {"CONFIG_VFIO": "y", "CONFIG_X": "a b"}


def test_or_from_nowhere(node):
    assert iommu.host_options(node) is None


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        # Linux 6.1 and later have no CONFIG_VFIO_MDEV_DEVICE any more.
        ({"CONFIG_VFIO_MDEV": "m"}, ()),
        ({"CONFIG_VFIO_MDEV": "m", "CONFIG_VFIO_MDEV_DEVICE": "m"}, ()),
        ({"CONFIG_VFIO_MDEV": "m", "CONFIG_VFIO_MDEV_DEVICE": "n"}, ("CONFIG_VFIO_MDEV_DEVICE",)),
        ({}, ("CONFIG_VFIO_MDEV", "CONFIG_VFIO_MDEV_DEVICE")),
    ],
)
def test_options_that_were_folded_into_others(options, missing):
    assert iommu.missing_options(options, iommu.FOR_VGPU) == missing


def update_grub(machine):
    """Have update-grub read the files as the real one does: /etc/default/grub, then its folder."""

    def update(_):
        words = ""
        names = [f"/etc/default/grub.d/{name}" for name in machine.names("/etc/default/grub.d")]
        for path in ("/etc/default/grub", *(each for each in names if each.endswith(".cfg"))):
            for value in re.findall(
                r'^GRUB_CMDLINE_LINUX="(.*)"$', machine.read(path), re.MULTILINE
            ):
                words = value.replace("${GRUB_CMDLINE_LINUX}", words)
        machine.lay({"/boot/grub/grub.cfg": f"linux /vmlinuz root=/dev/sda1 {words}\n"})

    machine.on("update-grub", effect=update)


def test_the_next_boot_gets_the_word(machine):
    assert iommu.ensure_next_boot(machine, "intel_iommu=on")
    assert machine.read(GRUB).splitlines()[1] == (
        'GRUB_CMDLINE_LINUX="${GRUB_CMDLINE_LINUX} intel_iommu=on"'
    )
    assert machine.ran == ["update-grub"]


def test_and_gets_it_once(machine):
    iommu.ensure_next_boot(machine, "intel_iommu=on")
    machine.lay({"/boot/grub/grub.cfg": "linux /vmlinuz root=/dev/sda1 intel_iommu=on\n"})
    assert not iommu.ensure_next_boot(machine, "intel_iommu=on")
    assert machine.ran == ["update-grub"]


def test_an_attempt_that_was_cut_short_is_finished(machine):
    iommu.ensure_next_boot(machine, "intel_iommu=on")
    machine.lay({"/boot/grub/grub.cfg": "linux /vmlinuz root=/dev/sda1\n"})
    update_grub(machine)
    assert iommu.ensure_next_boot(machine, "intel_iommu=on")
    assert "intel_iommu=on" in machine.read("/boot/grub/grub.cfg")
    assert machine.ran == ["update-grub", "update-grub"]


def test_a_boot_loader_that_refuses_keeps_nothing(machine):
    before = machine.tree()
    machine.on("update-grub", err="cannot find a device for /", status=1)
    with pytest.raises(problems.Blocked, match="cannot find a device for /"):
        iommu.ensure_next_boot(machine, "intel_iommu=on")
    assert not machine.exists(GRUB)
    assert machine.tree() == before


def test_another_boot_loader_is_left_to_the_operator(machine):
    machine.remove("/etc/default/grub")
    before = machine.tree()
    with pytest.raises(problems.Blocked, match=r"not GRUB: add intel_iommu=on"):
        iommu.ensure_next_boot(machine, "intel_iommu=on")
    assert machine.tree() == before


def test_a_cloud_images_own_file_does_not_undo_it(machine):
    machine.lay(
        {"/etc/default/grub.d/50-cloudimg-settings.cfg": 'GRUB_CMDLINE_LINUX="console=x"\n'}
    )
    update_grub(machine)
    iommu.ensure_next_boot(machine, "intel_iommu=on")
    assert machine.read("/boot/grub/grub.cfg").split()[-2:] == ["console=x", "intel_iommu=on"]
    assert not iommu.ensure_next_boot(machine, "intel_iommu=on")
    assert iommu.forget_next_boot(machine)
    assert "iommu" not in machine.read("/boot/grub/grub.cfg")


def test_a_file_that_overrides_ours_is_named(machine):
    machine.lay({"/etc/default/grub.d/99-site.cfg": 'GRUB_CMDLINE_LINUX="quiet"\n'})
    update_grub(machine)
    with pytest.raises(
        problems.Blocked, match=r"99-site\.cfg in /etc/default/grub\.d overrides it"
    ):
        iommu.ensure_next_boot(machine, "intel_iommu=on")
    assert not machine.exists(GRUB)


def test_what_was_cut_short_on_the_way_back_is_finished(machine):
    iommu.ensure_next_boot(machine, "intel_iommu=on")
    machine.on("update-grub", err="no space left", status=1)
    with pytest.raises(problems.Blocked, match="no space left"):
        iommu.forget_next_boot(machine)
    assert "intel_iommu" not in machine.read(GRUB)
    machine.on("update-grub")
    assert iommu.forget_next_boot(machine)
    assert not iommu.forget_next_boot(machine)


def test_taking_it_back(machine):
    before = machine.tree()
    iommu.ensure_next_boot(machine, "intel_iommu=on")
    assert iommu.forget_next_boot(machine)
    assert machine.tree() == before
    assert machine.ran == ["update-grub", "update-grub"]
    assert not iommu.forget_next_boot(machine)
