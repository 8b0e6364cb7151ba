"""The reader of release archives: whatever comes is unpacked inside its folder, or refused."""

import contextlib
import io
import pathlib
import stat
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from kata import problems
from kata.release import archive
from tests.fuzz import effort
from tests.unit import archives
from tests.unit.release.test_archive import unpack

NAMES = st.lists(
    st.sampled_from(["opt", "kata", "..", ".", "", "bin", "l", "x", "é", "a\nb", "\0", "y" * 300]),
    max_size=6,
).map("/".join)
MEMBERS = st.tuples(
    st.sampled_from([archives.file, archives.folder, archives.link, archives.hard]),
    NAMES,
    NAMES,
    st.integers(0, 0o7777),
    st.integers(0, 5000),
)


def survives(tmp_path_factory, data):
    """Unpack or refuse; nothing may get out, and nothing but a refusal may come back."""
    top = tmp_path_factory.mktemp("fuzz")
    (top / "tree").mkdir()
    outside = {top / name for name in ("x", "bin", "l", "opt")}  # what a link may want to reach
    for each in outside:
        each.write_text("untouched")
    with contextlib.suppress(problems.Blocked):
        unpack(top / "tree", data, most=8 << 20)
    assert set(top.iterdir()) == outside | {top / "tree"}
    assert all(each.read_text() == "untouched" for each in outside)
    for each in (top / "tree").rglob("*"):
        if each.is_symlink():
            target = each.readlink()
            leads = top / "tree" / pathlib.Path(*target.parts[3:])
            with contextlib.suppress(OSError, RuntimeError):  # to nothing, or round and round
                real = (leads if target.is_absolute() else each).resolve(strict=True)
                assert real.is_relative_to(top / "tree")
        else:
            assert not each.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


@effort.inputs(150)
@given(
    members=st.lists(MEMBERS, max_size=8), prefix=st.sampled_from(["", "opt/kata/", "./opt/kata/"])
)
def test_any_members_are_unpacked_inside_or_refused(tmp_path_factory, members, prefix):
    packed = []
    for make, name, to, mode, size in members:
        with contextlib.suppress(ValueError):
            if make in (archives.link, archives.hard):
                packed.append(make(prefix + name, to))
            elif make is archives.file:
                packed.append(make(prefix + name, b"z" * size, mode))
            else:
                packed.append(make(prefix + name, mode))
    survives(tmp_path_factory, archives.pack(packed, "tar"))


@effort.inputs(150)
@given(
    compression=st.sampled_from(sorted(archives.COMPRESSIONS)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.floats(0.2, 1),
)
def test_any_damage_is_refused_or_harmless(tmp_path_factory, compression, changes, cut):
    data = bytearray(archives.pack(archives.release(), compression))
    for where, value in changes:
        data[min(int(where * len(data)), len(data) - 1)] = value
    survives(tmp_path_factory, bytes(data[: int(cut * len(data)) + 1]))


@effort.inputs(150)
@given(
    headers=st.lists(st.tuples(st.integers(0, 499), st.integers(0, 255)), max_size=8),
    kind=st.sampled_from([bytes([kind]) for kind in b"0123456789LKxgSVMNDX\0"]),
)
def test_any_header_is_refused_or_harmless(tmp_path_factory, headers, kind):
    """The check sum is made right, so that the fields themselves are looked at."""
    member, _ = archives.file("opt/kata/x")
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = kind
    for where, value in headers:
        block[where] = value
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    survives(tmp_path_factory, bytes(block) + b"12 a=b\n12 c=d\n".ljust(1024, b"\0") + bytes(2048))


@effort.inputs(100)
@given(
    data=st.binary(max_size=600),
    magic=st.sampled_from([b"", b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"]),
)
def test_any_bytes_are_told_from_an_archive(data, magic):
    with contextlib.suppress(archive.Refused):
        archive.holds(io.BytesIO(magic + data), "kata.tar")
