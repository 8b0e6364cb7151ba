"""A machine on which this charm has done its work: a stand-in release, containerd, handlers."""

from kata import settings, workload
from kata.containerd import cri
from kata.machine import host
from tests.node import standin
from tests.unit import containerd_machine, kata_releases

RELEASE = "3.32.0"
SHIM = "/usr/local/bin/containerd-shim-kata-v2"
READY = {
    "/proc/sys/kernel/arch": "x86_64\n",
    "/proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
    "/proc/sys/kernel/hostname": "one\n",
    "/proc/cpuinfo": "processor : 0\nflags\t\t: fpu vmx sse\n",
    "/dev/kvm": "",
    "/dev/vhost-vsock": "",
    "/dev/vhost-net": "",
    "/sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
    **{f"/sys/module/{n}/refcnt": "0" for n in ("vhost", "vhost_net", "vhost_vsock", "kvm_intel")},
}
LOADED = {
    "runc": cri.Handler("runc", "io.containerd.runc.v2"),
    **{name: cri.Handler(name, "io.containerd.kata.v2", SHIM) for name in ("kata", "untrusted")},
}


def options(**given):
    named = {name.replace("_", "-"): value for name, value in given.items()}
    return settings.read({**kata_releases.DEFAULTS, **named})


def make(node, monkeypatch, folder):
    """Let the charm's node part work on `node`; return the containerd there."""
    node.lay(READY)
    monkeypatch.setattr(host, "kvm_api", lambda _: 12)
    monkeypatch.setattr(cri, "status", lambda _: cri.Status({}, LOADED))
    monkeypatch.setattr(cri, "pod_handlers", lambda _: {})
    containerd = containerd_machine.FakeContainerd(node, "1.7.24")
    node.path(SHIM).unlink()
    node.lay({containerd_machine.MAIN: containerd_machine.CONFIG})
    node.on("journalctl *")
    archive = standin.archive(RELEASE, folder)
    workload.ensure(node, options(), {"kata-archive": archive}, lambda _: None)
    return containerd
