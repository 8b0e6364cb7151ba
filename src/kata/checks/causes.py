"""Why pods with Kata fail, by the words in which containerd, Kata and the kernel say so.

A row for each cause: what it is known by, what it means, and what to do. The words were taken
from the sources of containerd 1.4 to 2.3, of Kata 1.13 to 4.1 and of QEMU, and most were seen.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Cause:
    """Why pods fail.

    Attributes:
        name: in a word or two, for programs.
        meaning: what is the matter.
        remedy: what to do about it.
    """

    name: str
    meaning: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class _Row:
    pattern: re.Pattern[str]
    cause: Cause


def of(words: str) -> Cause | None:
    """Return the cause that a message speaks of, or None. Names in it are filled in.

    Args:
        words: what containerd, a shim or the kernel said.
    """
    for row in _ROWS:
        if found := row.pattern.search(words):
            # Journals quote what was quoted before.
            groups = found.groupdict(default="").items()
            named = {name: value.replace("\\", "") for name, value in groups}
            cause = row.cause
            return Cause(cause.name, cause.meaning.format(**named), cause.remedy.format(**named))
    return None


def names() -> tuple[str, ...]:
    """Return the names of all causes."""
    return tuple(row.cause.name for row in _ROWS)


def _row(pattern: str, name: str, meaning: str, remedy: str) -> _Row:
    return _Row(re.compile(pattern, re.IGNORECASE), Cause(name, meaning, remedy))


_QUOTED = r"[\\\"'`]*"
_NESTING = "see check-host: CPU flags, /dev/kvm, and nesting where this machine is itself virtual"

# The first row that matches counts: what is more telling comes first.
_ROWS = (
    _row(
        r"untrusted workload with explicit runtime handler",
        "annotation-and-class",
        "the pod has both the annotation io.kubernetes.cri.untrusted-workload and a "
        "runtimeClassName, which containerd refuses",
        "remove one of the two from the pod",
    ),
    _row(
        r"untrusted workload with host access",
        "annotation-and-host",
        "the pod has the annotation io.kubernetes.cri.untrusted-workload and uses the host's "
        "namespaces or is privileged, which containerd refuses",
        "remove the annotation, or hostNetwork, hostPID, hostIPC and privileged, from the pod",
    ),
    _row(
        rf"no runtime for {_QUOTED}(?P<handler>[\w.-]+){_QUOTED} is configured",
        "no-handler",
        "containerd has no handler named {handler}: it is not in the configuration that the "
        "running containerd has read, or the RuntimeClass names another",
        "compare the handler of the RuntimeClass with check-host; show-config tells if somebody "
        "has rewritten containerd's configuration",
    ),
    _row(
        rf"runtime {_QUOTED}(?P<type>[\w./-]+?){_QUOTED} binary not installed"
        rf"(?: {_QUOTED}(?P<shim>[\w.-]+))?",
        "no-shim",
        "containerd does not find the shim {shim} of {type}",
        "see check-host: the shim must be on containerd's PATH or at runtime_path; "
        "config-changed and update-status put it back",
    ),
    _row(
        r"cgroup mountpoint does not exist",
        "cgroup-v2",
        "this release of Kata knows cgroup v1 only, and the machine has v2",
        "set kata-version to 3.0.0 or later",
    ),
    _row(
        r"(?:file|image file) (?P<file>/\S+?) (?:does not exist|is invalid)"
        r"|could not (?:load|open) (?:kernel|initrd)[^/]*(?P<other>/[^\s'\"]+)"
        r"|can't open (?:backing store|file)[^/]*(?P<store>/[^\s'\"]+)",
        "no-guest",
        "a file of the virtual machine is missing: {file}{other}{store}",
        "see check-host; install the release anew, or correct the option that names the file",
    ),
    _row(
        r"vhost[-_]vsock\S*(?:: no such (?:file|device)|, try to run modprobe)"
        r"|(?:open|opening) /dev/vhost-vsock"
        r"|vhost-vsock: (?:failed to open|unable to set guest cid)",
        "no-vsock",
        "there is no /dev/vhost-vsock: the module vhost_vsock is not loaded",
        "modprobe vhost_vsock; in a virtual machine, see that its kernel has the module",
    ),
    _row(
        r"could not access kvm kernel module|failed to initialize kvm|/dev/kvm[^a-z]*"
        r"(?:no such file|permission denied|failed)|(?:creat|open)\w* (?:the )?kvm"
        r"|kvm (?:error|is not available|not supported)",
        "no-kvm",
        "the hypervisor cannot use KVM",
        _NESTING,
    ),
    _row(
        r"expected '=' after parameter",
        "old-kata-new-qemu",
        "Kata 1.x runs with a QEMU that no longer takes its options",
        "let it use the qemu-vanilla of its own release, or install a newer Kata",
    ),
    _row(
        r"(?:timed out connecting to|failed to connect to) (?:vsock|hvsock|hybrid)"
        r"|failed to (?:check if )?grpc server is (?:working|serving)|dial timeout",
        "guest-silent",
        "the virtual machine started, but the agent in it did not answer in time",
        "the machine is short of CPU, or nesting is slow: see check-host; give it longer with "
        "kata-config ([agent.kata] dial_timeout with the go shim, reconnect_timeout_ms with rust)",
    ),
    _row(
        r"failed to create shim(?: task)?: context deadline exceeded",
        "too-slow",
        "the sandbox was not up in the time that kubelet gives it",
        "the machine is short of CPU, or nesting is slow: see check-host; kubelet's option "
        "runtimeRequestTimeout gives it longer",
    ),
    _row(
        r"(?:level=error msg=|qemu stderr: )\\*\"(?P<words>qemu-system-\S+: (?!terminating on|warning)"
        r"(?:[^\"\\]|\\.)+)",
        "hypervisor-refused",
        "QEMU says: {words}",
        "see show-config and check-host; correct the option that it speaks of (kata-config), or "
        "install the release anew",
    ),
    _row(
        r"exiting qmp loop|timed out waiting for qmp ready|failed to launch qemu",
        "hypervisor-ended",
        "the hypervisor ended before Kata could speak to it",
        "its last words are in the journal: journalctl --grep 'qemu-system-.*: '",
    ),
    _row(
        r"out of memory: killed process \d+ \((?P<program>[^)]*(?:qemu|hyperv|firecracker|shim)"
        r"[^)]*)\)|oom-kill:.*task=(?P<task>[\w-]*(?:qemu|hyperv|firecracker|shim)[\w-]*)",
        "out-of-memory",
        "the kernel has killed {program}{task} for memory: the pod's limit and the overhead of "
        "its RuntimeClass leave the virtual machine too little",
        "set overhead-memory to more, and make the pods anew",
    ),
    _row(
        r"failed to create shim(?: task)?: not found",
        "options-table",
        "the handler has an options table, and this release of Kata does not know the message "
        "that containerd makes of it",
        "remove the options table of the handler (see show-config) and restart containerd, or set "
        "kata-version to 2.2.0 or later",
    ),
    _row(
        r"dial unix \S*containerd-shim\S*: connect: connection refused",
        "shim-refuses",
        "containerd does not reach the shim that it has started: Kata 1.x and this containerd "
        "name its socket in different ways",
        "install Kata 2.2.0 or later",
    ),
    _row(
        r"failed to (?:resolve|pull)[^\n]*image|pull access denied",
        "no-image",
        "an image of the pod cannot be had; Kata has no part in it",
        "see kubectl describe pod",
    ),
    _row(
        # Not "failed to load cni during init": each start of containerd says it that comes before
        # the network plugin's.
        r"networkplugin cni failed|network plugin returns error"
        r"|failed to setup network for sandbox",
        "no-network",
        "the pod's network cannot be made; Kata has no part in it",
        "see that the cluster's network plugin runs on this node",
    ),
)
