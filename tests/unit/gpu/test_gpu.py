"""gpu-mode from end to end on one machine: the host made ready, the handler's keys, and back."""

import gzip

import pytest

from kata import problems
from kata.gpu import configuration as gpu_configuration
from kata.gpu import preparation
from kata.gpu import recipes as gpu_recipes
from tests.unit import cards, kata_releases
from tests.unit.gpu import test_gpu_recipes, test_guest_image, test_guest_kernel

FOLDER = "/opt/kata/share/defaults/kata-containers"
SHARE = "/opt/kata/share/kata-containers"
PLAIN = f"{FOLDER}/configuration-qemu.toml"
NVIDIA = f"{FOLDER}/configuration-qemu-nvidia-gpu.toml"
BUILT = "/usr/share/kata-containers/vmlinuz-nvidia-gpu.container"
GUEST = '[hypervisor.qemu]\nkernel = "{}"\nimage = "{}"\nkernel_params = "quiet"\n'
TRACES = ("/etc", "/var", "/usr/local")


@pytest.fixture
def machine(tmp_path):
    machine = cards.of_the_record(tmp_path / "root")
    machine.lay(
        {
            PLAIN: GUEST.format(f"{SHARE}/vmlinux.container", f"{SHARE}/kata-containers.img"),
            NVIDIA: GUEST.format(
                f"{SHARE}/vmlinuz-nvidia-gpu.container", f"{SHARE}/kata-containers-nvidia-gpu.img"
            ),
            f"{SHARE}/vmlinuz-nvidia-gpu.container": "",
            f"{SHARE}/kata-containers-nvidia-gpu.img": "",
        }
    )
    return machine


def options(mode="passthrough", **changed):
    return kata_releases.options(gpu_mode=mode, **changed)


def installed(number=(4, 1, 0), shim="go", shipped=PLAIN, **more):
    return gpu_configuration.Installed(number, shim, shipped, **more)


def traces(machine):
    return {path: text for top in TRACES for path, text in machine.tree(top).items()}


def without_iommu(root, cmdline="root=/dev/sda1"):
    machine = cards.Machine(root).card("0000:04:00.0", **cards.P100, driver="nouveau")
    machine.lay({"/proc/cmdline": f"{cmdline}\n", "/sys/firmware/acpi/tables/DMAR": ""})
    return machine


# The host


def test_passthrough_and_back_leaves_no_trace(machine):
    before = traces(machine)
    outcome = preparation.ensure_host(machine, options())
    assert outcome.changed
    assert outcome.gpus == ("0000:04:00.0", "0000:84:00.0")
    assert outcome.message == "GPUs 0000:04:00.0, 0000:84:00.0 for sandboxes"
    assert machine.driver("0000:84:00.0") == "vfio-pci"
    assert not preparation.ensure_host(machine, options()).changed

    back = preparation.ensure_host(machine, options("none"))
    assert (back.changed, back.gpus, back.message) == (True, (), "")
    assert machine.driver("0000:84:00.0") == "nouveau"
    assert traces(machine) == before
    assert not preparation.ensure_host(machine, options("none")).changed


@pytest.mark.parametrize(
    ("devices", "message"),
    [("all", "no NVIDIA GPU here"), ("0000:99:00.0", "none of gpu-devices here")],
)
@pytest.mark.parametrize("mode", ["passthrough", "vgpu"])
def test_a_machine_without_a_gpu_is_fine_and_says_so(tmp_path, mode, devices, message):
    machine = cards.Machine(tmp_path).card("0000:81:00.0", **cards.NIC, group=30)
    before = machine.tree()
    asked = options(mode, gpu_devices=devices, vgpu_type="nvidia-105")
    outcome = preparation.ensure_host(machine, asked)
    assert (outcome.changed, outcome.gpus, outcome.message) == (False, (), message)
    assert gpu_configuration.configuration(machine, asked, installed()) is None
    assert machine.tree() == before


def test_a_gpu_that_went_away_takes_its_traces_along(machine):
    before = traces(machine)
    preparation.ensure_host(machine, options(gpu_devices="0000:84:00.0"))
    machine.path("/sys/bus/pci/devices/0000:84:00.0").unlink()
    outcome = preparation.ensure_host(machine, options(gpu_devices="0000:84:00.0"))
    assert outcome.gpus == ()
    assert traces(machine) == before


def test_without_an_iommu_the_next_boot_gets_one_and_a_reboot_is_asked_for(tmp_path):
    machine = without_iommu(tmp_path)
    message = r"reboot needed: the IOMMU is off; intel_iommu=on is set for the next boot"
    for _ in range(2):  # nothing reboots the machine but the operator
        with pytest.raises(problems.Blocked, match=message):
            preparation.ensure_host(machine, options())
    assert "intel_iommu=on" in machine.read("/etc/default/grub.d/90-kata-charm-iommu.cfg")
    assert machine.driver("0000:04:00.0") == "nouveau"
    assert not any("reboot" in command for command in machine.ran)


def test_and_going_back_takes_the_word_away(tmp_path):
    machine = without_iommu(tmp_path)
    before = traces(machine)
    with pytest.raises(problems.Blocked):
        preparation.ensure_host(machine, options())
    preparation.ensure_host(machine, options("none"))
    assert traces(machine) == before


def test_a_sandbox_that_still_runs_keeps_its_gpu_and_nothing_else(machine):
    before = traces(machine)
    preparation.ensure_host(machine, options())
    machine.lay({"/etc/default/grub.d/90-kata-charm-iommu.cfg": ""})
    machine.process(4711, "qemu-system-x86", "/dev/vfio/54")
    with pytest.raises(problems.Waiting, match=r"0000:84:00\.0 is still used"):
        preparation.undo(machine)
    assert traces(machine).keys() - before.keys() == {"/var/lib/kata-charm/vfio.json"}
    machine.ends(4711)
    assert preparation.undo(machine)
    assert traces(machine) == before


def test_after_the_reboot_it_goes_on(tmp_path):
    machine = without_iommu(tmp_path)
    with pytest.raises(problems.Blocked):
        preparation.ensure_host(machine, options())
    machine.lay({"/proc/cmdline": "intel_iommu=on\n", "/sys/kernel/iommu_groups/1/type": ""})
    machine.lay({"/sys/class/iommu/dmar0/name": ""})
    machine._link("/sys/devices/0000:04:00.0/iommu_group", "/sys/kernel/iommu_groups/1")
    assert preparation.ensure_host(machine, options()).gpus == ("0000:04:00.0",)
    assert machine.exists("/etc/default/grub.d/90-kata-charm-iommu.cfg")


@pytest.mark.parametrize(
    ("cmdline", "acpi", "words"),
    [
        ("intel_iommu=on", True, "switch on Intel VT-d in the firmware"),
        ("quiet", False, "switch on Intel VT-d in the firmware"),
        ("intel_iommu=off", True, "take intel_iommu=off off"),
    ],
)
def test_an_iommu_that_a_reboot_would_not_bring(tmp_path, cmdline, acpi, words):
    machine = without_iommu(tmp_path, cmdline)
    if not acpi:
        machine.remove("/sys/firmware/acpi/tables/DMAR")
    before = machine.tree()
    with pytest.raises(problems.Blocked, match=words):
        preparation.ensure_host(machine, options())
    assert machine.tree() == before


def test_a_kernel_that_cannot_is_named(tmp_path):
    machine = without_iommu(tmp_path)
    machine.lay({"/boot/config-6.8.0-45-generic": "CONFIG_VFIO=m\n"})
    with pytest.raises(problems.Blocked, match="lacks CONFIG_VFIO_IOMMU_TYPE1, CONFIG_VFIO_PCI"):
        preparation.ensure_host(machine, options())


def test_looking_only_changes_nothing(machine, tmp_path):
    asked = options(gpu_prepare_host=False)
    before = machine.tree()
    with pytest.raises(problems.Blocked, match=r"0000:04:00\.0 is bound to nouveau, not vfio-pci"):
        preparation.ensure_host(machine, asked)
    assert machine.tree() == before
    without = without_iommu(tmp_path / "other")
    before = without.tree()
    with pytest.raises(problems.Blocked, match=r"the IOMMU is off: boot with intel_iommu=on"):
        preparation.ensure_host(without, asked)
    assert without.tree() == before


def test_and_is_content_with_what_others_bound(machine):
    preparation.ensure_host(machine, options())
    assert preparation.ensure_host(machine, options(gpu_prepare_host=False)).gpus


def test_from_passthrough_to_vgpu_and_on_to_none(tmp_path):
    machine = cards.Machine(tmp_path).card("0000:04:00.0", **cards.P100, group=45)
    before = traces(machine)
    preparation.ensure_host(machine, options())
    machine.offers("0000:04:00.0", {"nvidia-105": ("GRID P100-8Q", 2)})
    asked = options("vgpu", vgpu_type="GRID P100-8Q", vgpu_count=2)
    outcome = preparation.ensure_host(machine, asked)
    assert outcome.message == (
        "2 vGPUs of 0000:04:00.0 for sandboxes, whose guests need NVIDIA's licence"
    )
    assert machine.driver("0000:04:00.0") is None
    assert len(machine._mdevs()) == 2
    preparation.ensure_host(machine, options("none"))
    assert machine._mdevs() == []
    assert traces(machine) == before


def test_the_attached_driver_is_installed_for_vgpu(tmp_path):
    machine = cards.Machine(tmp_path / "root").card("0000:04:00.0", **cards.P100)
    machine.lay({"/lib/modules/6.8.0-45-generic/build/Makefile": ""})
    machine.on(
        "sh *",
        effect=lambda _: machine.offers("0000:04:00.0", {"nvidia-105": ("GRID P100-8Q", 2)}),
    )
    package = tmp_path / "vgpu-driver.run"
    package.write_bytes(b"#!/bin/sh\n")
    preparation.ensure_host(
        machine, options("vgpu", vgpu_type="nvidia-105", vgpu_count=1), package
    )
    assert len(machine._mdevs()) == 1


def test_an_empty_resource_is_none(tmp_path):
    machine = cards.Machine(tmp_path / "root").card("0000:04:00.0", **cards.P100)
    package = tmp_path / "vgpu-driver.run"
    package.write_bytes(b"")
    with pytest.raises(problems.Blocked, match="no vGPU types"):
        preparation.ensure_host(machine, options("vgpu", vgpu_type="nvidia-105"), package)
    assert not any(command.startswith("sh ") for command in machine.ran)


def test_a_vgpu_is_not_made_where_only_looking_is_allowed(tmp_path):
    machine = cards.Machine(tmp_path).card("0000:04:00.0", **cards.P100)
    machine.offers("0000:04:00.0", {"nvidia-105": ("GRID P100-8Q", 2)})
    asked = options("vgpu", vgpu_type="nvidia-105", gpu_prepare_host=False)
    with pytest.raises(problems.Blocked, match="0 of type nvidia-105 exist"):
        preparation.ensure_host(machine, asked)
    assert machine._mdevs() == []


def test_a_t4_makes_vgpus_without_an_iommu(tmp_path):
    machine = cards.Machine(tmp_path).card("0000:65:00.0", **cards.T4)
    machine.offers("0000:65:00.0", {"nvidia-222": ("GRID T4-8Q", 2)})
    machine.lay({"/proc/cmdline": "quiet\n"})
    preparation.ensure_host(machine, options("vgpu", vgpu_type="nvidia-222", vgpu_count=2))
    assert len(machine._mdevs()) == 2


def test_sriov_cards_need_the_iommu_for_vgpus_too(tmp_path):
    machine = cards.Machine(tmp_path).card("0000:65:00.0", ids="10de:20f1", sriov=(16, 0))
    machine.lay({"/proc/cmdline": "quiet\n"})
    with pytest.raises(problems.Blocked, match="reboot needed"):
        preparation.ensure_host(machine, options("vgpu", vgpu_type="nvidia-474"))


# The handler's configuration


def test_nothing_while_gpu_mode_is_none(machine):
    assert gpu_configuration.configuration(machine, options("none"), installed()) is None


def test_nvidias_file_is_the_base_and_its_kernel_stays(machine):
    made = gpu_configuration.configuration(machine, options(), installed())
    assert made.base == NVIDIA
    assert made.changes["hypervisor.qemu", "cold_plug_vfio"] == "root-port"
    assert ("hypervisor.qemu", "kernel") not in made.changes
    assert made.kernel_params_add == gpu_recipes.KERNEL_PARAMS
    assert (made.overhead_memory, made.overhead_cpu) == ("10240Mi", "1")


def test_the_deploy_records_own_way(machine):
    """Kata 1.13, two P100, the kernel that build-kernel.sh installed."""
    shipped = "/usr/share/defaults/kata-containers/configuration.toml"
    machine.lay({shipped: GUEST.format("/usr/share/kata-containers/vmlinuz.container", "/i")})
    machine.lay({BUILT: "", BUILT.replace("vmlinuz", "config"): test_guest_kernel.GOOD})
    machine.path(BUILT).write_bytes(test_guest_kernel.bzimage(b""))
    asked = options(gpu_plug="pcie")
    made = gpu_configuration.configuration(machine, asked, installed((1, 13, 0), "go", shipped))
    assert made.base == shipped
    assert made.changes == {
        ("hypervisor.qemu", "machine_type"): "q35",
        ("hypervisor.qemu", "hotplug_vfio_on_root_bus"): True,
        # Both cards, and the audio function that shares a group with one.
        ("hypervisor.qemu", "pcie_root_port"): 3,
        ("hypervisor.qemu", "default_memory"): 8192,
        ("hypervisor.qemu", "kernel"): BUILT,
    }


@pytest.mark.parametrize("plug", test_gpu_recipes.PLUGS)
@pytest.mark.parametrize("mode", ["passthrough", "vgpu"])
@pytest.mark.parametrize("version", test_gpu_recipes.GENERATIONS)
def test_every_generation_mode_and_plug(tmp_path, version, mode, plug):
    """Two Tesla P100, or two vGPUs of one, against the table that was written by hand."""
    machine = cards.Machine(tmp_path)
    for bdf, group in (("0000:04:00.0", 45), ("0000:84:00.0", 54)):
        machine.card(bdf, **cards.P100, group=group)
    machine.offers("0000:04:00.0", {"nvidia-105": ("GRID P100-8Q", 2)})
    machine.lay({PLAIN: GUEST.format("/k", "/i")})
    more = {"vgpu_type": "nvidia-105", "vgpu_count": 2} if mode == "vgpu" else {}
    asked = options(mode, gpu_plug=plug, gpu_guest_kernel=kernel(machine, "/srv/vmlinuz"), **more)
    assert preparation.ensure_host(machine, asked).changed
    generation = test_gpu_recipes.GENERATIONS[version]
    expected = test_gpu_recipes.GO[generation, plug, mode == "passthrough"]
    release = installed(test_gpu_recipes.number(version))
    if expected is None:
        with pytest.raises(problems.Blocked, match=f"gpu-plug={plug}: "):
            gpu_configuration.configuration(machine, asked, release)
        return
    made = gpu_configuration.configuration(machine, asked, release)
    assert test_gpu_recipes.in_table(made.changes, "hypervisor.qemu") == {
        **expected,
        "default_memory": 8192,
        "kernel": "/srv/vmlinuz",
    }


def test_the_regions_of_the_cards_choose_the_plug(tmp_path):
    asked = options()
    for card, expected in ((cards.T4, "bridge-port"), (cards.P100, "root-port")):
        machine = cards.Machine(tmp_path / card["ids"]).card("0000:04:00.0", **card, group=1)
        machine.lay({PLAIN: GUEST.format("/k", "/i"), BUILT: ""})
        machine.path(BUILT).write_bytes(test_guest_kernel.vmlinux())
        made = gpu_configuration.configuration(machine, asked, installed((3, 6, 0)))
        assert made.changes["hypervisor.qemu", "hot_plug_vfio"] == expected


def test_two_h200_on_the_newest_release(tmp_path):
    machine = cards.Machine(tmp_path)
    for bdf, group in (("0000:18:00.0", 20), ("0000:9a:00.0", 31)):
        machine.card(bdf, **cards.H200, group=group)
    wish = gpu_configuration.wish(
        machine, options(), installed(), gpu_configuration.chosen(machine, options())
    )
    assert (wish.large, wish.devices) == (True, 2)


def vgpu_wish(machine):
    asked = options("vgpu", vgpu_type="nvidia-105")
    gpus = gpu_configuration.chosen(machine, asked)
    return gpu_configuration.wish(machine, asked, installed(), gpus)


def test_a_vgpu_that_the_gpu_makes_itself_is_small_whatever_the_gpu_is(machine):
    assert not vgpu_wish(machine).large


@pytest.mark.parametrize(("size", "large"), [(cards.GIB, True), (256 * cards.MIB, False)])
def test_one_of_a_virtual_function_has_its_regions(tmp_path, size, large):
    machine = cards.Machine(tmp_path).card("0000:65:00.0", ids="10de:20f1", sriov=(16, 1))
    bars = {1: (0x380000000000, size, cards.MEM64)}
    machine.card("0000:65:00.4", ids="10de:20f1", physfn="0000:65:00.0", bars=bars)
    assert vgpu_wish(machine).large is large


def test_a_sandbox_may_get_all_vgpus_of_a_machine(machine):
    machine.offers("0000:04:00.0", {"nvidia-105": ("GRID P100-8Q", 2)})
    asked = options("vgpu", vgpu_type="nvidia-105", vgpu_count=2)
    preparation.ensure_host(machine, asked)
    assert vgpu_wish(machine).devices == 2


def test_default_memory_counts_where_it_is_more(machine):
    made = gpu_configuration.configuration(machine, options(default_memory=16384), installed())
    assert made.changes["hypervisor.qemu", "default_memory"] == 16384
    assert made.overhead_memory == "18432Mi"
    assert gpu_configuration.overhead(options(default_memory=512)) == ("10240Mi", "1")


@pytest.mark.parametrize("memory", [4096, 32768])
def test_kata_config_has_the_last_word_on_memory(memory):
    # It is laid over the configuration of the GPUs' class too.
    asked = options(kata_config=f"[hypervisor.qemu]\ndefault_memory = {memory}\n")
    assert gpu_configuration.memory(asked) == memory
    assert gpu_configuration.overhead(asked) == (f"{memory + 2048}Mi", "1")


def kernel(machine, path, config=test_guest_kernel.GOOD):
    machine.lay({path: ""})
    image = test_guest_kernel.bzimage(gzip.compress(test_guest_kernel.vmlinux(config)))
    machine.path(path).write_bytes(image)
    return path


def test_a_kernel_of_the_operators(machine):
    path = kernel(machine, "/srv/vmlinuz")
    made = gpu_configuration.configuration(machine, options(gpu_guest_kernel=path), installed())
    assert made.changes["hypervisor.qemu", "kernel"] == path


def test_one_that_is_not_there_is_refused(machine):
    asked = options(gpu_guest_kernel="/srv/nothing")
    with pytest.raises(problems.Blocked, match="gpu-guest-kernel=/srv/nothing: there is no such"):
        gpu_configuration.configuration(machine, asked, installed())


def test_an_unfit_one_is_refused_with_what_it_lacks(machine):
    path = kernel(machine, "/srv/vmlinuz", "CONFIG_MODULES=y\nCONFIG_DRM_NOUVEAU=m\n")
    with pytest.raises(problems.Blocked) as caught:
        gpu_configuration.configuration(
            machine, options(gpu_guest_kernel=path, gpu_plug="pcie"), installed()
        )
    message = str(caught.value)
    assert "CONFIG_HOTPLUG_PCI_PCIE=y" in message
    assert "CONFIG_DRM_NOUVEAU=n" in message
    assert "CONFIG_MODULES" not in message


def test_one_that_does_not_tell_is_taken(machine):
    path = kernel(machine, "/srv/vmlinuz", None)
    asked = options(gpu_guest_kernel=path)
    assert gpu_configuration.configuration(machine, asked, installed())


def test_it_is_read_once_and_again_when_it_changes(machine, monkeypatch):
    reads = []
    read = gpu_configuration.guest_kernel.read
    monkeypatch.setattr(
        gpu_configuration.guest_kernel, "read", lambda *args: reads.append(1) or read(*args)
    )
    asked = options(gpu_guest_kernel=kernel(machine, "/srv/vmlinuz"))
    for _ in range(3):
        gpu_configuration.configuration(machine, asked, installed())
    assert len(reads) == 1
    kernel(machine, "/srv/vmlinuz", "CONFIG_MODULES=n\n")
    with pytest.raises(problems.Blocked):
        gpu_configuration.configuration(machine, asked, installed())


def test_the_attached_kernel_is_kept_on_the_machine(machine, tmp_path):
    before = traces(machine)
    attached = tmp_path / "guest-kernel.bin"
    attached.write_bytes(test_guest_kernel.vmlinux())
    made = gpu_configuration.configuration(machine, options(), installed(), attached)
    path = made.changes["hypervisor.qemu", "kernel"]
    assert machine.path(path).read_bytes() == attached.read_bytes()
    preparation.undo(machine)
    assert traces(machine) == before


def test_the_option_goes_before_the_resource(machine, tmp_path):
    attached = tmp_path / "guest-kernel.bin"
    attached.write_bytes(test_guest_kernel.vmlinux())
    path = kernel(machine, "/srv/vmlinuz")
    asked = options(gpu_guest_kernel=path)
    made = gpu_configuration.configuration(machine, asked, installed(), attached)
    assert made.changes["hypervisor.qemu", "kernel"] == path


def test_a_release_without_a_kernel_for_gpus_says_what_to_bring(machine):
    machine.remove(f"{SHARE}/vmlinuz-nvidia-gpu.container")
    with pytest.raises(problems.Blocked, match="attach one as the resource guest-kernel"):
        gpu_configuration.configuration(machine, options(), installed((2, 5, 2)))


@pytest.mark.parametrize(
    "name", ["vmlinuz-nvidia-gpu.container", "kata-containers-nvidia-gpu.img"]
)
def test_an_archive_that_lacks_what_its_file_names(machine, name):
    machine.remove(f"{SHARE}/{name}")
    with pytest.raises(problems.Blocked, match=f"the installed release lacks its {SHARE}/{name}"):
        gpu_configuration.configuration(machine, options(), installed())


def test_an_image_that_is_added_to_another_is_needed_too(machine):
    added = f"{SHARE}/kata-containers-nvidia-gpu-extension.img"
    extension = f'[[hypervisor.qemu.guest_extension_images]]\nname = "gpu"\npath = "{added}"\n'
    shipped = f"{FOLDER}/runtime-rs/configuration-qemu-runtime-rs.toml"
    nvidia = f"{FOLDER}/runtime-rs/configuration-qemu-nvidia-gpu-runtime-rs.toml"
    machine.lay({nvidia: machine.read(NVIDIA) + extension})
    rust = installed((4, 1, 0), "rust", shipped)
    with pytest.raises(problems.Blocked, match=f"lacks its {added}; set shim=go, the path"):
        gpu_configuration.configuration(machine, options(), rust)
    machine.lay({added: ""})
    assert gpu_configuration.configuration(machine, options(), rust)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ext4", {"image": "/srv/guest", "initrd": None, "rootfs_type": "ext4"}),
        ("erofs", {"image": "/srv/guest", "initrd": None, "rootfs_type": "erofs"}),
        ("initrd", {"initrd": "/srv/guest", "image": None}),
    ],
)
def test_an_image_of_the_operators(machine, name, expected):
    machine.lay({"/srv/guest": ""})
    image = b"070701" + bytes(600) if name == "initrd" else test_guest_image.disk(name)
    machine.path("/srv/guest").write_bytes(image)
    asked = options(gpu_guest_image="/srv/guest")
    made = gpu_configuration.configuration(machine, asked, installed())
    found = {key: made.changes.get(("hypervisor.qemu", key), "-") for key in expected}
    assert found == expected


def test_releases_before_3_1_have_no_rootfs_type(machine):
    machine.lay({"/srv/guest": ""})
    machine.path("/srv/guest").write_bytes(test_guest_image.disk("ext4"))
    path = kernel(machine, "/srv/vmlinuz")
    asked = options(gpu_guest_image="/srv/guest", gpu_guest_kernel=path)
    made = gpu_configuration.configuration(machine, asked, installed((3, 0, 2)))
    assert ("hypervisor.qemu", "rootfs_type") not in made.changes


def test_rusts_own_file_of_nvidias(machine):
    folder = f"{FOLDER}/runtime-rs"
    shipped = f"{folder}/configuration-qemu-runtime-rs.toml"
    nvidia = f"{folder}/configuration-qemu-nvidia-gpu-runtime-rs.toml"
    machine.lay({shipped: GUEST.format("/k", "/i"), nvidia: machine.read(NVIDIA)})
    made = gpu_configuration.configuration(
        machine, options(), installed((4, 1, 0), "rust", shipped)
    )
    assert made.base == nvidia
