"""The GPUs of a machine, made ready for sandboxes and given back.

What the option gpu-mode asks of the machine itself; what it asks of Kata's configuration is in
`configuration`.
"""

import dataclasses
import pathlib

from kata import problems, settings
from kata.gpu import configuration, iommu, mdev, pci, vfio, vgpu, vgpu_driver
from kata.machine import node as kata_node


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What has come of the GPUs of a machine."""

    changed: bool
    gpus: tuple[str, ...]
    """Addresses of the GPUs that sandboxes can have; a node with none gets no label."""
    message: str
    """For the unit's status; empty while gpu-mode is none."""


def ensure_host(
    node: kata_node.Node, wanted: settings.Settings, driver: pathlib.Path | None = None
) -> Outcome:
    """Make this machine's GPUs ready for sandboxes, or give them back if they are not wanted.

    Args:
        node: the machine.
        wanted: the options.
        driver: the attached resource vgpu-driver, if there is one.

    Raises:
        Blocked: the operator must act; the message names what, and a reboot where one is needed.
        Waiting: something to be given back is still in a sandbox.
    """
    gpus = configuration.chosen(node, wanted)
    if not gpus:
        message = "" if wanted.gpu_mode == "none" else _absence(wanted)
        return Outcome(undo(node), (), message)
    if wanted.gpu_mode == "passthrough":
        changed = _leave_vgpu(node)
        _require_iommu(node, wanted)
        if wanted.gpu_prepare_host:
            changed |= vfio.ensure_bound(node, gpus)
        else:
            _require_bound(node, gpus)
    else:
        changed = vfio.give_back(node)
        changed |= _ensure_vgpu(node, wanted, gpus, driver)
    names = tuple(gpu.bdf for gpu in gpus)
    message = f"{', '.join(names)} for sandboxes"
    if wanted.gpu_mode == "passthrough":
        return Outcome(changed, names, f"{'GPUs' if len(gpus) > 1 else 'GPU'} {message}")
    made = f"{len(mdev.instances(node))} vGPUs of {message}"
    return Outcome(changed, names, f"{made}, whose guests need NVIDIA's licence")


def ready(node: kata_node.Node, wanted: settings.Settings) -> tuple[str, ...]:
    """Return the addresses of the GPUs that sandboxes can have as the machine is now.

    While something is wrong with one GPU, the others go on.
    """
    gpus, found = configuration.chosen(node, wanted), pci.functions(node)
    if wanted.gpu_mode == "vgpu":
        parents = {each.parent for each in mdev.instances(node)}
        parents |= {each.virtual_of for each in found if each.bdf in parents and each.virtual_of}
        return tuple(gpu.bdf for gpu in gpus if gpu.bdf in parents)
    return tuple(gpu.bdf for gpu in gpus if not vfio.unbound(found, [gpu]))


def undo(node: kata_node.Node) -> bool:
    """Leave the machine as it was before there were GPUs for sandboxes.

    Returns:
        True if anything has changed.

    Raises:
        Waiting: a sandbox still has a GPU or a vGPU; what can be undone is.
    """
    problem: problems.Problem | None = None
    changed = False
    for step in (_leave_vgpu, vfio.give_back, iommu.forget_next_boot, configuration.forget):
        try:
            changed |= step(node)
        except problems.Problem as found:  # what can be undone now is
            problem = problem or found
    if problem:
        raise problem
    return changed


def _absence(wanted: settings.Settings) -> str:
    if wanted.gpu_devices == ("all",):
        return "no NVIDIA GPU here"
    return "none of gpu-devices here"


def _leave_vgpu(node: kata_node.Node) -> bool:
    changed = vgpu.remove(node)
    return vgpu_driver.remove(node) or changed


def _ensure_vgpu(
    node: kata_node.Node,
    wanted: settings.Settings,
    gpus: tuple[pci.Function, ...],
    driver: pathlib.Path | None,
) -> bool:
    changed = False
    if driver and driver.stat().st_size and wanted.gpu_prepare_host:
        changed = vgpu_driver.ensure_installed(node, driver)
    # The others' vGPUs need none: the GPU itself shields their memory.
    if vgpu.by_virtual_functions(node, gpus):
        _require_iommu(node, wanted)
    if not wanted.gpu_prepare_host:
        vgpu.require(node, gpus, wanted.vgpu_type, wanted.vgpu_count)
        return False
    return vgpu.ensure_instances(node, gpus, wanted.vgpu_type, wanted.vgpu_count) or changed


def _require_iommu(node: kata_node.Node, wanted: settings.Settings) -> None:
    state = iommu.state(node)
    if state.active:
        return
    options = iommu.host_options(node)
    missing = iommu.missing_options(options, iommu.FOR_PASSTHROUGH) if options else ()
    if missing:
        raise problems.Blocked(f"this machine's kernel lacks {', '.join(missing)}: boot another")
    fixable = state.reboot_helps and not state.switched_off and state.announced is not False
    if fixable and wanted.gpu_prepare_host and state.parameter:
        iommu.ensure_next_boot(node, state.parameter)
        raise problems.Blocked(
            f"reboot needed: the IOMMU is off; {state.parameter} is set for the next boot"
        )
    raise problems.Blocked(f"the IOMMU is off: {state.remedy}")


def _require_bound(node: kata_node.Node, gpus: tuple[pci.Function, ...]) -> None:
    for each in vfio.unbound(pci.functions(node), gpus):
        raise problems.Blocked(
            f"{each.bdf} is bound to {each.driver or 'no driver'}, not {vfio.DRIVER}: bind it, or "
            "set gpu-prepare-host=true"
        )
