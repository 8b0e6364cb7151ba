"""Functions handed to vfio-pci and given back."""

import json

import pytest

from kata import problems
from kata.gpu import holders, pci, vfio
from tests.unit import cards

P100S = ("0000:04:00.0", "0000:84:00.0")
RULES = "/etc/udev/rules.d/70-kata-charm-gpu.rules"


@pytest.fixture
def machine(tmp_path):
    return cards.of_the_record(tmp_path / "root")


def gpus(machine, *bdfs):
    return [each for each in pci.functions(machine) if each.bdf in (bdfs or P100S)]


def drivers(machine):
    return {each.bdf: each.driver for each in pci.functions(machine)}


def ours(machine):
    """Everything outside the kernel's own folders."""
    kernel = ("/sys", "/proc", "/dev")
    return {path: text for path, text in machine.tree().items() if not path.startswith(kernel)}


def test_the_whole_group_goes_and_nothing_else(machine):
    assert vfio.ensure_bound(machine, gpus(machine))
    assert drivers(machine) == {
        "0000:00:02.0": "pcieport",
        "0000:04:00.0": "vfio-pci",
        "0000:04:00.1": "vfio-pci",
        "0000:84:00.0": "vfio-pci",
        "0000:81:00.0": "i40e",
    }
    assert machine.exists("/dev/vfio/45")
    assert machine.exists("/dev/vfio/54")


def test_bridges_stay_out_of_a_group_and_nvswitches_do_not(tmp_path):
    machine = cards.Machine(tmp_path)
    machine.card("0000:00:02.0", **cards.PORT, group=7)
    machine.card("0000:05:00.0", ids="10de:22a3", class_code="068000", group=7)
    found = pci.functions(machine)
    assert [each.bdf for each in vfio.endpoints(found, found)] == ["0000:05:00.0"]


def test_once_done_there_is_nothing_to_do(machine):
    vfio.ensure_bound(machine, gpus(machine))
    before = machine.tree()
    assert not vfio.ensure_bound(machine, gpus(machine))
    assert machine.tree() == before


def test_giving_back_leaves_no_trace(machine):
    before, drivers_before = ours(machine), drivers(machine)
    vfio.ensure_bound(machine, gpus(machine))
    assert vfio.give_back(machine)
    assert ours(machine) == before
    assert drivers(machine) == drivers_before
    assert {machine.override(bdf) for bdf in drivers_before} == {"(null)"}
    assert not vfio.give_back(machine)


def test_a_function_that_had_no_driver_gets_none_back(tmp_path):
    machine = cards.Machine(tmp_path).card("0000:04:00.0", **cards.P100, group=1)
    machine.natural["0000:04:00.0"] = "nouveau"  # that would take it if asked
    vfio.ensure_bound(machine, gpus(machine))
    vfio.give_back(machine)
    assert machine.driver("0000:04:00.0") is None


def test_what_somebody_else_bound_stays_when_we_leave(tmp_path):
    machine = cards.Machine(tmp_path).card(P100S[0], **cards.P100, group=1, driver="vfio-pci")
    assert not vfio.ensure_bound(machine, gpus(machine))
    assert not vfio.give_back(machine)
    assert machine.driver(P100S[0]) == "vfio-pci"


def test_a_gpu_that_is_no_longer_wanted_is_given_back(machine):
    vfio.ensure_bound(machine, gpus(machine))
    assert vfio.ensure_bound(machine, gpus(machine, "0000:84:00.0"))
    assert drivers(machine)["0000:04:00.0"] == "nouveau"
    assert drivers(machine)["0000:04:00.1"] == "snd_hda_intel"
    assert drivers(machine)["0000:84:00.0"] == "vfio-pci"
    assert "0000:04:00" not in machine.read(RULES)


def test_the_same_is_bound_after_a_boot(machine):
    vfio.ensure_bound(machine, gpus(machine))
    bound = drivers(machine)
    machine.boot()
    assert drivers(machine) == bound
    assert not vfio.ensure_bound(machine, gpus(machine))


def test_the_rules_name_each_function_by_address_and_ids(machine):
    vfio.ensure_bound(machine, gpus(machine, "0000:84:00.0"))
    this = (
        'ACTION=="add", SUBSYSTEM=="pci", KERNEL=="0000:84:00.0", ATTR{vendor}=="0x10de", '
        'ATTR{device}=="0x15f8", '
    )
    assert machine.read(RULES).splitlines()[1:] == [
        this + 'ATTR{driver_override}="vfio-pci"',
        this + 'DRIVER=="?*", DRIVER!="vfio-pci|nvidia", ATTR{driver/unbind}="$kernel"',
        this + 'ATTR{[subsystem/pci]drivers_probe}="$kernel"',
    ]
    assert "vfio-pci" in machine.read("/etc/modules-load.d/kata-charm-gpu.conf")


def test_nouveau_is_kept_from_loading_and_the_initramfs_told(machine):
    machine.lay({"/usr/sbin/update-initramfs": ""})
    machine.on("update-initramfs -u")
    vfio.ensure_bound(machine, gpus(machine))
    assert "blacklist nouveau\n" in machine.read("/etc/modprobe.d/kata-charm-gpu.conf")
    assert machine.ran.count("update-initramfs -u") == 1
    vfio.give_back(machine)
    assert machine.ran.count("update-initramfs -u") == 2


def test_nouveau_stays_for_a_gpu_that_is_not_ours(machine):
    vfio.ensure_bound(machine, gpus(machine, "0000:84:00.0"))
    assert not machine.exists("/etc/modprobe.d/kata-charm-gpu.conf")


def test_nouveau_may_load_again_for_a_gpu_that_goes_back_to_it(machine):
    vfio.ensure_bound(machine, gpus(machine))
    vfio.ensure_bound(machine, gpus(machine, "0000:84:00.0"))
    assert not machine.exists("/etc/modprobe.d/kata-charm-gpu.conf")
    assert machine.driver("0000:04:00.0") == "nouveau"


def refusal(machine, *bdfs):
    """Why it is refused; and nothing must have happened then."""
    before = machine.tree()
    with pytest.raises(problems.Blocked) as caught:
        vfio.ensure_bound(machine, gpus(machine, *bdfs))
    assert machine.tree() == before
    return str(caught.value)


def test_a_gpu_of_the_nvidia_driver_is_not_taken(tmp_path):
    machine = cards.Machine(tmp_path).card(P100S[0], **cards.P100, group=45, driver="nvidia")
    machine.process(812, "nvidia-persiste", "/dev/nvidiactl", "/dev/nvidia0")
    machine.process(9, "sshd", "/dev/null")
    message = refusal(machine)
    assert "0000:04:00.0 belongs to the host's driver nvidia" in message
    assert "nvidia-persiste (812)" in message
    assert "sshd" not in message


def test_not_even_while_no_process_holds_it(tmp_path):
    machine = cards.Machine(tmp_path).card(P100S[0], **cards.P100, group=45, driver="nvidia")
    assert "no process just now" in refusal(machine)


def test_a_gpu_that_somebody_draws_on_is_not_taken(machine):
    machine.lay({"/sys/devices/0000:04:00.0/drm/card1/dev": ""})
    machine.process(700, "Xorg", "/dev/dri/card1")
    assert "Xorg (700)" in refusal(machine)


def test_a_gpu_with_the_firmwares_console_is_not_taken(tmp_path):
    machine = cards.Machine(tmp_path)
    machine.card(P100S[0], **cards.SCREEN, group=1, driver="nouveau", boot_vga=True)
    assert "drives the host's console" in refusal(machine)


def test_nor_one_with_the_kernels_framebuffer(machine):
    machine._link("/sys/class/graphics/fb0/device", "/sys/devices/0000:84:00.0")
    assert "0000:84:00.0 drives the host's console" in refusal(machine)


def test_a_group_with_a_card_that_the_host_uses_is_not_taken(machine):
    machine.card("0000:05:00.0", **cards.NIC, group=45)
    message = refusal(machine)
    assert "IOMMU group 45" in message
    assert "0000:05:00.0 (driver i40e)" in message


def test_all_of_a_group_or_none(machine):
    machine.refused = {"0000:04:00.1"}
    before = drivers(machine)
    with pytest.raises(problems.Blocked, match=r"did not bind 0000:04:00\.1"):
        vfio.ensure_bound(machine, gpus(machine))
    # This kernel binds nothing to the audio function any more, its own driver neither.
    assert drivers(machine) | {"0000:04:00.1": "snd_hda_intel"} == before
    assert vfio.recorded(machine) == {}
    assert not machine.exists(RULES)


def test_a_kernel_without_vfio_pci_is_named(machine):
    machine.on("modprobe vfio-pci", err="FATAL: Module vfio-pci not found", status=1)
    before = drivers(machine)
    with pytest.raises(problems.Blocked, match="Module vfio-pci not found"):
        vfio.ensure_bound(machine, gpus(machine))
    assert drivers(machine) == before
    assert not machine.exists(RULES)


def test_nothing_is_pulled_from_under_a_sandbox(machine):
    vfio.ensure_bound(machine, gpus(machine))
    machine.process(4711, "qemu-system-x86", "/dev/kvm", "/dev/vfio/45")
    bound, record = drivers(machine), vfio.recorded(machine)
    with pytest.raises(problems.Waiting, match=r"0000:04:00\.0 is still used by qemu.* \(4711\)"):
        vfio.give_back(machine)
    assert drivers(machine) == bound
    assert vfio.recorded(machine) == record
    machine.ends(4711)
    assert vfio.give_back(machine)


def test_what_has_to_wait_goes_back_with_the_next_boot_at_the_latest(machine):
    before = drivers(machine)
    vfio.ensure_bound(machine, gpus(machine))
    machine.process(4711, "qemu-system-x86", "/dev/vfio/45")
    with pytest.raises(problems.Waiting, match="or at the next boot"):
        vfio.give_back(machine)
    machine.boot()
    assert drivers(machine) == before


def test_and_is_wanted_again_all_the_same(machine):
    vfio.ensure_bound(machine, gpus(machine))
    rules = machine.read(RULES)
    machine.process(4711, "qemu-system-x86", "/dev/vfio/45")
    with pytest.raises(problems.Waiting):
        vfio.give_back(machine)
    assert vfio.ensure_bound(machine, gpus(machine))
    assert machine.read(RULES) == rules


def test_group_4_is_not_group_45(tmp_path):
    machine = cards.Machine(tmp_path).card(P100S[0], **cards.P100, group=4)
    vfio.ensure_bound(machine, gpus(machine))
    machine.process(4711, "qemu-system-x86", "/dev/vfio/45")
    assert vfio.give_back(machine)


def test_a_card_that_was_pulled_out_is_forgotten(machine):
    vfio.ensure_bound(machine, gpus(machine))
    machine.path("/sys/bus/pci/devices/0000:84:00.0").unlink()
    assert vfio.give_back(machine)
    assert vfio.recorded(machine) == {}


def test_what_is_taken_is_written_down_before_it_is_taken(machine):
    taken = []
    put = machine.put

    def watched(path, value):
        if path.endswith("drivers_probe"):
            taken.append(value in json.loads(machine.read(vfio.RECORD)))
        put(path, value)

    machine.put = watched
    vfio.ensure_bound(machine, gpus(machine))
    assert taken == [True, True, True]
    assert vfio.recorded(machine)["0000:04:00.1"] == "snd_hda_intel"


def test_a_binding_that_somebody_changed_is_left_to_them(machine):
    vfio.ensure_bound(machine, gpus(machine, "0000:84:00.0"))
    machine._unbind("0000:84:00.0")
    machine._bind("0000:84:00.0", "pci-stub")
    machine.lay({"/sys/devices/0000:84:00.0/driver_override": "pci-stub\n"})
    vfio.give_back(machine)
    assert machine.driver("0000:84:00.0") == "pci-stub"
    assert machine.override("0000:84:00.0") == "pci-stub"


def test_device_files_of_old_and_new_kernels(machine):
    device = "/sys/bus/pci/devices/0000:84:00.0"
    assert holders.vfio_files(machine, device, 54) == ()
    machine.lay(
        {
            "/sys/devices/0000:84:00.0/vfio-dev/vfio3/dev": "",
            "/dev/vfio/devices/vfio3": "",
            "/dev/vfio/54": "",
        }
    )
    assert holders.vfio_files(machine, device, 54) == ("/dev/vfio/54", "/dev/vfio/devices/vfio3")
    assert holders.vfio_files(machine, device, None) == ("/dev/vfio/devices/vfio3",)
