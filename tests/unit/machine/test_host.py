"""A machine that can run Kata passes; one that cannot is told why, and is left as it was."""

import errno

import pytest

from kata import problems
from kata.machine import host, modules

KERNEL = "6.8.0-45-generic"
BUILTIN = f"/lib/modules/{KERNEL}/modules.builtin"
LOADED = ("vhost", "vhost_net", "vhost_vsock", "kvm_intel")


@pytest.fixture
def ready(node, monkeypatch):
    """Bare metal with an Intel CPU on which everything is in place."""
    node.lay(
        {
            "/proc/sys/kernel/arch": "x86_64\n",
            "/proc/sys/kernel/osrelease": f"{KERNEL}\n",
            "/proc/cpuinfo": "processor : 0\nflags\t\t: fpu vmx sse\n",
            "/dev/kvm": "",
            "/dev/vhost-vsock": "",
            "/dev/vhost-net": "",
            "/sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            **{f"/sys/module/{name}/refcnt": "0" for name in LOADED},
        }
    )
    monkeypatch.setattr(host, "kvm_api", lambda device: 12)
    return node


def unload(node, name):
    for path in sorted(node.path(f"/sys/module/{name}").rglob("*"), reverse=True):
        path.unlink()
    node.path(f"/sys/module/{name}").rmdir()


def refuse_kvm(monkeypatch, number):
    def refuse(device):
        raise OSError(number, "")

    monkeypatch.setattr(host, "kvm_api", refuse)


def failing(node):
    return {check.name: check for check in host.checks(node) if not check.ok}


def test_a_machine_with_all_in_place_passes(ready):
    assert failing(ready) == {}
    assert [check.name for check in host.checks(ready)] == [
        "architecture",
        "CPU virtualisation",
        "/dev/kvm",
        "/dev/vhost-vsock",
        "/dev/vhost-net",
        "machine",
        "cgroups",
        "kernel",
    ]


def test_looking_changes_nothing_and_runs_nothing(ready):
    unload(ready, "vhost_vsock")
    before = ready.tree()
    host.checks(ready)
    assert ready.tree() == before
    assert ready.ran == []


def test_modules_are_loaded_now_and_named_for_the_next_boot(ready):
    unload(ready, "vhost_vsock")
    ready.on(
        "modprobe -- vhost_vsock", effect=lambda _: ready.lay({"/sys/module/vhost_vsock/x": ""})
    )
    assert host.ensure_ready(ready)
    assert ready.ran == ["modprobe -- vhost_vsock"]
    listed = ready.read(modules.FILE).splitlines()
    assert listed[0].startswith("# Made by the Juju charm kata")
    assert tuple(listed[1:]) == LOADED
    assert ready.path(modules.FILE).stat().st_mode & 0o7777 == 0o644


def test_a_second_time_changes_nothing_and_runs_nothing(ready):
    assert host.ensure_ready(ready)
    before = ready.tree()
    assert not host.ensure_ready(ready)
    assert ready.tree() == before
    assert ready.ran == []


def test_a_module_that_is_built_in_counts_as_loaded(ready):
    for name in LOADED:
        unload(ready, name)
    ready.lay(
        {
            BUILTIN: "kernel/drivers/vhost/vhost.ko\nkernel/drivers/vhost/vhost_net.ko\n"
            "kernel/drivers/vhost/vhost_vsock.ko\nkernel/arch/x86/kvm/kvm-intel.ko\n"
        }
    )
    host.ensure_ready(ready)
    assert ready.ran == []


def test_an_amd_machine_gets_kvm_for_amd(ready):
    ready.lay({"/proc/cpuinfo": "flags : svm\n"})
    ready.on("modprobe -- kvm_amd")
    assert host.ensure_ready(ready)
    assert ready.read(modules.FILE).splitlines()[-1] == "kvm_amd"


def test_an_arm_machine_needs_neither_flag_nor_module_of_kvm(ready):
    ready.lay({"/proc/sys/kernel/arch": "aarch64\n", "/proc/cpuinfo": "Features : fp asimd\n"})
    host.ensure_ready(ready)
    assert ready.read(modules.FILE).splitlines()[1:] == ["vhost", "vhost_net", "vhost_vsock"]
    assert host.machine(ready) == "arm64"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            f"modprobe: FATAL: Module vhost_vsock not found in directory /lib/modules/{KERNEL}",
            f"module vhost_vsock: not found; install linux-modules-extra-{KERNEL}",
        ),
        (
            "modprobe: ERROR: could not insert 'vhost_vsock': Device or resource busy",
            "module vhost_vsock: Device or resource busy; dmesg has the kernel's reason",
        ),
    ],
)
def test_a_module_that_cannot_be_loaded_blocks_with_the_reason(ready, words, expected):
    unload(ready, "vhost_vsock")
    ready.on("modprobe *", err=f"{words}\n", status=1)
    before = ready.tree()
    with pytest.raises(problems.Blocked) as blocked:
        host.ensure_ready(ready)
    assert str(blocked.value) == expected
    assert ready.tree() == before


def test_kvm_that_the_firmware_forbids_names_the_firmware(ready):
    unload(ready, "kvm_intel")
    ready.on(
        "modprobe *",
        err="modprobe: ERROR: could not insert 'kvm_intel': Operation not supported\n",
        status=1,
    )
    with pytest.raises(
        problems.Blocked, match=r"kvm_intel: .*not supported; switch VT-x or AMD-V"
    ):
        host.ensure_ready(ready)


def test_other_cpus_are_refused(ready):
    ready.lay({"/proc/sys/kernel/arch": "ppc64le\n"})
    with pytest.raises(problems.Blocked, match="ppc64le, expected amd64 or arm64"):
        host.ensure_ready(ready)
    with pytest.raises(problems.Blocked, match="ppc64le"):
        host.machine(ready)


def test_a_cpu_without_virtualisation_is_refused_before_anything_is_touched(ready):
    ready.lay({"/proc/cpuinfo": "flags : fpu\n"})
    before = ready.tree()
    with pytest.raises(problems.Blocked, match=r"no such CPU flag.*firmware"):
        host.ensure_ready(ready)
    assert ready.tree() == before
    assert ready.ran == []


def test_a_virtual_machine_is_told_of_nesting_and_not_of_firmware(ready):
    ready.lay(
        {
            "/proc/cpuinfo": "flags : fpu hypervisor\n",
            "/sys/class/dmi/id/product_name": "OpenStack Nova\n",
        }
    )
    with pytest.raises(problems.Blocked, match="nested=1") as blocked:
        host.ensure_ready(ready)
    assert "firmware" not in str(blocked.value)
    assert len(str(blocked.value)) <= 160
    found = {check.name: check.found for check in host.checks(ready)}
    assert found["machine"] == "a virtual machine (OpenStack Nova)"


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ENOENT, "missing"),
        (errno.EACCES, "Permission denied"),
        (errno.EPERM, "Operation not permitted"),
        (errno.ENODEV, "No such device"),
        (errno.ENOTTY, "Inappropriate ioctl"),
    ],
)
def test_kvm_that_cannot_be_used_is_refused_with_the_reason(ready, monkeypatch, number, word):
    refuse_kvm(monkeypatch, number)
    with pytest.raises(problems.Blocked, match=f"/dev/kvm: {word}") as blocked:
        host.ensure_ready(ready)
    assert len(str(blocked.value)) <= 160


def test_another_kvm_interface_is_refused(ready, monkeypatch):
    monkeypatch.setattr(host, "kvm_api", lambda device: 11)
    assert failing(ready)["/dev/kvm"].found == "API version 11"


def test_a_file_in_the_place_of_kvm_is_no_kvm(tmp_path):
    (tmp_path / "kvm").write_text("")
    with pytest.raises(OSError, match=r"[Ii]nappropriate ioctl"):
        host.kvm_api(tmp_path / "kvm")


def test_a_device_file_without_its_module_is_said(ready):
    unload(ready, "vhost_net")
    check = failing(ready)["/dev/vhost-net"]
    assert check.found == "present, module vhost_net not loaded"
    assert check.remedy == "modprobe vhost_net"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"/run/systemd/container": "lxc\n"}, "lxc"),
        ({"/proc/1/environ": "TERM=linux\0container=lxc\0"}, "lxc"),
        ({"/proc/1/environ": "TERM=linux\0"}, None),
        ({"/proc/1/environ": "container=\0"}, None),
        ({}, None),
    ],
)
def test_a_system_container_is_recognised(node, files, kind):
    node.lay(files)
    assert host.in_system_container(node) == kind


@pytest.mark.parametrize(
    ("files", "found", "ok"),
    [
        (["/sys/fs/cgroup/cgroup.controllers"], "v2 only", True),
        (["/sys/fs/cgroup/unified/cgroup.controllers", "/sys/fs/cgroup/memory/x"], "v1 and", True),
        (["/sys/fs/cgroup/memory/tasks"], "v1", True),
        ([], "none mounted", False),
    ],
)
def test_cgroups_are_told_as_advice(node, files, found, ok):
    node.lay(dict.fromkeys(files, ""))
    check = next(check for check in host.checks(node) if check.name == "cgroups")
    assert check.found.startswith(found)
    assert (check.ok, check.required) == (ok, False)


def test_whether_there_is_cgroup_v2_alone_can_be_asked(ready):
    assert host.only_cgroup_v2(ready)
    ready.lay({"/sys/fs/cgroup/unified/cgroup.controllers": ""})
    ready.remove("/sys/fs/cgroup/cgroup.controllers")
    assert not host.only_cgroup_v2(ready)


@pytest.mark.parametrize(
    ("release", "ok"),
    [("5.0.21", False), ("5.15.0-1", True), ("6.8", True), ("10.0", True), ("", False)],
)
def test_an_old_kernel_is_told_as_advice(ready, release, ok):
    ready.lay({"/proc/sys/kernel/osrelease": release})
    check = next(check for check in host.checks(ready) if check.name == "kernel")
    assert (check.ok, check.required) == (ok, False)


def test_removal_takes_our_list_and_unloads_nothing(ready):
    ready.lay({"/etc/modules-load.d/others.conf": "nf_conntrack\n"})
    host.ensure_ready(ready)
    assert modules.release(ready)
    assert list(ready.tree("/etc/modules-load.d")) == ["/etc/modules-load.d/others.conf"]
    assert not modules.release(ready)
    assert ready.ran == []


def test_removal_leaves_a_list_that_is_not_ours(node):
    node.lay({modules.FILE: "nf_conntrack\n"})
    assert not modules.release(node)
    assert node.read(modules.FILE) == "nf_conntrack\n"
