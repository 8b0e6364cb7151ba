"""What a release knows is read in its shipped file; tables correct what misleads there."""

import pytest

from kata.configuration import keys
from tests.conftest import corpus
from tests.unit.kata_releases import V1, V2

TEXT = """\
# top = 1
[hypervisor.qemu]
live = 1
#  spaced = 2
#commented = "two"
# also = [1]
# prose = means nothing here
#live = 7
[[hypervisor.qemu.parts]]
name = "x"
[ runtime ] # words
dashed-key = true
"""


def known(number=(4, 1, 0), shim="go", text=TEXT):
    return keys.Known(number, shim, keys.mentions(text))


def test_keys_are_found_live_and_in_comments():
    found = keys.mentions(TEXT)
    assert found[("hypervisor", "qemu", "live")] == keys.Mention(2, "1", live=True)
    assert found[("hypervisor", "qemu", "commented")] == keys.Mention(4, '"two"', live=False)
    assert found[("hypervisor", "qemu", "parts", "name")].live
    assert found[("runtime", "dashed-key")].value == "true"
    assert ("hypervisor", "qemu", "spaced") not in found


def test_prose_in_a_comment_is_no_key():
    assert ("hypervisor", "qemu", "also") in known()
    assert ("hypervisor", "qemu", "prose") not in known()


def test_examples_tell_the_type():
    assert known().example(("hypervisor", "qemu", "commented")) == "two"
    assert known().example(("hypervisor", "qemu", "also")) == [1]
    assert known().example(("hypervisor", "qemu", "nothing")) is None
    assert known().example(("hypervisor", "qemu", "initrd")) == ""


def test_a_table_is_known_by_its_keys():
    assert ("hypervisor", "qemu") in known()
    assert ("hypervisor", "clh") not in known()


@pytest.mark.parametrize(
    ("shim", "number", "path", "is_known"),
    [
        ("go", (3, 1, 3), "hypervisor.qemu.pcie_root_port", True),
        ("go", (3, 2, 0), "hypervisor.qemu.pcie_root_port", False),
        ("go", (3, 5, 0), "hypervisor.qemu.pcie_root_port", False),
        ("go", (3, 6, 0), "hypervisor.qemu.pcie_root_port", True),
        ("rust", (3, 3, 0), "hypervisor.qemu.pcie_root_port", True),
        ("go", (3, 1, 3), "hypervisor.qemu.hotplug_vfio_on_root_bus", True),
        ("go", (3, 2, 0), "hypervisor.qemu.hotplug_vfio_on_root_bus", False),
        ("rust", (3, 32, 0), "hypervisor.qemu.hotplug_vfio_on_root_bus", True),
        ("go", (3, 5, 0), "hypervisor.qemu.pcie_switch_port", False),
        ("go", (3, 6, 0), "hypervisor.qemu.pcie_switch_port", True),
        ("rust", (4, 1, 0), "hypervisor.qemu.hot_plug_vfio", False),
        ("go", (4, 1, 0), "hypervisor.qemu.hot_plug_vfio", True),
        ("rust", (3, 30, 0), "hypervisor.qemu.cold_plug_vfio", False),
        ("rust", (3, 31, 0), "hypervisor.qemu.cold_plug_vfio", True),
        ("rust", (3, 30, 0), "runtime.pod_resource_api_sock", False),
        ("rust", (3, 31, 0), "runtime.pod_resource_api_sock", True),
        ("rust", (3, 18, 0), "agent.kata.create_container_timeout", False),
        ("rust", (3, 19, 0), "agent.kata.create_container_timeout", True),
        ("rust", (4, 1, 0), "agent.kata.dial_timeout", False),
    ],
)
def test_keys_come_and_go_with_releases(shim, number, path, is_known):
    text = """\
[hypervisor.qemu]
hotplug_vfio_on_root_bus = false
#pcie_root_port = 2
hot_plug_vfio = "no-port"
cold_plug_vfio = "no-port"
[agent.kata]
dial_timeout = 45
[runtime]
pod_resource_api_sock = ""
"""
    assert (tuple(path.split(".")) in known(number, shim, text)) is is_known


def test_every_generation_has_what_the_options_set():
    assert known((1, 12, 0), "go", V1).hypervisor() == "qemu"
    assert ("agent", "kata", "debug_console_enabled") not in known((1, 12, 0), "go", V1)
    assert ("agent", "kata", "debug_console_enabled") in known((2, 0, 0), "go", V2)


@pytest.mark.parametrize(
    "path", corpus("kata/*/*.toml"), ids=lambda path: "-".join(path.parts[-2:])
)
def test_the_real_files_are_understood(path):
    import tomlkit

    release, _, rust = path.parent.name.partition("-")
    number = tuple(int(part) for part in release.split("."))
    shipped = keys.Known(number, "rust" if rust else "go", keys.mentions(path.read_text()))

    def leaves(table, above=()):
        for name, value in table.items():
            if isinstance(value, dict):
                yield from leaves(value, (*above, name))
            elif value and isinstance(value, list) and isinstance(value[0], dict):
                yield from leaves(value[0], (*above, name))
            else:
                yield (*above, name), value

    tree = tomlkit.parse(path.read_text()).unwrap()
    live = {name for name, mention in shipped.mentioned.items() if mention.live}
    assert live == {name for name, _ in leaves(tree)}
    for name, value in leaves(tree):
        assert shipped.example(name) == value
    for key in ("default_vcpus", "default_memory", "kernel_params"):
        assert ("hypervisor", shipped.hypervisor(), key) in shipped
    assert (("agent", "kata", "debug_console_enabled") in shipped) is (number >= (2, 0, 0))
