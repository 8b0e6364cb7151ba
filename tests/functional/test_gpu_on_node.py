"""gpu-mode on a real kernel: a real IOMMU group, real vfio-pci, and what a boot makes of it.

The GPU is an NVIDIA H100 by all that the node's kernel can see; there is nothing behind it.
"""

import dataclasses
import json
import os
import pathlib

import pytest
import yaml

from kata.gpu import guest_kernel
from kata.machine import node as kata_node
from tests.node import charm, image, juju, machine, pci, standin
from tests.unit.gpu import test_guest_kernel

GPU, SOUND = "0000:04:00.0", "0000:04:00.1"
CHARM = yaml.safe_load((charm.REPOSITORY / "charmcraft.yaml").read_text())
DEFAULTS = {name: option["default"] for name, option in CHARM["config"]["options"].items()}
PROGRAM = """
import dataclasses, json, sys
from kata import problems, settings
from kata.gpu import check, preparation
from kata.machine import node
what, config = json.load(sys.stdin)
wanted = settings.read(config)
try:
    if what == "check":
        report = check.look(node.Node(), wanted, None)
        answer = {
            "gpus": [each.data() for each in report.gpus],
            "checks": {each.name: each.ok for each in report.findings},
        }
    else:
        answer = dataclasses.asdict(preparation.ensure_host(node.Node(), wanted))
except problems.Problem as problem:
    answer = {type(problem).__name__: str(problem)}
print(json.dumps(answer))
"""


# In place of GRUB, which this node does not boot from: the files are read as grub-mkconfig reads
# them, and the test boots with what came of it.
UPDATE_GRUB = """\
#!/bin/sh -e
. /etc/default/grub
for file in /etc/default/grub.d/*.cfg; do test ! -e "$file" || . "$file"; done
mkdir -p /boot/grub
echo "linux /vmlinuz $GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT" > /boot/grub/grub.cfg
"""
GRUB_FILES = {
    "/etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX=""\n',
    # as on Ubuntu's cloud images
    "/etc/default/grub.d/50-cloudimg-settings.cfg": 'GRUB_CMDLINE_LINUX="console=ttyS0"\n',
}


def lay_code(node):
    """Put the code under test there before the power goes, as a charm is before its hooks run."""
    node.copy_in_tree(charm.REPOSITORY / "src", "/root/src")
    node.run(["sync"])


@pytest.fixture
def node(with_functions):
    lay_code(with_functions)
    return with_functions


def without_iommu():
    """A machine whose firmware announces an IOMMU that its kernel was not told to use."""
    words = (each for each in machine.KERNEL if "iommu" not in each)
    # Debian's kernel uses it by default, and others do not: this stands for their default. The
    # kernel takes a dash for an underscore, and the last of such words holds.
    kernel = (*words, "intel-iommu=off")
    return machine.Machine(machine.Spec(cpu="vendor=GenuineIntel", kernel=kernel), functions=True)


def call(node, what, **options):
    config = {**DEFAULTS, **{name.replace("_", "-"): value for name, value in options.items()}}
    result = node.run(
        ["python3", "-c", PROGRAM],
        stdin=json.dumps([what, config]),
        env={"PYTHONPATH": "/root/src", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return json.loads(result.out)


def ensure(node, mode, **options):
    return call(node, "ensure", gpu_mode=mode, **options)


def driver(node, bdf):
    link = node.run(["readlink", f"/sys/bus/pci/devices/{bdf}/driver"], check=False).out.strip()
    return os.path.basename(link)


def plug(node):
    """Plug the GPU with its sound function, and wait until the kernel's driver has the latter."""
    node.plug_gpu(functions=pci.WITH_AUDIO)
    link = f"/sys/bus/pci/devices/{SOUND}/driver"
    node.run(f"for n in $(seq 100); do test -e {link} && exit; sleep 0.1; done; exit 1")


def group(node, bdf):
    link = node.run(["readlink", f"/sys/bus/pci/devices/{bdf}/iommu_group"]).out
    return os.path.basename(link.strip())


def files(node):
    """All files below /etc and the charm's own folders, with their digests."""
    find = "find /etc /var/lib/kata-charm /usr/local -type f -exec sha256sum {} + 2>/dev/null"
    return sorted(node.run(find, check=False).out.splitlines())


def settled(node):
    node.run(["udevadm", "settle"])


def test_a_gpu_and_its_group_go_to_vfio_and_come_back(node):
    plug(node)
    before = files(node)
    assert (driver(node, GPU), driver(node, SOUND)) == ("", "snd_hda_intel")

    outcome = ensure(node, "passthrough")
    assert outcome == {
        "changed": True,
        "gpus": [GPU],
        "message": f"GPU {GPU} for sandboxes",
    }
    for function in (GPU, SOUND):
        shown = node.run(["lspci", "-k", "-s", function]).out
        assert "Kernel driver in use: vfio-pci" in shown
    assert node.run(["test", "-c", f"/dev/vfio/{group(node, GPU)}"]).ok
    assert ensure(node, "passthrough")["changed"] is False

    assert ensure(node, "none")["changed"] is True
    assert (driver(node, GPU), driver(node, SOUND)) == ("", "snd_hda_intel")
    for function in (GPU, SOUND):
        override = node.run(["cat", f"/sys/bus/pci/devices/{function}/driver_override"]).out
        assert override.strip() == "(null)"
    assert files(node) == before


def test_the_charm_makes_a_class_for_it_and_takes_it_back(booted, tmp_path):
    with machine.Machine.restored(juju.with_charm(booted), functions=True) as node:
        unit = juju.Unit(node, "kata/0")
        unit.relate("containerd", "kubernetes-worker")
        unit.attach("kata-archive", standin.archive("3.32.0", tmp_path))
        unit.attach("guest-kernel", test_guest_kernel.vmlinux())
        plug(node)
        unit.config["gpu-mode"] = "passthrough"
        result = unit.dispatch("install")
        assert result.ok, result.output
        kata = "Kata runtime available (3.32.0; kata, kata-gpu, untrusted)"
        assert unit.status == ("active", f"{kata}; GPU {GPU} for sandboxes")
        assert "runtimes.kata-gpu]" in node.run(["containerd", "config", "dump"]).out
        made = node.run(["cat", "/etc/kata-containers/configuration-kata-gpu.toml"]).out
        assert 'kernel = "/var/lib/kata-charm/guest-kernel/vmlinuz"' in made
        assert 'cold_plug_vfio = "root-port"' in made

        answer = unit.run_action("check-gpu").results
        assert answer["ready"] == "true", answer["report"]
        assert json.loads(answer["gpus"])[0]["driver"] == "vfio-pci"

        unit.config["gpu-mode"] = "none"
        assert unit.dispatch("config-changed").ok
        assert unit.status == ("active", "Kata runtime available (3.32.0; kata, untrusted)")
        assert "kata-gpu" not in node.run(["containerd", "config", "dump"]).out
        assert (driver(node, GPU), driver(node, SOUND)) == ("", "snd_hda_intel")
        left = node.run("find /etc /var/lib/kata-charm | grep -e gpu -e guest-kernel", check=False)
        assert left.out == ""


def test_the_kernel_opens_the_group_only_when_all_of_it_is_bound(node):
    """What QEMU asks of /dev/vfio/<group>, asked here by the same ioctl."""
    plug(node)
    ask = (
        "import fcntl, os, struct, sys; fd = os.open(sys.argv[1], os.O_RDWR);"
        "answer = bytearray(struct.pack('II', 8, 0));"
        # linux/vfio.h: VFIO_GROUP_GET_STATUS is _IO(';', 100 + 3); bit 0 is "viable"
        "fcntl.ioctl(fd, 0x3b67, answer); print(struct.unpack('II', answer)[1] & 1)"
    )
    ensure(node, "passthrough")
    path = f"/dev/vfio/{group(node, GPU)}"
    assert node.run(["python3", "-c", ask, path]).out.strip() == "1"
    # The sound card alone goes back by hand: the group is of no use any more.
    node.run(f"echo > /sys/bus/pci/devices/{SOUND}/driver_override")
    node.run(f"echo {SOUND} > /sys/bus/pci/devices/{SOUND}/driver/unbind")
    node.run(f"echo {SOUND} > /sys/bus/pci/drivers_probe")
    assert node.run(["python3", "-c", ask, path]).out.strip() == "0"
    assert ensure(node, "passthrough")["changed"] is True
    assert node.run(["python3", "-c", ask, path]).out.strip() == "1"


def test_a_power_cut_and_a_boot_leave_them_bound(node):
    plug(node)
    # One that is there from the start of a boot, whose driver the initramfs binds.
    spare = node.run("lspci -D -d 1af4:1005 | cut -d' ' -f1").out.strip()
    assert ensure(node, "passthrough", gpu_devices=f"{GPU},{spare}")["gpus"] == [spare, GPU]
    assert driver(node, spare) == "vfio-pci"
    node.power_cut()

    node.boot()
    plug(node)
    settled(node)
    assert [driver(node, each) for each in (GPU, SOUND, spare)] == ["vfio-pci"] * 3
    assert node.run(["test", "-c", f"/dev/vfio/{group(node, GPU)}"]).ok
    assert ensure(node, "passthrough", gpu_devices=f"{GPU},{spare}")["changed"] is False

    assert ensure(node, "none")["changed"] is True
    assert driver(node, spare) == "virtio-pci"
    node.power_cut()
    node.boot()
    plug(node)
    settled(node)
    assert [driver(node, each) for each in (GPU, SOUND, spare)] == [
        "",
        "snd_hda_intel",
        "virtio-pci",
    ]


def test_without_an_iommu_a_reboot_is_asked_for_and_helps():
    with without_iommu() as node:
        node.boot()
        lay_code(node)
        for path, text in GRUB_FILES.items():
            node.copy_in(text, path)
        node.copy_in(UPDATE_GRUB, "/usr/sbin/update-grub", 0o755)
        spare = node.run("lspci -D -d 1af4:1005 | cut -d' ' -f1").out.strip()
        before, boot = files(node), node.run("cat /proc/sys/kernel/random/boot_id").out
        assert not call(node, "check")["checks"]["IOMMU"]

        said = "reboot needed: the IOMMU is off; intel_iommu=on is set for the next boot"
        for _ in range(2):
            assert ensure(node, "passthrough", gpu_devices=spare) == {"Blocked": said}
        assert driver(node, spare) == "virtio-pci"
        assert node.run("cat /proc/sys/kernel/random/boot_id").out == boot, "never by itself"

        words = node.run(["cat", "/boot/grub/grub.cfg"]).out.split()[2:]
        assert words == ["console=ttyS0", "intel_iommu=on", "quiet"]
        node.run(["sync"])
        node.power_cut()
        kernel = (*node.spec.kernel, *words)
        node.spec = dataclasses.replace(node.spec, kernel=kernel)
        node.boot()
        assert ensure(node, "passthrough", gpu_devices=spare)["gpus"] == [spare]
        assert driver(node, spare) == "vfio-pci"

        assert ensure(node, "none")["changed"] is True
        assert driver(node, spare) == "virtio-pci"
        assert files(node) == before
        assert "iommu" not in node.run(["cat", "/boot/grub/grub.cfg"]).out


def test_what_a_process_uses_is_not_pulled_from_under_it(node):
    node.plug_gpu()
    ensure(node, "passthrough")
    path = f"/dev/vfio/{group(node, GPU)}"
    hold = "import pathlib, sys, time; f = open(sys.argv[1], 'r+b', 0);"
    hold += "pathlib.Path('/run/held').touch(); time.sleep(99)"
    user = node.start(["python3", "-c", hold, path])
    node.run("until test -e /run/held; do sleep 0.1; done")
    answer = ensure(node, "none")
    assert answer.keys() == {"Waiting"}
    assert f"{GPU} is still used by python3" in answer["Waiting"]
    assert driver(node, GPU) == "vfio-pci"
    user.kill()
    user.wait()
    assert ensure(node, "none")["changed"] is True


def test_the_look_agrees_with_lspci(node):
    plug(node)
    report = call(node, "check")
    (gpu,) = report["gpus"]
    shown = node.run(["lspci", "-vvnnD", "-s", GPU]).out
    assert f"{GPU} 3D controller [{gpu['class']}]: NVIDIA" in shown
    assert f"[{gpu['ids']}]" in shown
    for bar in gpu["bars"]:
        width = f"{bar['width']}-bit"
        kind = "prefetchable" if bar["prefetchable"] else "non-prefetchable"
        address = bar["address"].removeprefix("0x")
        line = f"Region {bar['region']}: Memory at {address} ({width}, {kind})"
        (found,) = [each for each in shown.splitlines() if line in each]
        assert f"[size={bar['size_words']}]" in found
    assert f"IOMMU group: {gpu['iommu_group']}" in shown
    assert [each["bdf"] for each in gpu["group_members"]] == [SOUND]
    assert [bar["size_words"] for bar in gpu["bars"] if bar["large"]] == ["16G"]
    assert report["checks"]["IOMMU"]
    assert report["checks"]["host kernel CONFIG_VFIO_PCI"]
    assert not report["checks"]["bound to vfio-pci with its IOMMU group"]


def test_the_nodes_own_kernel_is_read_as_a_guests_would_be(node, tmp_path):
    release = node.run(["uname", "-r"]).out.strip()
    kernel = tmp_path / f"vmlinuz-{release}"
    kernel.symlink_to(image.ready().packed_kernel)
    (tmp_path / f"config-{release}").write_bytes(node.copy_out(f"/boot/config-{release}"))
    read = guest_kernel.read(kata_node.Node(pathlib.Path("/")), str(kernel))
    assert read.version == release
    assert read.source == str(tmp_path / f"config-{release}")
    assert read.options["CONFIG_MODULES"] == "y"
    # The image was unpacked to look for a configuration inside: the kernel's banner is there.
    body = guest_kernel.unpacked(kernel.read_bytes())
    assert f"Linux version {release} ".encode() in body
