"""The runtime handlers wanted on a node: all that is made for them is derived from this list.

A handler is containerd's name for a way to run pods; a RuntimeClass makes it known to Kubernetes.
"""

import dataclasses
from collections.abc import Mapping

from kata import problems, settings
from kata.configuration import overlay
from kata.release import release
from kata.release.release import Number, Shim

FOLDER = "/etc/kata-containers"
MAIN = f"{FOLDER}/configuration.toml"
"""The configuration of the main handler: the Go shim finds it without being told."""

LABEL = "katacontainers.io/kata-runtime"
"""Label of nodes that are ready, as in the field's own installer (Kata, kata-deploy)."""
GPU_LABEL = "katacontainers.io/kata-gpu"

SNAPSHOTTERS: Number = (1, 7, 0)
"""First containerd that takes a snapshotter for each handler."""

# podFixed of kata-deploy 4.1.0 (helm-chart/kata-deploy/templates/runtimeclasses.yaml).
_MEMORY: Mapping[str, int] = {"qemu": 320, "clh": 130, "dragonball": 130, "fc": 130}  # MiB
_CPU = "250m"
# Guest memory, in MiB, up to which these figures hold; and what each further GiB adds.
_GUEST = 2048
_PER_GIB = 6

_FIRST: Number = (0, 0, 0)
_LAST: Number = (1 << 30, 0, 0)


@dataclasses.dataclass(frozen=True)
class Class:
    """One way to run pods in virtual machines, as the options ask for it: the same on every node.

    Attributes:
        name: what the RuntimeClass and containerd's handler are called.
        hypervisor: qemu, clh, dragonball or fc.
        configuration: path of its Kata configuration file.
        overhead_memory: memory of a sandbox beside its containers', as a Kubernetes quantity.
        overhead_cpu: CPU of a sandbox beside its containers'.
        gpu: whether its sandboxes get GPUs.
        node_selector: label that a node must have, as "true", for its pods; empty for any node.
    """

    name: str
    hypervisor: str
    configuration: str
    overhead_memory: str
    overhead_cpu: str
    gpu: bool
    node_selector: str


@dataclasses.dataclass(frozen=True)
class Handler(Class):
    """A class on one node: containerd's handler of that name, for the release that is there.

    Attributes:
        runtime_class: whether it has a RuntimeClass.
        shim: the runtime.
        config_path: whether containerd may be told the path of its configuration, as
            `options.ConfigPath`: where it may not, it must have no options table at all.
        snapshotter: containerd's snapshotter for its images; empty for containerd's own choice.
    """

    runtime_class: bool
    shim: Shim
    config_path: bool
    snapshotter: str


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Releases of Kata, of a shim or of both, with releases of containerd: from, and up to."""

    shim: Shim | None
    kata: tuple[Number, Number]
    containerd: tuple[Number, Number]

    def fits(self, shim: Shim, kata: Number, containerd: Number) -> bool:
        return (
            self.shim in (None, shim)
            and self.kata[0] <= kata < self.kata[1]
            and self.containerd[0] <= containerd < self.containerd[1]
        )


# Pairs that their makers do not support. Kata's versions.yaml names containerd 1.7 as the least for
# 4.x; its Go shim was seen to work with 1.6 all the same.
_UNSUPPORTED = (_Pair(None, ((4, 0, 0), _LAST), (_FIRST, (1, 7, 0))),)
# Kata knows a host that has only cgroup v2 from here on (src/runtime/pkg/resourcecontrol). Before,
# a pod fails with "cgroup mountpoint does not exist" unless sandbox_cgroup_only is set.
_CGROUP_V2: Number = (3, 0, 0)
# Pairs in which any options table keeps every pod from starting ("failed to create shim: not
# found"): containerd 1.5 renamed the message cri.runtimeoptions.v1.Options, which these shims
# look for. The Rust shim and the Go shim from 2.2.0 on know ConfigPath from every containerd.
_NO_OPTIONS = (_Pair("go", (_FIRST, (2, 2, 0)), ((1, 5, 0), _LAST)),)


def check(options: settings.Settings, shim: Shim, kata: Number, containerd: Number | None) -> None:
    """Refuse what releases of Kata and of containerd cannot do together; no release need be there.

    Args:
        options: the charm's.
        shim: Kata's.
        kata: its release.
        containerd: its release; None where it is not known, which refuses nothing.

    Raises:
        Blocked: the message says which option or release would do.
    """
    if not containerd:
        return
    if options.snapshotter and containerd < SNAPSHOTTERS:
        raise problems.Blocked(
            f"option snapshotter={options.snapshotter}: needs containerd {_words(SNAPSHOTTERS)} "
            f"or later, not {_words(containerd)}; clear it, or upgrade containerd"
        )
    own_file = [
        (name, "extra-runtime-classes", "clear it") for name, _ in options.extra_runtime_classes
    ]
    if options.gpu_mode != "none" and options.gpu_runtime_class != options.runtime_class:
        remedy = "set it to the value of runtime-class"
        own_file.append((options.gpu_runtime_class, "gpu-runtime-class", remedy))
    if own_file and not options_allowed(shim, kata, containerd):
        name, option, remedy = own_file[0]
        raise problems.Blocked(
            f"option {option}={name}: Kata {_words(kata)} with containerd {_words(containerd)} "
            f"takes one configuration only; {remedy}, or set kata-version to 2.2.0 or later"
        )


def doubts(
    shim: Shim, kata: Number, containerd: Number | None, *, cgroup_v2: bool
) -> tuple[str, ...]:
    """Say what is known to speak against releases of Kata and of containerd on a host.

    Args:
        shim: Kata's.
        kata: its release.
        containerd: its release, or None where it is not known.
        cgroup_v2: whether the host has only cgroup v2.

    Returns:
        A line for each doubt. Pods may run all the same.
    """
    found = [
        f"Kata {_words(kata)} asks for containerd {_words(pair.containerd[1])} or later, and this "
        f"is {_words(containerd)}"
        for pair in _UNSUPPORTED
        if containerd and pair.fits(shim, kata, containerd)
    ]
    if cgroup_v2 and kata < _CGROUP_V2:
        found.append(
            f"Kata {_words(kata)} asks for cgroup v1, and this host has v2: set kata-version to "
            f"{_words(_CGROUP_V2)} or later"
        )
    return tuple(found)


def options_allowed(shim: Shim, kata: Number, containerd: Number | None) -> bool:
    """Return whether a handler may have an options table; not knowing containerd, only if any may.

    Args:
        shim: Kata's.
        kata: its release.
        containerd: its release, or None.
    """
    return not any(pair.fits(shim, kata, containerd or (1, 5, 0)) for pair in _NO_OPTIONS)


def classes(
    options: settings.Settings, gpu_overhead: tuple[str, str] | None = None
) -> tuple[Class, ...]:
    """Return the classes that the options ask for: the main one first.

    Args:
        options: the charm's.
        gpu_overhead: memory and CPU that a sandbox with a GPU takes, if there is to be a class
            for such sandboxes.
    """
    guests = _guests(options)

    def ordinary(name: str, hypervisor: str, configuration: str) -> Class:
        memory, cpu = overhead(hypervisor, guests[hypervisor])
        return Class(
            name=name,
            hypervisor=hypervisor,
            configuration=configuration,
            overhead_memory=_unless_auto(options.overhead_memory, memory),
            overhead_cpu=_unless_auto(options.overhead_cpu, cpu),
            gpu=False,
            node_selector=LABEL if options.label_nodes else "",
        )

    main = ordinary(options.runtime_class, options.hypervisor, MAIN)
    more = [
        ordinary(name, hypervisor, configuration(name))
        for name, hypervisor in options.extra_runtime_classes
    ]
    if gpu_overhead:
        memory, cpu = gpu_overhead
        selector = GPU_LABEL if options.label_nodes else ""
        gpu = dataclasses.replace(main, gpu=True, node_selector=selector)
        if options.gpu_runtime_class == options.runtime_class:
            main = dataclasses.replace(
                gpu,
                overhead_memory=_unless_auto(options.overhead_memory, memory),
                overhead_cpu=_unless_auto(options.overhead_cpu, cpu),
            )
        else:
            # The options for overhead are about ordinary sandboxes: a GPU's takes far more.
            name = options.gpu_runtime_class
            more.append(
                dataclasses.replace(
                    gpu,
                    name=name,
                    configuration=configuration(name),
                    overhead_memory=memory,
                    overhead_cpu=cpu,
                )
            )
    return (main, *more)


def wanted(
    options: settings.Settings,
    installed: release.Release,
    containerd: Number | None,
    gpu_overhead: tuple[str, str] | None = None,
) -> tuple[Handler, ...]:
    """Return the handlers of a node: one for each class, and that for untrusted pods.

    Args:
        options: the charm's.
        installed: the Kata release.
        containerd: containerd's release, or None where it is not known.
        gpu_overhead: as for `classes`.

    Raises:
        Blocked: the releases or the options do not go together.
    """
    shim = installed.shim(options.shim)
    check(options, shim, installed.number, containerd)
    config_path = options_allowed(shim, installed.number, containerd)
    handlers: list[Handler] = []
    for each in classes(options, gpu_overhead):
        installed.shipped(each.hypervisor, shim)  # refuses one that the release does not ship
        handlers.append(
            Handler(
                **vars(each),
                runtime_class=True,
                shim=shim,
                config_path=config_path,
                snapshotter=options.snapshotter,
            )
        )
    if options.untrusted_annotation:
        untrusted = dataclasses.replace(handlers[0], name=settings.UNTRUSTED, runtime_class=False)
        handlers.append(untrusted)
    return tuple(handlers)


def overhead(hypervisor: str, guest: int) -> tuple[str, str]:
    """Return the memory and CPU that a sandbox takes beside its containers.

    These are the figures of kata-deploy 4.1.0 for guests of up to 2 GiB; each further GiB adds
    6 MiB for the page tables by which the host maps the guest, which were measured at 42 MB for
    24 GB of guest memory and 550 MB for 96 GB. The guest's own memory is not in them: Kata adds
    the limits of the containers to it, and Kubernetes counts those.

    Args:
        hypervisor: qemu, clh, dragonball or fc.
        guest: memory of a sandbox's virtual machine as it starts, in MiB.
    """
    further = -(-max(guest - _GUEST, 0) // 1024)
    return f"{_MEMORY[hypervisor] + _PER_GIB * further}Mi", _CPU


def _guests(options: settings.Settings) -> dict[str, int]:
    """Return the memory with which each hypervisor's guests start, in MiB."""
    named = "default_memory" in options.kata_config  # spares most hooks the parser
    tree = overlay.read(options.kata_config) if named else {}
    return {
        hypervisor: overlay.default_memory(tree, hypervisor) or options.default_memory or _GUEST
        for hypervisor in settings.HYPERVISORS
    }


def configuration(name: str) -> str:
    """Return the path of the Kata configuration file of a class beside the main one."""
    return f"{FOLDER}/configuration-{name}.toml"


def _unless_auto(asked: str, automatic: str) -> str:
    return automatic if asked == "auto" else asked


def _words(number: Number) -> str:
    return ".".join(map(str, number))
