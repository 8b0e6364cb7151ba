"""Sandboxes as data for programs and as a table for people."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from kata import terminal
from kata.sandbox.sandboxes import Sandbox

_ROW = "{:<30} {:<12} {:<10} {:>5} {:>11} {:>7}"
_HEADING = _ROW.format("POD", "SANDBOX", "VM", "VCPUS", "MEMORY MiB", "UP").rstrip()


def data(sandbox: Sandbox) -> dict[str, Any]:
    """Return a sandbox for JSON: MiB, bytes and seconds are in the names."""
    vm, usage = sandbox.vm, sandbox.usage
    return {
        "pod_namespace": sandbox.pod_namespace,
        "pod": sandbox.pod,
        "uid": sandbox.uid,
        "id": sandbox.id,
        "containerd_namespace": sandbox.namespace,
        "handler": sandbox.handler,
        "shim": sandbox.shim,
        "shim_pid": sandbox.shim_pid,
        "shim_program": sandbox.shim_program,
        "release": sandbox.release,
        "hypervisor": vm.hypervisor,
        "hypervisor_pid": vm.pid,
        "machine_type": vm.type,
        "kernel": vm.kernel,
        "image": vm.image,
        "initrd": vm.initrd,
        "vcpus": vm.vcpus,
        "memory_mib": vm.memory,
        "memory_in_use_bytes": usage.memory if usage else None,
        "uptime_seconds": usage.seconds if usage else None,
        "cid": vm.cid,
        "network": sandbox.network,
        "ips": sandbox.ips,
        "containers": [dataclasses.asdict(each) for each in sandbox.containers],
        "problems": sandbox.problems,
    }


def table(found: Iterable[Sandbox]) -> str:
    """Return sandboxes as text of at most 80 columns: two lines each, and one for each problem."""
    lines = [line for sandbox in found for line in _lines(sandbox)]
    return "\n".join([_HEADING, *lines]) if lines else "no Kata sandboxes on this machine"


def _lines(sandbox: Sandbox) -> list[str]:
    vm, usage = sandbox.vm, sandbox.usage
    in_use = terminal.mebibytes(usage.memory) if usage else "?"
    row = _ROW.format(
        terminal.tail(sandbox.title, 30),
        terminal.plain(sandbox.id)[:12],
        terminal.cut(vm.hypervisor or "none", 10),
        vm.vcpus or "?",
        f"{in_use}/{vm.memory or '?'}",
        terminal.age(usage.seconds) if usage else "?",
    )
    words = [
        f"pid {vm.pid}" if vm.pid else "",
        f"CID {vm.cid}" if vm.cid else "",
        ", ".join(sandbox.ips),
        f"handler {sandbox.handler}" if sandbox.handler else "",
        f"{sandbox.shim} shim {sandbox.release}".rstrip() if sandbox.shim else "",
    ]
    return [
        row.rstrip(),
        *terminal.wrapped("; ".join(filter(None, words)), 2),
        *(line for problem in sandbox.problems for line in terminal.wrapped(f"! {problem}", 2)),
    ]
