"""Where a release comes from: the attached file, else an apt source, else a download."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, BinaryIO

from kata import pace as kata_pace
from kata import problems, settings
from kata.machine import host
from kata.machine import node as kata_node
from kata.release import packages, published, release, unpacked

log = logging.getLogger(__name__)

Progress = Callable[[str], object]

RESOURCE = "kata-archive"
DOWNLOADS = f"{release.STATE}/downloads"
ATTACHED = f"{release.STATE}/attached.json"
"""What the attached file was found to be, so that it is read once."""
_DEBS = f"{release.STATE}/debs"

_PIECE = 1 << 20


def provide(
    node: kata_node.Node,
    asked: settings.Settings,
    attached: pathlib.Path | None,
    progress: Progress,
) -> str | None:
    """Bring the asked release onto the machine, unless it is there.

    Args:
        node: the machine.
        asked: the options.
        attached: the resource's file, as this process sees it; None or an empty one for none.
        progress: told in a few words what takes long, every two seconds at most.

    Returns:
        The folder of `release.RELEASES` that it is in, or None if it came as packages.

    Raises:
        Blocked, Waiting: it cannot be had.
    """
    pace = kata_pace.Pace(progress)
    if attached and _size(attached):
        folder = _attached(node, asked, attached, pace)
    elif asked.packages:
        source = asked.package_source, asked.package_key
        packages.ensure(node, asked.packages, *source, progress=pace.say)
        folder = None
    else:
        folder = _published(node, asked, pace)
    _tidy(node)
    return folder


def forget(node: kata_node.Node) -> None:
    """Remove what was downloaded, and what was noted of the attached file."""
    _tidy(node)
    node.remove(DOWNLOADS)
    node.remove(ATTACHED)


def _size(attached: pathlib.Path) -> int:
    try:
        return attached.stat().st_size
    except OSError as error:
        raise problems.Blocked(
            f"the resource {RESOURCE} cannot be read: {error.strerror}; attach it again"
        ) from error


def _attached(
    node: kata_node.Node, asked: settings.Settings, attached: pathlib.Path, pace: kata_pace.Pace
) -> str | None:
    # The charm's next edition may be able to read what this one refuses.
    edition = pathlib.Path(__file__).stat().st_mtime_ns
    known = release.remembered(node, ATTACHED)
    with attached.open("rb", buffering=0) as file:
        about = os.fstat(file.fileno())
        seen = [str(attached), about.st_size, about.st_mtime_ns, about.st_ino, edition]
        if known.get("seen") != seen:
            percent = pace.percent("reading the attached archive", about.st_size)
            known = {"seen": seen, "sha256": _digest(file, percent)}
            _remember(node, known)
        digest = str(known["sha256"])
        if asked.archive_sha256 not in ("", digest):
            raise problems.Blocked(
                f"option archive-sha256: the attached {RESOURCE} has {digest[:12]}..., not "
                f"{asked.archive_sha256[:12]}...; correct the option, or attach another"
            )
        if folder := unpacked.find(node, {RESOURCE: digest}):
            return folder
        if "refused" in known:
            raise problems.Blocked(known["refused"])
        if packages.are_from(node, digest):
            return None
        if not asked.archive_sha256 and not published.is_known(digest):
            log.warning("the attached %s, SHA-256 %s, is unverified", RESOURCE, digest)
        return _open_attached(node, file, known, pace)


def _open_attached(
    node: kata_node.Node, file: BinaryIO, known: dict[str, Any], pace: kata_pace.Pace
) -> str | None:
    """Install what the attached file holds: a release, or packages."""
    from kata.release import archive

    digest = known["sha256"]
    try:
        file.seek(0)
        if archive.holds(file, RESOURCE) == "release":
            file.seek(0)
            percent = pace.percent("unpacking the attached archive", known["seen"][1])
            source = unpacked.Source(RESOURCE, file, digest, pinned=False)
            return unpacked.unpack(node, [source], progress=percent)
        file.seek(0)
        pace.say("installing the attached packages")
        with _deb_folder(node) as folder:
            packages.ensure_files(node, archive.unpack_debs(file, folder, RESOURCE), digest)
    except archive.Refused as refused:
        _remember(node, {**known, "refused": str(refused)})
        raise
    return None


def _published(node: kata_node.Node, asked: settings.Settings, pace: kata_pace.Pace) -> str:
    version, architecture = asked.kata_version, host.machine(node)
    hypervisors = {asked.hypervisor, *dict(asked.extra_runtime_classes).values()}
    names = published.assets(version, architecture, asked.shim, hypervisors)
    if len(names) > 1:
        _refuse_one_for_two(asked, names)
    wanted = {
        name: asked.archive_sha256 or published.known_digest(version, name) for name in names
    }
    if folder := unpacked.find(node, wanted, version):
        return folder
    addresses = {
        name: published.address(asked.archive_url, version, architecture, name) for name in names
    }
    return _fetched(node, version, addresses, wanted, pace)


def _refuse_one_for_two(asked: settings.Settings, names: tuple[str, ...]) -> None:
    """Refuse options that stand for one archive where two are needed."""
    why = f"{' and '.join(names)} are both needed"
    if asked.archive_sha256:
        raise problems.Blocked(f"option archive-sha256: {why}; leave it empty, or set shim=go")
    if (
        asked.archive_url
        and not asked.archive_url.endswith("/")
        and "{name}" not in asked.archive_url
    ):
        raise problems.Blocked(f"option archive-url: {why}; put {{name}} into it")


def _fetched(
    node: kata_node.Node,
    version: str,
    addresses: Mapping[str, str],
    wanted: Mapping[str, str],
    pace: kata_pace.Pace,
) -> str:
    """Download archives and unpack them."""
    from kata.release import archive, download

    node.path(DOWNLOADS).mkdir(mode=0o700, parents=True, exist_ok=True)
    _keep_only(node, addresses)
    size = 0
    found: dict[str, str] = {}
    for name, url in addresses.items():
        percent = pace.percent(f"downloading Kata {version}")
        path = f"{DOWNLOADS}/{name}"
        found[name] = download.fetch(node, url, path, sha256=wanted[name], progress=percent)
        size += node.path(path).stat().st_size
        if not wanted[name]:
            log.warning(
                "%s, SHA-256 %s, is unverified: it came by https, and the charm knows no digest "
                "of it; archive-sha256 can give one",
                name,
                found[name],
            )
    percent = pace.percent(f"unpacking Kata {version}", size)
    try:
        with contextlib.ExitStack() as stack:
            sources = [
                unpacked.Source(
                    name,
                    stack.enter_context(node.path(f"{DOWNLOADS}/{name}").open("rb", buffering=0)),
                    digest,
                    pinned=bool(wanted[name]),
                )
                for name, digest in found.items()
            ]
            folder = unpacked.unpack(node, sources, version, percent)
    except archive.Refused as refused:
        name = refused.name
        download.refuse(node, f"{DOWNLOADS}/{name}", str(refused), wanted[name])
        raise
    return folder


def _keep_only(node: kata_node.Node, names: Collection[str]) -> None:
    """Remove all downloads but these and their notes."""
    for each in node.path(DOWNLOADS).glob("*"):
        if each.name.removesuffix(".json") not in names:
            node.remove(f"{DOWNLOADS}/{each.name}")


def _tidy(node: kata_node.Node) -> None:
    """Remove what is installed by now, and what a killed hook may have left of it."""
    _keep_only(node, ())
    _remove_debs(node)


@contextlib.contextmanager
def _deb_folder(node: kata_node.Node) -> Generator[pathlib.Path]:
    """Lend a folder that only root sees."""
    place = node.path(_DEBS)
    _remove_debs(node)
    place.mkdir(mode=0o700)
    try:
        yield place
    finally:
        _remove_debs(node)


def _remove_debs(node: kata_node.Node) -> None:
    import shutil

    shutil.rmtree(node.path(_DEBS), ignore_errors=True)


def _digest(file: BinaryIO, progress: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
        progress(file.tell())
    return digest.hexdigest()


def _remember(node: kata_node.Node, known: dict[str, Any]) -> None:
    node.write(ATTACHED, json.dumps(known) + "\n", mode=0o600)
