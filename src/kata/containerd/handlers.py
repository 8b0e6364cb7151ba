"""Brings our handlers into the containerd that runs, and takes them out again.

Nothing is written that containerd itself has not accepted. containerd is restarted only when the
run that serves the pods has not read what is written. When it does not come back, what worked
before is put back, and the same attempt is not made again until something about it is new.
"""

import logging
import zlib
from collections.abc import Sequence

from kata import problems
from kata.containerd import attempt, dump, judgement, service, version
from kata.containerd import files as containerd_files
from kata.containerd import memory as containerd_memory
from kata.containerd import sections as containerd_sections
from kata.containerd.config import Wanted
from kata.containerd.daemon import Containerd
from kata.containerd.memory import Memory
from kata.handlers import Handler
from kata.machine import facts, node, tenancy

log = logging.getLogger(__name__)

_SERVES = "/run/kata-charm/serves"
"""The run of containerd that was seen to serve pods."""
_TRIES = 4  # when others write the same files at the same time


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
                attempt.put(machine, path, text)
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
        and not machine.exists(attempt.FILE)
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
    pending = attempt.load(machine)
    if pending and pending.failure:
        attempt.take_back(machine, containerd, pending)
    known = memory.wanted.known if memory else ()
    touched = memory.touched if memory else ()
    wanted = wanted._replace(known=known)
    changed = False
    for _ in range(_TRIES):
        disk = _Once(machine)
        changes, files = judgement.planned(machine, containerd, disk, wanted, touched)
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
        attempt.refuse_again(machine, containerd, key, again=again)
        if not pending and not has_read:
            _check_before(machine, containerd)
        judgement.validate(machine, containerd, disk, changes, wanted)
        changed = True
        before = {path: disk.read(path) for path in changes}
        before[containerd_memory.WANTED] = machine.read(containerd_memory.WANTED)
        unread = "" if has_read else containerd.invocation or "-"
        if pending:
            before, unread = before | pending.before, unread or pending.unread
        pending = attempt.Attempt(before, changes, unread, key)
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
    attempt.end(machine)
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


def _has_read(
    machine: node.Node, containerd: Containerd, memory: Memory | None, new: Memory
) -> bool:
    """Return whether this run of containerd has read our handlers before somebody's rewrite."""
    same = memory is not None and memory.wanted[:2] == new.wanted[:2]
    read = machine.read(containerd_memory.READ)
    return same and bool(containerd.invocation) and read == containerd.invocation


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
    pending: attempt.Attempt,
    new: Memory,
    *,
    imports: bool,
) -> bool:
    """Write; return False if somebody else wrote one of the files since it was read."""
    written: list[str] = []
    try:
        if pending.unread:
            attempt.save(machine, pending)
        # The guard must know at once: containerd may be started by others at any moment.
        containerd_memory.save(machine, new)
        for path, text in pending.after.items():
            if machine.read(path) != disk.read(path):
                return False
            written.append(path)
            attempt.put(machine, path, text)
        # A file that imports none is what containerd has just judged.
        found = judgement.as_found(machine, containerd) if imports else ""
        if found and (lost := dump.missing(found, new.wanted.handlers)):
            raise problems.Blocked(
                f"handler {lost[0]} has no effect in {', '.join(written)}: other files imported "
                f"by {containerd.config} hide it"
            )
    except problems.Problem:
        for path in (*written, containerd_memory.WANTED):
            if machine.read(path) == pending.after.get(path, machine.read(path)):
                attempt.put(machine, path, pending.before[path])
        machine.remove(attempt.FILE)
        raise
    log.info("wrote Kata's handlers: %s", ", ".join(written))
    return True


def _start(machine: node.Node, containerd: Containerd, pending: attempt.Attempt) -> None:
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
        attempt.take_back(machine, containerd, pending._replace(failure=words))
    machine.write(containerd_memory.READ, run)
    machine.write(_SERVES, run)
