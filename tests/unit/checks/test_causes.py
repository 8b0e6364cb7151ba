"""Which words of containerd, Kata and the kernel mean what.

The lines are those that the programs named beside them print.
"""

import pytest

from kata.checks import causes

QEMU = (
    'time="2026-11-25T20:54:29Z" level=error msg="qemu-system-x86_64: -device driver=virtio-net-pci,'
    r'netdev=network-0: failed to find romfile \"efi-virtio.rom\"" name=containerd-shim-v2 pid=727'
)
LINES = [
    # containerd 1.5 and 1.6 with the shim of Kata 1.13: the deploy record's own failure
    (
        "failed to create containerd task: failed to create shim: not found: unknown",
        "options-table",
    ),
    ("failed to create containerd task: failed to create shim task: not found", "options-table"),
    (
        (
            'level=error msg="RunPodSandbox for &PodSandboxMetadata{Name:nginx-kata,Uid:0a1b,'
            'Namespace:default,Attempt:0,} failed, error" error="failed to create containerd task: '
            'failed to create shim task: not found"'
        ),
        "options-table",
    ),
    # containerd, pkg/cri/server/sandbox_run.go
    ('failed to get sandbox runtime: no runtime for "kata" is configured', "no-handler"),
    (r"failed to get sandbox runtime: no runtime for \"kata-clh\" is configured", "no-handler"),
    ("untrusted workload with explicit runtime handler is not allowed", "annotation-and-class"),
    ("untrusted workload with host access is not allowed", "annotation-and-host"),
    # containerd 1.7, runtime/v2/manager.go; 1.5, runtime/v2/shim/util.go
    (
        (
            "failed to start shim: failed to resolve runtime path: runtime "
            '"io.containerd.kata.v2" binary not installed "containerd-shim-kata-v2": '
            "file does not exist"
        ),
        "no-shim",
    ),
    # Kata 4.1, Go: pkg/katautils/utils.go
    (
        (
            "failed to create shim task: file /opt/kata/share/kata-containers/vmlinux.container does "
            "not exist: unknown"
        ),
        "no-guest",
    ),
    # Kata 4.1, Rust: kata-types, config/hypervisor/mod.rs
    (
        "guest kernel image file /opt/kata/vmlinux is invalid: No such file or directory",
        "no-guest",
    ),
    # QEMU 7.2
    ("qemu-system-x86_64: could not load kernel '/opt/kata/vmlinux': No such file", "no-guest"),
    (
        (
            "Could not access KVM kernel module: No such file or directory\nqemu-system-x86_64: "
            "failed to initialize kvm: No such file or directory"
        ),
        "no-kvm",
    ),
    ("Expected '=' after parameter 'kernel_irqchip'", "old-kata-new-qemu"),
    # Firecracker 1.x, Cloud Hypervisor 40
    ("Error creating KVM object: No such file or directory (os error 2)", "no-kvm"),
    ("Failed to open /dev/kvm: No such file or directory", "no-kvm"),
    # Kata 4.1, Go: FindContextID; Rust: virtio_vsock.rs
    ("failed to create shim task: open /dev/vhost-vsock: no such file or directory", "no-vsock"),
    ("failed to open /dev/vhost-vsock, try to run modprobe vhost_vsock.", "no-vsock"),
    # Kata 4.1, Go and Rust
    ("timed out connecting to vsock 1905280065:1024: unknown", "guest-silent"),
    (
        "vsock: failed to connect to Vsock { vsock_cid: 3, port: 1024 } within 10s",
        "guest-silent",
    ),
    # Kata 1.13 on cgroup v2
    (
        "Could not create cgroup for /k8s.io/kata_1: cgroups: cgroup mountpoint does not exist",
        "cgroup-v2",
    ),
    # Linux 6.1
    (
        "Out of memory: Killed process 12796 (qemu-system-x86) total-vm:2862424kB, anon-rss:1kB",
        "out-of-memory",
    ),
    (
        "Memory cgroup out of memory: Killed process 77 (cloud-hyperviso) total-vm:1kB",
        "out-of-memory",
    ),
    (
        (
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),oom_memcg=/kubepods/pod1,"
            "task_memcg=/kubepods/pod1/kata_1,task=qemu-system-x86,pid=77,uid=0"
        ),
        "out-of-memory",
    ),
    # Kata 4.1, Go: govmm/qemu/qmp.go, qemu.go; Rust: qemu/qmp.rs, qemu/inner.rs
    ("failed to create shim task: exiting QMP loop, command cancelled", "hypervisor-ended"),
    ("timed out waiting for QMP ready: /run/kata/1/qmp.sock", "hypervisor-ended"),
    (QEMU, "hypervisor-refused"),
    # containerd 1.6, with a guest that took longer than the caller waited
    (
        "failed to create containerd task: failed to create shim task: context deadline exceeded",
        "too-slow",
    ),
    (
        r'{"msg":"qemu stderr: \"qemu-system-x86_64: -device vfio-pci: no such host\"","level":"INFO"}',
        "hypervisor-refused",
    ),
    # containerd 1.6 built with a newer Go, the shim of Kata 1.13 with an older
    (
        (
            "failed to start shim: start failed: dial unix \x00/containerd-shim/k8s.io/1/shim.sock: "
            "connect: connection refused"
        ),
        "shim-refuses",
    ),
    ("Network plugin returns error: cni plugin not initialized", "no-network"),
    ('failed to resolve image "registry.k8s.io/pause:3.9": connection refused', "no-image"),
]


@pytest.mark.parametrize(("line", "name"), LINES)
def test_words_and_their_cause(line, name):
    cause = causes.of(line)
    assert cause is not None
    assert cause.name == name
    assert cause.meaning
    assert cause.remedy
    assert "{" not in cause.meaning + cause.remedy


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('no runtime for "kata-clh" is configured', "kata-clh"),
        ('runtime "io.containerd.kata.v2" binary not installed "containerd-shim-x"', "shim-x"),
        ("file /opt/kata/share/vmlinux does not exist", "/opt/kata/share/vmlinux"),
        ("Killed process 1 (firecracker)", None),
        (QEMU, 'network-0: failed to find romfile "efi-virtio.rom"'),
        ("Out of memory: Killed process 1 (firecracker) x", "firecracker"),
    ],
)
def test_what_is_named_in_the_words_is_named_in_the_cause(line, named):
    cause = causes.of(line)
    assert (cause is None) if named is None else (named in cause.meaning)


@pytest.mark.parametrize(
    "line",
    [
        "",
        'level=info msg="RunPodSandbox for nginx returns sandbox id"',
        "Out of memory: Killed process 5 (python3) total-vm:1kB",
        'level=error msg="ContainerStatus for x failed" error="container x: not found"',
        "failed to create shim task: OCI runtime create failed: runc create failed",
        "failed to create shim task: some file: not found",
        # each start of containerd that comes before the network plugin's
        (
            'level=error msg="failed to load cni during init, please check CRI plugin status before '
            'setting up network for pods" error="cni config load failed: no network config found in '
            '/etc/cni/net.d: cni plugin not initialized: failed to load cni config"'
        ),
        # how the Go shim hears of every end of a sandbox
        'level=error msg="qemu-system-x86_64: terminating on signal 15 from pid 9" source=qemu',
    ],
)
def test_other_words_are_no_cause(line):
    assert causes.of(line) is None
