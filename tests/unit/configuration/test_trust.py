"""A hypervisor runs as root: it is pointed only at what others than root cannot change."""

import os

import pytest

from kata.configuration import trust

HOMES = ("/opt/kata", "/etc/kata-containers")


@pytest.fixture
def machine(node, monkeypatch):
    monkeypatch.setattr(trust, "ROOT", os.getuid())
    node.lay(
        {
            "/opt/kata-releases/4/bin/qemu": "",
            "/srv/images/guest.img": "",
            "/etc/kata-containers/vmlinuz": "",
        }
    )
    node.path("/opt/kata").symlink_to("/opt/kata-releases/4")
    return node


@pytest.mark.parametrize(
    "path", ["/opt/kata/bin/qemu", "/etc/kata-containers/vmlinuz", "/srv/images/guest.img"]
)
def test_katas_own_files_and_roots_files_are_trusted(machine, path):
    assert trust.refusal(machine, path, HOMES) is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("bin/qemu", "is no absolute path"),
        ("", "is no absolute path"),
        ("/opt/kata/bin/none", "is no file"),
        ("/opt/kata/bin", "is no file"),
        ("/srv/images/guest.img/x", "is no file"),
        ("/opt/kata/../../srv", "is no file"),
    ],
)
def test_what_is_no_file_is_refused(machine, path, reason):
    assert reason in trust.refusal(machine, path, HOMES)


@pytest.mark.parametrize("place", ["/srv/images/guest.img", "/srv/images", "/srv", "/"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_can_write_is_refused_and_so_is_what_lies_below(machine, place, mode):
    real = machine.path(place)
    real.chmod(real.stat().st_mode | mode)
    said = trust.refusal(machine, "/srv/images/guest.img", HOMES)
    assert said == f"can be changed by others: {place} is writable for them"


def test_what_is_not_roots_is_refused(machine, monkeypatch):
    monkeypatch.setattr(trust, "ROOT", os.getuid() + 1)
    assert "is not root's" in trust.refusal(machine, "/srv/images/guest.img", HOMES)
    assert trust.refusal(machine, "/opt/kata/bin/qemu", HOMES) is None


def test_a_link_counts_as_the_file_that_it_names(machine):
    machine.lay({"/tmp/evil": ""})
    machine.path("/tmp").chmod(0o1777)
    machine.path("/opt/kata-releases/4/bin/inside").symlink_to("../../../../tmp/evil")
    machine.path("/etc/kata-containers/outside").symlink_to("/tmp/evil")
    machine.path("/tmp/link").symlink_to("/srv/images/guest.img")
    machine.path("/srv/home").symlink_to("/opt/kata/bin/qemu")
    assert "/tmp is writable" in trust.refusal(machine, "/opt/kata/bin/inside", HOMES)
    assert "/tmp is writable" in trust.refusal(machine, "/etc/kata-containers/outside", HOMES)
    assert "/tmp is writable" in trust.refusal(machine, "/tmp/link", HOMES)
    assert "/tmp is writable" in trust.refusal(
        machine, "/opt/kata/bin/../../../../tmp/evil", HOMES
    )
    assert trust.refusal(machine, "/srv/home", HOMES) is None


def test_links_in_a_circle_are_no_file(machine):
    machine.path("/srv/a").symlink_to("b")
    machine.path("/srv/b").symlink_to("a")
    assert "is no file" in trust.refusal(machine, "/srv/a", HOMES)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("/opt/kata/bin/*", None),
        ("/opt/kata/*/qemu", None),
        ("/srv/images/[a-g]*.img", None),
        ("/opt/kata/bin/qemu", None),
        ("/tmp/*", "/tmp is writable"),
        ("/opt/kata/bin/../../../tmp/*", "no absolute pattern"),
        ("/opt/kata/bin/*/../../../../tmp/x", "no absolute pattern"),
        ("*", "no absolute pattern"),
        ("/nowhere/*", "in no folder"),
        ("/opt/kata/bin/none", "no file"),
    ],
)
def test_a_pattern_counts_as_all_that_may_match(machine, pattern, reason):
    machine.path("/tmp").mkdir()
    machine.path("/tmp").chmod(0o1777)
    said = trust.pattern_refusal(machine, pattern, HOMES)
    assert (said is None) if reason is None else (reason in said)


def test_a_wildcard_below_the_root_takes_in_folders_of_others(machine):
    # /srv is root's alone; what lies in a folder below it may not be.
    assert trust.pattern_refusal(machine, "/srv/*", HOMES) is None
    assert "before the file's name" in trust.pattern_refusal(machine, "/*/guest.img", HOMES)
    assert "before the file's name" in trust.pattern_refusal(machine, "/srv/*/guest.img", HOMES)
