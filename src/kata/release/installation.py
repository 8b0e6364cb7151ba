"""Puts the asked Kata release into use, and takes away the ones that nobody uses.

`release.PREFIX` is a link that turns from one unpacked release to the next in one step. Sandboxes
keep the release that they run from until the last of them is gone.
"""

import contextlib
import json
import logging
import pathlib
import re
from collections.abc import Callable, Collection, Generator, Iterable

from kata import problems, settings
from kata.machine import node as kata_node
from kata.release import packages, release, sources, unpacked

log = logging.getLogger(__name__)

# Where `ensure_shim` may have let the link lead.
_SHIM_TARGETS = [
    f"{root}/{path}" for root in (release.PREFIX, "/usr") for path in release.SHIMS.values()
]


def provide(
    node: kata_node.Node,
    asked: settings.Settings,
    attached: pathlib.Path | None,
    progress: Callable[[str], object] = lambda _words: None,
) -> str | None:
    """Bring the release that the operator asked for onto the machine, unless it is there.

    Args:
        node: the machine.
        asked: the options.
        attached: the resource's file, as this process sees it; None or an empty one for none.
        progress: told in a few words what takes long, every two seconds at most.

    Returns:
        What `select` puts into use: a folder of `release.RELEASES`, or None for packages.

    Raises:
        Blocked, Waiting: it cannot be had; what was in use still is.
    """
    _refuse_foreign(node)
    with _named_faults():
        unpacked.clear_leftovers(node)
        node.path(release.STATE).mkdir(mode=0o700, parents=True, exist_ok=True)
        return sources.provide(node, asked, attached, progress)


def preview(
    node: kata_node.Node, folder: str | None
) -> tuple[kata_node.Node, release.Release | None]:
    """Return the node as it will be once a folder is selected, for reading, and its release.

    Args:
        node: the machine.
        folder: from `provide`. Packages are where they are: there is nothing to see ahead.
    """
    if not folder:
        select(node, None)
        return node, release.installed(node)
    place = f"{release.RELEASES}/{folder}"
    return node.once_linked(release.PREFIX, place), release.recorded(node, place)


def select(node: kata_node.Node, folder: str | None) -> bool:
    """Use what `provide` has returned from now on.

    Returns:
        True if another release is in use than before.

    Raises:
        Blocked: the packages bring no shim, or a file cannot be written.
    """
    with _named_faults():
        return _select(node, folder) if folder else _select_packages(node)


@contextlib.contextmanager
def switched(
    node: kata_node.Node, folder: str | None, installed: release.Release, shim: release.Shim
) -> Generator[None]:
    """Use what `provide` has returned, and its shim; go back if that or the rest is refused.

    Args:
        node: the machine.
        folder: from `provide`.
        installed: the release in it.
        shim: which of its shims.
    """
    links = {path: _target(node, path) for path in (release.PREFIX, release.SHIM_LINK)}
    selected = node.read(release.SELECTED)
    try:
        if node.exists(installed.shims[installed.shim(shim)]):
            # The release in use has this shim too: so there is one at each moment.
            ensure_shim(node, installed, shim)
        select(node, folder)
        ensure_shim(node, installed, shim)
        yield
    except problems.Problem:
        with contextlib.suppress(problems.Problem):
            for path, target in links.items():
                if target:
                    node.link(path, target)
            if selected:
                node.write(release.SELECTED, selected, mode=0o600)
        raise


def ensure_shim(node: kata_node.Node, installed: release.Release, shim: release.Shim) -> bool:
    """Let `release.SHIM_LINK` lead to a shim of the release.

    Returns:
        True if it led elsewhere before.

    Raises:
        Blocked: the release lacks the shim, or something foreign has the link's name.
    """
    _refuse_foreign(node)
    return node.link(release.SHIM_LINK, installed.shims[installed.shim(shim)])


def collect(node: kata_node.Node) -> tuple[str, ...]:
    """Remove the releases that are neither selected nor run from.

    It is for the end of a hook, when nothing points to the former release any more.

    Returns:
        What stays beside the selected release, because something runs from it.
    """
    selected = release.remembered(node, release.SELECTED)
    old = [name for name in unpacked.folders(node) if name != selected.get("folder")]
    link = _target(node, release.PREFIX)
    link_too = selected.get("kind") == "packages" and _is_ours(link)
    packages_too = selected.get("kind") == "archive" and node.exists(release.PACKAGES)
    if not (old or link_too or packages_too):
        return ()
    running = _running(node)
    if link_too and not _in_use(link.rpartition("/")[2], running):
        node.remove(release.PREFIX)
    kept = _discard(node, old, running)
    if packages_too:
        try:
            kept += packages.remove(node, running)
        except problems.Problem as problem:
            log.warning("the packages of Kata stay for now: %s", problem)
    return kept


def remove(node: kata_node.Node) -> tuple[str, ...]:
    """Take away all that `select` and `ensure_shim` brought.

    Returns:
        What stays, because something runs from it. The links stay with it.

    Raises:
        Blocked, Waiting: packages cannot be removed now.
    """
    running = _running(node)
    selected = release.remembered(node, release.SELECTED)
    folders = unpacked.folders(node)
    # First what leads there, so that nothing is found half removed.
    if not _in_use(str(selected.get("folder")), running):
        if _target(node, release.SHIM_LINK).startswith(f"{release.PREFIX}/"):
            node.remove(release.SHIM_LINK)
        if _is_ours(_target(node, release.PREFIX)):
            node.remove(release.PREFIX)
    kept = _discard(node, folders, running)
    unpacked.clear_leftovers(node)
    sources.forget(node)
    node.remove(release.RELEASES)
    node.remove(release.SELECTED)
    # Last, because apt may be busy.
    packages_kept = packages.remove(node, running)
    if not packages_kept and _target(node, release.SHIM_LINK).startswith("/usr/"):
        node.remove(release.SHIM_LINK)
    return kept + packages_kept


@contextlib.contextmanager
def _named_faults() -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise problems.Blocked(
            f"cannot install Kata: {error.filename}: {error.strerror}; mend it, then wait"
        ) from error


def _select(node: kata_node.Node, folder: str) -> bool:
    """Use an unpacked release from now on."""
    changed = node.link(release.PREFIX, f"{release.RELEASES}/{folder}")
    return _write_selected(node, {"kind": "archive", "folder": folder}) or changed


def _select_packages(node: kata_node.Node) -> bool:
    """Use the Kata that has come as packages from now on."""
    selected = release.remembered(node, release.SELECTED)
    shim = packages.shim(node)
    about = node.path(shim).stat()
    seen = [shim, about.st_size, about.st_mtime_ns]
    if selected.get("seen") == seen:
        return False
    root = next(root for root in packages.ROOTS if shim.startswith(f"{root}/"))
    version = release.version_of(node, shim)
    return _write_selected(
        node, {"kind": "packages", "root": root, "version": version, "seen": seen}
    )


def _write_selected(node: kata_node.Node, selected: dict[str, object]) -> bool:
    return node.write(release.SELECTED, json.dumps(selected) + "\n", mode=0o600)


def _discard(
    node: kata_node.Node, folders: Iterable[str], running: Collection[str]
) -> tuple[str, ...]:
    """Remove unpacked releases that nothing runs from; return the others."""
    kept: list[str] = []
    for folder in folders:
        path = f"{release.RELEASES}/{folder}"
        if _in_use(folder, running):
            kept.append(path)
        else:
            log.info("removing %s: nothing uses it", path)
            unpacked.discard(node, folder)
    return tuple(kept)


def _in_use(folder: str, running: Collection[str]) -> bool:
    return any(program.startswith(f"{release.RELEASES}/{folder}/") for program in running)


def _running(node: kata_node.Node) -> set[str]:
    """Return the programs that run, and what is mapped of unpacked releases."""
    mapped = re.compile(rf"{release.RELEASES}/\S+")
    found: set[str] = set()
    for process in node.path("/proc").glob("[0-9]*"):
        # A process may end while it is looked at, and a kernel thread has no program.
        with contextlib.suppress(OSError):
            found.add(str((process / "exe").readlink()).removesuffix(" (deleted)"))
            found.update(mapped.findall((process / "maps").read_text("utf-8", "surrogateescape")))
    return found


def _refuse_foreign(node: kata_node.Node) -> None:
    """Refuse to touch what somebody else has put where our links belong."""
    for path, ours in (
        (release.PREFIX, _is_ours(_target(node, release.PREFIX))),
        (release.SHIM_LINK, _target(node, release.SHIM_LINK) in _SHIM_TARGETS),
    ):
        place = node.path(path)
        if place.is_symlink():
            if not ours:
                raise problems.Blocked(
                    f"{path} leads to {place.readlink()}, which is not this charm's; "
                    "move the link elsewhere"
                )
        elif place.exists() and not _of_packages(node, path):
            raise problems.Blocked(
                f"{path} is there and not this charm's: move it elsewhere, or remove it"
            )


def _of_packages(node: kata_node.Node, path: str) -> bool:
    """Tell whether the selected release came as packages and lies there."""
    selected = release.remembered(node, release.SELECTED)
    return selected.get("kind") == "packages" and selected.get("root") == path


def _is_ours(target: str) -> bool:
    return target.startswith(f"{release.RELEASES}/")


def _target(node: kata_node.Node, link: str) -> str:
    """Return where a link leads; nothing if it is none."""
    place = node.path(link)
    return str(place.readlink()) if place.is_symlink() else ""
