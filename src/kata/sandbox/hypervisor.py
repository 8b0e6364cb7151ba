"""What a hypervisor tells of its virtual machine: by its command line, and by Kata's state files.

QEMU says all of it on its command line. Cloud Hypervisor and Firecracker are told over a socket,
and Dragonball lives inside the shim: of those, Kata's own state file knows. Everything here is
pure; text that does not fit is passed over, because a sandbox may be half made or half gone.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast


@dataclasses.dataclass(frozen=True)
class Vm:
    """A virtual machine as one source describes it; what it does not tell is empty or None.

    Attributes:
        hypervisor: `qemu`, `clh`, `fc`, `dragonball`, as the option `hypervisor` names them.
        sandbox: id of the sandbox that it is for; Firecracker's has its first 32 characters.
        program: the hypervisor's executable.
        type: machine type, such as `q35`.
        kernel: path of the guest kernel on the host.
        image: path of the guest's root image.
        initrd: path of the guest's initrd, in place of an image.
        parameters: the guest kernel's command line, as the hypervisor was given it.
        vcpus: how many it has, hot-plugged ones included where they are known.
        memory: MiB, hot-plugged memory included where it is known.
        cid: vsock context id of the guest, where the host's kernel carries its vsock.
        mac: hardware address of the first network card.
        pid: the hypervisor's process.
        console: where the guest was told to offer Kata's debug console: `serial` (1.x), `vsock`,
            or `none`.
    """

    hypervisor: str = ""
    sandbox: str = ""
    program: str = ""
    type: str = ""
    kernel: str = ""
    image: str = ""
    initrd: str = ""
    parameters: str = ""
    vcpus: int | None = None
    memory: int | None = None
    cid: int | None = None
    mac: str = ""
    pid: int | None = None
    console: str = ""

    def completed(self, other: "Vm") -> "Vm":
        """Return this one, with what it lacks taken from another description of the same."""
        told = {name: value for name, value in vars(self).items() if value not in ("", None)}
        return dataclasses.replace(other, **told)


# Kata's names in its state files and its annotations, and ours.
_NAMES = {"cloud-hypervisor": "clh", "firecracker": "fc"}
# Where the sockets of a sandbox lie: virtcontainers' RunVMStoragePath (/run/vc/vm/<id>), its
# Firecracker jail (/run/vc/firecracker/<id>), runtime-rs' KATA_PATH (/run/kata/<id>), and any of
# them below /run/user/<uid> where the hypervisor has no root.
_SOCKET = re.compile(r"/(?:vc/vm|vc/[^/]*firecracker|kata/firecracker|kata)/([^/]+)/")
_SIZES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}
# Options of the agent on the guest's kernel command line, and where they put the console. The
# second, of 2.0 and later, comes with the first (kata-agent, src/agent/src/config.rs).
_CONSOLES = {"agent.debug_console_vport": "vsock", "agent.debug_console": "serial"}


def read_command_line(words: Sequence[str]) -> Vm | None:
    """Read a process's command line; None where it is no hypervisor of a sandbox.

    Forms of: virtcontainers (Go) 1.9 to 4.1, runtime-rs 3.0 to 4.1.
    """
    if not words:
        return None
    program = pathlib.PurePath(words[0]).name
    for part, read in _READERS.items():
        if part in program:
            machine = read(words)
            return machine if machine.sandbox else None
    return None


def _qemu(words: Sequence[str]) -> Vm:
    options = list(_options(words[1:]))
    first = dict(reversed(options))  # the first of each name
    name = _head(first.get("name", ""))
    devices = [value for option, value in options if option == "device"]
    append = first.get("append", "")
    return Vm(
        hypervisor="qemu",
        sandbox=name.removeprefix("sandbox-") if name.startswith("sandbox-") else "",
        program=words[0],
        type=_named(first.get("machine", ""), "type") or _head(first.get("machine", "")),
        kernel=first.get("kernel", ""),
        image=_qemu_image(options, devices),
        initrd=first.get("initrd", ""),
        parameters=append,
        vcpus=_number(_named(first.get("smp", ""), "cpus") or _head(first.get("smp", ""))),
        memory=_mebibytes(_named(first.get("m", ""), "size") or _head(first.get("m", ""))),
        cid=_number(_first_named(devices, "guest-cid")),
        mac=_first_named(devices, "mac"),
        console=_console(append.split()) or "none",
    )


def _qemu_image(options: Sequence[tuple[str, str]], devices: Sequence[str]) -> str:
    """Return the file behind the guest's root device: an NVDIMM, or a block device."""
    backends = {_named(device, "memdev") for device in devices if _head(device) == "nvdimm"}
    for option, value in options:
        if option == "object" and _named(value, "id") in backends:
            return _named(value, "mem-path")
        if option in ("drive", "blockdev"):
            name = _named(value, "node-name") or _named(value, "id")
            if name.startswith("image-"):
                return _named(value, "filename") or _named(value, "file")
    return ""


def _cloud_hypervisor(words: Sequence[str]) -> Vm:
    socket = dict(_options(words[1:])).get("api-socket", "")
    return Vm(hypervisor="clh", sandbox=_sandbox_of(socket), program=words[0])


def _firecracker(words: Sequence[str]) -> Vm:
    told = dict(_options(words[1:]))
    sandbox = told.get("id", "") or _sandbox_of(told.get("api-sock", ""))
    return Vm(hypervisor="fc", sandbox=sandbox, program=words[0])


# By a part of the program's file name: releases and distributions add to it on both sides.
_READERS = {
    "qemu": _qemu,
    "cloud-hypervisor": _cloud_hypervisor,
    "firecracker": _firecracker,
}


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options with their values: `-name x`, `--id x`, `--id=x`, and bare ones."""
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("-"):
            continue
        name, joined, value = word.lstrip("-").partition("=")
        if not joined and position < len(words) and not words[position].startswith("-"):
            value = words[position]
            position += 1
        yield name, value


def _console(parameters: Sequence[str]) -> str:
    """Return where the debug console is, empty for nowhere that is told."""
    told = {word.partition("=")[0] for word in parameters}
    if "agent.debug_console" not in told:
        return ""
    return next(place for option, place in _CONSOLES.items() if option in told)


def _head(value: str) -> str:
    return value.partition(",")[0]


def _named(value: str, name: str) -> str:
    """Return the value of `name=` among parts separated by commas."""
    for part in value.split(","):
        key, _, rest = part.partition("=")
        if key == name:
            return rest
    return ""


def _first_named(values: Sequence[str], name: str) -> str:
    return next((found for value in values if (found := _named(value, name))), "")


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _mebibytes(text: str) -> int | None:
    size = re.fullmatch(r"([0-9]{1,18})([KMGT]?)", text.upper())
    # QEMU counts -m without a unit in MiB.
    return int(int(size[1]) * _SIZES[size[2] or "M"]) if size else None


def _sandbox_of(socket: str) -> str:
    found = _SOCKET.search(socket)
    return found[1] if found else ""


# Kata's state files


def read_go_state(text: str) -> Vm:
    """Read `/run/vc/sbs/<id>/persist.json` of the Go shim (virtcontainers, persist/api)."""
    state = _json(text)
    config, running = _table(state, "Config"), _table(state, "HypervisorState")
    asked = _table(config, "HypervisorConfig")
    # A number with a fraction since 3.2 (NumVCPUsF), rounded up for the machine.
    vcpus = _integer(asked.get("NumVCPUs")) or _rounded_up(asked.get("NumVCPUsF"))
    memory = _integer(asked.get("MemorySize"))
    plugged = running.get("HotpluggedVCPUs")
    more = len(cast("list[Any]", plugged)) if isinstance(plugged, list) else 0
    kind = _string(running, "Type") or _string(config, "HypervisorType")
    return Vm(
        hypervisor=_NAMES.get(kind, kind),
        sandbox=_string(state, "SandboxContainer"),
        program=_string(asked, "HypervisorPath"),
        type=_string(asked, "HypervisorMachineType"),
        kernel=_string(asked, "KernelPath"),
        image=_string(asked, "ImagePath"),
        initrd=_string(asked, "InitrdPath"),
        vcpus=vcpus + more if vcpus else None,
        memory=memory + (_integer(running.get("HotpluggedMemory")) or 0) if memory else None,
        pid=_integer(running.get("Pid")),
    )


def read_rust_state(text: str) -> Vm:
    """Read `/run/kata/<id>/state.json` of the Rust shim (runtime-rs, hypervisor_persist.rs).

    Its `config` is the table of configuration.toml for the hypervisor, as it was in force.
    """
    running = _table(_json(text), "hypervisor")
    config = _table(running, "config")
    kind = _string(running, "hypervisor_type")
    parameters = _string(config, "kernel_params").split()
    return Vm(
        hypervisor=_NAMES.get(kind, kind),
        sandbox=_string(running, "id"),
        program=_string(config, "path"),
        type=_string(config, "machine_type"),
        kernel=_string(config, "kernel"),
        image=_string(config, "image"),
        initrd=_string(config, "initrd"),
        vcpus=_rounded_up(config.get("default_vcpus")),
        memory=_integer(config.get("default_memory")),
        pid=_integer(running.get("pid")),
        console=_console(parameters),
    )


def _json(text: str) -> Mapping[str, Any]:
    """Return the object that a text holds; an empty one for a half-written file."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _table(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = state.get(name)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _string(state: Mapping[str, Any], name: str) -> str:
    found = state.get(name)
    return found if isinstance(found, str) else ""


def _integer(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _rounded_up(value: object) -> int | None:
    if not isinstance(value, int | float) or not 0 < value < 1 << 16:
        return None
    return int(-(-value // 1))
