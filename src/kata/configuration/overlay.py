"""The option kata-config: TOML laid over Kata's configuration, checked before it gets there."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from kata import problems
from kata.configuration import keys, trust
from kata.machine import node as kata_node

Tree = dict[str, Any]

# What runs on the host or is booted in the guest, by the key that names it.
FILES = frozenset(
    {
        "path",
        "ctlpath",
        "jailer_path",
        "virtio_fs_daemon",
        "kernel",
        "image",
        "initrd",
        "firmware",
        "firmware_volume",
        "pflashes",
        "guest_extension_images",
    }
)
# The files among which a pod's annotation may choose.
PATTERNS = frozenset(
    {
        "valid_ctlpaths",
        "valid_hypervisor_paths",
        "valid_jailer_paths",
        "valid_virtio_fs_daemon_paths",
    }
)
# Hypervisors of Kata that this charm has no option for; their tables are passed over as well.
_OTHERS = frozenset({"acrn", "openvmm", "remote", "stratovirt"})

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
}


def read(text: str) -> Tree:
    """Read the option's value.

    Raises:
        Blocked: it is not TOML, and in which line; or it has a value of a kind that Kata has not.
    """
    import tomlkit
    import tomlkit.exceptions

    try:
        text.encode()
        tree = tomlkit.parse(text).unwrap()
    except (tomlkit.exceptions.TOMLKitError, ValueError, RecursionError) as error:
        raise _bad(f"it is not TOML: {_reason(error, text)}", "TOML") from error
    for path, value in _leaves(tree, ()):
        if not _plain(value):
            raise _bad(_name(path), "strings, numbers, true or false, or lists of one of these")
    return tree


def settings_of(tree: Tree, hypervisor: str, table: str) -> dict[keys.Path, Any]:
    """Return what is laid over a handler's configuration: each key's path, and its value.

    Args:
        tree: the overlay.
        hypervisor: the handler's; tables of others are passed over.
        table: the name that its table has in the shipped file.
    """
    own = keys.HYPERVISORS[hypervisor]
    passed_over = {name for names in keys.HYPERVISORS.values() for name in names} | _OTHERS
    found: dict[keys.Path, Any] = {}
    for path, value in _leaves(tree, ()):
        if path[0] != "hypervisor" or len(path) == 1:
            found[path] = value
        elif path[1] in own:
            found[("hypervisor", table, *path[2:])] = value
        elif path[1] not in passed_over:
            found[path] = value
    return found


def default_memory(tree: Tree, hypervisor: str) -> int:
    """Return the guest's memory in MiB that the overlay sets for a hypervisor, or 0."""
    value = settings_of(tree, hypervisor, "").get(("hypervisor", "", "default_memory"))
    return value if type(value) is int else 0


def check(laid: Mapping[keys.Path, Any], known: keys.Known) -> tuple[str, ...]:
    """Compare an overlay with what a release knows.

    Returns:
        A warning for each key that the release will most likely pass over.

    Raises:
        Blocked: a known key has a value of the wrong type.
    """
    warnings: list[str] = []
    for path, value in laid.items():
        expected = _expected(path, value, known)
        if expected:
            raise _bad(f"{_name(path)} = {_shown(value)}", expected)
        if path not in known:
            version = ".".join(map(str, known.number))
            warnings.append(
                f"option kata-config: {_name(path)} is not among the settings of Kata {version}, "
                "which passes over what it does not know"
            )
    return tuple(warnings)


def check_files(node: kata_node.Node, laid: Mapping[keys.Path, Any], homes: Sequence[str]) -> None:
    """Refuse an overlay that has a hypervisor run or boot what others than root can change.

    Args:
        node: the machine.
        laid: the overlay, by `settings_of`.
        homes: Kata's own folders, whose files may be used as they are.

    Raises:
        Blocked: the first such file, and what is wrong with it.
    """
    for path, value in laid.items():
        look = trust.pattern_refusal if path[-1] in PATTERNS else trust.refusal
        if path[-1] not in FILES | PATTERNS:
            continue
        for file in _files(value):
            wrong = look(node, file, homes)
            if wrong:
                raise _bad(
                    f"{_name(path)} = {_shown(file)} {wrong}",
                    "a file of Kata's, or one that only root can change",
                )


def _files(value: Any) -> Iterator[str]:
    for each in cast("list[Any]", value) if isinstance(value, list) else [value]:
        file = cast("Tree", each).get("path", "") if isinstance(each, dict) else each
        if file:
            yield str(file)


def _leaves(tree: Tree, above: keys.Path) -> Iterator[tuple[keys.Path, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(cast("Tree", value), (*above, name))
        else:
            yield (*above, name), value


def _plain(value: Any) -> bool:
    """Return whether every TOML reader that Kata ever had takes such a value."""
    if isinstance(value, list):
        kinds: set[type] = {type(each) for each in cast("list[object]", value)}
        return len(kinds) < 2 and all(map(_plain, cast("list[Any]", value)))
    if isinstance(value, dict):
        return all(map(_plain, cast("Tree", value).values()))
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return all(not 0xD800 <= ord(letter) < 0xE000 for letter in value)
    return isinstance(value, bool) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)


def _expected(path: keys.Path, value: Any, known: keys.Known) -> str | None:
    """Say what a known key's value should be, or None if it fits or is not known."""
    for length in range(1, len(path)):
        # A table where the release has a plain key
        example = known.example(path[:length])
        if example is not None:
            return f"{_WORDS[type(example)]} for {_name(path[:length])}"
    example = known.example(path)
    if example is None:
        below = (each[: len(path)] for each in known.mentioned if len(each) > len(path))
        return "a table" if path in below else None
    if isinstance(example, list):
        kind: type = type(cast("list[object]", example)[0]) if example else str
        each_fits = isinstance(value, list) and all(
            type(each) is kind for each in cast("list[object]", value)
        )
        return None if each_fits else f"a list of {_WORDS[kind].removeprefix('a ')}s"
    if isinstance(example, (int, float)) and not isinstance(example, bool):
        kinds = (int, float) if isinstance(example, float) or path[-1] in keys.SIGNED else (int,)
        if type(value) not in kinds:
            return _WORDS[kinds[-1]]
        return "0 or more" if value < 0 and path[-1] not in keys.SIGNED else None
    return None if type(value) is type(example) else _WORDS[type(example)]


def _name(path: keys.Path) -> str:
    return _short(".".join(part if _BARE.fullmatch(part) else repr(part) for part in path))


def _shown(value: Any) -> str:
    return _short(repr(value))


def _short(words: str) -> str:
    return words if len(words) <= 60 else f"{words[:56]}…"


def _reason(error: Exception, text: str) -> str:
    words = " ".join(str(error).rstrip(".").split())
    if "\\x00" in words or "end of file" in words:  # for which tomlkit has the wrong line
        return f"it ends too early, in line {len(text.splitlines())}"
    return _short(words) or "nested too deep"


def _bad(found: str, expected: str) -> problems.Blocked:
    return problems.Blocked(f"option kata-config: {found}; expected {expected}; change it")
