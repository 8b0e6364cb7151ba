"""Whatever an option holds, it changes its own keys in what is written, and nothing beside them."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from kata import handlers, problems, settings
from kata.cluster import runtime_classes
from kata.configuration import handler_files
from kata.containerd import config, sections
from tests.fuzz import effort
from tests.toml_reader import parse
from tests.unit import kata_releases

# Characters and words that mean something to TOML, a shell, a path, a unit file or a template.
PIECES = [
    *("\n", "\r\n", "\r", "\t", "\0", "\x7f", "\x1b[2J", "\u2028", "\u202e", "\ufeff", "é", "😀"),
    *('"', "'", '"""', "'''", "\\", "\\n", "]", "[", "]]\n[[", "{", "}", "=", "#", ",", ".", ";"),
    *(
        "$(reboot)",
        "`reboot`",
        "${IFS}",
        "&& reboot",
        "| sh",
        "> /etc/passwd",
        "%n",
        "%%",
        "*",
        "?",
    ),
    *("{{ 7 * 7 }}", "{% raw %}", "../../etc", "//", " -o ", "--", "x" * 300, "9" * 400),
    *('"]\n[plugins."x"]\ny = "', "\n[hypervisor.qemu]\npath = '/tmp/evil'\n"),
]
NAMES = sorted(name for name, option in settings.OPTIONS.items() if option.type is str)
# Values that fit, beside the default, for damage to begin with.
FIT = {
    "hypervisor": ["clh"],
    "runtime-class": ["isolated"],
    "extra-runtime-classes": ["kata-clh=clh,b=fc"],
    "snapshotter": ["devmapper"],
    "overhead-memory": ["320Mi"],
    "overhead-cpu": ["0.5"],
    "enable-annotations": ["default_vcpus kernel_params .*"],
    "kata-config": ["[hypervisor.qemu]\nenable_debug = true\n[agent.kata]\nenable_debug = true\n"],
    "gpu-devices": ["0000:04:00.0,10de:15f8"],
}
VALUES = {
    name: effort.damaged(
        st.sampled_from([kata_releases.DEFAULTS[name], *FIT.get(name, ())]), PIECES, most=1
    )
    for name in NAMES
}
ASKED = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: VALUES[name] for name in names})
)
# What an option may change in Kata's configuration, by the keys' last names.
OWN = {
    "default-vcpus": {"default_vcpus"},
    "default-memory": {"default_memory"},
    "enable-annotations": {"enable_annotations"},
    "debug-console": {"debug_console_enabled"},
}
LINES = {*sections._KEYS, "snapshotter", "options"}
OWNER = runtime_classes.Owner("kata", "model")


def leaves(tree, above=()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, name))
        else:
            yield (*above, name), value


def differences(shipped, made):
    before, after = dict(leaves(parse(shipped))), dict(leaves(parse(made)))
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}


@effort.inputs(200)
@given(asked=ASKED)
def test_no_value_reaches_beyond_its_own_keys(node, asked):
    try:
        options = settings.read(kata_releases.DEFAULTS | asked)
    except settings.BadOption as refusal:
        assert str(refusal).isprintable()
        assert len(str(refusal)) < 240
        return
    release = kata_releases.install(node, "3.32.0")
    try:
        wanted = handlers.wanted(options, release, (1, 7, 0))
        handler_files.ensure(node, handler_files.plan(node, release, wanted, options))
    except problems.Problem as refusal:
        assert str(refusal).isprintable()
        return

    # containerd's part: our handlers by their names, with our keys, and no other table at all.
    names = {each.name for each in wanted}
    for schema, text in sections.render(wanted, (1, 7, 0)).items():
        runtimes = parse(text)["plugins"].pop(config.CRI[schema])["containerd"]["runtimes"]
        assert parse(text).keys() == {"plugins"}
        assert runtimes.keys() == names
        for handler in runtimes.values():
            assert handler.keys() <= LINES
            assert handler["runtime_path"] == config.SHIM
            assert handler.get("snapshotter", options.snapshotter) == options.snapshotter

    # Kata's part: the options' own keys, and what kata-config says.
    own = set().union(*(OWN.get(name, ()) for name in asked))
    laid = {path[-1] for path, _ in leaves(parse(options.kata_config))}
    for handler in wanted:
        shipped = node.read(release.shipped(handler.hypervisor, handler.shim))
        changed = differences(shipped, node.read(handler.configuration))
        assert {path[-1] for path in changed} <= own | laid
        assert handler.configuration.startswith("/etc/kata-containers/configuration")
        assert "/" not in handler.configuration.removeprefix("/etc/kata-containers/")

    # The cluster's part.
    for each in handlers.classes(options, None):
        made = runtime_classes.manifest(
            runtime_classes.RuntimeClass(
                each.name, each.name, each.overhead_memory, each.overhead_cpu
            ),
            OWNER,
            [each.name],
        )
        assert made["handler"] in names
    for path in list(node.tree("/etc")):
        with contextlib.suppress(OSError):
            node.path(path).unlink()
