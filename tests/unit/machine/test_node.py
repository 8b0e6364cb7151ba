"""The door to the machine: files change whole or not at all, commands end in time."""

import os
import stat

import pytest

from kata import problems
from kata.machine import node as kata_node


def test_a_file_is_written_once(node):
    assert node.write("/etc/a/b.conf", "one\n") is True
    assert node.write("/etc/a/b.conf", "one\n") is False
    assert node.read("/etc/a/b.conf") == "one\n"
    assert stat.S_IMODE(node.path("/etc/a/b.conf").stat().st_mode) == 0o644


def test_nothing_is_left_beside_a_written_file(node):
    node.write("/etc/a", "one")
    node.write("/etc/a", "two")
    assert node.tree() == {"/etc/a": "two"}


@pytest.mark.parametrize("how", ["write", "no write", "remove", "remove folder"])
def test_what_a_killed_write_or_link_left_goes_with_the_next_one(node, how):
    node.lay(
        {"/etc/ours/a": "one", "/etc/ours/.theirs": "x", "/etc/ours/.kata-charm-12345678": "o"}
    )
    node.path("/etc/ours/.kata-charm-abcdefgh").mkdir()
    node.path("/etc/ours/.kata-charm-abcdefgh/b").symlink_to("/opt/kata")
    if how == "remove folder":
        node.path("/etc/ours/.theirs").unlink()
        node.path("/etc/ours/a").unlink()
        assert node.remove("/etc/ours")
        return
    {"write": lambda: node.write("/etc/ours/a", "two"),
     "no write": lambda: node.write("/etc/ours/a", "one"),
     "remove": lambda: node.remove("/etc/ours/none")}[how]()  # fmt: skip
    assert node.names("/etc/ours") == [".theirs", "a"]


def test_what_another_process_writes_right_now_is_left_to_it(node, monkeypatch):
    replace = os.replace

    def meanwhile(source, target):
        monkeypatch.setattr(os, "replace", replace)
        assert node.write("/etc/b", "of the other")
        replace(source, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    assert node.write("/etc/a", "one")
    assert node.tree() == {"/etc/a": "one", "/etc/b": "of the other"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("path", ["/etc/ours", "/etc/ours/a"])
def test_what_is_ours_is_taken_back(node, path):
    node.lay({"/etc/ours/a": "one"})
    assert node.reclaim(path) is False
    place = node.path(path)
    os.chown(place, 65534, 65534)
    place.chmod(0o666)
    assert node.reclaim(path) is True
    assert (place.stat().st_uid, stat.S_IMODE(place.stat().st_mode)) == (0, 0o644)
    assert node.reclaim("/etc/none") is False


def test_a_node_can_be_read_as_it_will_be(node):
    node.lay({"/opt/new/file": "new", "/opt/katas": "other"})
    node.link("/opt/kata", "/opt/old")
    ahead = node.once_linked("/opt/kata", "/opt/new")
    assert ahead.read("/opt/kata/file") == "new"
    assert ahead.read("/opt/katas") == "other"
    assert node.read("/opt/kata/file") is None


def test_a_private_file_is_private_from_its_first_byte(node):
    node.write("/var/token", "secret", mode=0o600)
    assert stat.S_IMODE(node.path("/var/token").stat().st_mode) == 0o600


def test_mode_and_owner_of_a_file_that_is_there_are_kept(node):
    node.lay({"/etc/a": "one"})
    node.path("/etc/a").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(node.path("/etc/a"), 7, 8)
    node.write("/etc/a", "two")
    found = node.path("/etc/a").stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    if os.geteuid() == 0:
        assert (found.st_uid, found.st_gid) == (7, 8)


def test_a_link_stays_a_link(node):
    node.lay({"/real/config.toml": "one"})
    node.path("/etc").mkdir()
    node.path("/etc/config.toml").symlink_to("../real/config.toml")
    node.write("/etc/config.toml", "two")
    assert node.path("/etc/config.toml").is_symlink()
    assert node.read("/real/config.toml") == "two"


def test_bytes_that_are_no_text_survive(node):
    node.path("/etc").mkdir(parents=True)
    node.path("/etc/a").write_bytes(b"caf\xe9\r\n\xff")
    node.write("/etc/b", node.read("/etc/a"))
    assert node.path("/etc/b").read_bytes() == b"caf\xe9\r\n\xff"


def test_what_cannot_be_written_is_named_and_leaves_nothing(node, monkeypatch):
    node.lay({"/etc/a": "one"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(problems.Blocked, match="cannot write /etc/a: No space left on device"):
        node.write("/etc/a", "two")
    assert node.tree() == {"/etc/a": "one"}


def test_links_switch_and_spare_what_is_no_link(node):
    assert node.link("/opt/kata", "/opt/kata-releases/a") is True
    assert node.link("/opt/kata", "/opt/kata-releases/a") is False
    assert node.link("/opt/kata", "/opt/kata-releases/b") is True
    assert node.tree() == {"/opt/kata": "-> /opt/kata-releases/b"}
    node.lay({"/opt/other/file": ""})
    with pytest.raises(problems.Blocked, match="/opt/other is in the way"):
        node.link("/opt/other", "/opt/kata-releases/a")


def test_removal_spares_a_folder_that_is_not_empty(node):
    node.lay({"/etc/a/b": ""})
    assert node.remove("/etc/a") is False
    assert node.remove("/etc/a/b") is True
    assert node.remove("/etc/a/b") is False
    assert node.remove("/etc/a") is True
    assert node.remove("/etc/none/such") is False


def test_a_command_runs_in_a_fixed_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/charm/venv")
    monkeypatch.setenv("https_proxy", "https://proxy.example")
    ran = kata_node.Node().run("env", env={"EXTRA": "1"})
    said = dict(line.split("=", 1) for line in ran.out.splitlines())
    assert said["PATH"] == kata_node.PATH
    assert said["https_proxy"] == "https://proxy.example"
    assert said["EXTRA"] == "1"
    assert "PYTHONPATH" not in said


def test_a_command_that_fails_says_its_last_words():
    with pytest.raises(kata_node.CommandFailed, match="ls: cannot access"):
        kata_node.Node().run("ls", "/does/not/exist")


def test_a_command_that_hangs_is_ended():
    ran = kata_node.Node().run("sleep", "30", timeout=0.1, check=False)
    assert ran.status == 124
    assert ran.words == "no answer within 0.1 s"


def test_a_command_that_is_not_there_is_a_problem_not_a_traceback():
    with pytest.raises(problems.Problem, match="nonesuch: No such file or directory"):
        kata_node.Node().run("nonesuch")


def test_unit_properties_hold_equals_signs(node):
    node.on("systemctl show *", out="MainPID=12\nExecStart={ path=/bin/a ; argv[]=/bin/a -c=b }\n")
    assert node.unit("x.service", "MainPID", "ExecStart", "Type") == {
        "MainPID": "12",
        "ExecStart": "{ path=/bin/a ; argv[]=/bin/a -c=b }",
        "Type": "",
    }


def test_a_move_keeps_what_is_moved_and_overwrites_nothing(node):
    node.lay({"/etc/a": "theirs", "/etc/c": "other"})
    node.path("/etc/a").chmod(0o640)
    assert node.move("/etc/a", "/etc/b")
    assert node.read("/etc/b") == "theirs"
    assert node.path("/etc/b").stat().st_mode & 0o7777 == 0o640
    assert not node.move("/etc/a", "/etc/d")
    with pytest.raises(problems.Blocked, match="/etc/c is in the way of /etc/b"):
        node.move("/etc/b", "/etc/c")
    assert node.tree("/etc") == {"/etc/b": "theirs", "/etc/c": "other"}


@pytest.mark.parametrize("name", ["/etc/a\0b", "/etc/\ud800"])
def test_a_name_that_no_file_can_have_is_no_file(node, name):
    assert node.read(name) is None
    assert node.names(name) == []


def test_a_word_that_no_program_can_be_given_is_a_failure_like_others(tmp_path):
    ran = kata_node.Node(tmp_path).run("echo", "a\0b", check=False)
    assert not ran.ok
    assert "null" in ran.words
