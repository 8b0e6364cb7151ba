"""Changing single keys of a TOML file, so that all else in it stays as it was."""

import copy
from collections.abc import Mapping
from typing import Any, cast

from kata.configuration import keys

Changes = Mapping[keys.Path, Any]
"""New values by the path of their key; None takes a key out."""


class DoesNotFit(ValueError):
    """The changes cannot be made in this file; the message says why."""


def apply(text: str, changes: Changes, mentioned: Mapping[keys.Path, keys.Mention]) -> str:
    """Return a file's text with some keys changed, its comments and its order kept.

    A key that the file has only in a comment is set below that comment, another one at the end of
    its table. The result is read again and compared: it holds the changes and nothing else.

    Args:
        text: the file.
        changes: what to set.
        mentioned: where the file has its keys, by `keys.mentions`.

    Raises:
        DoesNotFit: the file is no TOML, or has something else where a change needs a table.
    """
    import tomlkit
    import tomlkit.exceptions

    try:
        wanted = _changed(tomlkit.parse(text).unwrap(), changes)
        document = tomlkit.parse(_below_comments(text, changes, mentioned))
        for path, value in changes.items():
            _set(document, path, value)
        made = tomlkit.dumps(document)
        same = tomlkit.parse(made).unwrap() == wanted
    except (tomlkit.exceptions.TOMLKitError, ValueError, TypeError) as error:
        raise DoesNotFit(str(error)) from error
    if not same:
        raise DoesNotFit("more would change than is named")
    return made


def _changed(tree: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """Make the changes in plain values: what the file must say in the end."""
    tree = copy.deepcopy(tree)
    for path, value in changes.items():
        table: Any = cast("Any", tree)
        for name in path[:-1]:
            table = table.get(name, {}) if value is None else table.setdefault(name, {})
            if not _is_table(table):
                raise DoesNotFit(f"{'.'.join(path[:-1])} is no table")
        if value is None:
            table.pop(path[-1], None)
        else:
            table[path[-1]] = value
    return tree


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _below_comments(
    text: str, changes: Changes, mentioned: Mapping[keys.Path, keys.Mention]
) -> str:
    """Set the keys that the file has only in comments, each below its own."""
    import tomlkit

    lines = text.splitlines(keepends=True)
    for path, value in changes.items():
        mention = mentioned.get(path)
        if not mention or mention.live or value is None:
            continue
        comment = lines[mention.line].rstrip("\n")
        written: str = cast("Any", tomlkit.item(value)).as_string()
        lines[mention.line] = f"{comment}\n{path[-1]} = {written}\n"
    return "".join(lines)


def _set(document: Any, path: keys.Path, value: Any) -> None:
    import tomlkit

    table: Any = document
    for depth, name in enumerate(path[:-1], start=1):
        if name not in table:
            if value is None:
                return
            table[name] = tomlkit.table(is_super_table=depth < len(path) - 1)
        table = table[name]
    name = path[-1]
    if value is None:
        cast("dict[str, Any]", table).pop(name, None)
    elif name not in table or table[name] != value:
        table[name] = value
