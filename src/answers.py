"""What an action answers: in time, as much as Juju takes, and in one line where it fails."""

import contextlib
import json
from collections.abc import Generator, Mapping
from typing import Any, cast

import ops

from kata import limits, problems, terminal
from kata.machine import node as kata_node
from kata.machine import tenancy

LIMIT, LONG = 55, 110
"""Seconds: `juju run` waits for 60 by default. Those that read the journal are given more."""
# Results are arguments of a program, and Linux takes none beyond 128 KiB (MAX_ARG_STRLEN).
_MOST = 120_000


@contextlib.contextmanager
def answering(event: ops.ActionEvent, limit: int | None = LIMIT) -> Generator[None]:
    """Let what stops an answer be said in one line; a limit in seconds stops it too."""
    try:
        with limits.within(limit) if limit else contextlib.nullcontext():
            yield
    except problems.Problem as problem:
        event.fail(terminal.shown(str(problem)))
    except OSError as error:
        event.fail(f"the machine refused: {error}")


def give(node: kata_node.Node, event: ops.ActionEvent, results: Mapping[str, Any]) -> None:
    """Set results, texts as they are and all else as JSON; a file has what does not fit."""
    given = {key: _fitted(value) for key, value in results.items()}
    if any(cut for _, cut in given.values()):
        place = f"{tenancy.STATE}/{event.handle.kind.removesuffix('_action')}.json"
        node.write(place, _json(results), mode=0o600)
        given["complete"] = f"in {place} on this machine", False
    event.set_results({key: text for key, (text, _) in given.items()})


def _fitted(value: object) -> tuple[str, bool]:
    """Return a value as Juju can take it, and whether something was cut off."""
    if isinstance(value, str):
        value = terminal.shown(value)
        kept, size = list[str](), 0
        for line in value.splitlines():
            size += len(line.encode()) + 1
            if size > _MOST:
                return "\n".join((*kept, "…")), True
            kept.append(line)
        return value, False
    text = _json(value)
    if len(text) <= _MOST:
        return text, False
    if not isinstance(value, list):
        return "{}", True
    parts, size = list[str](), 2
    for each in cast("list[object]", value):
        part = _json(each)
        size += len(part) + 1
        if size > _MOST:
            break
        parts.append(part)
    return f"[{','.join(parts)}]", True


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
