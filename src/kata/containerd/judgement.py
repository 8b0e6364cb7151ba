"""What a change of containerd's files amounts to, and whether it may be made: containerd itself says."""

from collections.abc import Mapping, Sequence

from kata import problems
from kata.containerd import candidate, config, dump, toml_statements
from kata.containerd import files as containerd_files
from kata.containerd.config import Wanted
from kata.containerd.daemon import Containerd
from kata.containerd.files import Disk, File
from kata.machine import node


def planned(
    machine: node.Node,
    containerd: Containerd,
    disk: Disk,
    wanted: Wanted,
    touched: Sequence[str],
) -> tuple[dict[str, str | None], tuple[File, ...]]:
    """Return what is to be written for our handlers, and the files as they are.

    Args:
        machine: the node.
        containerd: the one that serves its pods.
        disk: its files as they were when they were first read.
        wanted: our handlers.
        touched: the files that we have written to before.

    Raises:
        Blocked: as they are, our handlers have no place in them.
    """
    try:
        files = containerd_files.read(containerd.config, disk)
        changes = containerd_files.plan(
            containerd.config, disk, containerd.release, wanted, touched
        )
    except toml_statements.Malformed as error:
        as_found(machine, containerd)
        raise problems.Blocked(f"{error.path} is no TOML: {error}; mend it") from error
    disabled = containerd_files.listed(files, "disabled_plugins")
    for plugin in config.CRI.values():
        if wanted.handlers and plugin in disabled:
            raise problems.Blocked(
                f'{containerd.config}: disabled_plugins has "{plugin}", which serves Kubernetes; '
                "take it out and restart containerd"
            )
    for path in changes:
        place = machine.path(path)
        if place.is_symlink() and not place.exists():
            raise problems.Blocked(
                f"{path} is a link to {place.readlink()}, which is missing; mend it"
            )
    return changes, files


def as_found(machine: node.Node, containerd: Containerd) -> str:
    """Return the merged configuration as it is; raise if containerd itself cannot read it."""
    if containerd.release < candidate.DUMP:
        return ""
    ran = candidate.dump_in_place(machine, containerd.binary, containerd.config)
    if not ran.ok:
        words = ran.words.removeprefix("containerd: ")
        where = "" if containerd.config in words else f"{containerd.config}: "
        raise problems.Blocked(
            f"containerd cannot read its configuration: {where}{words}; mend it"
        )
    return ran.out


def validate(
    machine: node.Node,
    containerd: Containerd,
    disk: Disk,
    changes: Mapping[str, str | None],
    wanted: Wanted,
) -> None:
    """Let containerd judge what is to be written, and see that it changes nothing else.

    containerd 1.2 cannot do that; there the restart shows.

    Raises:
        Blocked: with its words, or with the key that would change.
    """
    before = as_found(machine, containerd)
    if containerd.release < candidate.DUMP:
        return
    changed = containerd_files.Changed(disk, changes)
    ran = candidate.dump(machine, containerd.binary, containerd.config, changed)
    files = ", ".join(sorted(changes))
    if not ran.ok:
        words = candidate.original(
            ran.words.removeprefix("containerd: "), containerd.config, changed
        )
        raise problems.Blocked(f"containerd would refuse Kata's handlers in {files}: {words}")
    names = (*wanted.handlers, *wanted.known)
    if lost := dump.missing(ran.out, wanted.handlers):
        raise problems.Blocked(
            f"handler {lost[0]} would have no effect in {files}: see its imports"
        )
    if key := dump.difference(before, ran.out, names):
        raise problems.Blocked(
            f"Kata's handlers in {files} would change {key}; nothing was written"
        )
