"""The folders of `release.RELEASES`: each is one release, whole from the moment that it is there.

A release is unpacked under a name that nobody looks at, made safe on the disk, and renamed. What a
killed hook or a power cut leaves is found by its name and removed.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, BinaryIO

from kata import problems
from kata.machine import host
from kata.machine import node as kata_node
from kata.release import release

log = logging.getLogger(__name__)

_PARTIAL = ".partial-"
_GONE = ".gone-"


@dataclasses.dataclass(frozen=True)
class Source:
    """An archive to unpack.

    Attributes:
        name: of a published archive, or of the resource.
        file: its bytes, at the start.
        sha256: of them.
        pinned: whether somebody has said beforehand that it must be this.
    """

    name: str
    file: BinaryIO
    sha256: str
    pinned: bool


def folders(node: kata_node.Node) -> list[str]:
    """Return the names of the folders, in order."""
    place = node.path(release.RELEASES)
    if not place.is_dir():
        return []
    return sorted(each.name for each in place.iterdir() if not each.name.startswith("."))


def find(node: kata_node.Node, archives: Mapping[str, str], version: str = "") -> str | None:
    """Return the folder of a release that has been unpacked from these archives.

    The selected release comes first, if several fit.

    Args:
        node: the machine.
        archives: by name, the SHA-256 that each must have had; nothing if that is not known.
        version: of the release; any by default.
    """
    selected = release.remembered(node, release.SELECTED).get("folder")
    for folder in sorted(folders(node), key=lambda name: name != selected):
        found = release.recorded(node, f"{release.RELEASES}/{folder}")
        if not found or version not in ("", found.version) or not _fits(found, archives):
            continue
        if all(node.exists(_inside(folder, shim)) for shim in found.shims.values()):
            return folder
    return None


def unpack(
    node: kata_node.Node,
    sources: Sequence[Source],
    version: str = "",
    progress: Callable[[int], object] = lambda _read: None,
) -> str:
    """Unpack a release into a folder of its own.

    Args:
        node: the machine.
        sources: its archives; a later one's files take the place of an earlier one's.
        version: what it should be; anything by default.
        progress: told the bytes that have been read, of all archives.

    Returns:
        The folder's name.

    Raises:
        Refused: an archive is at fault.
        Blocked: the disk is.
    """
    from kata.machine import disk
    from kata.release import archive
    from kata.release import tree as kata_tree

    digests = [source.sha256 for source in sources]
    key = (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
    partial = f"{release.RELEASES}/{_PARTIAL}{key[:12]}"
    place = node.path(partial)
    with _removed_at_last(node, partial):
        place.mkdir(mode=0o700, parents=True)
        place.parent.chmod(0o755)
        tree = kata_tree.Tree(place)
        before = 0
        for source in sources:
            archive.unpack(
                source.file, tree, source.name, lambda read, start=before: progress(start + read)
            )
            before += source.file.tell()
        _tell(tree)
        archive.check(place, host.machine(node), sources[-1].name)
        if not version or not all(source.pinned for source in sources):
            found = _version(node, partial)
            if version and release.number(found) != release.number(version):
                raise archive.Refused(sources[-1].name, f"it is Kata {found}, not {version}")
            version = version or found
        shims, configurations = release.survey(place, release.PREFIX)
        record = release.Release(
            version=version,
            kind="archive",
            root=release.PREFIX,
            shims=shims,
            configurations=configurations,
            archives={source.name: source.sha256 for source in sources},
        )
        node.write(f"{partial}/{release.RECORD}", json.dumps(dataclasses.asdict(record)) + "\n")
        place.chmod(0o755)
        disk.sync(place)
        folder = f"{version}-{key[:12]}"
        if folder in folders(node):
            discard(node, folder)  # it was there, and no longer whole
        node.move(partial, f"{release.RELEASES}/{folder}")
    return folder


def discard(node: kata_node.Node, folder: str) -> None:
    """Remove a release: first its name, so that nobody takes what is left for a whole one."""
    gone = f"{release.RELEASES}/{_GONE}{folder}"
    with _removed_at_last(node, gone):
        node.move(f"{release.RELEASES}/{folder}", gone)


def clear_leftovers(node: kata_node.Node) -> None:
    """Remove what an earlier hook could not finish."""
    place = node.path(release.RELEASES)
    if not place.is_dir():
        return
    for each in place.iterdir():
        if each.name.startswith((_PARTIAL, _GONE)):
            with _removed_at_last(node, f"{release.RELEASES}/{each.name}"):
                pass


@contextlib.contextmanager
def _removed_at_last(node: kata_node.Node, folder: str) -> Generator[None]:
    """Start without a folder, and end without it."""
    import shutil

    place = node.path(folder)
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield
    except OSError as error:
        raise problems.Blocked(
            f"cannot write {folder}: {error.strerror}; mend it, then wait"
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _inside(folder: str, path: str) -> str:
    """Return where a path below `release.PREFIX` lies in a folder."""
    return f"{release.RELEASES}/{folder}{path.removeprefix(release.PREFIX)}"


def _tell(tree: Any) -> None:
    """Log what may surprise in an archive."""
    if foreign := tree.owners - {0}:
        log.warning("files of this Kata belong to other users than root, as packed: %s", foreign)
    if tree.elsewhere:
        log.info("%s members lie outside opt/kata/ and were left out", tree.elsewhere)


def _fits(found: release.Release, archives: Mapping[str, str]) -> bool:
    return all(
        digest in found.archives.values() if digest else name in found.archives
        for name, digest in archives.items()
    )


def _version(node: kata_node.Node, folder: str) -> str:
    """Return the version of a release: archives say it in a file from 3.2.0 on."""
    said = re.match(
        r"[0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.+~-]*", node.read(f"{folder}/VERSION") or ""
    )
    if said:
        return said[0]
    shim = next(path for path in release.SHIMS.values() if node.exists(f"{folder}/{path}"))
    return release.version_of(node, f"{folder}/{shim}")
