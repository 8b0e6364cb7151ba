"""Which files containerd reads, and what each must say for our handlers to take effect.

The main file may import others. Up to containerd 1.7 the CRI plugin's table of the last file that
has one replaces those of all files before it; from 2.0 on all are merged
(containerd, services/server/config/config.go 1.3 - 1.7, cmd/containerd/server/config/config.go 2.x).
So what counts is the merged configuration, and `plan` finds the place in it that counts.

This module runs in hooks and in the guard before containerd starts: it needs Python alone.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from kata.containerd import config, toml_statements
from kata.containerd.config import Wanted
from kata.containerd.toml_statements import Path

Release = tuple[int, int, int]
"""A release of containerd, such as (1, 6, 20)."""

DROP_IN = "kata-charm.toml"
"""Our own file in a folder that the main file imports, on containerd 2.0 and later."""

_RUNC = """\
[plugins."{plugin}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""
_READ: frozenset[Path] = frozenset(
    {
        ("version",),
        ("imports",),
        ("state",),
        ("disabled_plugins",),
        ("grpc", "address"),
        ("plugins", "io.containerd.server.v1.grpc", "address"),
    }
)


class Disk(Protocol):
    """Where files are read from."""

    def read(self, path: str, /) -> str | None:
        """Return a file's text, or None where there is no such file."""
        ...

    def names(self, folder: str, /) -> list[str]:
        """Return the names in a folder, sorted; none where there is no such folder."""
        ...


class Changed:
    """A disk as it will be after some changes.

    Args:
        disk: the disk as it is.
        changes: new texts by path; None for a file that goes.
    """

    def __init__(self, disk: Disk, changes: Mapping[str, str | None]) -> None:
        self.disk = disk
        self.changes = changes

    def read(self, path: str) -> str | None:
        """Return a file's text as it will be."""
        return self.changes[path] if path in self.changes else self.disk.read(path)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder as they will be."""
        names = set(self.disk.names(folder))
        for path, text in self.changes.items():
            if os.path.dirname(path) == folder:
                (names.discard if text is None else names.add)(os.path.basename(path))
        return sorted(names)


class File(NamedTuple):
    """A file that containerd reads, as far as it matters here."""

    path: str
    text: str
    values: Mapping[Path, str]
    """Values of the keys in `_READ`, as they are written."""
    imports: tuple[str, ...]
    """Paths and patterns, made absolute."""
    tables: frozenset[str]
    """Schemas whose CRI plugin has a table in this file."""
    runtimes: frozenset[str]
    """Schemas whose table of handlers is in this file."""
    is_empty: bool
    """Nothing but comments is in it."""

    @property
    def version(self) -> int:
        """The schema version that the file claims; 0 when it claims none."""
        written = self.values.get(("version",), "0").replace("_", "").lstrip("+")
        return int(written) if written.isdecimal() and len(written) < 10 else 0


def read(main: str, disk: Disk) -> tuple[File, ...]:
    """Return the files that containerd reads, in its order: later ones win.

    Args:
        main: path of the main file; it counts as empty where it is missing.
        disk: where to read.

    Raises:
        Malformed: a file is no TOML; its `path` says which.
    """
    found: dict[str, File] = {}
    pending = [main]
    while pending:
        path = pending.pop(0)
        text = disk.read(path)
        if path in found or (text is None and path != main):
            continue
        found[path] = _file(path, text or "")
        pending += imported(found[path], disk)
    return tuple(found.values())


def imported(file: File, disk: Disk) -> list[str]:
    """Return the paths that a file imports, in containerd's order; some may be missing."""
    paths: list[str] = []
    for pattern in file.imports:
        paths += _matching(pattern, disk) if "*" in pattern else [pattern]
    return paths


def seen(files: Iterable[File]) -> list[tuple[str, str]]:
    """Return what decides what these files are and say: facts that `facts.record` can keep."""
    found = list(files)
    patterns = [pattern for file in found for pattern in file.imports if "*" in pattern]
    folders = {folder for pattern in patterns for folder in _folders(pattern)}
    return [("file", file.path) for file in found] + [("names", each) for each in sorted(folders)]


def _folders(pattern: str) -> list[str]:
    """Return the folders whose names decide what a pattern matches."""
    folder = pattern.rpartition("/")[0]
    while _META.search(folder):
        folder = folder.rpartition("/")[0]
    return [folder or "/"]


def value(files: Iterable[File], *path: str) -> str:
    """Return the string that the merged configuration has at one of the keys in `_READ`."""
    said = [toml_statements.string(file.values.get(path, "")) for file in files]
    return next(filter(None, reversed(said)), "")


def listed(files: Iterable[File], *path: str) -> list[str]:
    """Return the strings of an array at one of the keys in `_READ`: of all files together."""
    written = [file.values.get(path, "[]") for file in files]
    return [each for array in written for each in toml_statements.strings(array, (0, len(array)))]


def plan(
    main: str, disk: Disk, release: Release, wanted: Wanted, touched: Iterable[str] = ()
) -> dict[str, str | None]:
    """Return what must change so that containerd has our handlers, and nothing else is lost.

    Args:
        main: path of containerd's main file.
        disk: the files as they are.
        release: the containerd that will read them.
        wanted: our handlers; with none, every trace of them goes.
        touched: files that once had something of ours, read by containerd or not.

    Returns:
        New texts by path; None for a file of ours that goes. Nothing when all is as it should be.

    Raises:
        Malformed: a file is no TOML; its `path` says which.
    """
    now = {file.path: file.text for file in read(main, disk)}
    texts = {path: text for path in touched if (text := disk.read(path)) is not None}
    texts.update(now)
    bare: dict[str, str | None] = {}
    for path, text in texts.items():
        try:
            is_ours = config.is_ours_alone(text)
            bare[path] = None if is_ours else config.restore(text, wanted.known)
        except toml_statements.Malformed as error:
            error.path = path
            raise
    ours = {path for path, text in bare.items() if text is None}
    desired = dict(bare)
    if disk.read(main) is None:
        desired[main] = None
    if wanted.handlers:
        files = [_file(path, bare[path] or "") for path in now if path == main or path not in ours]
        desired.update(_added(files, disk, release, wanted, alone=desired[main] is None))
    return {path: text for path, text in desired.items() if text != disk.read(path)}


def _added(
    files: list[File], disk: Disk, release: Release, wanted: Wanted, *, alone: bool
) -> dict[str, str | None]:
    """Return the texts of the files that get handlers or that are cleared for them."""
    main = files[0]
    if main.is_empty and release >= (1, 3, 0):
        # The names that this containerd reads without a migration, and the next one as well.
        version = 2 if release < (2, 0, 0) else 3
        head, schema = f"version = {version}\n", f"v{version}"
        section = head + _section(main, release, schema, wanted)
        return {main.path: config.add(main.text, schema, wanted, section=section, alone=alone)}
    if release < (2, 0, 0):
        schema = _schema(files, release)
        target = next((file for file in reversed(files) if schema in file.tables), main)
        section = _section(target, release, schema, wanted)
        alone = alone and target is main
        text = config.add(target.text, schema, wanted, section=section, alone=alone)
        return {target.path: text}
    schemas = [_schema(files if release < (2, 3, 0) else [file], release) for file in files]
    cleared: dict[str, str | None] = {
        file.path: config.add(file.text, schema, wanted, section="")
        for file, schema in zip(files, schemas, strict=True)
    }
    drop_in = f"{_folder(main, disk)}/{DROP_IN}"
    is_free = drop_in not in cleared and drop_in != f"/{DROP_IN}"
    if is_free and all(cleared[file.path] == file.text for file in files):
        # With another version than the main file's, containerd 2.0 - 2.2 does not migrate the main
        # file, and 2.3 refuses a higher one.
        head = f"version = {main.version}\n" if main.version else ""
        schema = schemas[0] if release < (2, 3, 0) else ("v2" if main.version == 2 else "v3")
        section = head + wanted.sections[schema]
        return {drop_in: config.add("", schema, wanted, section=section, alone=True)}
    return cleared | {main.path: config.add(main.text, schemas[0], wanted)}


def _section(file: File, release: Release, schema: str, wanted: Wanted) -> str:
    section = wanted.sections[schema]
    if (1, 5, 0) <= release < (2, 0, 0) and schema not in file.runtimes:
        # The first handler in a file does away with the built-in runc there: go-toml makes the map
        # anew (containerd 1.5 - 1.7; 1.4 and 2.x fill the map that they have).
        section = _RUNC.format(plugin=config.CRI[schema]) + section
    return section


def _schema(files: list[File], release: Release) -> str:
    """Return the names under which this containerd looks for handlers, by `CRI`'s keys."""
    if release < (2, 0, 0):
        version = next((file.version for file in reversed(files) if file.version), 1)
        return "v2" if version >= 2 and release >= (1, 3, 0) else "v1"
    used = frozenset[str]().union(*(file.runtimes for file in files))
    if "v3" in used:
        return "v3"
    if release < (2, 3, 0):
        # A file without a header, or of version 1, is taken for one of version 3 here: only its
        # plugins' names change, and what it says under them is lost (2.0 - 2.2, LoadConfig).
        version = next((file.version for file in reversed(files) if file.version > 1), 3)
        return "v2" if version == 2 else "v3"
    # Each file is migrated by itself, and older names give way to version 3's.
    older = [name for name in ("v2", "v1") if name in used]
    if files[0].version == 2:
        return "v2"
    return next((name for name in older if name == "v2" or files[0].version < 2), "v3")


def _folder(main: File, disk: Disk) -> str:
    """Return a folder whose files the main file imports, if there is one."""
    for pattern in main.imports:
        folder, _, names = pattern.rpartition("/")
        if "*" in names and not _META.search(folder) and _regex(names).fullmatch(DROP_IN):
            parent, _, name = folder.rpartition("/")
            if name in disk.names(parent or "/"):
                return folder
    return ""


def _file(name: str, text: str) -> File:
    values: dict[Path, str] = {}
    tables: set[str] = set()
    runtimes: set[str] = set()
    is_empty = True
    try:
        for statement in toml_statements.statements(text):
            is_empty = False
            if statement.path in _READ and statement.value:
                values[statement.path] = text[slice(*statement.value)]
            for schema in config.CRI:
                for path in config.defined(text, statement, schema):
                    tables.add(schema)
                    if path[2:4] == ("containerd", "runtimes"):
                        runtimes.add(schema)
        array = values.get(("imports",), "[]")
        imports = toml_statements.strings(array, (0, len(array)))
    except toml_statements.Malformed as error:
        error.path = name
        raise
    above = os.path.dirname(name)
    imports = tuple(os.path.normpath(os.path.join(above, each)) for each in imports)
    return File(name, text, values, imports, frozenset(tables), frozenset(runtimes), is_empty)


# Go's path/filepath.Match: unlike a shell, a star takes a leading dot too.
_META = re.compile(r"[*?\[\\]")
_NOTHING = re.compile(r"(?!)")
_GLOB = re.compile(r"\*|\?|\[(\^?)((?:\\.|[^\]\\])+)\]|\\(.)|(.)", re.DOTALL)


def _matching(pattern: str, disk: Disk) -> list[str]:
    """Return the paths that match a pattern, as Go's filepath.Glob does."""
    folder, _, names = pattern.rpartition("/")
    folders = _matching(folder, disk) if _META.search(folder) else [folder]
    regex = _regex(names)
    return [
        f"{each}/{name}"
        for each in folders
        for name in disk.names(each or "/")
        if regex.fullmatch(name)
    ]


def _regex(pattern: str) -> re.Pattern[str]:
    def part(match: re.Match[str]) -> str:
        if match[0] in "*?":
            return "[^/]*" if match[0] == "*" else "[^/]"
        if match[2]:
            return "[" + match[1] + match[2].replace("[", r"\[") + "]"
        return re.escape(match[3] or match[4])

    try:
        return re.compile(_GLOB.sub(part, pattern), re.DOTALL)
    except re.error:  # such as [z-a], for which containerd does not start
        return _NOTHING
