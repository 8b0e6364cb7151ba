"""Booted nodes, saved once and restored in half a second.

    fresh = snapshot.booted()
    with_charm = snapshot.after(fresh, "charm-1234", lambda node: node.copy_in_tree(...))
    with machine.Machine.restored(with_charm) as node:
        ...

Restored machines share what they started from and nothing else: what one does no other sees.
"""

import pathlib
from collections.abc import Callable

from tests.node import cache, machine


def booted(spec: machine.Spec | None = None) -> machine.Snapshot:
    """Return a machine that has booted and done nothing yet."""
    spec = spec or machine.Spec()

    def make(folder: pathlib.Path) -> None:
        with machine.Machine(spec) as node:
            node.boot()
            node.save(folder)

    name = f"{spec.variant}-{spec.key()}"
    return machine.Snapshot(cache.made("snapshots", name, make), spec)


def after(
    base: machine.Snapshot,
    name: str,
    prepare: Callable[[machine.Machine], object],
    network: bool = False,
) -> machine.Snapshot:
    """Return `base` as it is after `prepare`.

    Args:
        base: what to start from.
        name: names what `prepare` does and all that it depends on: another name, another
            snapshot. `cache.key` makes one.
        prepare: called with a machine restored from `base`, if there is no such snapshot yet.
        network: let that machine reach the world outside.
    """

    def make(folder: pathlib.Path) -> None:
        with machine.Machine.restored(base, network=network) as node:
            prepare(node)
            node.save(folder)

    whole = f"{base.spec.variant}-{cache.key(base.folder.name, name)}"
    return machine.Snapshot(cache.made("snapshots", whole, make), base.spec)
