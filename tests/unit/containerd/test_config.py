"""The editor: what it adds, what it leaves alone, and that it takes back all that it did."""

import copy

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings

from kata.containerd import config as editor
from kata.containerd import toml_statements
from tests.conftest import corpus
from tests.toml_reader import parse
from tests.unit.containerd_documents import PLUGINS, documents

KATA = {
    "runtime_type": "io.containerd.kata.v2",
    "runtime_path": "/usr/local/bin/containerd-shim-kata-v2",
    "pod_annotations": ["io.katacontainers.*"],
}


def section(schema, *handlers, indent="  "):
    lines = []
    for name in handlers:
        lines.append(f'[plugins."{PLUGINS[schema]}".containerd.runtimes.{name}]')
        lines += [
            f"{indent}{key} = {tomlkit.item(value).as_string()}" for key, value in KATA.items()
        ]
    return "".join(f"{line}\n" for line in lines)


def wanted(*handlers, known=(), **kwargs):
    sections = {schema: section(schema, *handlers, **kwargs) for schema in PLUGINS}
    return editor.Wanted(handlers, sections, known)


ONE = wanted("kata")
TWO = wanted("kata", "untrusted")


def expected(tree, schema, handlers):
    """What must be read from a configuration once our handlers are in it."""
    tree = copy.deepcopy(tree)
    plugins = tree.setdefault("plugins", {})
    containerd = plugins.setdefault(PLUGINS[schema], {}).setdefault("containerd", {})
    runtimes = containerd.setdefault("runtimes", {})
    for handler in runtimes.values():
        kata = handler["runtime_type"].startswith("io.containerd.kata")
        if kata and set(handler.get("options", {"": ""})) <= {"Runtime", "RuntimeRoot"}:
            del handler["options"]
    if "untrusted" in handlers:
        if containerd.get("untrusted_workload_runtime", {}).get("runtime_type"):
            del containerd["untrusted_workload_runtime"]
    for name in handlers:
        runtimes[name] = KATA
    return tree


def corpus_schema(text):
    return "v2" if parse(text).get("version") == 2 else "v1"


relaxed = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


class TestAnyConfiguration:
    @relaxed
    @given(documents())
    def test_what_was_added_can_be_taken_away_to_the_byte(self, document):
        schema, text = document
        assert editor.restore(editor.add(text, schema, TWO)) == text

    @relaxed
    @given(documents())
    def test_adding_twice_is_adding_once(self, document):
        schema, text = document
        once = editor.add(text, schema, TWO)
        assert editor.add(once, schema, TWO) == once

    @relaxed
    @given(documents())
    def test_other_handlers_replace_ours_and_nothing_else(self, document):
        schema, text = document
        assert editor.add(editor.add(text, schema, ONE), schema, TWO) == editor.add(
            text, schema, TWO
        )

    @relaxed
    @given(documents())
    def test_everything_else_reads_as_before(self, document):
        schema, text = document
        tree = parse(text)
        for given_handlers in (ONE, TWO):
            added = editor.add(text, schema, given_handlers)
            assert parse(added) == expected(tree, schema, given_handlers.handlers)

    @relaxed
    @given(documents(in_order=True))
    def test_the_toml_library_reads_the_same(self, document):
        schema, text = document
        before = tomlkit.parse(text).unwrap()
        added = editor.add(text, schema, TWO)
        assert tomlkit.parse(added).unwrap() == expected(before, schema, TWO.handlers)

    @relaxed
    @given(documents())
    def test_clearing_the_way_without_adding_is_taken_back_too(self, document):
        schema, text = document
        cleared = editor.add(text, schema, TWO, section="")
        assert editor.restore(cleared) == text
        tree, rest = expected(parse(text), schema, TWO.handlers), parse(cleared)
        ours = tree["plugins"][PLUGINS[schema]]["containerd"]["runtimes"]
        for name in TWO.handlers:
            del ours[name]
        assert pruned(rest) == pruned(tree)


def pruned(tree):
    """Leave out empty tables: a table that is only mentioned is as good as none."""
    if not isinstance(tree, dict):
        return tree
    return {key: kept for key, value in tree.items() if (kept := pruned(value)) != {}}


FILES = [path for path in corpus("containerd/**/*.toml") if "broken" not in path.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
class TestRealFiles:
    def test_taken_away_to_the_byte(self, path):
        text = path.read_bytes().decode()
        added = editor.add(text, corpus_schema(text), TWO)
        assert editor.restore(added) == text
        assert editor.add(added, corpus_schema(text), TWO) == added

    def test_everything_else_reads_as_before(self, path):
        text = path.read_bytes().decode()
        added = editor.add(text, corpus_schema(text), TWO)
        assert parse(added) == expected(parse(text), corpus_schema(text), TWO.handlers)


CHARM_UNTRUSTED = """\
version = 2
[plugins]
  [plugins."io.containerd.grpc.v1.cri".containerd]
    [plugins."io.containerd.grpc.v1.cri".containerd.untrusted_workload_runtime]
      runtime_type= "io.containerd.kata.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
      runtime_type= "io.containerd.kata.v2"
      # a comment of theirs
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata.options]
        Runtime = "kata-runtime"
        RuntimeRoot = "/usr/bin/kata-runtime"
"""
OPTIONS = ".containerd.runtimes.kata.options]"


class TestWhatTheContainerdCharmLeaves:
    """The harmful options of the deploy record, and the old spelling of `untrusted`."""

    def test_its_handler_gives_way_to_ours_and_comes_back(self):
        added = editor.add(CHARM_UNTRUSTED, "v2", TWO)
        assert f'# kata charm: was       [plugins."io.containerd.grpc.v1.cri"{OPTIONS}' in added
        assert "      # a comment of theirs\n" in added
        assert editor.restore(added) == CHARM_UNTRUSTED

    def test_its_options_go_from_a_handler_that_is_not_ours_too(self):
        added = editor.add(CHARM_UNTRUSTED, "v2", wanted("kata-clh"))
        runtimes = parse(added)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
        assert runtimes["kata"] == {"runtime_type": "io.containerd.kata.v2"}
        assert runtimes["kata-clh"] == KATA

    def test_the_old_spelling_stays_where_untrusted_is_not_ours(self):
        added = parse(editor.add(CHARM_UNTRUSTED, "v2", ONE))
        containerd = added["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
        assert containerd["untrusted_workload_runtime"]["runtime_type"] == "io.containerd.kata.v2"

    @pytest.mark.parametrize(
        "options", ['ConfigPath = "/x"', 'Runtime = "x"\nOther = 1', "SystemdCgroup = true"]
    )
    def test_options_that_somebody_meant_stay(self, options):
        before, _, _ = CHARM_UNTRUSTED.partition("        Runtime =")
        text = f"{before}{options}\n"
        assert editor.add(text, "v2", wanted("kata-clh")).startswith(text)


class TestWrittenAnewByAProgram:
    """nvidia-ctk drops every comment: our handlers are known by their name and their shim."""

    def rewritten(self):
        added = editor.add(CHARM_UNTRUSTED, "v2", TWO)
        return "".join(line for line in added.splitlines(True) if not line.startswith("#"))

    def test_ours_are_taken_out(self):
        bare = parse(editor.restore(self.rewritten(), ("kata", "untrusted")))
        runtimes = bare["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
        assert list(runtimes) == ["runc"]

    def test_and_put_back_as_a_block(self):
        known = TWO._replace(known=("kata", "untrusted"))
        added = editor.add(self.rewritten(), "v2", known)
        assert added.count("runtimes.kata]") == 1
        assert editor.has_block(added)

    def test_handlers_of_others_with_such_a_name_are_theirs(self):
        text = CHARM_UNTRUSTED + KATA_OF_OTHERS
        assert editor.restore(text, ("kata", "untrusted", "kata-own")) == text


KATA_OF_OTHERS = """\
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata-own]
runtime_type = "io.containerd.kata.v2"
runtime_path = "/opt/kata/bin/containerd-shim-kata-v2"
"""


class TestAFileOfItsOwn:
    MADE = editor.add("", "v2", ONE, section="version = 2\n" + ONE.sections["v2"], alone=True)

    def test_is_ours_alone(self):
        assert editor.is_ours_alone(self.MADE)
        assert editor.restore(self.MADE) == ""

    def test_until_somebody_builds_upon_it(self):
        text = self.MADE + "[debug]\nlevel = 'info'\n"
        assert not editor.is_ours_alone(text)
        assert editor.restore(text) == "version = 2\n[debug]\nlevel = 'info'\n"


class TestOurPlace:
    def test_what_is_appended_after_our_block_stays(self):
        added = editor.add("root = '/x'", "v2", ONE) + "[debug]\nlevel = 'info'\n"
        assert editor.restore(added) == "root = '/x'\n[debug]\nlevel = 'info'\n"

    def test_line_ends_are_the_files_own(self):
        added = editor.add("version = 2\r\n", "v2", ONE)
        assert added.count("\n") == added.count("\r\n") > 3

    def test_edits_inside_our_block_are_undone(self):
        added = editor.add("version = 2\n", "v2", ONE)
        edited = added.replace(KATA["runtime_path"], "/elsewhere")
        assert edited != added
        assert editor.add(edited, "v2", ONE) == added

    def test_a_broken_file_is_refused(self):
        with pytest.raises(toml_statements.Malformed, match="line 2"):
            editor.add('a = 1\nb = "x"y"\n', "v2", ONE)
