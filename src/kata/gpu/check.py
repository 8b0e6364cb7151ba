"""Everything between a GPU and a sandbox, looked at and explained; nothing is changed."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator

from kata import problems, settings
from kata.gpu import (
    configuration,
    guest_kernel,
    holders,
    iommu,
    mdev,
    pci,
    recipes,
    vfio,
    vgpu,
    vgpu_driver,
)
from kata.gpu.report import MODES, PASSTHROUGH, VGPU, Finding, Gpu, Report
from kata.machine import node as kata_node

FOUR_GIB = 4 << 30
# What boards call it (Kata, docs/use-cases/NVIDIA-GPU-passthrough-and-Kata.md).
ABOVE_4G = (
    "switch on Above 4G Decoding (Memory Hole for PCI MMIO, Memory Mapped I/O above 4GB) in the "
    "firmware"
)
ATTACH = "attach NVIDIA's vGPU host driver as the resource vgpu-driver"


def look(
    node: kata_node.Node,
    wanted: settings.Settings,
    installed: configuration.Installed | None,
    attached: pathlib.Path | None = None,
) -> Report:
    """Look at the GPUs, the host, the release and the guest kernel.

    Args:
        node: the machine.
        wanted: the options.
        installed: the installed release; None if there is none.
        attached: the resource guest-kernel, if there is one.
    """
    found = pci.functions(node)
    chosen = pci.chosen(found, wanted.gpu_devices)
    findings = [*_host(node, chosen), *_options(node)]
    for gpu in chosen:
        findings += _device(node, found, gpu)
    findings += _vgpus(node, wanted, chosen)
    findings += _release(node, wanted, installed, chosen)
    if installed:
        findings += _guest(node, wanted, installed, chosen, attached)
    mode = PASSTHROUGH if wanted.gpu_mode == "none" else wanted.gpu_mode
    return Report(mode, tuple(_gpus(node, found, chosen)), tuple(findings))


def _gpus(
    node: kata_node.Node, found: tuple[pci.Function, ...], chosen: tuple[pci.Function, ...]
) -> Iterator[Gpu]:
    shown = [each for each in found if each.is_gpu or each in chosen]
    names = pci.known_names(node, shown)
    types = mdev.types(node)
    for function in shown:
        family = {function.bdf} | {x.bdf for x in found if x.virtual_of == function.bdf}
        group = [x for x in found if x.group is not None and x.group == function.group]
        yield Gpu(
            function=function,
            name=names.get(function.ids, "unknown to this machine's pci.ids"),
            chosen=function in chosen,
            members=tuple(each for each in group if each.bdf != function.bdf),
            vfio_files=holders.vfio_files(node, f"{pci.DEVICES}/{function.bdf}", function.group),
            types=tuple(each for each in types if each.parent in family),
        )


def _host(node: kata_node.Node, chosen: tuple[pci.Function, ...]) -> Iterator[Finding]:
    yield Finding(
        "GPUs that gpu-devices names",
        str(len(chosen)),
        "1 or more",
        bool(chosen),
        "place the unit on a node with one, or change gpu-devices",
    )
    state = iommu.state(node)
    # Mediated devices need no IOMMU; virtual functions are given out as whole GPUs are.
    modes = MODES if vgpu.by_virtual_functions(node, chosen) else (PASSTHROUGH,)
    active = "active" if state.active else "not active"
    yield Finding("IOMMU", active, "active", state.active, state.remedy, modes=modes)
    word = state.switched_off or (state.parameter if state.on_command_line else None)
    yield Finding(
        "kernel command line",
        word or "no word of an IOMMU",
        state.parameter or "nothing",
        state.active or state.on_command_line or not state.parameter,
        state.remedy,
        required=False,
        modes=modes,
    )
    told = {True: "announced", False: "not announced", None: "cannot be told"}
    yield Finding(
        f"firmware's {state.firmware_name}",
        told[state.announced],
        "announced",
        state.active or state.announced is not False,
        f"switch on {state.firmware_name} in the firmware (BIOS)",
        required=False,
        modes=modes,
    )


def _options(node: kata_node.Node) -> Iterator[Finding]:
    options = iommu.host_options(node)
    for mode, names in ((PASSTHROUGH, iommu.FOR_PASSTHROUGH), (VGPU, iommu.FOR_VGPU)):
        for name in names:
            there = options is None or not iommu.missing_options(options, (name,))
            found = "unknown" if options is None else options.get(name)
            yield Finding(
                f"host kernel {name}",
                found or ("part of another" if there else "n"),
                "y or m",
                there,
                "boot a kernel that has it",
                modes=(mode,),
            )


def _device(
    node: kata_node.Node, found: tuple[pci.Function, ...], gpu: pci.Function
) -> Iterator[Finding]:
    against = vfio.obstacles(node, found, [gpu])
    yield Finding(
        "free to be taken from the host",
        "; ".join(against) or "yes",
        "yes",
        not against,
        scope=gpu.bdf,
        modes=(PASSTHROUGH,),
    )
    loose = vfio.unbound(found, [gpu])
    listed = ", ".join(f"{each.bdf} ({each.driver or 'no driver'})" for each in loose)
    yield Finding(
        f"bound to {vfio.DRIVER} with its IOMMU group",
        f"not {listed}" if loose else "yes",
        "yes",
        not loose,
        "set gpu-mode=passthrough with gpu-prepare-host=true",
        scope=gpu.bdf,
        modes=(PASSTHROUGH,),
    )
    for bar in (bar for bar in gpu.bars if bar.large):
        yield Finding(
            f"large BAR, region {bar.index} of {pci.size_words(bar.size)}",
            f"mapped at 0x{bar.address:x}" if bar.mapped else "mapped nowhere",
            "mapped above 4 GiB",
            bar.mapped and bar.address >= FOUR_GIB,
            ABOVE_4G,
            scope=gpu.bdf,
        )


def _vgpus(
    node: kata_node.Node, wanted: settings.Settings, chosen: tuple[pci.Function, ...]
) -> Iterator[Finding]:
    version = vgpu_driver.loaded_version(node)
    yield Finding(
        "NVIDIA host driver",
        version or "not loaded",
        "loaded",
        bool(version),
        ATTACH,
        scope="vgpu",
        modes=(VGPU,),
    )
    if divided := vgpu.by_virtual_functions(node, chosen):
        enabled = sum(gpu.virtual_enabled for gpu in divided)
        yield Finding(
            "SR-IOV",
            f"{enabled} virtual functions",
            "1 or more",
            bool(enabled),
            f"{vgpu.SRIOV_MANAGE} -e makes them, and needs SR-IOV on in the firmware",
            scope="vgpu",
            modes=(VGPU,),
        )
    types = mdev.types(node)
    fitting = [each for each in types if wanted.vgpu_type in ("", each.id, each.name)]
    free = sum(each.available for each in fitting)
    places = {(each.parent, each.id) for each in fitting}
    made = sum((each.parent, each.type) in places for each in mdev.instances(node))
    yield Finding(
        f"vGPU type {wanted.vgpu_type}" if wanted.vgpu_type else "vGPU types",
        f"{made} made, {free} free",
        "one made or free",
        bool(free or made),
        "choose vgpu-type from what the action list-vgpus shows" if types else ATTACH,
        scope="vgpu",
        modes=(VGPU,),
    )
    yield Finding(
        "licence",
        "cannot be seen from the host",
        "",
        ok=False,
        remedy="each guest needs one of NVIDIA's: /etc/nvidia/gridd.conf in its image names the "
        "licence server",
        required=False,
        scope="vgpu",
        modes=(VGPU,),
    )


def _release(
    node: kata_node.Node,
    wanted: settings.Settings,
    installed: configuration.Installed | None,
    chosen: tuple[pci.Function, ...],
) -> Iterator[Finding]:
    if not installed:
        yield Finding("release", "not installed", "installed", ok=False, scope="kata")
        return
    for mode in MODES:
        try:
            recipe = _recipe(node, wanted, installed, chosen, mode)
            found, ok = "; ".join((recipe.plug, *recipe.notes)), True
        except problems.Blocked as refusal:
            found, ok = str(refusal), False
        yield Finding(f"plug for {mode}", found, "one that works", ok, scope="kata", modes=(mode,))


def _guest(
    node: kata_node.Node,
    wanted: settings.Settings,
    installed: configuration.Installed,
    chosen: tuple[pci.Function, ...],
    attached: pathlib.Path | None,
) -> Iterator[Finding]:
    base = configuration.base_file(node, wanted, installed)
    path, _ = configuration.kernel_path(node, wanted, base, attached)
    remedy = "attach the resource guest-kernel, or set gpu-guest-kernel"
    if path is None:
        yield Finding(
            "image", "none for NVIDIA GPUs", "one", ok=False, remedy=remedy, scope="guest"
        )
        return
    if path == configuration.ATTACHED_KERNEL and attached and not node.exists(path):
        path = str(attached)  # it is put in place when gpu-mode asks for it
    try:
        kernel = guest_kernel.read(node, path)
    except problems.Blocked as refusal:
        yield Finding("image", str(refusal), "a kernel", ok=False, remedy=remedy, scope="guest")
        return
    known = kernel.options is not None
    version = f" {kernel.version}" if kernel.version else ""
    yield Finding(
        "image",
        f"{path}{version}; options: {kernel.source}",
        "its options readable",
        known,
        required=False,
        scope="guest",
    )
    slots = dict(_slots(node, wanted, installed, chosen))
    for need in guest_kernel.NEEDS:
        modes = tuple(mode for mode, slot in slots.items() if slot in need.slots)
        yield Finding(
            need.option,
            (kernel.options or {}).get(need.option, "n") if known else "unknown",
            need.value,
            not known or guest_kernel.meets(kernel.options or {}, need),
            f"it {need.why}: build the kernel with Kata's build-kernel.sh -g nvidia",
            required=bool(modes) and guest_kernel.asked_on(need, installed.machine),
            scope="guest",
            modes=modes,
        )


def _slots(
    node: kata_node.Node,
    wanted: settings.Settings,
    installed: configuration.Installed,
    chosen: tuple[pci.Function, ...],
) -> Iterable[tuple[str, guest_kernel.Slot]]:
    """Return the kind of slot by mode, as far as there is a way."""
    for mode in MODES:
        with contextlib.suppress(problems.Blocked):
            yield mode, _recipe(node, wanted, installed, chosen, mode).slot


def _recipe(
    node: kata_node.Node,
    wanted: settings.Settings,
    installed: configuration.Installed,
    chosen: tuple[pci.Function, ...],
    mode: str,
) -> recipes.Recipe:
    asked = dataclasses.replace(wanted, gpu_mode=mode)
    return recipes.recipe(configuration.wish(node, asked, installed, chosen))
