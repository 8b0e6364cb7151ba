"""The editor: what it adds, what it leaves alone, and that it takes back all that it did."""

import copy
import sys

import pytest
import tomlkit
from hypothesis import HealthCheck, assume, given, settings

from kata import containerd_config as editor
from kata import toml_statements
from tests.conftest import corpus
from tests.unit.containerd_documents import PLUGINS, documents

if sys.version_info >= (3, 11):
    import tomllib

    parse = tomllib.loads
else:

    def parse(text):
        return tomlkit.parse(text).unwrap()


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
