"""What reads /proc, sysfs and the state of sandboxes: whatever stands there, it answers in words.

A machine with a running sandbox of each shim, two GPUs and an installed Kata is laid out once.
Then some of its files are damaged, everything that looks at a machine looks, and they are mended.
"""

import contextlib
import dataclasses
import json
import pathlib
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata import problems
from kata.checks import diagnose, readiness, shown_config
from kata.cluster import credentials, kubelet
from kata.configuration import custody
from kata.containerd import daemon
from kata.gpu import check as gpu_check
from kata.gpu import configuration as gpu_configuration
from kata.gpu import holders, iommu, mdev, pci, vfio
from kata.gpu import report as gpu_report
from kata.machine import host, modules, tenancy
from kata.release import release, unpacked
from kata.sandbox import console, hypervisor, network, picture, processes, sandboxes
from kata.sandbox import report as sandbox_report
from tests.fuzz import effort
from tests.unit import cards, kata_machine, kata_releases
from tests.unit import sandbox_tree as tree

KATA = "/etc/kata-containers/configuration.toml"
GPUS = gpu_configuration.Installed((3, 32, 0), "go", f"{release.PREFIX}/none.toml")
PIECES = [
    *(
        "\0",
        "\n",
        "\r",
        "\x1b[2J",
        "\udcff",
        "\u0661",
        "é",
        "=",
        ",",
        ":",
        " ",
        "/",
        "../",
        "-",
        "0x",
    ),
    *("[", "]", "{", "}", '"', "null", "true", "-1", "0", "1e999", "NaN", "9" * 5000, "1" * 30),
    *(
        '"\\ud800"',
        '"\\u0000"',
        "[" * 3000,
        "{}",
        "[]",
        "inf",
        "nan",
        "-name",
        "sandbox-",
        "(",
        ")",
    ),
]
OPTIONS = kata_releases.options(gpu_mode="passthrough", debug_console=True)


@pytest.fixture(scope="module")
def machine():
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        place = pathlib.Path(folder)
        machine = cards.of_the_record(place / "root")
        machine.offers("0000:04:00.0", {"nvidia-105": ("GRID P100-8Q", 2)})
        kata_machine.make(machine, patch, place)
        tree.lay_go(machine, 1)
        tree.lay_rust(machine, 2, pod=("default", "web"))
        machine.lay(
            {
                "/proc/cmdline": "root=/dev/sda1 intel_iommu=on\n",
                "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
                "/proc/900/cmdline": "/usr/bin/kubelet\0--hostname-override\0one\0",
                "/boot/config-6.8.0-45-generic": cards.HOST_CONFIG,
                "/var/lib/kata-charm/units.json": '["kata/0", "other/1"]\n',
            }
        )
        machine.process(77, "nv-hostengine", "/dev/nvidia0")
        access = credentials.Access("https://10.0.0.1:6443", "token", "ca")
        credentials.save(machine, "/var/lib/kata-charm/access.json", access, "source")
        yield machine


def texts(value):
    """Every string that is in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.items():
            yield from texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from texts(each)


def look_at_sandboxes(node):
    found = sandboxes.find(node, daemon.STATE, {})
    yield sandbox_report.table(found)
    yield json.dumps([sandbox_report.data(each) for each in found])
    for each in found:
        net = network.look(node, each.id, each.network)
        yield picture.draw(each, net)
        yield picture.mermaid(each, net)
        yield json.dumps(dataclasses.asdict(net))
        with contextlib.suppress(problems.Problem):
            shown = console.find(node, each, wanted=True)
            yield from (shown.command, shown.detail)


def look_at_the_machine(node):
    checks = readiness.checks(node, OPTIONS)
    yield readiness.report(checks)
    yield json.dumps([dataclasses.asdict(each) for each in checks])
    findings = diagnose.look(node, OPTIONS, "")
    yield diagnose.report(findings, "")
    yield json.dumps([dataclasses.asdict(each) for each in findings])
    yield json.dumps([dataclasses.asdict(each) for each in host.checks(node)])
    yield str(host.in_system_container(node))
    yield str([modules.loaded(node, "vhost"), processes.find(node)])
    yield str([release.installed(node), unpacked.find(node, {}), custody.look(node, KATA)])


def look_at_the_configuration(node):
    shown = shown_config.look(node, daemon.find(node, OPTIONS))
    yield from (shown.live, *shown.files, shown.ours, shown.drift, *shown.kata.values())
    yield from shown.notes


def look_at_gpus(node):
    report = gpu_check.look(node, OPTIONS, GPUS)
    yield gpu_report.words(report)
    yield json.dumps([each.data() for each in report.gpus])
    yield json.dumps([dataclasses.asdict(each) for each in report.findings])
    yield json.dumps([dataclasses.asdict(each) for each in mdev.types(node)])
    yield json.dumps([dataclasses.asdict(each) for each in mdev.instances(node)])
    yield str(
        [pci.functions(node), vfio.recorded(node), holders.having_open(node, "/dev/nvidia*")]
    )
    yield str(iommu.state(node))


def look_at_the_cluster(node):
    yield str([kubelet.machine_id(node), *kubelet.names(node), kubelet.name(node)])
    yield str(credentials.load(node, "/var/lib/kata-charm/access.json"))
    yield str(tenancy.is_alone(node, "kata/0"))


LOOKS = {
    look_at_sandboxes: ("/proc", "/run"),
    look_at_the_machine: ("/proc", "/sys", "/etc", "/boot", "/var", "/run", "/opt"),
    look_at_the_configuration: ("/etc", "/var", "/opt", "/proc/100"),
    look_at_gpus: ("/proc", "/sys", "/boot", "/etc", "/var"),
    look_at_the_cluster: ("/proc", "/etc", "/var"),
}


@contextlib.contextmanager
def mended(node, places):
    """Put these files back at the end."""
    before = {place: place.read_bytes() for place in places}
    try:
        yield
    finally:
        for place, data in before.items():
            if place.is_symlink():
                place.unlink()
            elif place.is_dir():
                place.rmdir()
            place.write_bytes(data)


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.__name__)
@effort.inputs(60)
@given(data=st.data())
def test_a_damaged_machine_is_looked_at_without_a_fault(machine, look, data):
    below = tuple(f"{each}/" for each in LOOKS[look])
    files = [
        path
        for path, text in machine.tree().items()
        if path.startswith(below) and not text.startswith("-> ")
    ]
    chosen = data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3, unique=True))
    places = [machine.path(path) for path in chosen]
    with mended(machine, places):
        for place in places:
            text = place.read_bytes().decode("utf-8", "surrogateescape")
            fate = data.draw(st.sampled_from(["text", "text", "text", "gone", "folder", "circle"]))
            if fate == "text":
                new = data.draw(effort.damaged(st.just(text), PIECES))
                place.write_bytes(new.encode("utf-8", "surrogateescape"))
                continue
            place.unlink()
            if fate == "folder":
                place.mkdir()
            elif fate == "circle":
                place.symlink_to(place.name)
        try:
            said = list(look(machine))
        except problems.Problem as refusal:
            assert len(str(refusal).splitlines()) == 1
        except OSError as refusal:
            assert refusal.filename, "the action names the file"
        else:
            for each in said:
                each.encode("utf-8", "surrogateescape")


WORDS = st.sampled_from(
    [*tree.qemu("a"), "-m", "-smp", "9" * 5000, "cpus=" + "9" * 5000, "size=" + "9" * 5000 + "G"]
) | st.text(max_size=12)
COMMANDS = st.tuples(
    st.sampled_from(
        [
            "/opt/kata/bin/qemu-system-x86_64",
            "cloud-hypervisor",
            "/firecracker",
            "containerd-shim-kata-v2",
            "",
        ]
    ),
    st.lists(WORDS, max_size=16),
).map(lambda command: [command[0], *command[1]])


@effort.inputs(300)
@given(words=COMMANDS, damage=st.data())
def test_any_command_line_is_read(machine, words, damage):
    hypervisor.read_command_line(words)
    line = damage.draw(effort.damaged(st.just("\0".join(words)), ["\0", "-", ",", "=", "\udcff"]))
    machine.lay({"/proc/4242/cmdline": line})
    try:
        processes.find(machine)
    finally:
        machine.path("/proc/4242/cmdline").unlink()
        machine.path("/proc/4242").rmdir()
