"""What the look at a machine's GPUs found, as data and as text for a terminal."""

import dataclasses
from typing import Any

from kata.gpu import mdev, pci
from kata.machine import host

PASSTHROUGH, VGPU = "passthrough", "vgpu"
MODES = (PASSTHROUGH, VGPU)
_HEADINGS = {"host": "Host", "kata": "Kata", "guest": "Guest kernel", "vgpu": "vGPU"}


@dataclasses.dataclass(frozen=True)
class Finding(host.Check):
    """A check, what it is about, and the modes that stand or fall with it."""

    scope: str = "host"
    """host, kata, guest, vgpu, or a GPU's address."""
    modes: tuple[str, ...] = MODES

    @property
    def fails(self) -> bool:
        """Whether its modes cannot work because of it."""
        return self.required and not self.ok


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU with all that goes along with it."""

    function: pci.Function
    name: str
    chosen: bool
    """Whether gpu-devices names it."""
    members: tuple[pci.Function, ...]
    """The others of its IOMMU group; bridges among them stay with the host."""
    vfio_files: tuple[str, ...]
    types: tuple[mdev.Type, ...]

    def data(self) -> dict[str, Any]:
        """Return it for JSON."""
        function = self.function
        return {
            "bdf": function.bdf,
            "ids": function.ids,
            "name": self.name,
            "class": function.class_code[:4],
            "chosen": self.chosen,
            "driver": function.driver,
            "console": function.boot_vga,
            "iommu_group": function.group,
            "group_members": [
                {
                    "bdf": each.bdf,
                    "ids": each.ids,
                    "driver": each.driver,
                    "bridge": each.is_bridge,
                }
                for each in self.members
            ],
            "bars": [
                {
                    "region": bar.index,
                    "address": f"0x{bar.address:x}" if bar.mapped else None,
                    "size": bar.size,
                    "size_words": pci.size_words(bar.size),
                    "width": 64 if bar.wide else 32,
                    "prefetchable": bar.prefetchable,
                    "large": bar.large,
                }
                for bar in function.bars
            ],
            "vfio": self.vfio_files,
            "mdev_types": [dataclasses.asdict(each) for each in self.types],
            "sriov": {"total": function.virtual_total, "enabled": function.virtual_enabled},
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings on a machine."""

    mode: str
    """The mode that `ready` speaks of: gpu-mode, or passthrough while that is none."""
    gpus: tuple[Gpu, ...]
    findings: tuple[Finding, ...]

    def against(self, mode: str) -> tuple[Finding, ...]:
        """Return what keeps a mode from working; nothing if it would work."""
        return tuple(each for each in self.findings if mode in each.modes and each.fails)

    @property
    def ready(self) -> bool:
        """Whether a sandbox could have a GPU now."""
        return not self.against(self.mode)


def words(report: Report) -> str:
    """Return a report as text for a terminal."""
    lines = [line for gpu in report.gpus for line in _gpu_words(gpu)]
    scope = ""
    for each in report.findings:
        if each.scope != scope:
            scope = each.scope
            lines.append(_HEADINGS.get(scope, f"GPU {scope}"))
        mark = "ok  " if each.ok else ("NO  " if each.required else "note")
        line = f"  {mark} {each.name}: {each.found}"
        if not each.ok:
            line += f" (wanted: {each.wanted})" if each.wanted else ""
            line += f"; {each.remedy}" if each.remedy else ""
        lines.append(line)
    lines.append("Verdict")
    for mode in MODES:
        against = report.against(mode)
        lines.append(f"  {mode}: {'not ready' if against else 'ready'}")
        for each in against:
            remedy = f"; {each.remedy}" if each.remedy else ""
            lines.append(f"    {each.name}: {each.found}{remedy}")
    return "\n".join(lines)


def _gpu_words(gpu: Gpu) -> list[str]:
    function = gpu.function
    files = f", {', '.join(gpu.vfio_files)}" if gpu.vfio_files else ""
    others = ", ".join(f"{each.bdf} ({each.driver or 'no driver'})" for each in gpu.members)
    group = "none" if function.group is None else str(function.group)
    free = ", ".join(f"{each.id} ({each.name}) {each.available} free" for each in gpu.types)
    virtual = f"{function.virtual_enabled} of {function.virtual_total} virtual functions"
    return [
        f"GPU {function.bdf} [{function.class_code[:4]}] {gpu.name} [{function.ids}]",
        f"  driver: {function.driver or 'none'}{files}"
        + ("" if gpu.chosen else "; not named by gpu-devices"),
        f"  IOMMU group: {group}" + (f", with {others}" if others else ""),
        *(f"  {bar}" for bar in function.bars),
        f"  vGPU types: {free or 'none'}",
        f"  SR-IOV: {virtual if function.virtual_total else 'none'}",
    ]
