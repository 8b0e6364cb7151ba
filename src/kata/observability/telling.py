"""Tells the exporter what a hook has found: of the charm's own work, and of the cluster."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from kata import problems, settings
from kata.cluster import api, node_labels, runtime_classes
from kata.machine import node as kata_node
from kata.observability import told

Conversation = Callable[[], AbstractContextManager[api.Server | None]]


def tell(
    machine: kata_node.Node,
    options: settings.Settings | None,
    server: Conversation,
    problem: str,
) -> None:
    """Leave for the exporter how things are.

    Args:
        machine: the node.
        options: the charm's; None where the node's work found nothing new.
        server: gives a conversation with the API server; None without a relation.
        problem: what the unit is blocked by or waits for.

    Raises:
        Blocked: the file cannot be written.
    """
    now = told.load(machine) or told.Told()
    if options:
        now = _of_node(machine, options, now)
    # Where it cannot be told now, the hook's own work has said so, and the last word stands.
    with contextlib.suppress(problems.Waiting):
        now = _of_cluster(machine, server, now, now.overheads)
    told.save(machine, dataclasses.replace(now, time=int(time.time()), problem=problem))


def _of_node(machine: kata_node.Node, options: settings.Settings, before: told.Told) -> told.Told:
    from kata import handlers, workload
    from kata.release import release

    installed = release.installed(machine)
    link = machine.path(release.SHIM_LINK)
    used = str(link.readlink()) if link.is_symlink() else ""
    shims = {path: shim for shim, path in installed.shims.items()} if installed else {}
    return dataclasses.replace(
        before,
        release=installed.version if installed else "",
        shim=shims.get(used, ""),
        overheads={
            each.name: (each.hypervisor, runtime_classes.amount(each.overhead_memory))
            for each in handlers.classes(options, workload.gpu_overhead(options))
        },
    )


def _of_cluster(
    machine: kata_node.Node, server: Conversation, before: told.Told, names: Iterable[str]
) -> told.Told:
    with server() as found:
        if found is None:
            return dataclasses.replace(before, runtime_classes={}, labelled=None)
        present = runtime_classes.present(found, names)
        labelled = node_labels.is_ready(found, machine)
        return dataclasses.replace(before, runtime_classes=present, labelled=labelled)
