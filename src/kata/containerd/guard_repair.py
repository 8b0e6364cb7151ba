"""What the guard does where containerd's configuration is not as the last hook left it.

Somebody has written it anew, or containerd is another release now. The edit is the same as a
hook's, by the same code; containerd itself is asked before anything is written.
"""

import pathlib
import sys

from kata.containerd import candidate, config, files, version
from kata.containerd import memory as containerd_memory
from kata.machine import node

_LIMIT = 10  # seconds for one question to containerd; it takes 0.03 where nothing else is going on


def repair(root: str = "/") -> bool:
    """Put our handlers where they take effect.

    Args:
        root: what `/` stands for.

    Returns:
        True if containerd will have them.

    Raises:
        Problem: a file cannot be written, or containerd does not answer.
        Malformed: a file is no TOML.
    """
    machine = node.Node(pathlib.Path(root))
    memory = containerd_memory.load(machine)
    if not memory or not memory.wanted.handlers:
        return False
    if not machine.exists(config.SHIM):
        _say(f"{config.SHIM} is missing: no handlers without it")
        return False
    stat, release = version.stat(machine, memory.binary), memory.release
    if stat != memory.stat:
        release = version.release(machine, memory.binary, _LIMIT)
    wanted = memory.wanted
    changes = files.plan(memory.config, machine, release, wanted, memory.touched)
    if changes and release >= candidate.DUMP:
        changed = files.Changed(machine, changes)
        ran = candidate.dump(machine, memory.binary, memory.config, changed, _LIMIT)
        if not ran.ok:
            _say(f"containerd would refuse Kata's handlers: {ran.words}; nothing done")
            return False
    for path, text in changes.items():
        if text is None:
            machine.remove(path)
        else:
            machine.write(path, text)
    touched = tuple(sorted({*memory.touched, *changes}))
    memory = memory._replace(release=release, stat=stat, touched=touched)
    containerd_memory.save(machine, memory)
    containerd_memory.settle(machine, memory, files.read(memory.config, machine))
    if changes:
        _say(f"put Kata's handlers back: {', '.join(changes)}")
    return True


def _say(words: str) -> None:
    sys.stderr.write(f"kata-charm guard: {words}\n")
