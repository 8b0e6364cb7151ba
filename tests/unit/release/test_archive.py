"""A release archive is unpacked as it was packed, or refused before anything of it is reachable."""

import io
import os
import pathlib
import random
import resource
import stat
import subprocess
import sys
import tarfile

import pytest

from kata import problems
from kata.machine import disk
from kata.release import archive, tree
from tests.unit import archives

SRC = pathlib.Path(archive.__file__).parents[2]


@pytest.fixture
def place(tmp_path):
    """A folder for a tree, beside a file that nobody may touch."""
    (tmp_path / "secret").write_text("untouched")
    (tmp_path / "tree").mkdir()
    yield tmp_path / "tree"
    assert (tmp_path / "secret").read_text() == "untouched"
    assert {each.name for each in tmp_path.iterdir()} == {"secret", "tree"}


def unpack(place, data, **more):
    found = tree.Tree(place)
    archive.unpack(io.BytesIO(data), found, "kata.tar", **more)
    return found


def listing(place):
    """Return what lies below a folder: path to mode, contents and time."""
    found = {}
    for each in sorted(place.rglob("*")):
        about = each.lstat()
        what = each.readlink() if each.is_symlink() else each.is_file() and each.read_bytes()
        mode = stat.S_IMODE(about.st_mode)
        found[str(each.relative_to(place))] = (mode, str(what), int(about.st_mtime))
    return found


# What real releases hold


@pytest.mark.parametrize("compression", archives.COMPRESSIONS)
@pytest.mark.parametrize("version", ["2.0.4", "3.1.0", "3.2.0", "3.20.0", "4.1.0"])
def test_a_release_is_unpacked_as_tar_would(place, tmp_path_factory, compression, version):
    data = archives.pack(archives.release(version), compression)
    unpack(place, data)
    other = tmp_path_factory.mktemp("tar")
    packed = other / "kata.tar"
    packed.write_bytes(archives.pack(archives.release(version), "tar"))
    subprocess.run(["tar", "-xpf", packed, "-C", other, "./opt/kata"], check=True)
    ours, theirs = listing(place), listing(other / "opt/kata")
    given = {path for path in ours if (place / path).is_symlink() or (place / path).is_file()}
    assert given
    assert {path: ours[path] for path in given} == {path: theirs[path] for path in given}
    assert ours.keys() == theirs.keys()


def test_owners_are_kept_as_packed(place):
    members = [
        archives.folder("opt/kata/bin", uid=7, gid=8),
        archives.file("opt/kata/bin/x", uid=9, gid=10),
    ]
    found = unpack(place, archives.pack(members))
    owners = [
        (each.stat().st_uid, each.stat().st_gid) for each in (place / "bin", place / "bin/x")
    ]
    kept = [(7, 8), (9, 10)] if os.geteuid() == 0 else [(os.geteuid(), os.getegid())] * 2
    assert owners == kept
    assert found.owners == {7, 9}


def test_modes_are_kept_and_folders_may_be_read_only(place):
    members = [
        archives.folder("opt/kata/bin", 0o555),
        archives.file("opt/kata/bin/x", b"x", 0o711),
    ]
    unpack(place, archives.pack(members))
    assert stat.S_IMODE((place / "bin").stat().st_mode) == 0o555
    assert stat.S_IMODE((place / "bin/x").stat().st_mode) == 0o711
    (place / "bin").chmod(0o755)


def test_links_inside_the_tree_are_kept(place):
    members = [
        archives.file("opt/kata/share/a", b"a"),
        archives.link("opt/kata/share/deep/up", "../a"),
        archives.link("opt/kata/whole", "/opt/kata/share/a"),
        archives.link("opt/kata/dangling", "configuration-qemu.toml"),
        archives.hard("opt/kata/same", "./opt/kata/share/a"),
    ]
    unpack(place, archives.pack(members))
    assert (place / "share/deep/up").read_bytes() == b"a"
    assert (place / "whole").readlink() == pathlib.Path("/opt/kata/share/a")
    assert (place / "dangling").is_symlink()
    assert (place / "same").stat().st_ino == (place / "share/a").stat().st_ino


def test_holes_are_kept(place, tmp_path_factory):
    other = tmp_path_factory.mktemp("sparse")
    image = other / "opt/kata/image"
    image.parent.mkdir(parents=True)
    with image.open("wb") as file:
        for at in (0, 3 << 20, 40 << 20):
            file.seek(at)
            file.write(b"block" * 1000)
        file.truncate(64 << 20)
    for style in ("gnu", "pax"):
        packed = other / f"{style}.tar"
        subprocess.run(
            ["tar", f"--format={style}", "-Scf", packed, "-C", other, "opt"], check=True
        )
        assert packed.stat().st_size < 1 << 20
        unpack(place, packed.read_bytes())
        assert (place / "image").read_bytes() == image.read_bytes()
        assert (place / "image").stat().st_blocks * 512 < 2 << 20
        (place / "image").unlink()


def test_a_second_archive_goes_on_top_of_the_first(place):
    found = tree.Tree(place)
    first = [
        archives.file("opt/kata/a", b"old"),
        archives.file("opt/kata/b", b"b"),
        archives.link("opt/kata/l", "a"),
    ]
    second = [archives.file("opt/kata/a", b"new"), archives.file("opt/kata/l", b"now a file")]
    for members in (first, second):
        archive.unpack(io.BytesIO(archives.pack(members)), found, "kata.tar")
    assert {each.name: each.read_bytes() for each in place.iterdir()} == {
        "a": b"new",
        "b": b"b",
        "l": b"now a file",
    }


def test_what_lies_outside_is_left_out(place):
    members = [
        archives.file("etc/passwd", b"root"),
        archives.file("opt/other"),
        archives.file("opt/kata/a", b"a"),
    ]
    found = unpack(place, archives.pack(members))
    assert found.elsewhere == 2
    assert list(listing(place)) == ["a"]


def test_progress_counts_what_was_read(place):
    data = archives.pack(
        [*archives.release(), archives.file("opt/kata/big", random.Random(1).randbytes(3 << 20))]
    )
    told = []
    unpack(place, data, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == len(data)


# What is refused

HOSTILE = {
    "a path that climbs": ([archives.file("opt/kata/../../x")], "leaves the archive"),
    "a path that climbs from the start": (
        [archives.file("../secret", b"x")],
        "leaves the archive",
    ),
    "an absolute path": ([archives.file("/opt/kata/x")], "absolute"),
    "a link out": ([archives.link("opt/kata/x", "../../secret")], "leads to"),
    "a link out, by an absolute path": ([archives.link("opt/kata/x", "/etc/shadow")], "leads to"),
    "a link out, by a prefix that only looks right": (
        [archives.link("opt/kata/x", "/opt/kata-releases/x")],
        "leads to",
    ),
    "a link out, past the prefix": (
        [archives.link("opt/kata/x", "/opt/kata/../../etc")],
        "leads to",
    ),
    "a link that climbs behind another link": (
        [archives.link("opt/kata/l", "."), archives.link("opt/kata/x", "l/../../../secret")],
        "leads to",
    ),
    "a file behind a link": (
        [archives.link("opt/kata/l", "bin"), archives.file("opt/kata/l/x", b"x")],
        "behind a link",
    ),
    "a folder behind a link": (
        [archives.link("opt/kata/l", "bin"), archives.folder("opt/kata/l/x")],
        "behind a link",
    ),
    "a file behind a file": (
        [archives.file("opt/kata/f"), archives.file("opt/kata/f/x", b"x")],
        "behind a link or a file",
    ),
    "a link for a folder": (
        [archives.file("opt/kata/d/x"), archives.link("opt/kata/d", "bin")],
        "folder's place",
    ),
    "a link for the tree itself": ([archives.link("opt/kata", "/etc")], "no folder"),
    "a file for what is above the tree": ([archives.file("opt", b"x")], "no folder"),
    "a hard link out": ([archives.hard("opt/kata/x", "secret")], "hard link"),
    "a hard link that climbs": ([archives.hard("opt/kata/x", "../secret")], "leaves the archive"),
    "a hard link to a link": (
        [archives.link("opt/kata/l", "a"), archives.hard("opt/kata/x", "opt/kata/l")],
        "hard link",
    ),
    "a hard link to itself": (
        [archives.file("opt/kata/x"), archives.hard("opt/kata/x", "opt/kata/x")],
        "hard link",
    ),
    "a character device": ([archives.device("opt/kata/x", tarfile.CHRTYPE)], "device or a pipe"),
    "a block device": ([archives.device("opt/kata/x", tarfile.BLKTYPE)], "device or a pipe"),
    "a pipe": ([archives.device("opt/kata/x", tarfile.FIFOTYPE)], "device or a pipe"),
    "a device outside": ([archives.device("dev/x", tarfile.CHRTYPE)], "device or a pipe"),
    "a setuid program": ([archives.file("opt/kata/x", b"x", 0o4755)], "setuid"),
    "a setgid program": ([archives.file("opt/kata/x", b"x", 0o2755)], "setuid or setgid"),
    "our own record": ([archives.link("opt/kata/.kata-charm.json", "x")], "own name"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_release_holds_is_refused(place, what):
    members, words = HOSTILE[what]
    with pytest.raises(archive.Refused, match=f"^kata.tar is refused: .*{words}.*; give another"):
        unpack(place, archives.pack([*archives.release(), *members]))


@pytest.mark.parametrize("compression", archives.COMPRESSIONS)
def test_an_archive_that_is_cut_off_is_refused(tmp_path, compression):
    data = archives.pack(archives.release(), compression)
    whole = len(data) if compression != "tar" else len(data.rstrip(b"\0")) + 512
    # zstd and plain tar have no end mark of their own: there the tar's own counts, a block of zeros.
    points = random.Random(1).sample(range(1, whole - 600), 40)
    for number, cut in enumerate([0, 1, 100, *points]):
        place = tmp_path / f"t{number}"
        place.mkdir()
        with pytest.raises(archive.Refused):
            unpack(place, data[:cut])


@pytest.mark.parametrize("compression", ["tar.gz", "tar.xz"])
def test_the_last_byte_counts_where_there_is_a_check_sum(place, compression):
    data = archives.pack(archives.release(), compression)
    with pytest.raises(archive.Refused, match="ends in the middle"):
        unpack(place, data[:-1])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no tar"),
        (b"PK\x03\x04" + bytes(2000), "no tar"),
        (b"<html>404</html>" * 100, "no tar"),
        (b"\xfd7zXZ\x00" + bytes(2000), "xz:"),
        (b"\x1f\x8b" + bytes(2000), "gzip:"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 2000, "zstd:"),
    ],
)
def test_what_is_no_archive_is_refused(place, data, words):
    with pytest.raises(archive.Refused, match=words):
        unpack(place, data)


def test_the_name_does_not_matter(place):
    """A mirror may rename what it keeps: the compression is told by the first bytes."""
    found = tree.Tree(place)
    data = archives.pack(archives.release(), "tar.gz")
    archive.unpack(io.BytesIO(data), found, "kata-static-4.1.0-amd64.tar.zst")
    assert found.members


@pytest.mark.parametrize("compression", archives.COMPRESSIONS)
def test_a_bomb_is_refused_before_it_fills_the_disk(place, compression):
    members = [archives.file(f"opt/kata/{n}", bytes(1 << 20)) for n in range(20)]
    with pytest.raises(archive.Refused, match="larger than 8 MiB"):
        unpack(place, archives.pack(members, compression), most=8 << 20)
    assert sum(each.stat().st_size for each in place.iterdir()) <= 8 << 20


def test_a_declared_size_is_enough_to_refuse(place):
    member, _ = archives.file("opt/kata/x")
    member.size = 1 << 50
    with pytest.raises(archive.Refused, match="larger than"):
        unpack(place, member.tobuf(tarfile.GNU_FORMAT) + bytes(10240))


def test_an_endless_archive_without_contents_is_refused(place):
    """Zeros after the end are padding, but not for ever."""
    data = archives.pack(archives.release(), "tar") + bytes(6 << 20)
    with pytest.raises(archive.Refused, match="no end"):
        unpack(place, archives.COMPRESSIONS["tar.zst"](data), most=4 << 20)


def test_a_header_cannot_take_all_memory(place):
    """A long name may claim any length, and would be read into memory whole."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    data = member.tobuf(tarfile.GNU_FORMAT) + bytes(16 << 20)
    with pytest.raises(archive.Refused, match="header is too long"):
        unpack(place, data)


def test_headers_within_headers_come_to_an_end(place):
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2
    data = (member.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")) * 5000
    with pytest.raises(archive.Refused):
        unpack(place, data + bytes(1024))


def test_too_many_members_are_refused(place, monkeypatch):
    monkeypatch.setattr(archive, "MOST_MEMBERS", 10)
    with pytest.raises(archive.Refused, match="10 files"):
        unpack(place, archives.pack([archives.file(f"x{n}") for n in range(20)]))


# The disk


def test_a_disk_without_room_is_named_before_anything_is_written(place, monkeypatch):
    free = 10 << 20
    monkeypatch.setattr(os, "statvfs", lambda _path: _Disk(free))
    with pytest.raises(
        problems.Blocked, match=r"disk of .* is full: 10 MiB free, 25\d MiB needed"
    ):
        unpack(place, archives.pack(archives.release()))
    assert not list(place.rglob("*shim*"))


class _Disk:
    f_frsize = 1

    def __init__(self, free):
        self.f_bavail = free


def test_a_disk_that_fills_up_meanwhile_is_named(place):
    """The kernel refuses files beyond a size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = archives.pack([archives.file("opt/kata/x", bytes(1 << 20))])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(
            problems.Blocked, match=r"cannot unpack kata.tar into .*: File too large"
        ):
            unpack(place, data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_whole_disk_is_synced(place):
    (place / "x").write_text("x")
    disk.sync(place)
    with pytest.raises(OSError, match="bad"):
        disk.sync(place / "bad")


def test_a_large_archive_takes_little_memory(tmp_path):
    """400 MB in one file and a thousand small ones, in less than 100 MB with Python itself."""
    members = [archives.file("opt/kata/image", bytes(400 << 20))]
    members += [archives.file(f"opt/kata/small/{n}", b"x" * 100) for n in range(1000)]
    (tmp_path / "kata.tar.zst").write_bytes(archives.pack(members))
    script = (
        "import pathlib, sys\n"
        "from kata.release import archive, tree\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    archive.unpack(file, tree.Tree(pathlib.Path(sys.argv[2])), 'kata')\n"
        "print(pathlib.Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
    )
    (tmp_path / "tree").mkdir()
    argv = [sys.executable, "-c", script, tmp_path / "kata.tar.zst", tmp_path / "tree"]
    ran = subprocess.run(
        argv, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SRC)}
    )
    assert int(ran.stdout) < 100_000  # kB


# Whether it is Kata at all


def checked(place, members, architecture="amd64"):
    unpack(place, archives.pack(members))
    archive.check(place, architecture, "kata.tar")


def test_a_release_for_this_machine_will_do(place):
    checked(place, archives.release(architecture="arm64"), "arm64")


def test_a_script_may_stand_for_the_shim(place):
    checked(place, [archives.file(archives.GO, b"#!/bin/sh\nexec real\n", 0o755)])


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (archives.release(architecture="arm64"), "is not for amd64"),
        ([archives.file("opt/kata/README")], "no containerd-shim-kata-v2"),
        ([archives.file(archives.GO, archives.program(), 0o644)], "not executable"),
        ([archives.file(archives.GO, b"", 0o755)], "no program"),
        ([archives.file(archives.RUST, b"hello", 0o755)], "no program"),
        (
            [
                archives.file("opt/kata/x", archives.program(), 0o755),
                archives.link(archives.GO, "../x"),
            ],
            "not executable",
        ),
    ],
)
def test_a_release_that_cannot_run_here_is_refused(place, members, words):
    with pytest.raises(archive.Refused, match=words):
        checked(place, members)


@pytest.mark.parametrize(
    ("members", "found"),
    [
        (archives.release(), "release"),
        ([archives.file("./kata-runtime_1.13.0_amd64.deb", b"!<arch>")], "packages"),
        ([archives.folder("debs"), archives.file("debs/kata-shim_1.13.0_amd64.deb")], "packages"),
    ],
)
def test_a_release_is_told_from_packages(members, found):
    assert archive.holds(io.BytesIO(archives.pack(members)), "kata.tar") == found


def test_an_unrelated_archive_is_refused():
    data = archives.pack([archives.file("linux/Makefile"), archives.file("linux/README")])
    with pytest.raises(archive.Refused, match=r"neither opt/kata/ nor .deb files"):
        archive.holds(io.BytesIO(data), "kata.tar")


def test_packages_are_taken_out_by_their_names_alone(place):
    members = [
        archives.file("../../../a.deb", b"a"),
        archives.file("/etc/b.deb", b"b"),
        archives.file("notes.txt"),
        archives.link("c.deb", "/etc/passwd"),
    ]
    found = archive.unpack_debs(io.BytesIO(archives.pack(members)), place, "debs.tar")
    assert {each.name: each.read_bytes() for each in found} == {"a.deb": b"a", "b.deb": b"b"}
