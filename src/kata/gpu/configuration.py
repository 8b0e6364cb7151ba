"""What the handler for GPUs has beyond the shipped configuration file, on this machine."""

import dataclasses
import filecmp
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from kata import problems, settings
from kata.configuration import overlay
from kata.gpu import guest_image, guest_kernel, mdev, pci, recipes, vfio
from kata.gpu.recipes import Key, Value
from kata.machine import node as kata_node

ATTACHED_KERNEL = "/var/lib/kata-charm/guest-kernel/vmlinuz"
# Where Kata's build-kernel.sh installs a kernel made for NVIDIA GPUs, as in the deploy record.
BUILT_KERNEL = "/usr/share/kata-containers/vmlinuz-nvidia-gpu.container"
_VERIFIED = "/var/lib/kata-charm/guest-kernel.json"
_BASES = {
    "go": "configuration-qemu-nvidia-gpu.toml",
    "rust": "configuration-qemu-nvidia-gpu-runtime-rs.toml",
}


@dataclasses.dataclass(frozen=True)
class Installed:
    """What a GPU's configuration depends on, of the installed release."""

    number: recipes.Number
    shim: str
    """go or rust."""
    shipped: str
    """Path of the configuration file that it ships for this shim and the option hypervisor."""
    machine: str = "amd64"
    """amd64 or arm64."""


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What the handler for GPUs is to have."""

    base: str
    """The shipped configuration file to start from."""
    changes: Mapping[Key, Value]
    """Table and key to value; None takes the key out."""
    kernel_params_add: tuple[str, ...]
    """To be added to the kernel parameters of the shipped file."""
    overhead_memory: str
    overhead_cpu: str
    notes: tuple[str, ...] = ()


def chosen(node: kata_node.Node, wanted: settings.Settings) -> tuple[pci.Function, ...]:
    """Return the GPUs of this machine that the options name; none while gpu-mode is none."""
    if wanted.gpu_mode == "none":
        return ()
    return pci.chosen(pci.functions(node), wanted.gpu_devices)


def memory(wanted: settings.Settings) -> int:
    """Return the MiB of a guest with a GPU.

    That is NVIDIA's size, or default-memory where it is more. kata-config, which is laid over
    everything, goes before both.
    """
    laid = 0
    if "default_memory" in wanted.kata_config:  # spares most hooks the parser
        laid = overlay.default_memory(overlay.read(wanted.kata_config), wanted.hypervisor)
    return laid or max(wanted.default_memory, recipes.MEMORY)


def overhead(wanted: settings.Settings) -> tuple[str, str]:
    """Return the overhead, memory and CPU, of the GPU RuntimeClass: the same on every node."""
    return recipes.overhead(memory(wanted))


def configuration(
    node: kata_node.Node,
    wanted: settings.Settings,
    installed: Installed,
    attached: pathlib.Path | None = None,
) -> Configuration | None:
    """Say what the handler for GPUs is to have on this machine.

    Args:
        node: the machine.
        wanted: the options.
        installed: the release that it is for.
        attached: the resource guest-kernel, if there is one.

    Returns:
        None while gpu-mode is none, or where the machine has no such GPU.

    Raises:
        Blocked: this release cannot do it in this way, or a guest kernel or image is missing or
            unfit; the message says what would do.
    """
    gpus = chosen(node, wanted)
    if not gpus:
        return None
    recipe = recipes.recipe(wish(node, wanted, installed, gpus))
    base = base_file(node, wanted, installed)
    changes = dict(recipe.keys)
    table = f"hypervisor.{wanted.hypervisor}"
    path, own = kernel_path(node, wanted, base, attached)
    if path is None:
        raise problems.Blocked(
            "gpu-guest-kernel=auto: this release of Kata has no kernel for NVIDIA GPUs; attach "
            "one as the resource guest-kernel, or set its path"
        )
    if own:
        _require_shipped(node, "gpu-guest-kernel", path, installed.shim)
    else:
        if path == ATTACHED_KERNEL and attached:
            _copy(node, attached, path)
        _require_fit(node, path, recipe.slot, installed.machine)
        changes[table, "kernel"] = path
    if wanted.gpu_guest_image == "auto":
        for image in _shipped_images(node, base):
            _require_shipped(node, "gpu-guest-image", image, installed.shim)
    else:
        changes |= _image(node, wanted.gpu_guest_image, table, installed.number)
    return Configuration(
        base=base,
        changes=changes,
        kernel_params_add=recipe.kernel_params,
        overhead_memory=recipe.overhead_memory,
        overhead_cpu=recipe.overhead_cpu,
        notes=recipe.notes,
    )


def base_file(node: kata_node.Node, wanted: settings.Settings, installed: Installed) -> str:
    """Return the shipped file to start from: NVIDIA's where it fits its release."""
    nvidia = str(pathlib.PurePath(installed.shipped).with_name(_BASES[installed.shim]))
    fits = recipes.starts_from_nvidias(wanted.hypervisor, installed.number)
    return nvidia if fits and node.exists(nvidia) else installed.shipped


def wish(
    node: kata_node.Node,
    wanted: settings.Settings,
    installed: Installed,
    gpus: tuple[pci.Function, ...],
) -> recipes.Wish:
    """Return what a recipe is asked for on this machine."""
    found = pci.functions(node)
    if wanted.gpu_mode == "passthrough":
        regions, devices = gpus, len(vfio.endpoints(found, gpus))
    else:
        # A vGPU has the regions of the virtual function that makes it. Those that a GPU makes
        # itself have small ones, whatever the GPU has.
        parents = {gpu.bdf for gpu in gpus}
        regions = tuple(each for each in found if each.virtual_of in parents)
        devices = len(mdev.instances(node))
    return recipes.Wish(
        number=installed.number,
        shim=installed.shim,
        hypervisor=wanted.hypervisor,
        plug=wanted.gpu_plug,
        large=any(each.large for each in regions),
        devices=max(devices, 1),
        memory=memory(wanted),
        machine=installed.machine,
    )


def kernel_path(
    node: kata_node.Node, wanted: settings.Settings, base: str, attached: pathlib.Path | None
) -> tuple[str | None, bool]:
    """Return the guest kernel for GPUs, and whether it is the release's own.

    In this order: the option, the resource, the release's own for NVIDIA, one built as Kata's
    documentation says. None if there is none of them.
    """
    if wanted.gpu_guest_kernel != "auto":
        return wanted.gpu_guest_kernel, False
    if attached and attached.stat().st_size:
        return ATTACHED_KERNEL, False
    shipped = _shipped_kernel(node, base)
    if "nvidia" in shipped:
        return shipped, True
    name = pathlib.PurePath(BUILT_KERNEL).name
    places = (str(pathlib.PurePath(shipped or BUILT_KERNEL).with_name(name)), BUILT_KERNEL)
    return next((path for path in places if node.exists(path)), None), False


def forget(node: kata_node.Node) -> bool:
    """Remove what this module keeps on the machine; return True if anything was there."""
    paths = (_VERIFIED, ATTACHED_KERNEL, str(pathlib.PurePath(ATTACHED_KERNEL).parent))
    gone = [node.remove(path) for path in paths]
    return any(gone)


def _require_shipped(node: kata_node.Node, option: str, path: str, shim: str) -> None:
    """Refuse a release that lacks a file which its own configuration for NVIDIA GPUs names."""
    if not node.exists(path):
        other = "shim=go, " if shim == "rust" else ""
        raise problems.Blocked(
            f"{option}=auto: the installed release lacks its {path}; set {other}the path of "
            "another, or install an archive that has it"
        )


def _require_fit(node: kata_node.Node, path: str, slot: guest_kernel.Slot, machine: str) -> None:
    """Refuse a kernel of the operator's that cannot take a GPU; once seen, it is not read again."""
    place = node.path(path)
    if not place.is_file():
        raise problems.Blocked(f"gpu-guest-kernel={path}: there is no such file on this machine")
    status = place.stat()
    seen = {"path": path, "size": status.st_size, "time": status.st_mtime_ns, "slot": slot}
    if json.loads(node.read(_VERIFIED) or "{}") == seen:
        return
    wrong = guest_kernel.read(node, path).wrong(slot, machine)
    if wrong:
        options = ", ".join(f"{need.option}={need.value}" for need in wrong)
        raise problems.Blocked(
            f"guest kernel {path} must have {options} for GPUs: build it with Kata's "
            "build-kernel.sh -g nvidia"
        )
    node.write(_VERIFIED, json.dumps(seen) + "\n", mode=0o600)


def _image(
    node: kata_node.Node, path: str, table: str, number: recipes.Number
) -> dict[Key, Value]:
    kind = guest_image.kind(node, path)
    given, other = ("initrd", "image") if kind == guest_image.INITRD else ("image", "initrd")
    changes: dict[Key, Value] = {(table, given): path, (table, other): None}
    # The key came with 3.1.0; releases before know ext4 only.
    if given == "image" and number >= (3, 1, 0):
        changes[table, "rootfs_type"] = kind
    return changes


def _shipped_kernel(node: kata_node.Node, base: str) -> str:
    return str(_shipped(node, base).get("kernel") or "")


def _shipped_images(node: kata_node.Node, base: str) -> list[str]:
    """Return the images for NVIDIA GPUs that a shipped file names, those it adds to one included."""
    table = _shipped(node, base)
    extensions: list[dict[str, Any]] = table.get("guest_extension_images", [])
    paths = [table.get("image"), table.get("initrd"), *(each.get("path") for each in extensions)]
    return [path for path in paths if path and "nvidia" in path]


def _shipped(node: kata_node.Node, base: str) -> dict[str, Any]:
    """Return what a shipped configuration file has in its hypervisor's table."""
    import tomlkit

    document: dict[str, Any] = tomlkit.parse(node.read(base) or "").unwrap()
    tables: dict[str, dict[str, Any]] = document.get("hypervisor", {})
    for table in tables.values():
        return table
    return {}


def _copy(node: kata_node.Node, source: pathlib.Path, path: str) -> None:
    """Keep an attached kernel where it outlives the charm's own folder, in one step."""
    place = node.path(path)
    if place.is_file() and filecmp.cmp(source, place, shallow=False):
        return
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = place.with_name(f".{place.name}.new")
    shutil.copyfile(source, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(place)
