"""From options and releases to the list of handlers: what is wanted, and what cannot be."""

import pytest

from kata import handlers, problems
from tests.unit.kata_releases import install, installed, options

FOLDER = "/etc/kata-containers"


@pytest.fixture
def release(node):
    return install(node, "4.1.0")


def by_name(found):
    return {handler.name: handler for handler in found}


def test_by_default_there_is_one_class_and_the_annotations_handler(release):
    main, untrusted = handlers.wanted(options(), release, (1, 7, 0))
    assert main == handlers.Handler(
        name="kata",
        runtime_class=True,
        hypervisor="qemu",
        shim="rust",
        configuration=f"{FOLDER}/configuration.toml",
        config_path=True,
        snapshotter="",
        overhead_memory="320Mi",
        overhead_cpu="250m",
        gpu=False,
        node_selector="katacontainers.io/kata-runtime",
    )
    assert untrusted.name == "untrusted"
    assert not untrusted.runtime_class
    assert untrusted.configuration == main.configuration


def test_without_the_annotation_there_is_no_handler_for_it(release):
    found = handlers.wanted(options(untrusted_annotation=False), release, (1, 7, 0))
    assert [handler.name for handler in found] == ["kata"]


def test_without_labels_the_classes_select_no_node(release):
    main, _ = handlers.wanted(options(label_nodes=False), release, (1, 7, 0))
    assert main.node_selector == ""


def test_further_classes_have_files_and_overheads_of_their_own(release):
    asked = options(extra_runtime_classes="kata-clh=clh, small=fc", snapshotter="devmapper")
    found = by_name(handlers.wanted(asked, release, (2, 0, 0)))
    assert list(found) == ["kata", "kata-clh", "small", "untrusted"]
    assert found["kata-clh"].configuration == f"{FOLDER}/configuration-kata-clh.toml"
    assert found["kata-clh"].overhead_memory == "130Mi"
    assert found["small"].hypervisor == "fc"
    assert {handler.snapshotter for handler in found.values()} == {"devmapper"}


# Kata's shim and release, containerd's release, and whether an options table is understood
MATRIX = [
    ("go", "1.13.0", (1, 3, 10), True),
    ("go", "1.13.0", (1, 4, 13), True),
    ("go", "1.13.0", (1, 5, 0), False),
    ("go", "1.13.0", (1, 6, 20), False),
    ("go", "1.13.0", (2, 3, 4), False),
    ("go", "1.13.0", None, False),
    ("go", "2.0.0", (1, 4, 0), True),
    ("go", "2.0.0", (1, 6, 20), False),
    ("go", "2.1.1", (1, 5, 0), False),
    ("go", "2.2.0", (1, 4, 0), True),
    ("go", "2.2.0", (1, 5, 0), True),
    ("go", "2.2.0", None, True),
    ("go", "3.32.0", (1, 6, 20), True),
    ("rust", "3.0.0", (1, 4, 0), True),
    ("rust", "3.26.0", (1, 6, 20), True),
    ("rust", "3.27.0", (1, 7, 0), True),
    ("rust", "4.1.0", (2, 3, 0), True),
]


@pytest.mark.parametrize(("shim", "kata", "containerd", "understood"), MATRIX)
def test_an_options_table_is_only_written_where_the_shim_understands_it(
    shim, kata, containerd, understood
):
    release = installed(kata, {("qemu", shim): "/shipped.toml"})
    found = handlers.wanted(options(), release, containerd)
    assert {handler.config_path for handler in found} == {understood}


def test_a_second_configuration_that_cannot_be_selected_blocks(node):
    release = install(node, "2.0.4")
    asked = options(extra_runtime_classes="kata-clh=clh")
    with pytest.raises(problems.Blocked) as blocked:
        handlers.wanted(asked, release, (1, 6, 20))
    assert str(blocked.value) == (
        "option extra-runtime-classes=kata-clh: Kata 2.0.4 with containerd 1.6.20 takes one "
        "configuration only; clear it, or set kata-version to 2.2.0 or later"
    )
    assert len(handlers.wanted(asked, release, (1, 4, 0))) == 3


@pytest.mark.parametrize(
    ("shim", "kata", "containerd", "cgroup_v2", "doubts"),
    [
        ("go", (4, 1, 0), (1, 6, 20), True, ["Kata 4.1.0 asks for containerd 1.7.0 or later"]),
        ("rust", (4, 0, 0), (1, 6, 20), False, ["Kata 4.0.0 asks for containerd 1.7.0 or later"]),
        ("rust", (4, 1, 0), (1, 7, 0), True, []),
        ("rust", (4, 1, 0), None, True, []),
        ("go", (3, 32, 0), (1, 6, 20), True, []),
        ("go", (2, 5, 2), (1, 6, 20), True, ["Kata 2.5.2 asks for cgroup v1"]),
        ("go", (1, 13, 0), (1, 6, 20), False, []),
    ],
)
def test_what_speaks_against_releases_is_said(shim, kata, containerd, cgroup_v2, doubts):
    found = handlers.doubts(shim, kata, containerd, cgroup_v2=cgroup_v2)
    assert len(found) == len(doubts)
    for line, begin in zip(found, doubts, strict=True):
        assert line.startswith(begin)


def test_a_snapshotter_needs_a_containerd_that_has_it_for_each_handler(node):
    release = install(node, "3.32.0")
    asked = options(snapshotter="devmapper")
    with pytest.raises(problems.Blocked, match=r"snapshotter=devmapper: needs containerd 1\.7\.0"):
        handlers.wanted(asked, release, (1, 6, 20))
    assert handlers.wanted(asked, release, (1, 7, 0))[0].snapshotter == "devmapper"


def test_all_handlers_have_the_shim_that_the_option_chooses():
    both = installed("4.0.0", {("qemu", "go"): "/go.toml", ("qemu", "rust"): "/rust.toml"})
    for asked, shim in (("auto", "rust"), ("go", "go"), ("rust", "rust")):
        found = handlers.wanted(options(shim=asked), both, (1, 7, 0))
        assert {handler.shim for handler in found} == {shim}
    one = installed("3.32.0", {("qemu", "go"): "/go.toml"})
    with pytest.raises(problems.Blocked, match="option shim=rust"):
        handlers.wanted(options(shim="rust"), one, (1, 7, 0))


@pytest.mark.parametrize(
    "asked", [{"hypervisor": "dragonball"}, {"extra_runtime_classes": "d=dragonball"}]
)
def test_a_hypervisor_that_the_release_does_not_ship_blocks(node, asked):
    with pytest.raises(problems.Blocked, match="hypervisor=dragonball"):
        handlers.wanted(options(**asked), install(node, "3.32.0"), (1, 7, 0))


@pytest.mark.parametrize(
    ("hypervisor", "guest", "memory"),
    [
        ("qemu", 2048, "320Mi"),
        ("qemu", 256, "320Mi"),
        ("qemu", 2049, "326Mi"),
        ("qemu", 24 * 1024, "452Mi"),
        ("qemu", 96 * 1024, "884Mi"),
        ("clh", 2048, "130Mi"),
        ("dragonball", 4096, "142Mi"),
        ("fc", 130, "130Mi"),
    ],
)
def test_overhead_follows_hypervisor_and_guest_memory(hypervisor, guest, memory):
    assert handlers.overhead(hypervisor, guest) == (memory, "250m")


def test_overhead_covers_the_page_tables_that_were_measured():
    for guest, measured in ((24_000, 42), (96_000, 550)):
        memory, _ = handlers.overhead("clh", guest)
        assert int(memory.removesuffix("Mi")) * 1.048576 >= 130 + measured


def test_overhead_follows_the_option_and_the_overlay_for_guest_memory(release):
    def memory(**asked):
        return handlers.wanted(options(**asked), release, (1, 7, 0))[0].overhead_memory

    assert memory(default_memory=4096) == "332Mi"
    overlay = "[hypervisor.qemu]\ndefault_memory = 8192\n"
    assert memory(default_memory=4096, kata_config=overlay) == "356Mi"
    assert memory(kata_config=overlay.replace("qemu", "clh")) == "320Mi"
    assert memory(kata_config=overlay.replace("8192", '"much"')) == "320Mi"


def test_an_overhead_that_is_asked_for_is_taken_as_it_is(release):
    asked = options(overhead_memory="1Gi", overhead_cpu="1", extra_runtime_classes="c=clh")
    for handler in handlers.wanted(asked, release, (1, 7, 0)):
        assert (handler.overhead_memory, handler.overhead_cpu) == ("1Gi", "1")


def test_gpus_get_a_class_of_their_own(release):
    asked = options(gpu_mode="passthrough", overhead_memory="500Mi")
    found = by_name(handlers.wanted(asked, release, (1, 7, 0), ("10240Mi", "1")))
    gpu = found["kata-gpu"]
    assert (gpu.gpu, gpu.overhead_memory, gpu.overhead_cpu) == (True, "10240Mi", "1")
    assert gpu.configuration == f"{FOLDER}/configuration-kata-gpu.toml"
    assert gpu.node_selector == "katacontainers.io/kata-gpu"
    assert (found["kata"].gpu, found["kata"].overhead_memory) == (False, "500Mi")
    assert not found["untrusted"].gpu


def test_one_class_may_serve_both(node):
    asked = options(gpu_mode="passthrough", gpu_runtime_class="kata")
    release = install(node, "1.13.0")
    found = by_name(handlers.wanted(asked, release, (1, 6, 20), ("10240Mi", "1")))
    assert list(found) == ["kata", "untrusted"]
    assert found["kata"].gpu
    assert found["kata"].overhead_memory == "10240Mi"
    assert found["kata"].configuration == f"{FOLDER}/configuration.toml"


def test_a_gpu_class_that_cannot_be_selected_says_what_to_set(node):
    asked = options(gpu_mode="passthrough")
    with pytest.raises(problems.Blocked, match="set it to the value of runtime-class"):
        handlers.wanted(asked, install(node, "1.13.0"), (1, 6, 20), ("10240Mi", "1"))
