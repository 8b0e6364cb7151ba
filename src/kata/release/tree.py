"""The tree that a release's archives are unpacked into, and what may have a place in it.

Names, links, kinds and modes come from outside and are checked here, before anything is created.
Only the unpacker itself writes below the tree's root; so what it has made there stays as it was.
"""

import os
import pathlib
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal, cast

from kata.release import release

Take = Callable[[int], Iterator[memoryview]]

# As archives spell it.
_PREFIX = pathlib.PurePosixPath(release.PREFIX).parts[1:]


class Bad(Exception):
    """Why an archive is refused."""


class Tree:
    """A folder that stands for `/opt/kata`. It takes several archives, the later ones on top.

    Attributes:
        root: the folder.
        members: how many files, folders and links have come so far.
        size: how many bytes.
        owners: the user ids that they belong to, as packed.
        elsewhere: how many members were left out, because they lie outside `opt/kata/`.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self.members = 0
        self.size = 0
        self.owners: set[int] = set()
        self.elsewhere = 0
        self._kinds: dict[tuple[str, ...], Literal["folder", "file", "link"]] = {}
        self._folders: dict[tuple[str, ...], tarfile.TarInfo] = {}

    def put(self, member: tarfile.TarInfo, take: Take) -> None:
        """Add a member of an archive.

        Args:
            member: it.
            take: yields so many bytes of the archive from here on.
        """
        path = path_of(member)
        if path is None:
            self.elsewhere += 1
            return
        if not path:
            return
        if path == (release.RECORD,):
            raise Bad(f"{release.RECORD} is this charm's own name")
        self.owners.add(member.uid)
        self._make_way(path, member)
        place = self.root.joinpath(*path)
        if member.isdir():
            self._folders[path] = member
        elif member.issym():
            _check_link(member.linkname, len(path) - 1)
            place.symlink_to(member.linkname)
            _own(place, member)
            os.utime(place, (member.mtime, member.mtime), follow_symlinks=False)
            self._kinds[path] = "link"
        elif member.islnk():
            target = _parts(member.linkname)[len(_PREFIX) :]
            if _place(member.linkname) is None or self._kinds.get(target) != "file":
                raise Bad(f"{shown(member.name)} is a hard link to something else")
            os.link(self.root.joinpath(*target), place)
            self._kinds[path] = "file"
        else:
            with place.open("xb") as file:
                _fill(file, member, take)
                _own(file.fileno(), member)
                os.fchmod(file.fileno(), member.mode & 0o777)
            os.utime(place, (member.mtime, member.mtime))
            self._kinds[path] = "file"

    def settle(self) -> None:
        """Give the folders their owners and modes, once nothing more goes into them."""
        for path, member in sorted(self._folders.items(), reverse=True):
            place = self.root.joinpath(*path)
            _own(place, member)
            place.chmod(member.mode & 0o777)
            os.utime(place, (member.mtime, member.mtime))

    def _make_way(self, path: tuple[str, ...], member: tarfile.TarInfo) -> None:
        """Make the folders above `path`, and remove an older file of that name.

        A folder stays a folder. So nothing is ever written through a link, and a link's leading
        `..` climb real folders only.
        """
        last = len(path) if member.isdir() else len(path) - 1
        for depth in range(1, last + 1):
            kind = self._kinds.setdefault(path[:depth], "folder")
            if kind != "folder":
                raise Bad(f"{shown(member.name)} lies behind a link or a file")
            self.root.joinpath(*path[:depth]).mkdir(exist_ok=True)
        if not member.isdir() and path in self._kinds:
            if self._kinds.pop(path) == "folder":
                raise Bad(f"{shown(member.name)} takes a folder's place")
            self.root.joinpath(*path).unlink()


def path_of(member: tarfile.TarInfo) -> tuple[str, ...] | None:
    """Return the path below `opt/kata/`; None for what lies outside, and has no place here."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise Bad(f"{shown(member.name)} is a device or a pipe")
    if member.mode & (stat.S_ISUID | stat.S_ISGID) and not member.isdir():
        raise Bad(f"{shown(member.name)} is setuid or setgid")
    path = _place(member.name)
    if path == () and not member.isdir():
        raise Bad(f"{shown(member.name)} is no folder")
    return path


def _place(name: str) -> tuple[str, ...] | None:
    parts = _parts(name)
    if name.startswith("/"):
        raise Bad(f"the path {shown(name)} is absolute")
    if ".." in parts:
        raise Bad(f"the path {shown(name)} leaves the archive")
    if parts == _PREFIX[: len(parts)]:
        return ()
    return parts[len(_PREFIX) :] if parts[: len(_PREFIX)] == _PREFIX else None


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _check_link(target: str, depth: int) -> None:
    """Refuse a symbolic link that leads out of `opt/kata/`.

    A target climbs first and then goes down, so that no other link can bend its way.

    Args:
        target: what the link says.
        depth: how many folders lie between `opt/kata/` and the link.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    if target.startswith("/"):
        inside = tuple(parts[: len(_PREFIX)]) == _PREFIX and ".." not in parts
    else:
        climbs = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
        inside = climbs <= depth and ".." not in parts[climbs:]
    if not inside:
        raise Bad(f"a link leads to {shown(target)}, out of {'/'.join(_PREFIX)}/")


def _fill(file: BinaryIO, member: tarfile.TarInfo, take: Take) -> None:
    """Write a file's contents; `tar -S` leaves holes out, and they stay holes."""
    at = 0
    for start, size in stored(member):
        if not at <= start <= start + size <= member.size:
            raise Bad(f"{shown(member.name)} has a broken map of its holes")
        file.seek(start)
        file.writelines(take(size))
        at = start + size
    file.truncate(member.size)


def stored(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return where the bytes that an archive holds of a file belong: offsets and sizes."""
    parts: list[tuple[int, int]] | None = cast("Any", member).sparse
    return [(0, member.size)] if parts is None else [part for part in parts if part[1]]


def _own(place: pathlib.Path | int, member: tarfile.TarInfo) -> None:
    if os.geteuid() == 0:
        os.chown(place, member.uid, member.gid, follow_symlinks=isinstance(place, int))


def shown(name: str) -> str:
    """Return a name from an archive as it may stand in a message."""
    safe = ascii(name)
    return safe if len(safe) <= 60 else f"{safe[:56]}...'"
