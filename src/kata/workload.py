"""A node from nothing to Kata, and back: the steps, in the order in which they are safe.

What can refuse comes before what changes. What containerd reads comes last, and containerd is
restarted only there. On the way back it is the other way round.
"""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kata import handlers, problems, settings
from kata.configuration import handler_files, overlay
from kata.configuration import text as configuration_text
from kata.containerd import daemon, guard
from kata.containerd import handlers as containerd_handlers
from kata.machine import host, modules, tenancy
from kata.machine import node as kata_node
from kata.release import installation, packages, release, sources
from kata.report import Report

if TYPE_CHECKING:
    from kata.gpu import configuration as gpu_configuration
    from kata.observability import services

log = logging.getLogger(__name__)

Progress = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class _Gpus:
    """What has come of the GPUs."""

    addresses: tuple[str, ...] = ()
    overhead: tuple[str, str] | None = None
    extra: configuration_text.Extra | None = None
    notes: tuple[str, ...] = ()
    problem: problems.Problem | None = None


def ensure(
    node: kata_node.Node,
    options: settings.Settings,
    attached: Mapping[str, pathlib.Path],
    progress: Progress,
    *,
    again: bool = False,
    observed: bool = False,
) -> Report:
    """Bring a node to what the options ask for.

    Args:
        node: the machine.
        options: the charm's.
        attached: the resources that are not empty, by name.
        progress: told in a few words what takes long.
        again: try once more what containerd did not come back with last time.
        observed: have metrics served.

    Raises:
        Problem: it cannot be done; what worked before works on.
    """
    if kind := host.in_system_container(node):
        return Report(None, notes=(f"Kata not installed here: system container ({kind})",))
    if options.kata_config:
        overlay.read(options.kata_config)
    found = daemon.find(node, options)
    host.ensure_ready(node)
    _clear_proof(node, found)
    archive = attached.get(sources.RESOURCE)
    if not archive and not options.packages:
        # Refuse before some hundred megabytes are downloaded for nothing.
        version = options.kata_version
        shim = release.default_shim(version) if options.shim == "auto" else options.shim
        handlers.check(options, shim, release.number(version), found.release)
    folder = installation.provide(node, options, archive, progress)
    # What runs goes on with the release in use until all is known that the next one needs.
    ahead, installed = installation.preview(node, folder)
    if not installed:
        raise problems.Blocked(f"no Kata release at {release.PREFIX}: set kata-version, or attach")

    gpus = _ensure_gpus(ahead, options, installed, attached)
    wanted = handlers.wanted(options, installed, found.release, gpus.overhead)
    extras = {each.name: gpus.extra for each in wanted if each.gpu and gpus.extra}
    kept = {each.name for each in wanted if each.gpu and not gpus.extra}
    files = handler_files.plan(ahead, installed, wanted, options, extras, kept=kept)
    for warning in files.warnings:
        log.warning("%s", warning)
    with installation.switched(node, folder, installed, wanted[0].shim):
        handler_files.ensure(node, files)
    containerd_handlers.ensure(node, found, wanted, again=again)
    guard.ensure(node, found)
    served = _ensure_metrics(node, installed, found, options.metrics_port if observed else None)
    if kept := installation.collect(node):
        log.info("kept for the sandboxes that run from them: %s", ", ".join(kept))
    packages.remove_dead_source(node)
    return Report(
        installed.version,
        tuple(each.name for each in wanted),
        wanted[0].configuration if wanted[0].config_path else "",
        gpus.addresses,
        (*gpus.notes, *_doubts(node, installed, wanted[0].shim, found.release), *served.notes),
        served.targets,
        gpus.problem,
    )


def gpu_overhead(options: settings.Settings) -> tuple[str, str] | None:
    """Return the memory and CPU that a sandbox with a GPU takes; None while there is to be none."""
    if options.gpu_mode == "none":
        return None
    from kata.gpu import configuration as gpu_configuration

    return gpu_configuration.overhead(options)


def for_gpus(
    node: kata_node.Node, options: settings.Settings, installed: release.Release
) -> "gpu_configuration.Installed":
    """Return what the configuration for GPUs depends on, of the installed release.

    Raises:
        Blocked: the release does not have what the options ask for.
    """
    from kata.gpu import configuration as gpu_configuration

    shim = installed.shim(options.shim)
    shipped = installed.shipped(options.hypervisor, shim)
    return gpu_configuration.Installed(installed.number, shim, shipped, host.machine(node))


def remove(node: kata_node.Node, options: settings.Settings | None) -> None:
    """Take away from a node all that is the charm's, but for what a running sandbox needs.

    A step that fails is logged, and does not keep the others from being taken.

    Args:
        node: the machine.
        options: the charm's, which may say where containerd is; None if they cannot be read.
    """

    def containerd() -> daemon.Containerd | None:
        with contextlib.suppress(problems.Problem):
            return daemon.find(node, options) if options else None

    def proofs() -> None:
        if found := containerd():
            _clear_proof(node, found)

    def releases() -> None:
        if kept := installation.remove(node):
            log.warning("left for the sandboxes that run from them: %s", ", ".join(kept))

    def gpus() -> None:
        from kata.gpu import preparation

        preparation.undo(node)

    def metrics() -> None:
        from kata.observability import services

        services.remove(node)

    steps: tuple[Callable[[], object], ...] = (
        proofs,
        metrics,
        lambda: guard.remove(node),
        lambda: containerd_handlers.remove(node, containerd()),
        lambda: handler_files.remove(node),
        gpus,
        releases,
        lambda: modules.release(node),
        lambda: node.remove(tenancy.STATE),
    )
    for step in steps:
        try:
            step()
        except (problems.Problem, OSError) as problem:
            log.warning("left on the machine: %s", problem)


def _clear_proof(node: kata_node.Node, found: daemon.Containerd) -> None:
    """Remove the sandbox that a killed verify-sandbox has left; no hook fails for it."""
    if not node.exists(tenancy.PROOF):
        return
    from kata.sandbox import throwaway, verify

    try:
        verify.clear(node, throwaway.service(node, found))
    except problems.Problem as problem:
        log.warning("a verify-sandbox was killed, and what it has left stays: %s", problem)


def _ensure_gpus(
    node: kata_node.Node,
    options: settings.Settings,
    installed: release.Release,
    attached: Mapping[str, pathlib.Path],
) -> _Gpus:
    """Make the GPUs ready, or give them back. Ordinary sandboxes do not wait for them."""
    from kata.gpu import configuration as gpu_configuration
    from kata.gpu import preparation

    notes: tuple[str, ...] = ()
    problem: problems.Problem | None = None
    try:
        outcome = preparation.ensure_host(node, options, attached.get("vgpu-driver"))
        gpus, notes = outcome.gpus, (outcome.message,) if outcome.message else ()
    except problems.Problem as found:
        # What sandboxes can have already goes on being theirs.
        gpus, problem = preparation.ready(node, options), found
    if not gpus:
        return _Gpus(notes=notes, problem=problem)
    overhead = gpu_overhead(options)
    try:
        base = for_gpus(node, options, installed)
        made = gpu_configuration.configuration(node, options, base, attached.get("guest-kernel"))
    except problems.Problem as found:
        # The handler stays as it is: an option that does not fit takes no pod's runtime away.
        kept = handler_files.is_ours(node, handlers.configuration(options.gpu_runtime_class))
        return _Gpus(problem=problem or found, overhead=overhead if kept else None)
    if not made:
        return _Gpus(notes=notes, problem=problem)
    extra = configuration_text.Extra(made.changes, made.kernel_params_add, made.base)
    return _Gpus(gpus, overhead, extra, (*notes, *made.notes), problem)


def _ensure_metrics(
    node: kata_node.Node, installed: release.Release, found: daemon.Containerd, port: int | None
) -> "services.Services":
    """Have metrics served, or take the services away; a kata-monitor keeps its release in use."""
    from kata.observability import services

    if port is not None:
        return services.ensure(node, installed, found, port)
    services.remove(node)
    return services.Services()


def _doubts(
    node: kata_node.Node, installed: release.Release, shim: release.Shim, found: release.Number
) -> tuple[str, ...]:
    doubts = handlers.doubts(shim, installed.number, found, cgroup_v2=host.only_cgroup_v2(node))
    fragments = handler_files.fragments(node, installed.number, shim)
    if fragments:
        doubts += (f"also read by Kata: {', '.join(fragments)}",)
    return doubts
