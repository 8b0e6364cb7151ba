"""kata-config is taken for what it is, or refused with the line, the key and what would do."""

import os

import hypothesis
import pytest
from hypothesis import strategies as st

from kata import problems
from kata.configuration import keys, overlay, trust
from tests.unit.kata_releases import V2, V4

GO = keys.Known((2, 5, 2), "go", keys.mentions(V2))
RUST = keys.Known((4, 1, 0), "rust", keys.mentions(V4.format(table="qemu", program="qemu")))


def laid(text, hypervisor="qemu", table="qemu"):
    return overlay.settings_of(overlay.read(text), hypervisor, table)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[hypervisor.qemu]\nenable_debug = yes\n", "line 2"),
        ("[hypervisor.qemu]\n\n\nx 1\n", "line 4"),
        ("[a]\nx = 1\nx = 2\n", 'Key "x" already exists'),
        ("[a]\nb = 1\n[a.b]\nc = 1\n", 'Key "b" already exists'),
        ("[a\n", "line 1"),
        ("\nx = [1,\n", "it ends too early, in line 2"),
        ("[runtime]\nx", "it ends too early, in line 2"),
        ("x = " + "[" * 5000, "nested"),
        ("x = '\ud800'", "not TOML"),
    ],
)
def test_what_is_no_toml_is_refused_with_its_place(text, words):
    with pytest.raises(problems.Blocked, match=words) as blocked:
        overlay.read(text)
    assert str(blocked.value).startswith("option kata-config: it is not TOML: ")
    assert len(str(blocked.value)) <= 160
    assert "\n" not in str(blocked.value)


@pytest.mark.parametrize(
    "value",
    ["1979-05-27", "07:32:00", "nan", "inf", "[1, 'a']", "9223372036854775808"],
)
def test_kinds_of_values_that_kata_has_not_are_refused(value):
    with pytest.raises(problems.Blocked, match="expected strings, numbers") as blocked:
        overlay.read(f"[runtime]\nkey = {value}\n")
    assert "runtime.key" in str(blocked.value)


def test_nothing_is_no_overlay():
    assert laid("") == {}
    assert laid("# [hypervisor.qemu]\n\n[runtime]\n") == {}


def test_tables_of_other_hypervisors_are_passed_over():
    text = "[hypervisor.clh]\na = 1\n[hypervisor.qemu]\na = 2\n[hypervisor.remote]\na = 3\n"
    assert laid(text) == {("hypervisor", "qemu", "a"): 2}
    assert laid(text, "clh", "clh") == {("hypervisor", "clh", "a"): 1}
    assert laid(text, "fc", "firecracker") == {}


def test_cloud_hypervisors_table_is_found_under_both_its_names():
    for name in ("clh", "cloud-hypervisor"):
        text = f"[hypervisor.{name}]\na = 1\n"
        assert laid(text, "clh", "cloud-hypervisor") == {
            ("hypervisor", "cloud-hypervisor", "a"): 1
        }


def test_a_hypervisor_that_does_not_exist_is_kept_and_warned_of():
    found = laid("[hypervisor.quemu]\nenable_debug = true\n")
    assert found == {("hypervisor", "quemu", "enable_debug"): True}
    assert "hypervisor.quemu.enable_debug" in overlay.check(found, GO)[0]


@pytest.mark.parametrize("known", [GO, RUST], ids=["go", "rust"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('[hypervisor.qemu]\ndefault_memory = "big"', "a whole number"),
        ("[hypervisor.qemu]\ndefault_memory = 2048.5", "a whole number"),
        ("[hypervisor.qemu]\ndefault_memory = true", "a whole number"),
        ("[hypervisor.qemu]\ndefault_memory = -1", "0 or more"),
        ('[hypervisor.qemu]\ndefault_vcpus = "1"', "a number"),
        ("[hypervisor.qemu]\nkernel = 1", "a string"),
        ('[hypervisor.qemu]\nkernel = ["a"]', "a string"),
        ('[hypervisor.qemu]\nenable_annotations = "all"', "a list of strings"),
        ("[hypervisor.qemu]\nenable_annotations = [1]", "a list of strings"),
        ("[hypervisor.qemu.kernel]\nx = 1", "a string for hypervisor.qemu.kernel"),
        ("[agent.kata]\ndebug_console_enabled = 1", "true or false"),
        ('[runtime]\nenable_debug = "true"', "true or false"),
        ("[runtime]\nexperimental = true", "a list of strings"),
        ("runtime = 1", "a table"),
        ("[[runtime]]\nenable_debug = true", "a table"),
        ("hypervisor = 1", "a table"),
        ("[hypervisor]\nqemu = 1", "a table"),
    ],
)
def test_a_known_key_of_another_type_is_refused(known, line, expected):
    with pytest.raises(problems.Blocked) as blocked:
        overlay.check(laid(line), known)
    assert f"expected {expected}" in str(blocked.value)
    assert len(str(blocked.value)) <= 160


@pytest.mark.parametrize("known", [GO, RUST], ids=["go", "rust"])
@pytest.mark.parametrize(
    "line",
    [
        "[hypervisor.qemu]\ndefault_vcpus = 2",
        "[hypervisor.qemu]\ndefault_vcpus = 1.5",
        "[hypervisor.qemu]\ndefault_vcpus = -1",
        "[hypervisor.qemu]\nenable_annotations = []",
        '[hypervisor.qemu]\ninitrd = "/x"',
        "[agent.kata]\ndebug_console_enabled = true",
        "[runtime]\nexperimental = ['a', 'b']",
    ],
)
def test_a_known_key_that_fits_is_taken_without_a_word(known, line):
    assert overlay.check(laid(line), known) == ()


def test_a_list_of_tables_is_taken_where_the_release_has_one():
    text = '[[hypervisor.qemu.guest_extension_images]]\nname = "x"\n'
    assert overlay.check(laid(text), RUST) == ()
    with pytest.raises(problems.Blocked, match="a list of tables"):
        overlay.check(laid("[hypervisor.qemu]\nguest_extension_images = ['x']"), RUST)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[hypervisor.qemu]\nno_such = 1", "hypervisor.qemu.no_such"),
        ("[hypervisor.qemu]\nhot_plug_vfio = 'root-port'", "hypervisor.qemu.hot_plug_vfio"),
        ("[hypervisor.qemu.deeper]\nx = 1", "hypervisor.qemu.deeper.x"),
        ("stray = 1", "stray"),
        ("[netmon]\nenable_netmon = true", "netmon.enable_netmon"),
        ('["a.b"]\n"c\\nd" = 1', "'a.b'.'c\\nd'"),
    ],
)
def test_an_unknown_key_is_warned_of(text, name):
    (warning,) = overlay.check(laid(text), RUST)
    assert warning.startswith(
        f"option kata-config: {name} is not among the settings of Kata 4.1.0"
    )
    assert "\n" not in warning


@pytest.fixture
def machine(node, monkeypatch):
    monkeypatch.setattr(trust, "ROOT", os.getuid())
    node.lay({"/opt/kata/bin/qemu": "", "/srv/kernel": "", "/tmp/evil": ""})
    node.path("/tmp").chmod(0o1777)
    return node


FILES = [
    '[hypervisor.qemu]\npath = "{}"',
    '[hypervisor.qemu]\njailer_path = "{}"',
    '[hypervisor.qemu]\nkernel = "{}"',
    '[hypervisor.qemu]\nimage = "{}"',
    '[hypervisor.qemu]\ninitrd = "{}"',
    '[hypervisor.qemu]\nfirmware = "{}"',
    '[hypervisor.qemu]\nfirmware_volume = "{}"',
    '[hypervisor.qemu]\nvirtio_fs_daemon = "{}"',
    '[hypervisor.qemu]\npflashes = ["/opt/kata/bin/qemu", "{}"]',
    '[[hypervisor.qemu.guest_extension_images]]\nname = "x"\npath = "{}"',
    '[hypervisor.qemu]\nvalid_hypervisor_paths = ["{}"]',
    '[proxy.kata]\npath = "{}"',
    '[shim.kata]\npath = "{}"',
    '[netmon]\npath = "{}"',
]


@pytest.mark.parametrize("text", FILES)
def test_files_that_others_can_change_are_refused_wherever_they_are_named(machine, text):
    homes = ("/opt/kata", "/etc/kata-containers")
    for fine in ("/opt/kata/bin/qemu", "/srv/kernel"):
        overlay.check_files(machine, laid(text.format(fine)), homes)
    for bad, reason in (
        ("/tmp/evil", "/tmp is writable"),
        ("/gone", "no file"),
        ("x", "absolute"),
    ):
        with pytest.raises(problems.Blocked, match=reason) as blocked:
            overlay.check_files(machine, laid(text.format(bad)), homes)
        assert bad in str(blocked.value)


def test_no_file_is_no_danger(machine):
    text = '[hypervisor.qemu]\nfirmware = ""\npflashes = []\n'
    overlay.check_files(machine, laid(text), ())


def test_patterns_for_pods_are_looked_at_as_patterns(machine):
    text = '[hypervisor.qemu]\nvalid_hypervisor_paths = ["/opt/kata/bin/*", "/tmp/*"]\n'
    with pytest.raises(problems.Blocked, match=r"/tmp/\*"):
        overlay.check_files(machine, laid(text), ("/opt/kata",))


def test_the_guests_memory_is_read_for_its_hypervisor():
    tree = overlay.read("[hypervisor.qemu]\ndefault_memory = 4096\n")
    assert overlay.default_memory(tree, "qemu") == 4096
    assert overlay.default_memory(tree, "clh") == 0
    assert overlay.default_memory(overlay.read("hypervisor = 1"), "qemu") == 0


@hypothesis.given(
    st.text()
    | st.lists(
        st.sampled_from([*'[]{}="#.,\\\n \t1a_\'"', "é", "true", "1e5", "[[", "\u2028"])
    ).map("".join)
)
def test_any_text_is_taken_or_refused_in_one_line(text):
    try:
        found = overlay.settings_of(overlay.read(text), "qemu", "qemu")
        warnings = overlay.check(found, GO)
    except problems.Blocked as blocked:
        warnings = (str(blocked),)
    for warning in warnings:
        assert warning.isprintable()
