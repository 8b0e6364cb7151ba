"""Whether pods with Kata can run on this machine: each requirement, what was found, the remedy.

From the CPU to the files of the guest, by what is in force now: the configuration that the running
containerd was started with, and the handlers that it has loaded. Nothing is changed.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kata import handlers, problems, settings, terminal, workload
from kata.containerd import cri, daemon, toml_statements
from kata.containerd import files as containerd_files
from kata.containerd import memory as containerd_memory
from kata.containerd import service as containerd_service
from kata.machine import host
from kata.machine import node as kata_node
from kata.machine.host import Check
from kata.release import release

# Files that a sandbox needs, by their keys in Kata's configuration.
_FILES = ("path", "kernel", "image", "initrd", "firmware", "virtio_fs_daemon", "jailer_path")


def checks(node: kata_node.Node, options: settings.Settings) -> tuple[Check, ...]:
    """Look at all that pods with Kata need.

    Args:
        node: the machine.
        options: the charm's.
    """
    if kind := host.in_system_container(node):
        remedy = "place the unit on a machine, or on a virtual machine that can nest"
        return (Check("machine", f"a system container ({kind})", "a machine", False, remedy),)
    return (*host.checks(node), *_checks(node, options))


def _checks(node: kata_node.Node, options: settings.Settings) -> Iterator[Check]:
    try:
        found = daemon.find(node, options)
    except problems.Problem as problem:
        yield Check("containerd", str(problem), "running", ok=False)
        return
    version = ".".join(map(str, found.release))
    yield Check(
        "containerd",
        f"{found.unit} {version}, {found.active}",
        "active",
        found.is_active,
        f"see systemctl status {found.unit}",
    )
    yield _live_file(node, options, found)
    yield from _drift(node, found)
    words = containerd_service.trouble(node, found) if found.is_active else "containerd is down"
    yield Check("CRI plugin", words or "ok", "ok", not words, f"mend {found.config}, and restart")
    installed = release.installed(node)
    if not installed:
        remedy = "set kata-version, or attach kata-archive; see juju status for what holds it up"
        yield Check("Kata release", "none installed", "installed", ok=False, remedy=remedy)
        return
    shims = " and ".join(installed.shims)
    yield Check("Kata release", f"{installed.version} with the {shims} shim", "installed", ok=True)
    try:
        wanted = handlers.wanted(options, installed, found.release, workload.gpu_overhead(options))
    except problems.Problem as problem:
        yield Check("Kata and containerd", str(problem), "allowed together", ok=False)
        return
    yield _together(node, options, installed, found)
    loaded = None
    with contextlib.suppress(problems.Problem):
        loaded = cri.status(node.path(found.address(node))).handlers
    allowed = wanted[0].config_path
    for handler in wanted:
        yield _shim(node, installed, handler)
        yield _loaded(handler, loaded, allowed=allowed)
        yield from _guest(node, handler)


def _live_file(
    node: kata_node.Node, options: settings.Settings, found: daemon.Containerd
) -> Check:
    """Tell whether the file that the option names is the one that containerd was started with."""
    auto = dataclasses.replace(options, containerd_config="auto")
    live = daemon.find(node, auto).config
    remedy = "set containerd-config to auto, or start containerd with --config"
    return Check("live configuration", live, found.config, live == found.config, remedy)


def drift(node: kata_node.Node, found: daemon.Containerd) -> dict[str, str | None]:
    """Return what would have to change for containerd's files to be as this charm wants them.

    Returns:
        New texts by path; None for a file that is to go. Nothing when all is as it should be.

    Raises:
        Blocked: a file is no TOML.
    """
    memory = containerd_memory.load(node)
    if memory is None:
        return {}
    try:
        return containerd_files.plan(
            found.config, node, found.release, memory.wanted, memory.touched
        )
    except toml_statements.Malformed as error:
        raise problems.Blocked(f"{error.path} is no TOML: {error}; mend it") from error


def _drift(node: kata_node.Node, found: daemon.Containerd) -> Iterator[Check]:
    name, wanted = "our handlers in it", "as written"
    if containerd_memory.load(node) is None:
        remedy = "see juju status for what holds it up"
        yield Check(name, "never written", wanted, ok=False, remedy=remedy)
        return
    try:
        changed = drift(node, found)
    except problems.Problem as problem:
        yield Check(name, str(problem), wanted, ok=False)
        return
    words = f"changed by others: {', '.join(sorted(changed))}" if changed else wanted
    remedy = "restart containerd, or wait for update-status: both put them back"
    yield Check(name, words, wanted, not changed, remedy)


def _together(
    node: kata_node.Node,
    options: settings.Settings,
    installed: release.Release,
    found: daemon.Containerd,
) -> Check:
    shim = installed.shim(options.shim)
    doubts = handlers.doubts(
        shim, installed.number, found.release, cgroup_v2=host.only_cgroup_v2(node)
    )
    words = f"Kata {installed.version} ({shim}), containerd {'.'.join(map(str, found.release))}"
    remedy = "upgrade the one or the other; pods may run all the same"
    said = "; ".join(doubts) or words
    return Check("Kata and containerd", said, "known to fit", not doubts, remedy, required=False)


def _shim(node: kata_node.Node, installed: release.Release, handler: handlers.Handler) -> Check:
    path = installed.shims[handler.shim]
    there = node.exists(path)
    return Check(
        f"{handler.name}: shim",
        path if there else f"{path} is missing",
        "present",
        there,
        "config-changed installs the release anew",
    )


def _loaded(
    handler: handlers.Handler, loaded: Mapping[str, cri.Handler] | None, *, allowed: bool
) -> Check:
    """Tell whether the running containerd has a handler, and with options that its shim takes."""
    name = f"{handler.name}: handler as loaded"
    if loaded is None:
        return Check(name, "containerd does not say", "loaded", ok=False, remedy="see CRI plugin")
    if handler.name not in loaded:
        known = ", ".join(sorted(loaded))
        remedy = "restart containerd; show-config tells if its file has the handler"
        return Check(name, f"not among {known}", "loaded", ok=False, remedy=remedy)
    there = loaded[handler.name]
    options = ""
    if there.options is not None:
        said = " ".join(f"{key}={value}" for key, value in there.options.items())
        options = f", options {said or '{}'}"
    kata = "kata" in there.runtime_type or "kata" in there.runtime_path
    harmful = there.options is not None and not allowed
    remedy = "another program has written this handler: see show-config" if not kata else ""
    if harmful:
        remedy = "remove its options table: this release of Kata takes none; restart containerd"
    return Check(
        name,
        f"{there.runtime_path or there.runtime_type}{options}",
        "Kata's shim" if allowed else "Kata's shim, no options table",
        kata and not harmful,
        remedy,
    )


def _guest(node: kata_node.Node, handler: handlers.Handler) -> Iterator[Check]:
    """Tell whether the files of the virtual machine are there."""
    name = f"{handler.name}: guest"
    text = node.read(handler.configuration)
    if text is None:
        remedy = "config-changed writes it anew"
        yield Check(name, f"{handler.configuration} is missing", "files", ok=False, remedy=remedy)
        return
    files = configured(text)
    missing = [f"{key} {path}" for key, path in files.items() if not node.exists(path)]
    yield Check(
        name,
        f"missing: {', '.join(missing)}" if missing else ", ".join(files.values()),
        "present",
        not missing,
        "install the release anew, or correct kata-config",
    )


def configured(text: str) -> dict[str, str]:
    """Return the files that a Kata configuration names for its hypervisor, by key.

    Args:
        text: the configuration, as TOML. What is no TOML names nothing.
    """
    import tomlkit
    import tomlkit.exceptions

    found: dict[str, str] = {}
    try:
        tree: dict[str, dict[str, dict[str, Any]]] = tomlkit.parse(text).unwrap()
        for table in tree.get("hypervisor", {}).values():
            for key in _FILES:
                if isinstance(path := table.get(key), str) and path.startswith("/"):
                    found[key] = path
    except (tomlkit.exceptions.TOMLKitError, AttributeError):
        pass
    return found


def report(found: Iterable[Check]) -> str:
    """Return checks as text of at most 80 columns."""
    lines: list[str] = []
    for each in found:
        mark = "ok" if each.ok else ("NO" if each.required else "note")
        lines += terminal.wrapped(f"{mark:<4} {each.name}: {each.found}", hanging=5)
        if not each.ok:
            lines += terminal.wrapped(f"wanted: {each.wanted}", 5)
            lines += terminal.wrapped(f"remedy: {each.remedy}", 5) if each.remedy else []
    return "\n".join(lines)
