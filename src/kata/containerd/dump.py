"""What containerd itself makes of a configuration, before and after our handlers."""

import copy
import functools
import sys
from collections.abc import Iterator
from typing import Any, cast

from kata.containerd import config

Tree = dict[str, Any]


def difference(before: str, after: str, handlers: tuple[str, ...]) -> str:
    """Return a key that our handlers must not have changed, and have; nothing if there is none.

    Args:
        before: the merged configuration as containerd printed it without our change.
        after: the same with it.
        handlers: names of our handlers.
    """
    first, second = (copy.deepcopy(_read(text)) for text in (before, after))
    return next(_different(_rest(first, handlers), _rest(second, handlers), ""), "")


def missing(dump: str, handlers: tuple[str, ...]) -> list[str]:
    """Return which of our handlers containerd does not have."""
    found: set[str] = set()
    for containerd in _containerd(_read(dump)):
        for name, handler in containerd.get("runtimes", {}).items():
            if handler.get("runtime_type") == config.RUNTIME_TYPE:
                found.add(name)
        if containerd.get("untrusted_workload_runtime", {}).get("runtime_type"):
            found.add(config.UNTRUSTED)
    return [each for each in handlers if each not in found]


@functools.lru_cache(maxsize=4)
def _read(text: str) -> Tree:
    """Return what a dump says; one and the same is asked about several times, and is only read."""
    if sys.version_info >= (3, 11):
        import tomllib  # it takes a tenth of tomlkit's time

        return tomllib.loads(text)
    import tomlkit

    return tomlkit.parse(text).unwrap()


def _containerd(tree: Tree) -> Iterator[Tree]:
    """Yield the tables that have the handlers."""
    plugins: dict[str, Tree] = tree.get("plugins", {})
    for plugin in config.CRI.values():
        yield plugins.get(plugin, {}).get("containerd", {})


def _rest(tree: Tree, handlers: tuple[str, ...]) -> Tree:
    """Leave out what may change: our handlers, and defaults that are said or left unsaid."""
    tree.pop("imports", None)
    for containerd in _containerd(tree):
        containerd.pop("untrusted_workload_runtime", None)
        runtimes: dict[str, Tree] = containerd.get("runtimes", {})
        for name, handler in list(runtimes.items()):
            if name in handlers:
                del runtimes[name]
                continue
            if str(handler.get("runtime_type", "")).startswith("io.containerd.kata"):
                handler.pop("options", None)
            # The built-in runc says what a runc in a file leaves unsaid.
            for mode in ("sandbox_mode", "sandboxer"):
                if handler.get(mode) == "podsandbox":
                    del handler[mode]
            runtimes[name] = cast("Tree", _without_zeros(handler))
    return tree


def _without_zeros(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    items = ((key, _without_zeros(each)) for key, each in cast("Tree", value).items())
    return {key: each for key, each in items if each not in ("", 0, [], {})}


def _different(first: Any, second: Any, path: str) -> Iterator[str]:
    if first == second:
        return
    if not (isinstance(first, dict) and isinstance(second, dict)):
        yield path
        return
    one, other = cast("Tree", first), cast("Tree", second)
    for key in sorted(one.keys() | other.keys()):
        yield from _different(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
