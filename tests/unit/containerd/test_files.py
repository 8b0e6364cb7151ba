"""Which file gets the handlers, under which names: by containerd's release and the files' own."""

import pytest

from kata.containerd import files as containerd_files
from kata.containerd import toml_statements
from tests.unit.containerd.test_config import wanted
from tests.unit.containerd_documents import PLUGINS

MAIN = "/etc/containerd/config.toml"
CONF_D = "/etc/containerd/conf.d"
OWN = f"{CONF_D}/kata-charm.toml"
IMPORTING = f'imports = ["{CONF_D}/*.toml"]\n'
R1_2, R1_4, R1_6, R1_7, R2_0, R2_3 = (
    *((1, 2, 16), (1, 4, 13), (1, 6, 20), (1, 7, 34)),
    *((2, 0, 11), (2, 3, 4)),
)
KATA = wanted("kata")


def runtime(schema, name="runc"):
    return (
        f'[plugins."{PLUGINS[schema]}".containerd.runtimes.{name}]\n'
        'runtime_type = "io.containerd.runc.v2"\n'
    )


def plan(node, files, release, handlers=KATA, **kwargs):
    node.lay(files)
    return containerd_files.plan(MAIN, node, release, handlers, **kwargs)


def schemas(text):
    """Under which names our handler stands in a text."""
    return [
        schema
        for schema, plugin in PLUGINS.items()
        if f'[plugins."{plugin}".containerd.runtimes.kata]' in text
    ]


@pytest.mark.parametrize(
    ("release", "text", "schema"),
    [
        (R1_2, runtime("v1"), "v1"),
        (R1_6, runtime("v1"), "v1"),
        (R1_6, "version = 1\n" + runtime("v1"), "v1"),
        (R1_6, "version = 2\n" + runtime("v2"), "v2"),
        (R1_6, runtime("v2"), "v1"),  # without a header only the short names are read
        (R1_6, "root = '/x'\n", "v1"),
        (R2_0, "version = 2\n" + runtime("v2"), "v2"),
        (R2_0, "version = 3\n" + runtime("v3"), "v3"),
        (R2_0, runtime("v1"), "v3"),  # what stands under older names is lost there
        (R2_0, "version = 2\n" + runtime("v3"), "v3"),
        (R2_3, "version = 4\n" + runtime("v3"), "v3"),
        (R2_3, "version = 3\n" + runtime("v2"), "v2"),
        (R2_3, "version = 2\n" + runtime("v2"), "v2"),
        (R2_3, runtime("v1"), "v1"),
        (R2_3, runtime("v2"), "v2"),
        (R2_3, "root = '/x'\n", "v3"),
    ],
)
def test_names_are_those_that_containerd_reads(node, release, text, schema):
    changes = plan(node, {MAIN: text}, release)
    assert list(changes) == [MAIN]
    assert schemas(changes[MAIN]) == [schema]


@pytest.mark.parametrize(
    ("release", "version"), [(R1_2, None), (R1_4, 2), (R1_6, 2), (R2_0, 3), (R2_3, 3)]
)
@pytest.mark.parametrize("text", [None, "", "# only a comment\n"])
def test_where_there_is_nothing_a_header_says_the_version(node, release, version, text):
    changes = plan(node, {} if text is None else {MAIN: text}, release)
    header = f"version = {version}\n"
    assert (header in changes[MAIN]) == (version is not None)
    assert schemas(changes[MAIN]) == [f"v{version or 1}"]


@pytest.mark.parametrize(
    ("release", "added"), [(R1_4, False), (R1_6, True), (R1_7, True), (R2_0, False)]
)
def test_the_built_in_runc_is_said_where_it_would_be_lost(node, release, added):
    changes = plan(node, {MAIN: "version = 2\n"}, release)
    assert ("runtimes.runc]" in changes[MAIN]) == added
    node.lay({MAIN: "version = 2\n" + runtime("v2", "crun")})
    assert "runtimes.runc]" not in plan(node, {}, release)[MAIN]


class TestImportsUpTo1_7:
    def test_the_last_file_with_a_cri_table_counts(self, node):
        files = {
            MAIN: IMPORTING + "version = 2\n" + runtime("v2"),
            f"{CONF_D}/10-a.toml": "version = 2\n" + runtime("v2"),
            f"{CONF_D}/99-nvidia.toml": "version = 2\n" + runtime("v2"),
            f"{CONF_D}/other.toml": "oom_score = 1\n",
        }
        assert list(plan(node, files, R1_6)) == [f"{CONF_D}/99-nvidia.toml"]

    def test_without_one_in_an_import_the_main_file_counts(self, node):
        files = {MAIN: IMPORTING + "version = 2\n", f"{CONF_D}/a.toml": "oom_score = 1\n"}
        assert list(plan(node, files, R1_6)) == [MAIN]

    def test_the_version_is_that_of_all_files_together(self, node):
        files = {MAIN: IMPORTING, f"{CONF_D}/a.toml": "version = 2\n"}
        assert schemas(plan(node, files, R1_6)[MAIN]) == ["v2"]

    def test_a_copy_of_our_handlers_moves_with_them(self, node):
        """nvidia-ctk copies the CRI table, ours in it, into a drop-in without any comments."""
        ours = plan(node, {MAIN: "version = 2\n" + runtime("v2")}, R1_6)[MAIN]
        copy = "".join(line for line in ours.splitlines(True) if not line.startswith("#"))
        drop_in = f"{CONF_D}/99-nvidia.toml"
        changes = plan(
            node, {MAIN: IMPORTING + ours, drop_in: copy}, R1_6, KATA._replace(known=("kata",))
        )
        assert schemas(changes[MAIN]) == []
        assert changes[drop_in].count("runtimes.kata]") == 1


class TestImportsFrom2_0:
    def test_a_drop_in_of_our_own(self, node):
        files = {
            MAIN: IMPORTING + "version = 2\n" + runtime("v2"),
            f"{CONF_D}/a.toml": "version = 2\n",
        }
        changes = plan(node, files, R2_0)
        assert list(changes) == [OWN]
        assert "\nversion = 2\n" in changes[OWN]
        node.lay(changes)
        assert plan(node, {}, R2_0) == {}
        assert plan(node, {}, R2_0, KATA._replace(handlers=())) == {OWN: None}

    def test_not_in_a_folder_that_is_not_there(self, node):
        assert list(plan(node, {MAIN: IMPORTING + "version = 2\n"}, R2_0)) == [MAIN]

    def test_not_over_somebody_elses_file(self, node):
        files = {MAIN: IMPORTING + "version = 2\n", OWN: "version = 2\n# mine\n"}
        assert list(plan(node, files, R2_0)) == [MAIN]

    def test_in_place_where_something_is_in_the_way(self, node):
        files = {
            MAIN: IMPORTING + "version = 2\n" + runtime("v2"),
            f"{CONF_D}/a.toml": "version = 2\n" + runtime("v2", "kata"),
        }
        changes = plan(node, files, R2_0)
        assert sorted(changes) == [f"{CONF_D}/a.toml", MAIN]
        node.lay(changes)
        restored = plan(node, {}, R2_0, KATA._replace(handlers=()), touched=changes)
        assert restored == files

    def test_a_drop_in_that_is_no_longer_imported_goes(self, node):
        node.lay({f"{CONF_D}/a.toml": "version = 2\n"})
        node.lay(plan(node, {MAIN: IMPORTING + "version = 2\n"}, R2_0))
        changes = plan(node, {MAIN: "version = 2\n"}, R2_0, touched=[OWN])
        assert changes[OWN] is None
        assert schemas(changes[MAIN]) == ["v2"]


class TestReading:
    def test_in_containerds_order_each_once(self, node):
        node.lay(
            {
                MAIN: 'imports = ["b.toml", "/etc/containerd/x/*.toml", "missing.toml"]\n',
                "/etc/containerd/b.toml": 'imports = ["config.toml", "x/2.toml"]\n',
                "/etc/containerd/x/1.toml": "",
                "/etc/containerd/x/2.toml": 'imports = ["../c.toml"]',
                "/etc/containerd/x/.3.toml": "",
                "/etc/containerd/x/4.tml": "",
                "/etc/containerd/c.toml": "",
            }
        )
        names = [
            file.path.removeprefix("/etc/containerd/")
            for file in containerd_files.read(MAIN, node)
        ]
        assert names == ["config.toml", "b.toml", "x/.3.toml", "x/1.toml", "x/2.toml", "c.toml"]

    @pytest.mark.parametrize(
        ("pattern", "matched"),
        [
            ("/c/*.toml", ["/c/a.toml", "/c/ab.toml"]),
            ("/c/?.tom*", ["/c/a.toml"]),
            ("/c/[^b]*.toml", ["/c/a.toml", "/c/ab.toml"]),
            ("/c/[b-z]*", []),
            ("/*/a.toml*", ["/c/a.toml"]),
            ("/c/\\a*b.toml", ["/c/ab.toml"]),
        ],
    )
    def test_patterns_are_gos(self, node, pattern, matched):
        node.lay({"/c/a.toml": "", "/c/ab.toml": "", MAIN: f"imports = ['{pattern}']"})
        assert [file.path for file in containerd_files.read(MAIN, node)][1:] == matched

    def test_the_broken_file_is_named(self, node):
        node.lay({MAIN: 'imports = ["b.toml"]', "/etc/containerd/b.toml": "a = "})
        with pytest.raises(toml_statements.Malformed) as caught:
            containerd_files.read(MAIN, node)
        assert caught.value.path == "/etc/containerd/b.toml"

    def test_values_of_all_files_together(self, node):
        node.lay(
            {
                MAIN: 'imports = ["b.toml"]\nstate = "/a"\ndisabled_plugins = ["x"]\n[grpc]\naddress = "/g"',
                "/etc/containerd/b.toml": 'state = "/b"\ndisabled_plugins = ["cri"]\ngrpc.address = ""',
            }
        )
        files = containerd_files.read(MAIN, node)
        assert containerd_files.value(files, "state") == "/b"
        assert containerd_files.value(files, "grpc", "address") == "/g"
        assert containerd_files.listed(files, "disabled_plugins") == ["x", "cri"]


# Found by fuzzing


def test_a_file_of_former_days_that_broke_is_named(node):
    old = "/etc/containerd/old.toml"
    broken = "[# kata charm: begin, the charm keeps this part up"
    with pytest.raises(toml_statements.Malformed) as caught:
        plan(node, {MAIN: "", old: broken}, R1_7, touched=[old])
    assert caught.value.path == old


@pytest.mark.parametrize("pattern", ["/x/[z-a]*", "/x/\\u0000*", "/x/\\ud800*", "/x/\\u0000"])
def test_a_pattern_that_nothing_can_match_matches_nothing(node, pattern):
    text = f'version = 2\nimports = ["{pattern}"]\n'
    files = containerd_files.read(MAIN, laid(node, text))
    assert [each.path for each in files] == [MAIN]


def test_a_version_that_is_beyond_all_bounds_is_none(node):
    (file,) = containerd_files.read(MAIN, laid(node, f"version = {'9' * 5000}\n"))
    assert file.version == 0


def laid(node, text):
    node.lay({MAIN: text, "/x/a.toml": ""})
    return node
