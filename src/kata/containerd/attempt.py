"""A change of containerd's files that containerd has not been seen to live with yet.

A crash or a power cut at any point leaves it on the disk: what stood before, what was to stand
there, and which run of containerd has not read it. The next call takes up from there.
"""

import json
import logging
from typing import Any, NamedTuple, NoReturn, cast

from kata import problems
from kata.containerd import memory as containerd_memory
from kata.containerd import service, version
from kata.containerd.daemon import Containerd
from kata.machine import node

log = logging.getLogger(__name__)

FILE = f"{containerd_memory.FOLDER}/pending.json"
_FAILED = f"{containerd_memory.FOLDER}/failed.json"


class Attempt(NamedTuple):
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


def load(machine: node.Node) -> Attempt | None:
    """Return the change that a former call began; None if there is none."""
    try:
        said = cast("dict[str, Any]", json.loads(machine.read(FILE) or ""))
        return Attempt(**said)
    except (ValueError, TypeError):
        return None


def save(machine: node.Node, attempt: Attempt) -> None:
    """Leave a change on the disk, for whoever comes next if this call does not end."""
    version.make_folder(machine)
    machine.write(FILE, json.dumps(attempt._asdict()), mode=0o600)


def refuse_again(machine: node.Node, containerd: Containerd, key: str, *, again: bool) -> None:
    """Raise where this very change has failed, and nobody has restarted containerd since.

    Args:
        machine: the node.
        containerd: the one that serves its pods.
        key: what tells this change from others.
        again: try all the same.

    Raises:
        Blocked: with the words of that failure.
    """
    try:
        failed = cast("dict[str, str]", json.loads(machine.read(_FAILED) or "{}"))
    except ValueError:
        return
    if failed.get("key") == key and failed.get("run") == containerd.invocation and not again:
        raise problems.Blocked(failed.get("message", ""))


def put(machine: node.Node, path: str, text: str | None) -> None:
    """Write a file, or remove it."""
    if text is None:
        machine.remove(path)
    else:
        is_private = path.startswith(containerd_memory.FOLDER)
        machine.write(path, text, mode=0o600 if is_private else 0o644)


def take_back(machine: node.Node, containerd: Containerd, attempt: Attempt) -> NoReturn:
    """Put back what worked, and restart containerd.

    Raises:
        Blocked: always; with what containerd did not live with, and what runs now.
    """
    save(machine, attempt)
    log.error("%s did not live with Kata's handlers: %s", containerd.unit, attempt.failure)
    machine.remove(containerd_memory.FACTS)
    put(machine, containerd_memory.WANTED, attempt.before.get(containerd_memory.WANTED))
    for path, text in attempt.before.items():
        if path in attempt.after and machine.read(path) == attempt.after[path]:
            put(machine, path, text)
    words = service.restart(machine, containerd)
    run = machine.unit(containerd.unit, "InvocationID")["InvocationID"]
    state = f"and is not back without them: {words}" if words else "what worked before is back"
    message = f"containerd did not start with Kata's handlers: {attempt.failure}; {state}"
    failed = {"key": attempt.key, "run": run, "message": message}
    machine.write(_FAILED, json.dumps(failed), mode=0o600)
    machine.remove(FILE)
    raise problems.Blocked(message)


def end(machine: node.Node) -> None:
    """Forget the change: containerd lives with it. So it may be tried again, should it ever fail."""
    machine.remove(FILE)
    machine.remove(_FAILED)
