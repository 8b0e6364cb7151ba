"""Ours is told from theirs by its own words; theirs is kept, and comes back when ours goes."""

import hashlib

import pytest

from kata.configuration import custody

PATH = "/etc/kata-containers/configuration.toml"
INPUTS = hashlib.sha256(b"inputs").hexdigest()
TEXT = 'key = "value"\n'
SHIPPED = "/opt/kata/shipped.toml"


def stamped(text=TEXT):
    return custody.stamp(text, SHIPPED, INPUTS)


def test_our_file_says_so_and_what_it_was_made_from(node):
    custody.place(node, PATH, stamped())
    assert custody.look(node, PATH) == custody.Mark(INPUTS, source=SHIPPED)
    assert node.read(PATH).startswith("# Made by the Juju charm kata")
    assert "/opt/kata/shipped.toml" in node.read(PATH).splitlines()[1]
    assert node.read(PATH).endswith(TEXT)
    assert node.path(PATH).stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize("theirs", ["", "# Made by hand\n", TEXT, TEXT + stamped(), "# Made by"])
def test_any_other_file_is_theirs(node, theirs):
    node.lay({PATH: theirs})
    assert custody.look(node, PATH) is None


def test_nothing_is_nobodys(node):
    assert custody.look(node, PATH) is None
    assert not custody.release(node, PATH)
    assert node.tree() == {}


def test_theirs_is_kept_with_owner_and_mode_and_comes_back(node):
    node.lay({PATH: "theirs\n"})
    node.path(PATH).chmod(0o600)
    custody.place(node, PATH, stamped())
    assert node.read(PATH + custody.BEFORE) == "theirs\n"
    assert node.path(PATH).stat().st_mode & 0o7777 == 0o644
    assert custody.release(node, PATH)
    assert node.tree() == {PATH: "theirs\n"}
    assert node.path(PATH).stat().st_mode & 0o7777 == 0o600


def test_a_link_of_theirs_is_kept_and_its_target_is_not_written(node):
    node.lay({"/opt/kata/shipped.toml": "shipped\n", "/etc/kata-containers/x": ""})
    node.path(PATH).symlink_to("../../opt/kata/shipped.toml")
    before = node.tree()
    custody.place(node, PATH, stamped())
    assert node.read("/opt/kata/shipped.toml") == "shipped\n"
    assert not node.path(PATH).is_symlink()
    custody.release(node, PATH)
    assert node.tree() == before


def test_a_dangling_link_and_a_folder_are_theirs_too(node):
    node.path("/etc/kata-containers").mkdir(parents=True)
    node.path(PATH).symlink_to("nowhere")
    custody.place(node, PATH, stamped())
    custody.release(node, PATH)
    assert node.tree() == {PATH: "-> nowhere"}
    node.remove(PATH)
    node.lay({f"{PATH}/inside": "theirs\n"})
    custody.place(node, PATH, stamped())
    assert custody.look(node, PATH)
    custody.release(node, PATH)
    assert node.tree() == {f"{PATH}/inside": "theirs\n"}


def test_an_edit_of_ours_is_undone_and_kept(node):
    custody.place(node, PATH, stamped())
    for number, name in enumerate((".edited", ".edited-2"), start=1):
        edited = node.read(PATH) + f"edit = {number}\n"
        node.write(PATH, edited)
        assert custody.look(node, PATH) == custody.Mark(INPUTS, edited=True, source=SHIPPED)
        custody.place(node, PATH, stamped())
        assert custody.look(node, PATH).intact
        assert node.read(PATH + name) == edited


def test_an_edit_outlives_our_going_and_does_not_keep_theirs_away(node):
    node.lay({PATH: "theirs\n"})
    custody.place(node, PATH, stamped())
    node.write(PATH, node.read(PATH) + "edit\n")
    assert custody.release(node, PATH)
    assert node.read(PATH) == "theirs\n"
    assert node.read(PATH + custody.EDITED).endswith("edit\n")


def test_a_file_that_others_may_write_is_no_longer_as_it_was_made(node):
    custody.place(node, PATH, stamped())
    node.path(PATH).chmod(0o666)
    assert not custody.look(node, PATH).intact
    custody.place(node, PATH, stamped())
    assert node.path(PATH).stat().st_mode & 0o7777 == 0o644
    assert list(node.tree()) == [PATH]


def test_what_they_put_in_the_place_of_ours_stays_when_we_go(node):
    node.lay({PATH: "first\n"})
    custody.place(node, PATH, stamped())
    node.remove(PATH)
    node.lay({PATH: "second\n"})
    assert not custody.release(node, PATH)
    assert node.tree() == {PATH: "second\n", PATH + custody.BEFORE: "first\n"}


def test_nothing_kept_is_overwritten_by_what_is_kept_later(node):
    for text in ("first\n", "second\n"):
        node.remove(PATH)
        node.lay({PATH: text})
        custody.place(node, PATH, stamped())
    assert node.read(PATH + custody.BEFORE) == "first\n"
    assert node.read(PATH + custody.BEFORE + "-2") == "second\n"
