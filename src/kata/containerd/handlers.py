"""Brings our handlers into the containerd that runs, and takes them out again.

Nothing is written that containerd itself has not accepted. containerd is restarted only when the
run that serves the pods has not read what is written. When it does not come back, what worked
before is put back, and the same attempt is not made again until something about it is new.

A crash or a power cut at any point leaves `_PENDING`: what stood before, what was to stand there,
and which run of containerd has not read it. The next call takes up from there.
"""

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from kata import problems
from kata.containerd import candidate, config, dump, service, toml_statements, version
from kata.containerd import files as containerd_files
from kata.containerd import memory as containerd_memory
from kata.containerd import sections as containerd_sections
from kata.containerd.config import Wanted
from kata.containerd.daemon import Containerd
from kata.containerd.files import File
from kata.containerd.memory import Memory
from kata.handlers import Handler
from kata.machine import facts, node, tenancy

log = logging.getLogger(__name__)

_PENDING = f"{containerd_memory.FOLDER}/pending.json"
_FAILED = f"{containerd_memory.FOLDER}/failed.json"
_SERVES = "/run/kata-charm/serves"
"""The run of containerd that was seen to serve pods."""
_TRIES = 4  # when others write the same files at the same time


class _Pending(NamedTuple):
    """A change that containerd has not been seen to live with yet."""

    before: dict[str, str | None]
    """What the files said, and what was remembered; None for what was not there."""
    after: dict[str, str | None]
    unread: str
    """The run of containerd that has not read it."""
    key: str
    """What tells this attempt from others."""
    failure: str = ""
    """Why it is being taken back."""


def ensure(
    machine: node.Node,
    containerd: Containerd,
    handlers: Sequence[Handler],
    *,
    again: bool = False,
) -> bool:
    """Make containerd have these handlers of ours and no others.

    Args:
        machine: the node.
        containerd: the one that serves its pods.
        handlers: our handlers.
        again: try once more what containerd did not come back with last time.

    Returns:
        True if anything changed.

    Raises:
        Blocked: it cannot be done, or containerd did not live with it; what worked works on.
        Waiting: containerd is only just starting, or its files do not stand still.
    """
    memory = containerd_memory.load(machine)
    source = containerd_sections.source(handlers, containerd.release)
    if _is_settled(machine, containerd, memory, source):
        _check(machine, containerd)
        return False
    sections = (
        memory.wanted.sections
        if memory and memory.source == source
        else containerd_sections.render(handlers, containerd.release)
    )
    wanted = Wanted(tuple(each.name for each in handlers), sections)
    return _apply(machine, containerd, memory, source, wanted, again=again)


def remove(machine: node.Node, containerd: Containerd | None) -> bool:
    """Take everything of ours out of containerd's configuration, and forget it.

    Args:
        machine: the node.
        containerd: the one that serves its pods; None where it is gone, and its files may be there.

    Returns:
        True if anything changed.

    Raises:
        Problem: as `ensure`.
    """
    memory = containerd_memory.load(machine)
    changed = False
    if memory:
        wanted = memory.wanted._replace(handlers=())
        if containerd:
            changed = _apply(machine, containerd, memory, "", wanted, again=True)
        else:
            texts = containerd_files.plan(
                memory.config, machine, memory.release, wanted, memory.touched
            )
            for path, text in texts.items():
                _put(machine, path, text)
            changed = bool(texts)
    for folder in (containerd_memory.FOLDER, "/run/kata-charm"):
        for name in machine.names(folder):
            machine.remove(f"{folder}/{name}")
        machine.remove(folder)
    machine.remove(tenancy.STATE)  # it stays while anything else is in it
    return changed


def _is_settled(
    machine: node.Node, containerd: Containerd, memory: Memory | None, source: str
) -> bool:
    recorded = (machine.read(containerd_memory.FACTS) or "").encode("utf-8", "surrogateescape")
    for path in facts.paths(recorded):
        machine.path(path)  # so that a witness knows what this depends on
    return (
        memory is not None
        and memory.source == source
        and (memory.config, memory.binary) == (containerd.config, containerd.binary)
        and not machine.exists(_PENDING)
        and facts.hold(recorded, str(machine.root))
    )


def _check(machine: node.Node, containerd: Containerd) -> None:
    """Raise if containerd does not serve; a run that did once is not asked again."""
    if containerd.active in ("activating", "reloading", "deactivating"):
        raise problems.Waiting(f"{containerd.unit} is {containerd.active}")
    if not containerd.is_active:
        raise problems.Blocked(
            f"{containerd.unit} is {containerd.active}: start it with systemctl start, and see "
            f"journalctl --unit {containerd.unit} if it does not start"
        )
    if machine.read(_SERVES) == containerd.invocation:
        return
    if words := service.trouble(machine, containerd):
        raise problems.Blocked(f"containerd does not serve pods: {words}; see {containerd.config}")
    machine.write(_SERVES, containerd.invocation)


def _apply(
    machine: node.Node,
    containerd: Containerd,
    memory: Memory | None,
    source: str,
    wanted: Wanted,
    *,
    again: bool,
) -> bool:
    pending = _load_pending(machine)
    if pending and pending.failure:
        _take_back(machine, containerd, pending)
    known = memory.wanted.known if memory else ()
    touched = memory.touched if memory else ()
    wanted = wanted._replace(known=known)
    changed = False
    for _ in range(_TRIES):
        disk = _Once(machine)
        changes, files = _planned(machine, containerd, disk, wanted, touched)
        new = Memory(
            config=containerd.config,
            binary=containerd.binary,
            release=containerd.release,
            stat=version.stat(machine, containerd.binary),
            source=source,
            wanted=wanted._replace(known=tuple(sorted({*known, *wanted.handlers}))),
            touched=tuple(sorted({*touched, *changes})),
        )
        if not changes:
            break
        has_read = _has_read(machine, containerd, memory, new)
        key = f"{zlib.crc32(repr(sorted(changes.items())).encode()):08x} {new.stat}"
        _refuse_again(machine, containerd, key, again=again)
        if not pending and not has_read:
            _check_before(machine, containerd)
        _validate(machine, containerd, disk, changes, wanted)
        changed = True
        before = {path: disk.read(path) for path in changes}
        before[containerd_memory.WANTED] = machine.read(containerd_memory.WANTED)
        unread = "" if has_read else containerd.invocation or "-"
        if pending:
            before, unread = before | pending.before, unread or pending.unread
        pending = _Pending(before, changes, unread, key)
        imports = any(file.imports for file in files)
        if _write(machine, containerd, disk, pending, new, imports=imports):
            break
    else:
        raise problems.Waiting(f"{containerd.config} does not stand still: others write it too")
    containerd_memory.save(machine, new)
    if not pending:
        containerd_memory.settle(machine, new, files)
        _check(machine, containerd)
        return changed
    _start(machine, containerd, pending)
    containerd_memory.settle(machine, new, containerd_files.read(containerd.config, machine))
    machine.remove(_PENDING)
    machine.remove(_FAILED)
    return True


class _Once:
    """The node's files as they were when they were first asked for."""

    def __init__(self, machine: node.Node) -> None:
        self._machine = machine
        self._texts: dict[str, str | None] = {}

    def read(self, path: str) -> str | None:
        if path not in self._texts:
            self._texts[path] = self._machine.read(path)
        return self._texts[path]

    def names(self, path: str) -> list[str]:
        return self._machine.names(path)


def _planned(
    machine: node.Node,
    containerd: Containerd,
    disk: _Once,
    wanted: Wanted,
    touched: Sequence[str],
) -> tuple[dict[str, str | None], tuple[File, ...]]:
    try:
        files = containerd_files.read(containerd.config, disk)
        changes = containerd_files.plan(
            containerd.config, disk, containerd.release, wanted, touched
        )
    except toml_statements.Malformed as error:
        _refuse_as_found(machine, containerd)
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


def _refuse_as_found(machine: node.Node, containerd: Containerd) -> str:
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


def _validate(
    machine: node.Node,
    containerd: Containerd,
    disk: _Once,
    changes: Mapping[str, str | None],
    wanted: Wanted,
) -> None:
    """Let containerd judge what is to be written, and see that it changes nothing else.

    containerd 1.2 cannot do that; there the restart shows.
    """
    before = _refuse_as_found(machine, containerd)
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


def _has_read(
    machine: node.Node, containerd: Containerd, memory: Memory | None, new: Memory
) -> bool:
    """Return whether this run of containerd has read our handlers before somebody's rewrite."""
    same = memory is not None and memory.wanted[:2] == new.wanted[:2]
    read = machine.read(containerd_memory.READ)
    return same and bool(containerd.invocation) and read == containerd.invocation


def _refuse_again(machine: node.Node, containerd: Containerd, key: str, *, again: bool) -> None:
    """Raise where this very change has failed, and nobody has restarted containerd since."""
    try:
        failed = cast("dict[str, str]", json.loads(machine.read(_FAILED) or "{}"))
    except ValueError:
        return
    if failed.get("key") == key and failed.get("run") == containerd.invocation and not again:
        raise problems.Blocked(failed.get("message", ""))


def _check_before(machine: node.Node, containerd: Containerd) -> None:
    """Raise where containerd is in trouble already: a restart would be in vain."""
    if containerd.active not in ("active", "inactive"):
        _check(machine, containerd)
    if containerd.is_active and (words := service.trouble(machine, containerd)):
        raise problems.Blocked(
            f"containerd does not serve pods, before any change of ours: {words}; mend it and "
            "restart it"
        )


def _write(
    machine: node.Node,
    containerd: Containerd,
    disk: _Once,
    pending: _Pending,
    new: Memory,
    *,
    imports: bool,
) -> bool:
    """Write; return False if somebody else wrote one of the files since it was read."""
    written: list[str] = []
    try:
        if pending.unread:
            _save_pending(machine, pending)
        # The guard must know at once: containerd may be started by others at any moment.
        containerd_memory.save(machine, new)
        for path, text in pending.after.items():
            if machine.read(path) != disk.read(path):
                return False
            written.append(path)
            _put(machine, path, text)
        # A file that imports none is what containerd has just judged.
        found = _refuse_as_found(machine, containerd) if imports else ""
        if found and (lost := dump.missing(found, new.wanted.handlers)):
            raise problems.Blocked(
                f"handler {lost[0]} has no effect in {', '.join(written)}: other files imported "
                f"by {containerd.config} hide it"
            )
    except problems.Problem:
        for path in (*written, containerd_memory.WANTED):
            if machine.read(path) == pending.after.get(path, machine.read(path)):
                _put(machine, path, pending.before[path])
        machine.remove(_PENDING)
        raise
    log.info("wrote Kata's handlers: %s", ", ".join(written))
    return True


def _put(machine: node.Node, path: str, text: str | None) -> None:
    if text is None:
        machine.remove(path)
    else:
        is_private = path.startswith(containerd_memory.FOLDER)
        machine.write(path, text, mode=0o600 if is_private else 0o644)


def _start(machine: node.Node, containerd: Containerd, pending: _Pending) -> None:
    """Have containerd read what was written, or take it back."""
    if containerd.active == "inactive":
        _check(machine, containerd)  # whoever stopped it starts it
    run = containerd.invocation
    if not containerd.is_active or (pending.unread and pending.unread == run):
        log.info("restarting %s for Kata's handlers", containerd.unit)
        words = service.restart(machine, containerd)
        run = machine.unit(containerd.unit, "InvocationID")["InvocationID"]
    else:
        words = service.trouble(machine, containerd, service.READY)
    if words:
        _take_back(machine, containerd, pending._replace(failure=words))
    machine.write(containerd_memory.READ, run)
    machine.write(_SERVES, run)


def _take_back(machine: node.Node, containerd: Containerd, pending: _Pending) -> None:
    """Put back what worked, restart containerd, and raise."""
    _save_pending(machine, pending)
    log.error("%s did not live with Kata's handlers: %s", containerd.unit, pending.failure)
    machine.remove(containerd_memory.FACTS)
    _put(machine, containerd_memory.WANTED, pending.before.get(containerd_memory.WANTED))
    for path, text in pending.before.items():
        if path in pending.after and machine.read(path) == pending.after[path]:
            _put(machine, path, text)
    words = service.restart(machine, containerd)
    run = machine.unit(containerd.unit, "InvocationID")["InvocationID"]
    state = f"and is not back without them: {words}" if words else "what worked before is back"
    message = f"containerd did not start with Kata's handlers: {pending.failure}; {state}"
    failed = {"key": pending.key, "run": run, "message": message}
    machine.write(_FAILED, json.dumps(failed), mode=0o600)
    machine.remove(_PENDING)
    raise problems.Blocked(message)


def _load_pending(machine: node.Node) -> _Pending | None:
    try:
        said = cast("dict[str, Any]", json.loads(machine.read(_PENDING) or ""))
        return _Pending(**said)
    except (ValueError, TypeError):
        return None


def _save_pending(machine: node.Node, pending: _Pending) -> None:
    version.make_folder(machine)
    machine.write(_PENDING, json.dumps(pending._asdict()), mode=0o600)
