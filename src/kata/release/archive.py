"""A Kata release archive, unpacked as a stream: nothing in it is trusted, little of it is held.

The archives of Kata hold one tree, `opt/kata/`, of plain files, folders and links inside it
(kata-containers, tools/packaging/kata-deploy/local-build/kata-deploy-merge-builds.sh, to 4.1.0).
Whatever else an archive can hold is refused. A tar of Debian packages, which the older charm took,
is told apart.

Callers unpack into a folder that nobody else can reach, and throw it away after an error.
"""

import contextlib
import errno
import pathlib
import tarfile
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO, Literal, cast

from kata import problems
from kata.machine import disk
from kata.machine.host import Architecture
from kata.release import release, tape
from kata.release import tree as kata_tree

MOST_BYTES = 16 << 30
"""What an archive may unpack to. 4.0.0, the largest to date, needs less than 6 GB."""
MOST_MEMBERS = 100_000

# Long names, attributes and maps of holes are read into memory whole.
_MOST_HEADER = 4 << 20
# e_machine of the ELF header (linux/elf-em.h).
_ELF_MACHINES = {"amd64": 62, "arm64": 183}
# What a damaged or a hostile header makes tarfile raise, beside its own errors.
_BROKEN = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError)

# What the names in an archive can make a sound disk say.
_NAME_FAULTS = (errno.ENAMETOOLONG, errno.ENOENT, errno.EINVAL, errno.EILSEQ, errno.EMLINK)


class Refused(problems.Blocked):
    """An archive itself is at fault: only another one will do.

    Attributes:
        name: which one.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is refused: {reason}; give another archive")
        self.name = name


def unpack(
    source: BinaryIO,
    tree: kata_tree.Tree,
    name: str,
    progress: Callable[[int], object] = lambda _read_in: None,
    most: int = MOST_BYTES,
) -> None:
    """Unpack what lies below `opt/kata/`, with the owners and modes that it was packed with.

    Args:
        source: the archive: .tar, .tar.gz, .tar.xz or .tar.zst, whatever it is called.
        tree: where it goes.
        name: what to call the archive in a refusal.
        progress: told the bytes read of `source`, now and then.
        most: how many bytes the tree may come to.

    Raises:
        Refused: the archive is broken, hostile, or something else.
        Blocked: it does not fit on the disk, or the disk fails.
    """
    with _judged(name, tree.root), contextlib.closing(tape.Tape(source)) as reel:

        def take(size: int) -> Iterator[memoryview]:
            for piece in reel.take(size):
                progress(reel.read_in)
                yield piece

        for member in _members(reel, most):
            tree.members += 1
            tree.size += member.size
            if tree.members > MOST_MEMBERS or tree.size > most:
                raise kata_tree.Bad(f"it is larger than {most >> 20} MiB or {MOST_MEMBERS} files")
            disk.require_room(tree.root.parent, sum(size for _, size in kata_tree.stored(member)))
            tree.put(member, take)
        tree.settle()


def holds(source: BinaryIO, name: str) -> Literal["release", "packages"]:
    """Tell a release of Kata from a tar of Debian packages, by the first members.

    Raises:
        Refused: it is neither.
    """
    with _judged(name), contextlib.closing(tape.Tape(source)) as reel:
        for member in _members(reel, MOST_BYTES):
            if kata_tree.path_of(member):
                return "release"
            if member.isreg() and member.name.endswith(".deb"):
                return "packages"
        raise kata_tree.Bad(f"it holds neither {release.PREFIX[1:]}/ nor .deb files")


def unpack_debs(source: BinaryIO, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Take the Debian packages out of an archive, all into one folder.

    Raises:
        Refused, Blocked: as `unpack`.
    """
    found: set[pathlib.Path] = set()
    with _judged(name, folder), contextlib.closing(tape.Tape(source)) as reel:
        for member in _members(reel, MOST_BYTES):
            place = folder / (member.name.rpartition("/")[2])
            if not member.isreg() or place.suffix != ".deb":
                continue
            disk.require_room(folder, member.size)
            with place.open("wb") as file:
                for piece in reel.take(member.size):
                    file.write(piece)
            found.add(place)
            if len(found) > 1000:
                raise kata_tree.Bad("it holds more than 1000 packages")
    return sorted(found)


def check(tree: pathlib.Path, architecture: Architecture, name: str) -> None:
    """Refuse a tree that is no Kata for this machine.

    Raises:
        Refused: it has no shim, or one that this machine cannot run.
    """
    with _judged(name):
        present = [path for path in release.SHIMS.values() if (tree / path).is_file()]
        if not present:
            raise kata_tree.Bad("there is no containerd-shim-kata-v2 in it")
        for path in present:
            shim = tree / path
            if shim.is_symlink() or not shim.stat().st_mode & 0o100:
                raise kata_tree.Bad(f"its {path} is not executable")
            with shim.open("rb") as file:
                head = file.read(20)
            if head.startswith(b"#!"):
                continue
            if len(head) < 20 or not head.startswith(b"\x7fELF"):
                raise kata_tree.Bad(f"its {path} is no program")
            if int.from_bytes(head[18:20], "little") != _ELF_MACHINES[architecture]:
                raise kata_tree.Bad(f"its {path} is not for {architecture}")


def _members(reel: tape.Tape, most: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members; the tape stands at the contents of the one that is yielded."""
    reel.allow(_MOST_HEADER)
    # tarfile reads the headers only: contents that go past it are not copied again.
    archive: Any = tarfile.TarFile(
        fileobj=cast("Any", reel), errorlevel=1, encoding="utf-8", errors="surrogateescape"
    )
    member: tarfile.TarInfo | None
    while (member := archive.next()) is not None:
        if not 0 <= member.size <= most or reel.tell() > most + MOST_MEMBERS * 1024:
            raise kata_tree.Bad(f"it is larger than {most >> 20} MiB")
        yield member
        archive.members.clear()
        reel.allow(_MOST_HEADER)
    # tarfile takes a damaged header for the end; a real end is a block of zeros.
    if reel.last != bytes(tarfile.BLOCKSIZE):
        raise kata_tree.Bad("it is broken or ends in the middle")
    reel.drain(most)


@contextlib.contextmanager
def _judged(name: str, place: pathlib.Path | None = None) -> Generator[None]:
    """Turn what is wrong into words that name the archive, or the disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NAME_FAULTS:
            raise Refused(name, reason) from error
        where = f" into {place.parent}" if place else ""
        raise problems.Blocked(
            f"cannot unpack {name}{where}: {reason}; mend it, then wait"
        ) from error
    except (kata_tree.Bad, tape.Damaged) as error:
        raise Refused(name, str(error)) from error
    except _BROKEN as error:
        raise Refused(name, f"it is broken ({kata_tree.shown(str(error))})") from error
