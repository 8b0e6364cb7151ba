"""Kata's configuration.toml of each handler: the release's shipped file, and the options.

The shipped file is read and never written. Ours is a copy of it with comments and order kept, in
which only those keys differ that an option asks for.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping

from kata import handlers, problems, settings
from kata.configuration import custody, keys, overlay
from kata.configuration import text as configuration_text
from kata.machine import node as kata_node
from kata.release import release

RUST_MAIN = f"{handlers.FOLDER}/runtime-rs/configuration.toml"
"""Where the Rust shim and kata-ctl look from 3.3.0 on when no file is named (Kata,
src/libs/kata-types/src/config/default.rs); up to 3.2.0 that was the Go shim's place."""

_RUST_LINK = "../configuration.toml"
_FRAGMENTS = f"{handlers.FOLDER}/config.d"
_GO_FRAGMENTS = (2, 5, 0)
# What makes a file: a new revision of the charm makes it anew.
_CODE = ("text.py", "keys.py", "overlay.py", "toml_changes.py")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The configuration files that are wanted.

    Attributes:
        paths: of all of them.
        made: the texts of those that are not there, or not like this, by path.
        is_rust: whether the Rust shim reads the main one.
        warnings: what the operator should know.
    """

    paths: tuple[str, ...]
    made: Mapping[str, str]
    is_rust: bool
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Source:
    """What one configuration file is made from."""

    release: release.Release
    handler: handlers.Handler
    options: settings.Settings
    extra: configuration_text.Extra
    shipped: str


def plan(
    node: kata_node.Node,
    installed: release.Release,
    wanted: Iterable[handlers.Handler],
    options: settings.Settings,
    extras: Mapping[str, configuration_text.Extra] | None = None,
    *,
    kept: Collection[str] = (),
) -> Plan:
    """Return the configuration files of the handlers; nothing is written.

    Each file says what it was made from: while that is the same, nothing is parsed.

    Args:
        node: the machine, as it is or as it will be when the release is in use.
        installed: the release.
        wanted: the handlers; those that share a file share a configuration.
        options: the charm's.
        extras: more settings, by the handler's name.
        kept: names of handlers whose file stays as it is.

    Raises:
        Blocked: an option does not fit the release.
    """
    files: dict[str, handlers.Handler] = {}
    for handler in wanted:
        files.setdefault(handler.configuration, handler)
    made: dict[str, str] = {}
    warnings: list[str] = []
    for path, handler in files.items():
        if handler.name in kept:
            continue
        extra = (extras or {}).get(handler.name, configuration_text.Extra())
        shipped = extra.shipped or installed.shipped(handler.hypervisor, handler.shim)
        source = _Source(installed, handler, options, extra, shipped)
        inputs = _inputs(node, source)
        mark = custody.look(node, path)
        if not mark or not mark.intact or mark.inputs != inputs:
            text, said = _make(node, source)
            made[path] = custody.stamp(text, shipped, inputs)
            warnings += said
    main = files.get(handlers.MAIN)
    is_rust = main is not None and main.shim == "rust"
    return Plan(tuple(files), made, is_rust, tuple(dict.fromkeys(warnings)))


def ensure(node: kata_node.Node, planned: Plan) -> bool:
    """Write the files of a plan; those of handlers that are gone go too.

    Returns:
        True if anything changed.
    """
    node.reclaim(handlers.FOLDER)
    for path, text in planned.made.items():
        custody.place(node, path, text)
    gone = [custody.release(node, path) for path in _ours(node) if path not in planned.paths]
    linked = _link(node) if planned.is_rust else _unlink(node)
    return bool(planned.made) or any(gone) or linked


def is_ours(node: kata_node.Node, path: str) -> bool:
    """Return whether a configuration file is there and was written by us."""
    return custody.look(node, path) is not None


def remove(node: kata_node.Node) -> bool:
    """Take away our files, and put back what was there before them.

    Returns:
        True if anything changed.
    """
    changed = _unlink(node)
    for path in _ours(node):
        changed = custody.release(node, path) or changed
    for kept in _named(node, f"configuration*.toml{custody.BEFORE}"):
        # The power may have gone between keeping theirs and writing ours.
        changed = custody.put_back(node, kept.removesuffix(custody.BEFORE)) or changed
    return node.remove(handlers.FOLDER) or changed


def fragments(node: kata_node.Node, number: keys.Number, shim: str) -> tuple[str, ...]:
    """Return the files that Kata lays over every configuration of ours; they are left alone.

    It takes all that lies in the folder, by whatever name (Kata,
    src/runtime/pkg/katautils/config.go, src/libs/kata-types/src/config/drop_in.rs).
    """
    if shim == "go" and number < _GO_FRAGMENTS:
        return ()
    folder = node.path(_FRAGMENTS)
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return tuple(f"{_FRAGMENTS}/{name}" for name in names)


def _make(node: kata_node.Node, source: _Source) -> tuple[str, tuple[str, ...]]:
    """Return a handler's configuration, and what the operator should know of it."""
    text = node.read(source.shipped)
    if text is None:
        raise problems.Blocked(
            f"Kata {source.release.version} lacks {source.shipped}; choose another hypervisor "
            "or kata-version"
        )
    handler, options = source.handler, source.options
    known = keys.Known(source.release.number, handler.shim, keys.mentions(text))
    tree = overlay.read(options.kata_config)
    laid = overlay.settings_of(tree, handler.hypervisor, known.hypervisor())
    warnings = overlay.check(laid, known)
    homes = [handlers.FOLDER]
    if source.release.kind == "archive":
        homes.append(source.release.root)
    overlay.check_files(node, laid, homes)
    made = configuration_text.render(text, known, options, laid, source.extra)
    return made, (
        *warnings,
        *_missing(node, source, keys.Known(known.number, known.shim, keys.mentions(made))),
    )


def _missing(node: kata_node.Node, source: _Source, made: keys.Known) -> Iterator[str]:
    """Warn of files without which no sandbox starts: a release may count on another package."""
    for key in ("path", "kernel"):
        file = made.example(("hypervisor", made.hypervisor(), key))
        if file and not node.exists(str(file)):
            yield f"Kata {source.release.version}: {key} = {file!r} is not there: no sandbox will start"


def _inputs(node: kata_node.Node, source: _Source) -> str:
    """Return a digest of all that a configuration file is made from, without reading the shipped.

    The shipped file counts by its real place, which names the release, its size and its time.
    """
    place = node.path(source.shipped)
    try:
        known = place.stat()
        shipped = (os.path.realpath(place), known.st_size, known.st_mtime_ns)
    except OSError:
        shipped = ()
    options = source.options
    parts = (
        [pathlib.Path(__file__).with_name(name).read_bytes() for name in _CODE],
        (source.release.version, source.handler.hypervisor, source.handler.shim),
        shipped,
        (options.default_vcpus, options.default_memory, options.enable_annotations),
        (options.debug_console, options.kata_config),
        sorted(source.extra.keys.items(), key=repr),
        source.extra.kernel_params,
    )
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()


def _named(node: kata_node.Node, pattern: str) -> list[str]:
    folder = node.path(handlers.FOLDER)
    return [f"{handlers.FOLDER}/{place.name}" for place in sorted(folder.glob(pattern))]


def _ours(node: kata_node.Node) -> list[str]:
    return [path for path in _named(node, "configuration*.toml") if custody.look(node, path)]


def _is_our_link(node: kata_node.Node) -> bool:
    place = node.path(RUST_MAIN)
    return place.is_symlink() and os.readlink(place) == _RUST_LINK


def _link(node: kata_node.Node) -> bool:
    if _is_our_link(node):
        return False
    custody.clear(node, RUST_MAIN)
    return node.link(RUST_MAIN, _RUST_LINK)


def _unlink(node: kata_node.Node) -> bool:
    changed = _is_our_link(node) and node.remove(RUST_MAIN)
    changed = custody.put_back(node, RUST_MAIN) or changed
    return node.remove(os.path.dirname(RUST_MAIN)) or changed
