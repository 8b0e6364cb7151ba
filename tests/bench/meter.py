"""Runs commands in turn, several rounds, and tells what each run cost; Python's own library alone.

It reads a plan in JSON from its standard input and writes what it measured to its standard output.
Where it runs, a throwaway node or this machine, is its caller's choice.

    {"rounds": 5, "contenders": {"ours": {"argv": [...], "cwd": "/", "files": {path: text}}}}

`files` are written before each run, so that every run starts from the same state, and `before` is a
command that is run and not measured.
"""

import json
import os
import resource
import subprocess
import sys
import time


def main() -> None:
    """Measure what the plan says."""
    plan = json.load(sys.stdin)
    contenders = plan["contenders"]
    samples = {name: [] for name in contenders}
    for number in range(plan["rounds"]):
        # Whoever goes first in one round goes last in the next: neither always finds warm caches.
        names = list(contenders) if number % 2 == 0 else list(reversed(contenders))
        for name in names:
            samples[name].append(measured(**contenders[name]))
    json.dump(samples, sys.stdout)


def measured(argv, cwd="/", files=None, before=None):
    """Run a command; return its status, seconds, seconds of CPU and most KiB of memory."""
    for path, text in (files or {}).items():
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    if before:
        subprocess.run(before, check=True, stdout=subprocess.DEVNULL)
    with open(os.devnull, "rb+") as nothing:
        began = time.perf_counter()
        process = subprocess.Popen(argv, cwd=cwd, stdin=nothing, stdout=nothing, stderr=nothing)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "rc": process.returncode,
        "wall": wall,
        "cpu": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss,
    }


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
