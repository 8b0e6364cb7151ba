"""What command lines and state files of hypervisors tell."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.sandbox import hypervisor
from tests import conftest
from tests.unit import sandbox_tree as tree

ID = "604b217ec06a75823965475124491685b2a5a721ef6da13904188d2204b607bf"
# As in the deployment that this charm automates: Kata 1.13 with vsock.
KATA_1 = f"""\
/usr/bin/qemu-vanilla-system-x86_64 -name sandbox-{ID} -uuid 23908cd2-5310-4c3f-aaf3-0f8ba449a0dc
-machine pc,accel=kvm,kernel_irqchip,nvdimm -cpu host,pmu=off -m 2048M,slots=10,maxmem=49308M
-device nvdimm,id=nv0,memdev=mem0 -no-user-config -nodefaults --no-reboot -daemonize
-object memory-backend-file,id=mem0,mem-path=/usr/share/kata-containers/image.img,size=268435456
-device vhost-vsock-pci,disable-modern=false,vhostfd=3,id=vsock-751925852,guest-cid=751925852
-device driver=virtio-net-pci,netdev=network-0,mac=f6:45:6e:18:f8:36,disable-modern=false
-object memory-backend-ram,id=dimm1,size=2048M -numa node,memdev=dimm1
-kernel /usr/share/kata-containers/vmlinuz-5.4.60.91-52.container -append APPEND
-smp 1,cores=1,threads=1,sockets=16,maxcpus=16"""
# runtime-rs 4.1.0, qemu/cmdline_generator.rs
RUST = f"""\
/opt/kata/bin/qemu-system-x86_64 -name sandbox-{ID} -kernel /opt/kata/share/vmlinux.container
-append APPEND -smp 2,maxcpus=8 -machine q35,accel=kvm -cpu host -m 2G,slots=10,maxmem=32G
-qmp unix:fd=12,server=on,wait=off -device vhost-vsock-pci,vhostfd=14,guest-cid=3141592653
-blockdev driver=raw,node-name=image-drive-0,filename=/opt/kata/share/kata.img,read-only=on
-netdev tap,id=network-tap0_kata,vhost=on -device virtio-net-pci,netdev=n,mac=aa:bb:cc:dd:ee:ff
-nodefaults -nographic -no-reboot"""


def words(line, append="quiet panic=1"):
    return [append if word == "APPEND" else word for word in line.split()]


def test_qemu_of_kata_1_as_in_the_deploy_record():
    assert hypervisor.read_command_line(words(KATA_1)) == hypervisor.Vm(
        hypervisor="qemu",
        sandbox=ID,
        program="/usr/bin/qemu-vanilla-system-x86_64",
        type="pc",
        kernel="/usr/share/kata-containers/vmlinuz-5.4.60.91-52.container",
        image="/usr/share/kata-containers/image.img",
        parameters="quiet panic=1",
        vcpus=1,
        memory=2048,
        cid=751925852,
        mac="f6:45:6e:18:f8:36",
        console="none",
    )


def test_qemu_of_the_rust_shim():
    vm = hypervisor.read_command_line(words(RUST))
    assert (vm.vcpus, vm.memory, vm.cid) == (2, 2048, 3141592653)
    assert (vm.type, vm.image) == ("q35", "/opt/kata/share/kata.img")


@pytest.mark.parametrize(
    ("append", "place"),
    [
        ("quiet agent.debug_console agent.debug_console_vport=1026", "vsock"),
        ("quiet agent.use_vsock=true agent.debug_console", "serial"),
        ("agent.debug_console_vport=1026", "none"),
        ("quiet", "none"),
        ("", "none"),
    ],
)
def test_the_debug_console_is_told_to_the_guest(append, place):
    assert hypervisor.read_command_line(words(KATA_1, append)).console == place


@pytest.mark.parametrize("number", [0, 3])
def test_qemu_really_run_by_kata(number):
    for path in conftest.corpus("sandbox/*/qemu-cmdline.txt"):
        lines = path.read_text().splitlines()
        vm = hypervisor.read_command_line([*lines, *[""] * number])
        assert vm.type == "pc"
        assert (vm.vcpus, vm.memory, vm.cid) == (1, 512, None)
        assert vm.initrd == "/usr/share/kata-containers/kata.initrd"
        assert vm.mac == "42:1e:e1:ac:e7:5e"


@pytest.mark.parametrize(
    ("line", "kind", "sandbox"),
    [
        (f"/opt/kata/bin/cloud-hypervisor --api-socket /run/vc/vm/{ID}/clh-api.sock", "clh", ID),
        (f"/opt/kata/bin/cloud-hypervisor --api-socket /run/kata/{ID}/ch-api.sock -v", "clh", ID),
        (
            f"/usr/bin/cloud-hypervisor --api-socket=/run/user/998/run/kata/{ID}/ch-api.sock",
            "clh",
            ID,
        ),
        (
            f"/opt/kata/bin/firecracker --api-sock /run/vc/firecracker/{ID[:32]}/root/run/f.socket",
            "fc",
            ID[:32],
        ),
        (f"/firecracker --id={ID[:32]} --start-time-us=1 --config-file /fcConf", "fc", ID[:32]),
        (f"firecracker --id {ID} --gid 0 -- --api-sock /run/fc.sock", "fc", ID),
        (f"/opt/kata/bin/firecracker --api-sock /run/kata/{ID}/run/fc.sock", "fc", ID),
    ],
)
def test_hypervisors_that_are_told_the_rest_over_a_socket(line, kind, sandbox):
    vm = hypervisor.read_command_line(line.split())
    assert (vm.hypervisor, vm.sandbox, vm.memory) == (kind, sandbox, None)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "/usr/bin/qemu-system-x86_64 -name my-own-vm -m 4096",
        "/usr/bin/qemu-system-x86_64",
        "/usr/bin/cloud-hypervisor --api-socket /tmp/mine.sock",
        "/usr/bin/vim -name sandbox-qemu",
    ],
)
def test_other_processes_are_no_hypervisors_of_sandboxes(line):
    assert hypervisor.read_command_line(line.split()) is None


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [("2048M", 2048), ("2G", 2048), ("512", 512), ("1T", 1 << 20), ("2048K", 2), ("much", None)],
)
def test_memory_in_qemus_units(text, mebibytes):
    assert hypervisor.read_command_line(tree.qemu("a", memory=text)).memory == mebibytes


@given(st.lists(st.text(alphabet=st.sampled_from("-=,aqm1 \n"), max_size=8), max_size=12))
def test_any_command_line_is_read_without_a_fault(rest):
    hypervisor.read_command_line(["qemu", "-name", "sandbox-a", *rest])
    hypervisor.read_command_line(["firecracker", *rest])


# State files


def test_the_go_shims_state_counts_what_was_plugged_in_later():
    state = tree.go_state(ID, 7, HotpluggedMemory=512, HotpluggedVCPUs=[{"ID": "a"}, {"ID": "b"}])
    vm = hypervisor.read_go_state(json.dumps(state))
    assert (vm.sandbox, vm.pid, vm.vcpus, vm.memory) == (ID, 7, 3, 2560)


def test_a_fraction_of_a_vcpu_is_a_whole_one():
    state = tree.go_state(ID, 7)
    state["Config"]["HypervisorConfig"]["NumVCPUsF"] = 1.5
    assert hypervisor.read_go_state(json.dumps(state)).vcpus == 2


def test_the_state_that_kata_1_really_left():
    for path in conftest.corpus("sandbox/*/persist.json"):
        vm = hypervisor.read_go_state(path.read_text())
        assert (vm.hypervisor, vm.pid, vm.vcpus, vm.memory) == ("qemu", 479, 1, 512)
        assert vm.kernel == "/usr/share/kata-containers/vmlinuz.container"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("cloud-hypervisor", "clh"), ("firecracker", "fc"), ("dragonball", "dragonball")],
)
def test_the_rust_shims_state_in_our_names(kind, name):
    vm = hypervisor.read_rust_state(json.dumps(tree.rust_state(ID, kind, default_memory=256)))
    assert (vm.hypervisor, vm.sandbox, vm.memory, vm.vcpus) == (name, ID, 256, 1)


@pytest.mark.parametrize("read", [hypervisor.read_go_state, hypervisor.read_rust_state])
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "1", '{"Config": 3, "hypervisor": []}', "[" * 100_000, "\udcff"],
)
def test_a_half_written_state_file_tells_nothing(read, text):
    assert read(text) == hypervisor.Vm()


@given(cut=st.integers(0, 400))
def test_a_state_file_cut_anywhere_is_read_without_a_fault(cut):
    text = json.dumps(tree.rust_state(ID))
    vm = hypervisor.read_rust_state(text[:cut])
    assert vm == hypervisor.Vm() or cut >= len(text)


def test_one_description_completes_another():
    line, state = hypervisor.Vm(vcpus=1, kernel="/k"), hypervisor.Vm(vcpus=4, image="/i")
    assert line.completed(state) == hypervisor.Vm(vcpus=1, kernel="/k", image="/i")


@pytest.mark.parametrize("option", ["-smp", "-m"])
def test_a_number_beyond_all_bounds_is_none(option):
    vm = hypervisor.read_command_line(["qemu", "-name", "sandbox-a", option, "9" * 5000])
    assert (vm.vcpus, vm.memory) == (None, None)
