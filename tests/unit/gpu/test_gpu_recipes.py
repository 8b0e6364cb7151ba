"""How each release gives a GPU to a sandbox: a table written by hand, and Kata's own files.

The table follows Kata's documentation of each release (docs/use-cases, "NVIDIA GPU passthrough")
and NVIDIA's reference configuration. None stands for a refusal.
"""

import dataclasses
import itertools
import re

import pytest
import tomlkit

from kata import problems
from kata.configuration import keys
from kata.configuration import text as configuration_text
from kata.gpu import recipes as gpu_recipes
from tests import conftest
from tests.unit import kata_releases

GENERATIONS = {
    "1.3.0": "1.3 – 1.10",
    "1.10.8": "1.3 – 1.10",
    "1.11.0": "1.11 – 2.1",
    "1.13.0": "1.11 – 2.1",
    "2.0.4": "1.11 – 2.1",
    "2.1.1": "1.11 – 2.1",
    "2.2.0": "2.2 – 3.1",
    "2.5.2": "2.2 – 3.1",
    "3.1.3": "2.2 – 3.1",
    "3.2.0": "3.2 – 3.5",
    "3.5.0": "3.2 – 3.5",
    "3.6.0": "3.6 – 3.23",
    "3.23.0": "3.6 – 3.23",
    "3.24.0": "3.24 –",
    "3.32.0": "3.24 –",
    "4.1.0": "3.24 –",
}
PC = {"machine_type": "pc", "hotplug_vfio_on_root_bus": True}
BRIDGE = {"machine_type": "q35", "hotplug_vfio_on_root_bus": False}
ROOT_PORT = {"machine_type": "q35", "hotplug_vfio_on_root_bus": True, "pcie_root_port": 2}
BRIDGE_PORT = {
    "machine_type": "q35",
    "hot_plug_vfio": "bridge-port",
    "cold_plug_vfio": "no-port",
}
HOT_ROOT_PORT = {
    "machine_type": "q35",
    "hot_plug_vfio": "root-port",
    "cold_plug_vfio": "no-port",
    "pcie_root_port": 2,
}
COLD = {
    "machine_type": "q35",
    "hot_plug_vfio": "no-port",
    "cold_plug_vfio": "root-port",
    "pcie_root_port": 8,
}
COLD_WITHOUT_COUNT = {key: value for key, value in COLD.items() if key != "pcie_root_port"}

# Go runtime and QEMU, two GPUs: generation, plug, large BAR -> keys of [hypervisor.qemu]
GO = {
    ("1.3 – 1.10", "pci", False): PC,
    ("1.3 – 1.10", "pci", True): None,
    ("1.3 – 1.10", "pcie", False): None,
    ("1.3 – 1.10", "pcie", True): None,
    ("1.3 – 1.10", "cold", False): None,
    ("1.3 – 1.10", "cold", True): None,
    ("1.3 – 1.10", "auto", False): PC,
    ("1.3 – 1.10", "auto", True): None,
    ("1.11 – 2.1", "pci", False): PC,
    ("1.11 – 2.1", "pci", True): BRIDGE,  # the deploy record's SHPC
    ("1.11 – 2.1", "pcie", False): ROOT_PORT,
    ("1.11 – 2.1", "pcie", True): ROOT_PORT,  # the deploy record's pciehp
    ("1.11 – 2.1", "cold", False): None,
    ("1.11 – 2.1", "cold", True): None,
    ("1.11 – 2.1", "auto", False): PC,
    ("1.11 – 2.1", "auto", True): ROOT_PORT,
    ("2.2 – 3.1", "pci", False): BRIDGE,  # the machine type pc is gone
    ("2.2 – 3.1", "pci", True): BRIDGE,
    ("2.2 – 3.1", "pcie", False): ROOT_PORT,
    ("2.2 – 3.1", "pcie", True): ROOT_PORT,
    ("2.2 – 3.1", "cold", False): None,
    ("2.2 – 3.1", "cold", True): None,
    ("2.2 – 3.1", "auto", False): BRIDGE,
    ("2.2 – 3.1", "auto", True): ROOT_PORT,
    ("3.2 – 3.5", "pci", False): BRIDGE_PORT,
    ("3.2 – 3.5", "pci", True): None,
    ("3.2 – 3.5", "pcie", False): None,  # no pcie_root_port, and no ports without it
    ("3.2 – 3.5", "pcie", True): None,
    ("3.2 – 3.5", "cold", False): COLD_WITHOUT_COUNT,
    ("3.2 – 3.5", "cold", True): COLD_WITHOUT_COUNT,
    ("3.2 – 3.5", "auto", False): BRIDGE_PORT,
    ("3.2 – 3.5", "auto", True): None,
    ("3.6 – 3.23", "pci", False): BRIDGE_PORT,
    ("3.6 – 3.23", "pci", True): None,
    ("3.6 – 3.23", "pcie", False): HOT_ROOT_PORT,
    ("3.6 – 3.23", "pcie", True): HOT_ROOT_PORT,
    ("3.6 – 3.23", "cold", False): COLD,
    ("3.6 – 3.23", "cold", True): COLD,
    ("3.6 – 3.23", "auto", False): BRIDGE_PORT,
    ("3.6 – 3.23", "auto", True): HOT_ROOT_PORT,
    ("3.24 –", "pci", False): BRIDGE_PORT,
    ("3.24 –", "pci", True): None,
    ("3.24 –", "pcie", False): HOT_ROOT_PORT,
    ("3.24 –", "pcie", True): HOT_ROOT_PORT,
    ("3.24 –", "cold", False): COLD,
    ("3.24 –", "cold", True): COLD,
    ("3.24 –", "auto", False): COLD,
    ("3.24 –", "auto", True): COLD,
}
# Rust runtime and QEMU: there is cold plug from 3.31 on, and nothing else.
RUST = {
    ("3.0.0", "auto"): None,
    ("3.30.0", "cold"): None,
    ("3.31.0", "pci"): None,
    ("3.31.0", "pcie"): None,
    ("4.1.0", "pci"): None,
    ("4.1.0", "pcie"): None,
    **{
        (version, plug): {
            "machine_type": "q35",
            "cold_plug_vfio": "root-port",
            "pcie_root_port": 8,
        }
        for version in ("3.31.0", "3.32.0", "4.0.0", "4.1.0")
        for plug in ("auto", "cold")
    },
}
# The rest of NVIDIA's reference configuration, by the release that brought each key.
REFERENCE_GO = {
    ("runtime", "sandbox_cgroup_only"): ("1.9.0", True),
    ("runtime", "static_sandbox_resource_mgmt"): ("2.4.0", True),
    ("agent.kata", "dial_timeout"): ("2.1.0", 1200),
    ("runtime", "create_container_timeout"): ("3.4.0", 1200),
    ("runtime", "pod_resource_api_sock"): (
        "3.24.0",
        "/var/lib/kubelet/pod-resources/kubelet.sock",
    ),
}
REFERENCE_RUST = {
    ("runtime", "sandbox_cgroup_only"): True,
    ("runtime", "static_sandbox_resource_mgmt"): True,
    ("agent.kata", "dial_timeout_ms"): 1000,
    ("agent.kata", "reconnect_timeout_ms"): 1200000,
    ("agent.kata", "create_container_timeout"): 1200,
    ("runtime", "pod_resource_api_sock"): "/var/lib/kubelet/pod-resources/kubelet.sock",
}
PLUGS = ("auto", "pci", "pcie", "cold")


def number(version):
    return tuple(int(word) for word in version.split("."))


def wish(version, plug="auto", shim="go", large=False, **more):
    given = {"hypervisor": "qemu", "devices": 2, **more}
    return gpu_recipes.Wish(number(version), shim, plug=plug, large=large, **given)


def recipe(*args, **more):
    return gpu_recipes.recipe(wish(*args, **more))


def refusal(*args, **more):
    with pytest.raises(problems.Blocked) as caught:
        recipe(*args, **more)
    message = str(caught.value)
    assert len(message) <= 160
    return message


def in_table(keys_, table):
    return {key: value for (name, key), value in keys_.items() if name == table}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("plug", PLUGS)
@pytest.mark.parametrize("version", GENERATIONS)
def test_the_go_runtime(version, plug, large):
    expected = GO[GENERATIONS[version], plug, large]
    if expected is None:
        assert "gpu-plug=" in refusal(version, plug, large=large)
        return
    found = recipe(version, plug, large=large)
    assert in_table(found.keys, "hypervisor.qemu") == {**expected, "default_memory": 8192}
    reference = {
        key: value
        for key, (since, value) in REFERENCE_GO.items()
        if expected.get("cold_plug_vfio") == "root-port" and number(since) <= number(version)
    }
    rest = {key: value for key, value in found.keys.items() if key[0] != "hypervisor.qemu"}
    assert rest == reference


@pytest.mark.parametrize(("version", "plug"), RUST)
@pytest.mark.parametrize("large", [False, True])
def test_the_rust_runtime(version, plug, large):
    expected = RUST[version, plug]
    if expected is None:
        assert "shim=go" in refusal(version, plug, "rust", large)
        return
    found = recipe(version, plug, "rust", large)
    assert found.keys == {
        **{("hypervisor.qemu", key): value for key, value in expected.items()},
        ("hypervisor.qemu", "default_memory"): 8192,
        **REFERENCE_RUST,
    }


CLH_HOT = {"hot_plug_vfio": "root-port"}
CLH = {
    ("2.5.2", "auto"): None,
    ("3.1.3", "pcie"): None,
    ("3.2.0", "auto"): CLH_HOT,
    ("3.2.0", "pcie"): CLH_HOT,
    ("3.2.0", "pci"): None,
    ("3.2.0", "cold"): None,
    ("3.28.0", "cold"): None,
    ("3.29.0", "cold"): {"hot_plug_vfio": "no-port", "cold_plug_vfio": "root-port"},
    ("4.1.0", "auto"): {"hot_plug_vfio": "root-port", "cold_plug_vfio": "no-port"},
    ("4.1.0", "pci"): None,
}


@pytest.mark.parametrize(("version", "plug"), CLH)
def test_cloud_hypervisor(version, plug):
    expected = CLH[version, plug]
    if expected is None:
        assert "hypervisor=qemu" in refusal(version, plug, hypervisor="clh")
        return
    found = recipe(version, plug, hypervisor="clh")
    assert in_table(found.keys, "hypervisor.clh") == {**expected, "default_memory": 8192}
    assert in_table(found.keys, "hypervisor.qemu") == {}


@pytest.mark.parametrize("hypervisor", ["dragonball", "fc"])
@pytest.mark.parametrize("shim", ["go", "rust"])
def test_other_hypervisors_take_none(hypervisor, shim):
    assert "set hypervisor=qemu" in refusal("4.1.0", shim=shim, hypervisor=hypervisor)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (wish("1.10.8", large=True), "1.11.0 or later: set kata-version"),
        (wish("1.10.8", "pcie"), "1.11.0 or later"),
        (wish("2.5.2", "cold"), "kata-version to 3.2.0"),
        (wish("3.5.0", large=True), "kata-version to 3.6.0"),
        (wish("4.1.0", "pci", large=True), "set gpu-plug=pcie or cold"),
        (wish("4.1.0", "pcie", "rust"), "set gpu-plug=cold, or shim=go"),
        (wish("3.30.0", "cold", "rust"), "set shim=go, or kata-version to 3.31.0"),
        (wish("4.1.0", "pci", hypervisor="clh"), "set gpu-plug=pcie, or hypervisor=qemu"),
        (wish("4.1.0", shim="rust", hypervisor="clh"), "set hypervisor=qemu, or shim=go"),
        (wish("1.2.0"), "1.3.0 is the first"),
        (wish("2.5.2", machine="arm64"), "from 3.2.0 on"),
    ],
)
def test_a_refusal_says_what_would_do(asked, words):
    with pytest.raises(problems.Blocked) as caught:
        gpu_recipes.recipe(asked)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("plug", "devices", "ports"), [("pcie", 1, 1), ("pcie", 4, 4), ("pcie", 40, 16)]
)
def test_a_root_port_for_each_device(plug, devices, ports):
    found = recipe("3.6.0", plug, devices=devices)
    assert found.keys["hypervisor.qemu", "pcie_root_port"] == ports


@pytest.mark.parametrize(("devices", "ports"), [(1, 8), (8, 8), (10, 10), (17, 16)])
def test_at_least_as_many_as_the_reference_has(devices, ports):
    assert recipe("4.1.0", devices=devices).keys["hypervisor.qemu", "pcie_root_port"] == ports


def test_more_than_one_sandbox_takes_is_said():
    assert recipe("4.1.0", devices=17).notes == ("one sandbox takes 16 functions at most",)


def test_the_overhead_is_that_of_the_reference_at_its_size():
    found = recipe("4.1.0")
    assert (found.overhead_memory, found.overhead_cpu) == ("10240Mi", "1")
    assert recipe("4.1.0", memory=32768).overhead_memory == "34816Mi"


def test_kernel_parameters_are_those_of_the_reference():
    assert recipe("4.1.0").kernel_params == (
        "pci=realloc",
        "pci=nocrs",
        "pci=assign-busses",
        "cgroup_no_v1=all",
    )
    assert recipe("4.1.0", "pcie").kernel_params == ()


@pytest.mark.parametrize("version", [v for v in GENERATIONS if number(v) >= (3, 2, 0)])
@pytest.mark.parametrize("plug", PLUGS)
@pytest.mark.parametrize("large", [False, True])
def test_hot_and_cold_plug_are_never_both_on(version, plug, large):
    try:
        found = recipe(version, plug, large=large).keys
    except problems.Blocked:
        return
    on = [found["hypervisor.qemu", f"{kind}_plug_vfio"] != "no-port" for kind in ("hot", "cold")]
    assert sorted(on) == [False, True]


@pytest.mark.parametrize(
    ("asked", "slot"),
    [
        (wish("1.10.8", "pci"), "acpi"),
        (wish("2.0.4", "pci", large=True), "shpc"),
        (wish("2.2.3", "pci"), "shpc"),
        (wish("2.3.0", "pci"), "acpi"),
        (wish("4.1.0", "pci"), "acpi"),
        (wish("4.1.0", "pcie"), "pcie"),
        (wish("4.1.0", "cold"), "cold"),
    ],
)
def test_how_the_guest_learns_of_a_gpu(asked, slot):
    assert gpu_recipes.recipe(asked).slot == slot


def test_on_arm_the_shipped_machine_stays():
    found = recipe("4.1.0", machine="arm64")
    assert ("hypervisor.qemu", "machine_type") not in found.keys


@pytest.mark.parametrize(
    ("version", "hypervisor", "expected"),
    [("3.5.0", "qemu", False), ("3.6.0", "qemu", True), ("4.1.0", "clh", False)],
)
def test_nvidias_own_file_is_the_base_where_it_fits_its_release(version, hypervisor, expected):
    assert gpu_recipes.starts_from_nvidias(hypervisor, number(version)) is expected


def test_cold_plug_that_kubernetes_cannot_reach_is_said():
    assert "3.24.0 and later ask" in recipe("3.23.0", "cold").notes[0]
    assert recipe("3.24.0", "cold").notes == ()


# Kata's own files


def shipped():
    """Every shipped file, with the release and the shim that it is for."""
    for path in conftest.corpus("kata/*/configuration-*.toml"):
        version, _, runtime = path.parent.name.partition("-")
        name = re.fullmatch(r"configuration-(\w+?)(-nvidia-gpu)?(-runtime-rs)?\.toml", path.name)
        shim = "rust" if runtime else "go"
        # NVIDIA's file of 3.2.0 is not the one to start from.
        if name and not (name[2] and number(version) < gpu_recipes.NVIDIA_BASE):
            yield path, version, shim, name[1]


CASES = [
    pytest.param(
        *case, plug, large, id=f"{case[0].parent.name}-{case[0].stem[14:]}-{plug}-{large}"
    )
    for case, plug, large in itertools.product(shipped(), PLUGS, (False, True))
]


@pytest.mark.parametrize(("path", "version", "shim", "hypervisor", "plug", "large"), CASES)
def test_every_key_written_is_known_to_that_release(path, version, shim, hypervisor, plug, large):
    try:
        found = recipe(version, plug, shim, large, hypervisor=hypervisor)
    except problems.Blocked:
        return
    known = keys.Known(number(version), shim, keys.mentions(path.read_text()))
    for table, key in found.keys:
        assert (*table.split("."), key) in known, f"{table} {key}"


@pytest.mark.parametrize(("path", "version", "shim", "hypervisor", "plug", "large"), CASES)
def test_the_configuration_made_of_it_parses_and_keeps_its_comments(
    path, version, shim, hypervisor, plug, large
):
    try:
        found = recipe(version, plug, shim, large, hypervisor=hypervisor)
    except problems.Blocked:
        return
    text = path.read_text()
    known = keys.Known(number(version), shim, keys.mentions(text))
    extra = configuration_text.Extra(found.keys, found.kernel_params)
    made = configuration_text.render(text, known, kata_releases.options(), {}, extra)
    document = tomlkit.parse(made).unwrap()
    for (table, key), value in found.keys.items():
        place = document
        for name in table.split("."):
            place = place[name]
        assert place[key] == value
    before = tomlkit.parse(text).unwrap()["hypervisor"][hypervisor]["kernel_params"].split()
    after = document["hypervisor"][hypervisor]["kernel_params"].split()
    assert after[: len(before)] == before
    assert set(found.kernel_params) <= set(after)
    assert prose(text) <= prose(made)


def prose(text):
    """The comments that explain; not those that hold a key, which becomes one."""
    return {
        line
        for line in text.splitlines()
        if line.startswith("# ") and not re.search(r"\w ?=", line)
    }


def test_the_wish_is_in_words():
    assert wish("3.6.0").version == "3.6.0"
    assert dataclasses.replace(wish("3.6.0"), number=(4, 1, 0)).version == "4.1.0"
