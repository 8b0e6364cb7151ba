"""Telling cheaply that nothing has changed."""

import os

import pytest

from kata.machine import facts


@pytest.fixture
def root(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/a").write_text("text\nfile 3 /etc/b\n")
    return tmp_path


FACTS = [("file", "/etc/a"), ("names", "/etc"), ("stat", "/etc/a"), ("file", "/etc/none")]


def test_what_did_not_change_holds(root):
    assert facts.hold(facts.record(FACTS, str(root)), str(root))


@pytest.mark.parametrize(
    "change",
    [
        lambda etc: (etc / "a").write_text("other"),
        lambda etc: (etc / "a").unlink(),
        lambda etc: (etc / "b").write_text("new"),
        lambda etc: (etc / "none").write_text(""),
        lambda etc: os.utime(etc / "a", ns=(1, 1)),
    ],
)
def test_any_change_shows(root, change):
    recorded = facts.record(FACTS, str(root))
    change(root / "etc")
    assert not facts.hold(recorded, str(root))


def test_an_edit_that_keeps_size_and_times_shows(root):
    recorded = facts.record([("file", "/etc/a")], str(root))
    known = (root / "etc/a").stat()
    (root / "etc/a").write_text("TEXT\nfile 3 /etc/b\n")
    os.utime(root / "etc/a", ns=(known.st_atime_ns, known.st_mtime_ns))
    assert not facts.hold(recorded, str(root))


@pytest.mark.parametrize("broken", [b"", b"x", b"file x /a\n", b"what 1 /a\nx", b"file 1\n"])
def test_a_broken_record_does_not_hold(root, broken):
    assert not facts.hold(broken, str(root))
