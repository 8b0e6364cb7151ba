"""Each handler's configuration.toml: the shipped file with what the options ask for, and back."""

import os
import sys
from typing import NamedTuple

import hypothesis
import pytest
import tomlkit
from hypothesis import strategies as st

from kata import handlers, problems, settings
from kata.configuration import custody, handler_files, keys, overlay, trust
from kata.configuration import text as configuration_text
from tests.conftest import corpus
from tests.unit.kata_releases import RUST_TABLES, V1, V2, V4, install, options

FOLDER = "/etc/kata-containers"
MAIN = f"{FOLDER}/configuration.toml"
EXTRA = f"{FOLDER}/configuration-kata-clh.toml"
LINK = f"{FOLDER}/runtime-rs/configuration.toml"
GENERATIONS = ("1.12.0", "2.0.4", "2.5.2", "3.32.0", "4.1.0")


@pytest.fixture
def machine(node, monkeypatch):
    monkeypatch.setattr(trust, "ROOT", os.getuid())
    return node


class Outcome(NamedTuple):
    changed: bool
    warnings: tuple[str, ...]


def ensure(node, release, extras=None, containerd=(1, 7, 0), **asked):
    given = options(**asked)
    wanted = handlers.wanted(given, release, containerd)
    planned = handler_files.plan(node, release, wanted, given, extras)
    return Outcome(handler_files.ensure(node, planned), planned.warnings)


def tree(node, path=MAIN):
    return tomlkit.parse(node.read(path)).unwrap()


def differences(before, after, above=()):
    """Return the values that differ between two TOML trees, by path; None for one that is gone."""
    found = {}
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) or isinstance(new, dict):
            found |= differences(old or {}, new or {}, (*above, name))
        elif old != new:
            found[".".join((*above, name))] = new
    return found


def changed(node, release, path=MAIN, hypervisor="qemu"):
    """Return in what a configuration differs from the shipped file."""
    shim = release.default_shim
    shipped = tomlkit.parse(node.read(release.shipped(hypervisor, shim))).unwrap()
    return differences(shipped, tree(node, path))


# What options do, by release


@pytest.mark.parametrize("version", GENERATIONS)
def test_without_options_the_file_says_what_the_shipped_one_says(machine, version):
    release = install(machine, version)
    shipped = machine.read(release.shipped("qemu", release.default_shim))
    assert ensure(machine, release).changed
    text = machine.read(MAIN)
    assert text.startswith("# Made by the Juju charm kata")
    assert text.split("\n", 2)[2] == shipped


@pytest.mark.parametrize(
    ("version", "console"),
    [
        ("1.12.0", {"hypervisor.qemu.kernel_params": "quiet agent.debug_console"}),
        ("2.0.4", {"agent.kata.debug_console_enabled": True}),
        ("2.5.2", {"agent.kata.debug_console_enabled": True}),
        ("3.32.0", {"agent.kata.debug_console_enabled": True}),
        ("4.1.0", {"agent.kata.debug_console_enabled": True}),
    ],
)
def test_each_option_changes_its_own_key_as_the_release_knows_it(machine, version, console):
    release = install(machine, version)
    ensure(machine, release, default_vcpus=4)
    assert changed(machine, release) == {"hypervisor.qemu.default_vcpus": 4}
    ensure(machine, release, default_memory=4096)
    assert changed(machine, release) == {"hypervisor.qemu.default_memory": 4096}
    ensure(machine, release, debug_console=True)
    assert changed(machine, release) == console
    ensure(machine, release)
    assert changed(machine, release) == {}


def test_annotations_that_are_asked_for_replace_the_shipped_list(machine):
    release = install(machine, "4.1.0")
    ensure(
        machine,
        release,
        enable_annotations="default_vcpus io.katacontainers.config.hypervisor.default_memory .*x",
    )
    assert changed(machine, release) == {
        "hypervisor.qemu.enable_annotations": ["default_vcpus", "default_memory", ".*x"]
    }


def test_an_option_that_the_release_does_not_know_blocks(machine):
    release = install(machine, "1.10.0")
    with pytest.raises(problems.Blocked, match=r"enable-annotations: Kata 1\.10\.0 has no such"):
        ensure(machine, release, enable_annotations="default_vcpus")
    assert not machine.exists(MAIN)


@pytest.mark.parametrize("version", GENERATIONS)
def test_the_shipped_file_is_never_written(machine, version):
    release = install(machine, version)
    before = machine.tree()
    ensure(machine, release, default_vcpus=4, debug_console=True, kata_config="[runtime]\na = 1\n")
    after = machine.tree()
    assert {path: after[path] for path in before} == before


def test_the_overlay_comes_last(machine):
    release = install(machine, "2.5.2")
    text = """\
[hypervisor.qemu]
default_vcpus = 8
pcie_root_port = 1
[hypervisor.clh]
default_vcpus = 16
[agent.kata]
debug_console_enabled = false
"""
    ensure(
        machine,
        release,
        default_vcpus=4,
        debug_console=True,
        kata_config=text,
        extra_runtime_classes="kata-clh=clh",
    )
    assert changed(machine, release) == {
        "hypervisor.qemu.default_vcpus": 8,
        "hypervisor.qemu.pcie_root_port": 1,
        "agent.kata.debug_console_enabled": False,
    }
    assert changed(machine, release, EXTRA, "clh")["hypervisor.clh.default_vcpus"] == 16
    assert "\n# Default 0\n#pcie_root_port = 2\npcie_root_port = 1\n" in machine.read(MAIN)


def test_kernel_parameters_are_added_to_those_of_the_overlay_too(machine):
    release = install(machine, "1.12.0")
    ensure(
        machine,
        release,
        debug_console=True,
        kata_config='[hypervisor.qemu]\nkernel_params = "a=1"\n',
    )
    assert tree(machine)["hypervisor"]["qemu"]["kernel_params"] == "a=1 agent.debug_console"


def test_unknown_keys_of_the_overlay_are_written_and_told_of_once(machine):
    release = install(machine, "4.1.0")
    asked = {"kata_config": "[hypervisor.qemu]\nno_such = 1\n"}
    outcome = ensure(machine, release, **asked)
    told = [warning for warning in outcome.warnings if "kata-config" in warning]
    assert len(told) == 1
    assert "hypervisor.qemu.no_such" in told[0]
    assert changed(machine, release) == {"hypervisor.qemu.no_such": 1}
    assert ensure(machine, release, **asked).warnings == ()


def test_a_release_that_counts_on_what_is_not_there_is_told_of(machine):
    release = install(machine, "1.12.0")
    told = ensure(machine, release).warnings
    assert [warning.split(":")[1].split()[0] for warning in told] == ["path", "kernel"]
    files = dict.fromkeys(
        ("/usr/bin/qemu-system-x86_64", "/usr/share/kata-containers/vmlinuz.container"), ""
    )
    machine.lay(files)
    assert ensure(machine, release, default_vcpus=2).warnings == ()


def test_two_root_file_systems_are_refused(machine):
    release = install(machine, "3.32.0")
    machine.lay({f"{FOLDER}/initrd": ""})
    text = f'[hypervisor.qemu]\ninitrd = "{FOLDER}/initrd"\n'
    with pytest.raises(problems.Blocked, match="image and initrd are both set"):
        ensure(machine, release, kata_config=text)
    ensure(machine, release, kata_config=f'{text}image = ""\n')
    assert changed(machine, release) == {
        "hypervisor.qemu.initrd": f"{FOLDER}/initrd",
        "hypervisor.qemu.image": "",
    }


def test_a_file_outside_katas_own_is_looked_at(machine):
    release = install(machine, "3.32.0")
    machine.lay({"/srv/kernel": ""})
    text = '[hypervisor.qemu]\nkernel = "/srv/kernel"\n'
    assert ensure(machine, release, kata_config=text).changed
    machine.path("/srv/kernel").chmod(0o666)
    with pytest.raises(problems.Blocked, match="/srv/kernel is writable"):
        ensure(machine, release, kata_config=f"{text}# again\n")


# More for single handlers


def test_a_handler_may_have_more(machine):
    release = install(machine, "3.32.0")
    extra = configuration_text.Extra(
        {
            ("hypervisor.qemu", "cold_plug_vfio"): "root-port",
            ("hypervisor.qemu", "default_memory"): 8192,
            ("hypervisor.qemu", "virtio_fs_daemon"): None,
            ("runtime", "sandbox_cgroup_only"): True,
            ("agent.kata", "dial_timeout"): 1200,
        },
        ("pci=realloc", "pci=nocrs"),
    )
    ensure(machine, release, {"kata": extra}, default_memory=1024, default_vcpus=2)
    assert changed(machine, release) == {
        "hypervisor.qemu.cold_plug_vfio": "root-port",
        "hypervisor.qemu.default_memory": 8192,
        "hypervisor.qemu.default_vcpus": 2,
        "hypervisor.qemu.virtio_fs_daemon": None,
        "hypervisor.qemu.kernel_params": "pci=realloc pci=nocrs",
        "runtime.sandbox_cgroup_only": True,
        "agent.kata.dial_timeout": 1200,
    }


def test_what_a_handler_has_more_is_added_to_shipped_parameters_once(machine):
    release = install(machine, "4.1.0")
    extra = configuration_text.Extra({}, ("pci=realloc", "cgroup_no_v1=all"))
    ensure(machine, release, {"kata": extra})
    params = tree(machine)["hypervisor"]["qemu"]["kernel_params"]
    assert params == "cgroup_no_v1=all pci=realloc"


def test_what_a_handler_has_more_goes_into_its_own_hypervisors_table(machine):
    release = install(machine, "4.1.0")
    extra = configuration_text.Extra({("hypervisor.fc", "default_vcpus"): 3})
    ensure(machine, release, {"kata": extra}, hypervisor="fc")
    assert tree(machine)["hypervisor"]["firecracker"]["default_vcpus"] == 3


def test_a_handler_may_start_from_another_shipped_file(machine):
    release = install(machine, "3.32.0")
    base = "/opt/kata/share/defaults/kata-containers/configuration-qemu-nvidia-gpu.toml"
    machine.lay({base: V2.replace("vmlinux.container", "vmlinuz-nvidia-gpu.container")})
    ensure(machine, release, {"kata": configuration_text.Extra(shipped=base)})
    assert "vmlinuz-nvidia-gpu" in tree(machine)["hypervisor"]["qemu"]["kernel"]
    assert base in machine.read(MAIN).splitlines()[1]


# Again and again


def test_a_second_time_changes_nothing_and_parses_nothing(machine, monkeypatch):
    release = install(machine, "4.1.0")
    asked = {"default_vcpus": 4, "extra_runtime_classes": "kata-clh=clh", "debug_console": True}
    asked["kata_config"] = "[runtime]\nenable_debug = true\n"
    assert ensure(machine, release, **asked).changed
    before = machine.tree()
    monkeypatch.setitem(sys.modules, "tomlkit", None)  # importing it fails from now on
    assert ensure(machine, release, **asked) == Outcome(False, ())
    assert machine.tree() == before
    with pytest.raises(ImportError):
        ensure(machine, release, **{**asked, "default_vcpus": 5})


@pytest.mark.parametrize(
    "asked",
    [
        {"default_vcpus": 3},
        {"default_memory": 512},
        {"enable_annotations": "x"},
        {"debug_console": True},
        {"kata_config": "[runtime]\nx = 1\n"},
        {"hypervisor": "clh"},
    ],
)
def test_each_option_counts(machine, asked):
    release = install(machine, "3.32.0")
    ensure(machine, release)
    before = machine.read(MAIN)
    assert ensure(machine, release, **asked).changed
    assert machine.read(MAIN) != before
    assert ensure(machine, release).changed
    assert machine.read(MAIN) == before


def test_another_shipped_file_counts(machine):
    release = install(machine, "3.32.0")
    ensure(machine, release)
    path = release.shipped("qemu", "go")
    machine.write(path, machine.read(path).replace("default_memory = 2048", "default_memory = 99"))
    assert ensure(machine, release).changed
    assert tree(machine)["hypervisor"]["qemu"]["default_memory"] == 99


def test_a_shipped_file_that_is_gone_blocks(machine):
    release = install(machine, "3.32.0")
    path = release.shipped("qemu", "go")
    machine.remove(path)
    with pytest.raises(problems.Blocked, match=f"lacks {path}"):
        ensure(machine, release)


def test_from_release_to_release_and_back(machine):
    for version in (*GENERATIONS, *reversed(GENERATIONS)):
        release = install(machine, version)
        ensure(machine, release, default_vcpus=7)
        assert changed(machine, release) == {"hypervisor.qemu.default_vcpus": 7}
        assert machine.path(LINK).is_symlink() is (version == "4.1.0")


def test_the_rust_shim_finds_the_main_configuration_without_being_told(machine):
    release = install(machine, "4.1.0")
    ensure(machine, release)
    assert machine.tree(f"{FOLDER}/runtime-rs") == {LINK: "-> ../configuration.toml"}
    assert machine.read(LINK) == machine.read(MAIN)


def test_the_rust_shims_configuration_that_was_there_is_kept(machine):
    release = install(machine, "4.1.0")
    machine.lay({LINK: "theirs\n"})
    before = machine.tree()
    ensure(machine, release)
    assert machine.read(LINK) == machine.read(MAIN)
    handler_files.remove(machine)
    assert machine.tree() == before


def test_a_configuration_whose_handler_is_gone_goes_too(machine):
    release = install(machine, "3.32.0")
    machine.lay({EXTRA: "theirs\n", f"{FOLDER}/configuration-other.toml": "foreign\n"})
    ensure(machine, release, extra_runtime_classes="kata-clh=clh,small=fc")
    small = f"{FOLDER}/configuration-small.toml"
    assert machine.exists(small)
    assert custody.look(machine, EXTRA)
    assert ensure(machine, release).changed
    assert not machine.exists(small)
    assert machine.read(EXTRA) == "theirs\n"
    assert machine.read(f"{FOLDER}/configuration-other.toml") == "foreign\n"


def test_an_edit_is_undone_and_kept(machine):
    release = install(machine, "3.32.0")
    ensure(machine, release)
    before = machine.read(MAIN)
    machine.write(MAIN, before.replace("default_vcpus = 1", "default_vcpus = 2"))
    assert ensure(machine, release).changed
    assert machine.read(MAIN) == before
    assert "default_vcpus = 2" in machine.read(MAIN + custody.EDITED)


@pytest.mark.parametrize(
    "refused",
    [
        {"kata_config": "[hypervisor.clh]\ndefault_vcpus = 'many'\n"},
        {"kata_config": "[hypervisor.clh]\nkernel = '/tmp/kernel'\n"},
        {"kata_config": "not toml"},
        {"kata_config": "[runtime.enable_debug]\nx = 1\n"},
    ],
)
def test_bad_input_changes_nothing_at_all(machine, refused):
    release = install(machine, "3.32.0")
    machine.lay({MAIN: "theirs\n"})
    before = machine.tree()
    for start in ({}, {"default_vcpus": 2}):
        with pytest.raises(problems.Blocked):
            ensure(
                machine,
                release,
                default_memory=4096,
                extra_runtime_classes="kata-clh=clh",
                **refused,
            )
        assert machine.tree() == before
        ensure(machine, release, extra_runtime_classes="kata-clh=clh", **start)
        before = machine.tree()


def test_a_full_disk_blocks_and_names_the_file(machine, monkeypatch):
    release = install(machine, "3.32.0")
    before = machine.tree()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(problems.Blocked, match=f"{MAIN}: No space left on device"):
            ensure(machine, release)
    assert machine.tree() == before
    assert ensure(machine, release).changed


# Away again


@pytest.mark.parametrize("version", GENERATIONS)
def test_after_removal_all_is_as_it_was(machine, version):
    release = install(machine, version)
    machine.lay(
        {
            MAIN: "theirs\n",
            f"{FOLDER}/config.d/10-mine.toml": "[runtime]\n",
            "/etc/kata-containers/notes": "x",
        }
    )
    before = machine.tree()
    ensure(machine, release, default_vcpus=2)
    assert handler_files.remove(machine)
    assert machine.tree() == before
    assert not handler_files.remove(machine)


def test_a_folder_that_was_not_there_goes_again(machine):
    release = install(machine, "4.1.0")
    ensure(machine, release)
    handler_files.remove(machine)
    assert not machine.exists(FOLDER)


def test_fragments_are_told_where_kata_reads_them(machine):
    machine.lay({f"{FOLDER}/config.d/b.toml": "", f"{FOLDER}/config.d/a.toml.bak": ""})
    found = (f"{FOLDER}/config.d/a.toml.bak", f"{FOLDER}/config.d/b.toml")
    assert handler_files.fragments(machine, (4, 1, 0), "rust") == found
    assert handler_files.fragments(machine, (2, 5, 0), "go") == found
    assert handler_files.fragments(machine, (2, 4, 3), "go") == ()


def test_without_fragments_there_is_nothing_to_tell(machine):
    assert handler_files.fragments(machine, (4, 1, 0), "rust") == ()


# The power goes at any point


class PowerCut(BaseException):
    pass


def cut_power_at(node, monkeypatch, moment):
    """Let the power go before the so-many-th change of a file; return whether it comes to that."""
    count = 0
    for name in ("move", "write", "remove", "link"):

        def counted(*args, _original=getattr(type(node), name), **kwargs):
            nonlocal count
            count += 1
            if count > moment:
                raise PowerCut
            return _original(node, *args, **kwargs)

        monkeypatch.setattr(node, name, counted)


def test_a_power_cut_at_any_point_is_made_good_by_the_next_run(machine, monkeypatch):
    release = install(machine, "4.1.0")
    machine.lay({MAIN: "theirs\n", LINK: "theirs too\n"})
    original = machine.tree()
    asked = {"extra_runtime_classes": "kata-clh=clh"}
    ensure(machine, release, **asked)
    undisturbed = machine.tree()
    handler_files.remove(machine)
    points = 0
    for step, goal in (
        (lambda: ensure(machine, release, **asked), undisturbed),
        (lambda: handler_files.remove(machine), original),
    ):
        moment, cut = 0, True
        while cut:
            if goal is original:
                ensure(machine, release, **asked)
            with monkeypatch.context() as power:
                cut_power_at(machine, power, moment)
                try:
                    step()
                    cut = False
                except PowerCut:
                    points += 1
            step()
            assert machine.tree() == goal, moment
            handler_files.remove(machine)
            assert machine.tree() == original, moment
            moment += 1
    assert points >= 10


# Whatever the options say


TEXTS = {
    "1.x": ("go", (1, 12, 0), V1),
    "2.x": ("go", (2, 5, 2), V2),
    "rust": ("rust", (4, 1, 0), V4.format(table="qemu", program="qemu")),
}
WORDS = st.from_regex(r"[A-Za-z0-9_.*+?()|\[\]^$-]+", fullmatch=True)
LEAVES = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3)
)


@pytest.mark.parametrize("generation", TEXTS)
@hypothesis.settings(deadline=None)
@hypothesis.given(
    vcpus=st.integers(0, 1024),
    memory=st.just(0) | st.integers(128, 1 << 24),
    annotations=st.lists(WORDS, max_size=3),
    console=st.booleans(),
    laid=st.dictionaries(
        st.sampled_from(["hypervisor.qemu", "runtime", "agent.kata", "hypervisor.clh", "new"]),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), LEAVES, max_size=3),
    ),
)
def test_no_option_changes_more_than_its_own_key(
    generation, vcpus, memory, annotations, console, laid
):
    shim, number, text = TEXTS[generation]
    known = keys.Known(number, shim, keys.mentions(text))
    if generation == "1.x":
        annotations = []
    document = tomlkit.document()
    for table, values in laid.items():
        place = document
        for name in table.split("."):
            place = place.setdefault(name, tomlkit.table())
        place.update(values)
    try:
        given = options(
            default_vcpus=vcpus,
            default_memory=memory,
            enable_annotations=" ".join(annotations),
            debug_console=console,
            kata_config=tomlkit.dumps(document),
        )
        over = overlay.settings_of(overlay.read(given.kata_config), "qemu", "qemu")
        made = configuration_text.render(text, known, given, over)
    except settings.BadOption:
        hypothesis.reject()  # such as \0 in kata-config
    shipped = tomlkit.parse(text).unwrap()
    after = tomlkit.parse(made).unwrap()
    own = {
        ("hypervisor", "qemu", "default_vcpus"): vcpus,
        ("hypervisor", "qemu", "default_memory"): memory,
        ("hypervisor", "qemu", "enable_annotations"): bool(annotations),
        ("agent", "kata", "debug_console_enabled"): console and number >= (2, 0, 0),
        ("hypervisor", "qemu", "kernel_params"): console and number < (2, 0, 0),
    }
    may = {path for path, asked in own.items() if asked} | over.keys()

    def leaves(table, above=()):
        for name, value in table.items():
            if isinstance(value, dict):
                yield from leaves(value, (*above, name))
            else:
                yield (*above, name), value

    before, now = dict(leaves(shipped)), dict(leaves(after))
    assert {path for path in {*before, *now} if before.get(path) != now.get(path)} <= may
    for path, value in over.items():
        if path[-1] != "kernel_params":
            assert now[path] == value


@pytest.mark.parametrize(
    "path", corpus("kata/*/*.toml"), ids=lambda path: "-".join(path.parts[-2:])
)
def test_the_real_files_get_each_option_and_nothing_else(path):
    version, _, rust = path.parent.name.partition("-")
    number = tuple(int(part) for part in version.split("."))
    text = path.read_text()
    known = keys.Known(number, "rust" if rust else "go", keys.mentions(text))
    table = f"hypervisor.{known.hypervisor()}"
    assert known.hypervisor() in RUST_TABLES.values()
    given = options(
        default_vcpus=3, default_memory=3072, enable_annotations="abc", debug_console=True
    )
    made = configuration_text.render(text, known, given, {})
    before, after = tomlkit.parse(text).unwrap(), tomlkit.parse(made).unwrap()
    console = {"agent.kata.debug_console_enabled": True}
    if number < (2, 0, 0):
        console = {f"{table}.kernel_params": "agent.debug_console"}
    assert differences(before, after) == {
        f"{table}.default_vcpus": 3,
        f"{table}.default_memory": 3072,
        f"{table}.enable_annotations": ["abc"],
        **console,
    }
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert [line for line in made.splitlines() if line.startswith("#")] == comments
