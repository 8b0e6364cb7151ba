"""A machine with PCI cards: the kernel's files about them, and what it does when they are written.

The layout is that of Linux: devices below /sys/devices, links to them in /sys/bus/pci/devices, a
`driver` and an `iommu_group` link in each, /dev/vfio/<group> once a group's device is on vfio-pci.
"""

import collections
import os
import pathlib
import shutil

from tests.unit import conftest

GIB = 1 << 30
MIB = 1 << 20
# Flags as Linux prints them in `resource`: 32-bit; 64-bit prefetchable; not assigned.
MEM32, MEM64, UNSET = 0x40200, 0x14220C, 0x20000000

# The deploy record's Tesla P100: lspci -vv gives 16M, 16G and 32M.
P100 = {
    "ids": "10de:15f8",
    "bars": {
        0: (0xC6000000, 16 * MIB, MEM32),
        1: (0x383800000000, 16 * GIB, MEM64),
        3: (0x383C00000000, 32 * MIB, MEM64),
    },
}
# A T4's regions are 64-bit too, and may lie above 4 GiB: they are small all the same.
T4 = {
    "ids": "10de:1eb8",
    "bars": {
        0: (0xA0000000, 16 * MIB, MEM32),
        1: (0x387FE0000000, 256 * MIB, MEM64),
        3: (0x387FF0000000, 32 * MIB, MEM64),
    },
    "sriov": (16, 0),
}
H200 = {
    "ids": "10de:2335",
    "bars": {
        0: (0x3F8042000000, 16 * MIB, MEM64),
        2: (0x3F0000000000, 256 * GIB, MEM64),
        4: (0x3F8040000000, 32 * MIB, MEM64),
    },
}
# A consumer card that drives a screen, with its audio function.
SCREEN = {"ids": "10de:2684", "class_code": "030000", "bars": {1: (0xE0000000, 256 * MIB, MEM64)}}
AUDIO = {"ids": "10de:22ba", "class_code": "040300", "bars": {0: (0xC5000000, 16384, MEM32)}}
NIC = {"ids": "8086:1572", "class_code": "020000", "driver": "i40e"}
PORT = {"ids": "8086:6f02", "class_code": "060400", "driver": "pcieport"}


class Machine(conftest.FakeNode):
    """A `FakeNode` whose kernel binds drivers and makes vGPUs when it is told to."""

    def __init__(self, root: pathlib.Path):
        super().__init__(root)
        self.lay(
            {
                "/sys/bus/pci/drivers_probe": "",
                "/proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\n",
                "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 intel_iommu=on\n",
                "/proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
                "/boot/config-6.8.0-45-generic": HOST_CONFIG,
                "/etc/default/grub": "GRUB_DEFAULT=0\n",
                "/usr/sbin/update-grub": "",
            }
        )
        self.natural: dict[str, str] = {}
        self.refused: set[str] = set()
        self.modules = {"vfio-pci"}
        self.on("modprobe *")
        self.on("update-grub")
        self.on("systemctl *")
        self._families: dict[str, tuple[str, int]] = {}

    # Cards

    def card(
        self,
        bdf,
        ids="10de:15f8",
        class_code="030200",
        driver=None,
        group=None,
        bars=None,
        boot_vga=None,
        sriov=None,
        physfn=None,
    ):
        """Put a function into the machine; `driver` is also the one it gets without an override."""
        place = self._device(bdf)
        vendor, device = ids.split(":")
        rows = {
            index: (a, a + size - 1, flags) for index, (a, size, flags) in (bars or {}).items()
        }
        lines = [rows.get(index, (0, 0, 0)) for index in range(7)]
        files = {
            "vendor": f"0x{vendor}\n",
            "device": f"0x{device}\n",
            "class": f"0x{class_code}\n",
            "driver_override": "(null)\n",
            "resource": "".join(f"0x{a:016x} 0x{b:016x} 0x{c:016x}\n" for a, b, c in lines),
        }
        if boot_vga is not None:
            files["boot_vga"] = f"{int(boot_vga)}\n"
        if sriov:
            files["sriov_totalvfs"], files["sriov_numvfs"] = (f"{each}\n" for each in sriov)
        self.lay({f"{place}/{name}": text for name, text in files.items()})
        self._link(f"/sys/bus/pci/devices/{bdf}", place)
        if group is not None:
            self.lay({f"/sys/kernel/iommu_groups/{group}/type": "DMA\n"})
            self.lay({"/sys/class/iommu/dmar0/name": ""})
            self._link(f"{place}/iommu_group", f"/sys/kernel/iommu_groups/{group}")
        if physfn:
            self._link(f"{place}/physfn", self._device(physfn))
        if driver:
            self.natural[bdf] = driver
            self._bind(bdf, driver)
        return self

    def process(self, pid, name, *files):
        """Run a process that has files open."""
        self.lay({f"/proc/{pid}/comm": f"{name}\n"})
        for number, file in enumerate(files):
            place = self.path(f"/proc/{pid}/fd/{number}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
        return self

    def ends(self, pid):
        for place in self.path(f"/proc/{pid}/fd").iterdir():
            place.unlink()

    def driver(self, bdf):
        link = self.path(f"{self._device(bdf)}/driver")
        return link.readlink().name if link.is_symlink() else None

    def override(self, bdf):
        return (self.read(f"{self._device(bdf)}/driver_override") or "").strip()

    def boot(self):
        """Start anew: overrides and vGPUs are gone; udev's rules and then drivers come.

        The rules are applied as udev would, by address.
        """
        rules = self.read("/etc/udev/rules.d/70-kata-charm-gpu.rules") or ""
        for place in sorted(self.path("/sys/devices").iterdir()):
            bdf = place.name
            if not place.joinpath("vendor").exists():
                continue
            self._unbind(bdf)
            self.lay({f"{self._device(bdf)}/driver_override": "(null)\n"})
            if f'KERNEL=="{bdf}"' in rules and 'driver_override}="vfio-pci"' in rules:
                self.lay({f"{self._device(bdf)}/driver_override": "vfio-pci\n"})
            self._probe(bdf)
        for mdev in list(self._mdevs()):
            self._remove_mdev(mdev, gone=True)
        return self

    # vGPUs

    def offers(self, parent, types, gpu=None):
        """Have a function offer vGPU types: id to name and how many fit.

        Functions with the same `gpu` share its memory.
        """
        for type_id, (name, fits) in types.items():
            place = f"{self._device(parent)}/mdev_supported_types/{type_id}"
            self.lay(
                {
                    f"{place}/name": f"{name}\n",
                    f"{place}/available_instances": f"{fits}\n",
                    f"{place}/description": "num_heads=4\n",
                    f"{place}/create": "",
                }
            )
            self.path(f"{place}/devices").mkdir()
            self._families[f"{parent}/{type_id}"] = (gpu or parent, fits)
        if not self.path(f"/sys/class/mdev_bus/{parent}").is_symlink():
            self._link(f"/sys/class/mdev_bus/{parent}", self._device(parent))
        return self

    # What the kernel does

    def put(self, path, value):
        path = str(path)
        if not self.path(path).exists():
            super().put(path, value)  # it says so
        bdf = pathlib.PurePath(path).parent.name
        if path == "/sys/bus/pci/drivers_probe":
            self._probe(value)
        elif path.endswith("/driver_override"):
            self.lay({path: f"{value.strip() or '(null)'}\n"})
        elif path.endswith("/driver/unbind"):
            self._unbind(value)
        elif path.endswith("/create"):
            self._create_mdev(path, value)
        elif path.endswith("/remove"):
            self._remove_mdev(bdf)
        else:
            raise AssertionError(f"nothing is known of {path}")

    def _device(self, bdf):
        return f"/sys/devices/{bdf}"

    def _link(self, path, target):
        place = self.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(self.path(target), place.parent))

    def _probe(self, bdf):
        if self.driver(bdf) or bdf in self.refused:
            return
        override = self.override(bdf)
        wanted = self.natural.get(bdf) if override == "(null)" else override
        if wanted and (wanted in self.modules or wanted == self.natural.get(bdf)):
            self._bind(bdf, wanted)

    def _bind(self, bdf, driver):
        self.lay({f"/sys/bus/pci/drivers/{driver}/unbind": ""})
        self._link(f"{self._device(bdf)}/driver", f"/sys/bus/pci/drivers/{driver}")
        group = self.path(f"{self._device(bdf)}/iommu_group")
        if driver == "vfio-pci" and group.is_symlink():
            self.lay({f"/dev/vfio/{group.readlink().name}": ""})

    def _unbind(self, bdf):
        link = self.path(f"{self._device(bdf)}/driver")
        if link.is_symlink():
            link.unlink()

    def _mdevs(self):
        folder = self.path("/sys/bus/mdev/devices")
        return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []

    def _create_mdev(self, path, name):
        folder = pathlib.PurePath(path).parent
        parent = folder.parent.parent.name
        if int(self.read(folder / "available_instances") or 0) < 1:
            raise AssertionError(f"no room on {parent}")
        place = f"{self._device(parent)}/{name}"
        group = 200 + len(self._mdevs())
        self.lay({f"{place}/remove": "", f"/sys/kernel/iommu_groups/{group}/type": ""})
        self.lay({f"/dev/vfio/{group}": ""})
        self._link(
            f"{place}/mdev_type", f"{self._device(parent)}/mdev_supported_types/{folder.name}"
        )
        self._link(f"{place}/iommu_group", f"/sys/kernel/iommu_groups/{group}")
        self._link(f"/sys/bus/mdev/devices/{name}", place)
        self._link(str(folder / "devices" / name), place)
        self._count_room()

    def _remove_mdev(self, name, gone=False):
        link = self.path(f"/sys/bus/mdev/devices/{name}")
        place = link.resolve()
        parent, type_id = place.parent.name, (place / "mdev_type").readlink().name
        link.unlink()
        self.path(f"{self._device(parent)}/mdev_supported_types/{type_id}/devices/{name}").unlink()
        shutil.rmtree(place)
        self._count_room()

    def _count_room(self):
        """A GPU makes vGPUs of one type at a time, as many as its memory holds."""
        made = collections.Counter()
        for name in self._mdevs():
            place = self.path(f"/sys/bus/mdev/devices/{name}").resolve()
            type_id = (place / "mdev_type").readlink().name
            made[self._families[f"{place.parent.name}/{type_id}"][0], type_id] += 1
        for key, (gpu, fits) in self._families.items():
            parent, type_id = key.split("/")
            other = any(each[0] == gpu and each[1] != type_id for each in made)
            room = 0 if other else fits - made[gpu, type_id]
            path = f"{self._device(parent)}/mdev_supported_types/{type_id}"
            self.lay({f"{path}/available_instances": f"{room}\n"})


HOST_CONFIG = """\
CONFIG_VFIO=m
CONFIG_VFIO_IOMMU_TYPE1=m
CONFIG_VFIO_PCI=m
CONFIG_VFIO_MDEV=m
CONFIG_KVM=m
# CONFIG_VFIO_NOIOMMU is not set
"""


def of_the_record(root):
    """The deploy record's machine: two Tesla P100 in groups 45 and 54, one beside an audio device."""
    machine = Machine(root)
    machine.card("0000:00:02.0", **PORT, group=45)
    machine.card("0000:04:00.0", **P100, group=45, driver="nouveau")
    machine.card("0000:04:00.1", **AUDIO, group=45, driver="snd_hda_intel")
    machine.card("0000:84:00.0", **P100, group=54, driver="nouveau")
    machine.card("0000:81:00.0", **NIC, group=30)
    return machine
