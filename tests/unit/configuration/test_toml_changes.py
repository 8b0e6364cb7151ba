"""Changing a key changes that key: not a byte of the lines around it, and no other value."""

import copy

import hypothesis
import pytest
import tomlkit
from hypothesis import strategies as st

from kata.configuration import keys, toml_changes
from tests.conftest import corpus
from tests.toml_reader import parse
from tests.unit.kata_releases import V1, V2, V4

SHIPPED = {"1.x": V1, "2.x": V2, "rust": V4.format(table="qemu", program="qemu")}
REAL = {"-".join(path.parts[-2:]): path.read_text() for path in corpus("kata/*/*.toml")}


def apply(text, changes):
    return toml_changes.apply(text, changes, keys.mentions(text))


def test_a_key_that_is_set_is_changed_in_its_place():
    text = "[a]\n# why\nx = 1 # how\ny = 2\n"
    assert apply(text, {("a", "x"): 5}) == "[a]\n# why\nx = 5 # how\ny = 2\n"


def test_a_key_that_is_in_a_comment_is_set_below_it():
    text = "[a]\n# Default 0\n#x = 1\n\ny = 2\n[b]\n#x = 1"
    assert apply(text, {("a", "x"): "z"}) == (
        '[a]\n# Default 0\n#x = 1\nx = "z"\n\ny = 2\n[b]\n#x = 1'
    )
    assert apply(text, {("b", "x"): [True]}) == f"{text}\nx = [true]\n"


def test_a_key_that_is_new_comes_at_the_end_of_its_table():
    assert apply("[a]\nx = 1\n\n[b]\ny = 1\n", {("a", "z"): 2}) == (
        "[a]\nx = 1\nz = 2\n\n[b]\ny = 1\n"
    )


def test_tables_are_made_where_they_are_missing():
    made = apply("[a]\nx = 1\n", {("b", "c", "d"): 1, ("top",): "t"})
    assert parse(made) == {"a": {"x": 1}, "b": {"c": {"d": 1}}, "top": "t"}


def test_a_key_can_be_taken_out():
    text = "[a]\nx = 1\ny = 2\n"
    assert apply(text, {("a", "x"): None, ("a", "q"): None, ("n", "x"): None}) == "[a]\ny = 2\n"


def test_a_table_that_is_written_in_two_places_is_one():
    text = '[a.b]\nx = 1\n[c]\ny = 1\n[[a.b.parts]]\nname = "n"\n'
    made = apply(text, {("a", "b", "x"): 2, ("a", "b", "z"): 3})
    expected = {"a": {"b": {"x": 2, "z": 3, "parts": [{"name": "n"}]}}, "c": {"y": 1}}
    assert parse(made) == expected


def test_no_change_is_no_change():
    for text in (*SHIPPED.values(), *REAL.values()):
        assert apply(text, {}) == text


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("x = 1\n", {("x", "y"): 1}),
        ("[[x]]\ny = 1\n", {("x", "y"): 2}),
        ("[x\n", {("x", "y"): 2}),
        ("[a]\nx = '''\n#y = 1\n'''\n", {("a", "y"): 2}),
    ],
)
def test_what_cannot_be_changed_alone_is_refused(text, changes):
    with pytest.raises(toml_changes.DoesNotFit):
        apply(text, changes)


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda each: st.lists(each, max_size=3),
    max_leaves=4,
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def changes(draw, text):
    """Some keys that the text has, live or in comments, and some that nobody ever heard of."""
    mentioned = sorted(keys.mentions(text))
    tables = sorted({path[:-1] for path in mentioned if "parts" not in path} - {()})
    tables = [path for path in tables if "guest_extension_images" not in path]
    known = st.sampled_from([path for path in mentioned if path[:-1] in tables])
    new = st.tuples(st.sampled_from(tables), NAMES).map(lambda each: (*each[0], each[1]))
    wanted = draw(st.dictionaries(known | new, VALUES, min_size=1, max_size=4))
    tree = tomlkit.parse(text).unwrap()

    def is_table(path):
        found = tree
        for name in path:
            found = found.get(name, None) if isinstance(found, dict) else None
        return isinstance(found, (dict, list)) and path not in mentioned

    hypothesis.assume(not any(is_table(path) for path in wanted))
    return wanted


@pytest.mark.parametrize("name", SHIPPED)
@hypothesis.settings(deadline=None)
@hypothesis.given(data=st.data())
def test_nothing_changes_beyond_the_keys_that_are_named(name, data):
    check_one_change(SHIPPED[name], data)


@pytest.mark.parametrize("name", REAL)
@hypothesis.settings(max_examples=3, deadline=None)
@hypothesis.given(data=st.data())
def test_nothing_more_changes_in_the_real_files(name, data):
    check_one_change(REAL[name], data)


def check_one_change(text, data):
    wanted = data.draw(changes(text))
    made = apply(text, wanted)

    expected = copy.deepcopy(parse(text))
    for path, value in wanted.items():
        table = expected
        for part in path[:-1]:
            table = table.setdefault(part, {})
        table[path[-1]] = value
    assert parse(made) == expected

    # Lines of other keys and all comments are there as they were, in their order.
    changed = {path[-1] for path in wanted}
    kept = [line for line in text.splitlines() if line.partition("=")[0].strip() not in changed]
    lines = iter(made.splitlines())
    assert all(line in lines for line in kept)
