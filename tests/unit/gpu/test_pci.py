"""PCI functions, as the kernel's files have them."""

import pytest

from kata.gpu import pci
from tests.unit import cards


@pytest.fixture
def machine(tmp_path):
    return cards.of_the_record(tmp_path / "root")


def one(machine, bdf):
    return next(each for each in pci.functions(machine) if each.bdf == bdf)


def test_a_p100_is_as_lspci_prints_it(machine):
    gpu = one(machine, "0000:04:00.0")
    assert (gpu.ids, gpu.class_code, gpu.driver, gpu.group) == (
        "10de:15f8",
        "030200",
        "nouveau",
        45,
    )
    # lspci -s 04:00.0 -vv, in the deploy record
    assert [str(bar) for bar in gpu.bars] == [
        "Region 0: c6000000 (32-bit, non-prefetchable) [size=16M]",
        "Region 1: 383800000000 (64-bit, prefetchable) [size=16G] large",
        "Region 3: 383c00000000 (64-bit, prefetchable) [size=32M]",
    ]


@pytest.mark.parametrize(
    ("card", "large"), [(cards.P100, True), (cards.H200, True), (cards.T4, False)]
)
def test_whether_a_card_needs_room_above_4_gib(tmp_path, card, large):
    machine = cards.Machine(tmp_path).card("0000:04:00.0", **card)
    assert one(machine, "0000:04:00.0").large is large


def test_a_region_that_firmware_found_no_room_for_has_its_size_and_no_place(tmp_path):
    bars = {1: (0, 16 * cards.GIB, cards.MEM64 | cards.UNSET)}
    machine = cards.Machine(tmp_path).card("0000:04:00.0", bars=bars)
    (bar,) = one(machine, "0000:04:00.0").bars
    assert (bar.size, bar.mapped, bar.large) == (16 * cards.GIB, False, True)
    assert "nowhere" in str(bar)


def test_an_io_region_is_none_that_counts(tmp_path):
    machine = cards.Machine(tmp_path).card("0000:04:00.0", bars={5: (0x3000, 128, 0x40101)})
    assert one(machine, "0000:04:00.0").bars == ()


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (("all",), ["0000:04:00.0", "0000:84:00.0"]),
        (("0000:84:00.0",), ["0000:84:00.0"]),
        (("10de:15f8",), ["0000:04:00.0", "0000:84:00.0"]),
        (("10de:22ba",), ["0000:04:00.1"]),
        (("0000:aa:00.0", "10de:ffff"), []),
        (("0000:00:02.0", "8086:6f02"), []),  # a bridge is nobody's to give
    ],
)
def test_which_functions_gpu_devices_names(machine, devices, expected):
    assert [each.bdf for each in pci.chosen(pci.functions(machine), devices)] == expected


def test_a_virtual_function_is_no_gpu_of_its_own(tmp_path):
    machine = cards.Machine(tmp_path)
    machine.card("0000:65:00.0", ids="10de:20f1", sriov=(16, 2))
    machine.card("0000:65:00.4", ids="10de:20f1", physfn="0000:65:00.0")
    for devices in (("all",), ("10de:20f1",), ("0000:65:00.0",)):
        (gpu,) = pci.chosen(pci.functions(machine), devices)
        assert gpu.bdf == "0000:65:00.0"
    (named,) = pci.chosen(pci.functions(machine), ("0000:65:00.4",))
    assert named.virtual_of == gpu.bdf
    assert (gpu.bdf, gpu.virtual_total, gpu.virtual_enabled) == ("0000:65:00.0", 16, 2)


def test_names_come_from_pci_ids_where_the_machine_has_it(machine):
    machine.lay(
        {
            "/usr/share/misc/pci.ids": "# comment\n1002  AMD\n\t15f8  Not this\n"
            "10de  NVIDIA Corporation\n\t15f8  GP100GL [Tesla P100 PCIe 16GB]\n"
            "\t\t10de 118f  A subsystem\n"
        }
    )
    names = pci.known_names(machine, pci.functions(machine))
    assert names == {"10de:15f8": "GP100GL [Tesla P100 PCIe 16GB]"}


def test_a_machine_without_pci_has_no_functions(node):
    assert pci.functions(node) == ()


@pytest.mark.parametrize(
    ("size", "expected"),
    [(512, "512"), (16384, "16K"), (32 << 20, "32M"), (1 << 40, "1T"), (3000, "3000")],
)
def test_sizes_are_written_as_lspci_does(size, expected):
    assert pci.size_words(size) == expected


@pytest.mark.parametrize("text", ["", "x", "0x1\n", "0x0 0x1\n", "a b c d\n", "-\n", "\udcff\n"])
def test_regions_that_cannot_be_read_are_none(machine, text):
    machine.lay({"/sys/devices/0000:04:00.0/resource": text})
    assert one(machine, "0000:04:00.0").bars == ()
