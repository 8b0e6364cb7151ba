"""check-gpu: everything between a GPU and a sandbox, looked at and explained."""

import dataclasses
import json

import pytest

from kata.gpu import check as gpu_check
from kata.gpu import configuration as gpu_configuration
from kata.gpu import preparation, vgpu_driver
from kata.gpu import report as gpu_report
from tests.unit import cards, kata_releases
from tests.unit.gpu import test_guest_kernel

FOLDER = "/opt/kata/share/defaults/kata-containers"
KERNEL = "/srv/vmlinuz"
INSTALLED = gpu_configuration.Installed((3, 6, 0), "go", f"{FOLDER}/configuration-qemu.toml")


@pytest.fixture
def machine(tmp_path):
    machine = cards.of_the_record(tmp_path / "root")
    machine.lay({INSTALLED.shipped: '[hypervisor.qemu]\nkernel = "/k"\n', KERNEL: ""})
    machine.path(KERNEL).write_bytes(test_guest_kernel.vmlinux())
    machine.lay(
        {"/usr/share/misc/pci.ids": "10de  NVIDIA\n\t15f8  GP100GL [Tesla P100 PCIe 16GB]\n"}
    )
    return machine


def options(mode="passthrough", **changed):
    return kata_releases.options(gpu_mode=mode, gpu_guest_kernel=KERNEL, **changed)


def look(machine, asked=None, installed=INSTALLED):
    before = machine.tree()
    report = gpu_check.look(machine, asked or options(), installed)
    assert machine.tree() == before, "a look changes nothing"
    return report


def failing(report, mode="passthrough"):
    return [(each.scope, each.name) for each in report.against(mode)]


def one(report, name):
    (found,) = [each for each in report.findings if each.name == name]
    return found


def test_a_ready_machine_is_ready(machine):
    preparation.ensure_host(machine, options())
    report = look(machine)
    assert failing(report) == []
    assert report.ready
    assert "passthrough: ready" in gpu_report.words(report)


def test_each_gpu_is_shown_with_all_that_belongs_to_it(machine):
    preparation.ensure_host(machine, options())
    first, second = (each.data() for each in look(machine).gpus)
    assert first == {
        "bdf": "0000:04:00.0",
        "ids": "10de:15f8",
        "name": "GP100GL [Tesla P100 PCIe 16GB]",
        "class": "0302",
        "chosen": True,
        "driver": "vfio-pci",
        "console": False,
        "iommu_group": 45,
        "group_members": [
            {"bdf": "0000:00:02.0", "ids": "8086:6f02", "driver": "pcieport", "bridge": True},
            {"bdf": "0000:04:00.1", "ids": "10de:22ba", "driver": "vfio-pci", "bridge": False},
        ],
        "bars": [
            {
                "region": 0,
                "address": "0xc6000000",
                "size": 16 << 20,
                "size_words": "16M",
                "width": 32,
                "prefetchable": False,
                "large": False,
            },
            {
                "region": 1,
                "address": "0x383800000000",
                "size": 16 << 30,
                "size_words": "16G",
                "width": 64,
                "prefetchable": True,
                "large": True,
            },
            {
                "region": 3,
                "address": "0x383c00000000",
                "size": 32 << 20,
                "size_words": "32M",
                "width": 64,
                "prefetchable": True,
                "large": False,
            },
        ],
        "vfio": ("/dev/vfio/45",),
        "mdev_types": [],
        "sriov": {"total": 0, "enabled": 0},
    }
    assert (second["iommu_group"], second["group_members"]) == (54, [])


def test_what_keeps_it_from_working_has_a_reason_and_a_remedy(machine):
    report = look(machine)
    assert failing(report) == [
        ("0000:04:00.0", "bound to vfio-pci with its IOMMU group"),
        ("0000:84:00.0", "bound to vfio-pci with its IOMMU group"),
    ]
    assert report.against("passthrough")[0].found == (
        "not 0000:04:00.0 (nouveau), 0000:04:00.1 (snd_hda_intel)"
    )
    assert all(each.remedy for each in report.against("passthrough"))
    assert not report.ready


def test_a_large_region_below_4_gib_points_to_the_firmware(tmp_path):
    machine = cards.Machine(tmp_path).card(
        "0000:04:00.0", bars={1: (0, 16 * cards.GIB, cards.MEM64 | cards.UNSET)}, group=1
    )
    finding = one(look(machine), "large BAR, region 1 of 16G")
    assert (finding.found, finding.ok) == ("mapped nowhere", False)
    assert "Above 4G Decoding" in finding.remedy


def test_no_gpu_no_iommu_no_release(tmp_path):
    machine = cards.Machine(tmp_path)
    machine.lay({"/proc/cmdline": "quiet\n"})
    report = look(machine, installed=None)
    assert failing(report) == [
        ("host", "GPUs that gpu-devices names"),
        ("host", "IOMMU"),
        ("kata", "release"),
    ]
    assert one(report, "IOMMU").remedy == "boot with intel_iommu=on on the kernel's command line"
    assert one(report, "kernel command line").found == "no word of an IOMMU"


def test_host_kernel_options_by_mode(machine):
    machine.lay({"/boot/config-6.8.0-45-generic": "CONFIG_VFIO=m\nCONFIG_VFIO_PCI=m\n"})
    report = look(machine)
    assert ("host", "host kernel CONFIG_VFIO_IOMMU_TYPE1") in failing(report)
    assert ("host", "host kernel CONFIG_VFIO_MDEV") not in failing(report)
    assert ("host", "host kernel CONFIG_VFIO_MDEV") in failing(report, "vgpu")


def test_options_that_nobody_tells_are_no_failure(machine):
    machine.remove("/boot/config-6.8.0-45-generic")
    assert one(look(machine), "host kernel CONFIG_VFIO").found == "unknown"
    assert not any("host kernel" in name for _, name in failing(look(machine)))


def test_each_option_of_the_guest_kernel_and_who_needs_it(machine):
    config = "CONFIG_MODULES=y\nCONFIG_MODULE_UNLOAD=y\nCONFIG_PCI_MMCONFIG=y\n"
    machine.path(KERNEL).write_bytes(test_guest_kernel.vmlinux(config))
    report = look(machine)
    # Large BARs: the plug is pcie for whole GPUs, pci for vGPUs.
    assert ("guest", "CONFIG_HOTPLUG_PCI_PCIE") in failing(report)
    assert ("guest", "CONFIG_HOTPLUG_PCI_ACPI") in failing(report, "vgpu")
    assert not any(name == "CONFIG_HOTPLUG_PCI_SHPC" for _, name in failing(report))
    assert one(report, "CONFIG_DRM_NOUVEAU").ok
    assert one(report, "image").found == f"{KERNEL} 5.15.23-nvidia-gpu; options: the image itself"


def test_a_guest_kernel_that_is_missing(machine):
    machine.remove(KERNEL)
    assert ("guest", "image") in failing(look(machine))


def test_the_attached_kernel_is_read_before_it_is_in_place(machine, tmp_path):
    attached = tmp_path / "guest-kernel.bin"
    attached.write_bytes(test_guest_kernel.vmlinux())
    # On the machine itself both are one.
    machine.lay({str(attached): ""})
    machine.path(attached).write_bytes(attached.read_bytes())
    asked = kata_releases.options(gpu_mode="none")
    report = gpu_check.look(machine, asked, INSTALLED, attached)
    assert one(report, "image").found.startswith(f"{attached} 5.15.23")


def test_a_way_that_does_not_work_is_the_plugs_finding(machine):
    report = look(machine, options(gpu_plug="pci"))
    finding = one(report, "plug for passthrough")
    assert (finding.ok, finding.scope) == (False, "kata")
    assert "no bridge of Kata 3.6.0 has room for a large BAR" in finding.found
    assert one(report, "plug for vgpu").found == "pci"


def test_vgpus_need_driver_type_and_licence(machine):
    report = look(machine, options("vgpu", vgpu_type="nvidia-105"))
    assert ("vgpu", "NVIDIA host driver") in failing(report, "vgpu")
    assert ("vgpu", "vGPU type nvidia-105") in failing(report, "vgpu")
    licence = one(report, "licence")
    assert (licence.required, licence.ok) == (False, False)
    assert "gridd.conf" in licence.remedy


def test_a_machine_ready_for_vgpus(machine):
    machine.lay({vgpu_driver.VERSION: "535.161.05\n"})
    machine.offers("0000:04:00.0", {"nvidia-105": ("GRID P100-8Q", 2)})
    report = look(machine, options("vgpu", vgpu_type="nvidia-105"))
    assert failing(report, "vgpu") == []
    assert report.ready
    assert one(report, "NVIDIA host driver").found == "535.161.05"
    text = gpu_report.words(report)
    assert "nvidia-105 (GRID P100-8Q) 2 free" in text


def test_sriov_cards_need_their_functions_and_the_iommu(tmp_path):
    machine = cards.Machine(tmp_path).card("0000:65:00.0", ids="10de:20f1", sriov=(16, 0))
    report = look(machine, options("vgpu", vgpu_type="nvidia-474"))
    assert {("vgpu", "SR-IOV"), ("host", "IOMMU")} <= set(failing(report, "vgpu"))


def test_a_gpu_that_the_option_does_not_name_is_shown_all_the_same(machine):
    report = look(machine, options(gpu_devices="0000:84:00.0"))
    assert [(each.function.bdf, each.chosen) for each in report.gpus] == [
        ("0000:04:00.0", False),
        ("0000:84:00.0", True),
    ]
    assert "nouveau; not named by gpu-devices" in gpu_report.words(report)


def test_while_gpu_mode_is_none_it_speaks_of_passthrough(machine):
    assert look(machine, options("none")).mode == "passthrough"


def test_the_text_reads_from_the_card_to_the_verdict(machine):
    lines = gpu_report.words(look(machine)).splitlines()
    assert lines[:4] == [
        "GPU 0000:04:00.0 [0302] GP100GL [Tesla P100 PCIe 16GB] [10de:15f8]",
        "  driver: nouveau",
        "  IOMMU group: 45, with 0000:00:02.0 (pcieport), 0000:04:00.1 (snd_hda_intel)",
        "  Region 0: c6000000 (32-bit, non-prefetchable) [size=16M]",
    ]
    assert "  ok   IOMMU: active" in lines
    verdict = lines[lines.index("Verdict") :]
    assert verdict[1] == "  passthrough: not ready"
    assert all(len(line) < 300 for line in lines)


def test_it_all_fits_into_json(machine):
    report = look(machine)
    checks = json.loads(json.dumps([dataclasses.asdict(each) for each in report.findings]))
    assert {"name", "found", "wanted", "ok", "remedy", "required", "scope", "modes"} == set(
        checks[0]
    )
