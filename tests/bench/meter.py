"""Runs commands in turn, several rounds, and tells what each run cost."""

import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Contender(NamedTuple):
    """A command.

    Attributes:
        argv: the command.
        cwd: where it runs.
        files: written before each run, in turn where there are several: every run starts from a
            known state.
        apart: a file to which others add seconds, and seconds of CPU, that are not the command's
            own.
    """

    argv: Sequence[str]
    cwd: str = "/"
    files: Sequence[Mapping[str, str]] = ({},)
    apart: str = ""


class Cost(NamedTuple):
    """What a run cost: seconds, seconds of CPU with that of its children, MiB at the most."""

    wall: float
    cpu: float
    memory: float


def measured(contenders: Mapping[str, Contender], rounds: int) -> dict[str, Cost]:
    """Return the medians of each contender.

    Raises:
        RuntimeError: one of them failed.
    """
    samples: dict[str, list[Cost]] = {name: [] for name in contenders}
    for number in range(rounds):
        # Whoever goes first in one round goes last in the next: nobody always finds warm caches.
        names = list(contenders) if number % 2 == 0 else list(reversed(contenders))
        for name in names:
            samples[name].append(_run(contenders[name], number))
    return {
        name: Cost(*(statistics.median(figures) for figures in zip(*runs, strict=True)))
        for name, runs in samples.items()
    }


def _run(contender: Contender, number: int) -> Cost:
    for path, text in contender.files[number % len(contender.files)].items():
        pathlib.Path(path).write_text(text)
    apart = pathlib.Path(contender.apart) if contender.apart else None
    if apart:
        apart.write_text("")
    with open(os.devnull, "rb+") as nothing:
        began = time.perf_counter()
        process = subprocess.Popen(
            contender.argv, cwd=contender.cwd, stdin=nothing, stdout=nothing, stderr=nothing
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(contender.argv)[-200:]}: {process.returncode}")
    cpu = used.ru_utime + used.ru_stime
    for line in apart.read_text().splitlines() if apart else ():
        other_wall, other_cpu = map(float, line.split())
        wall, cpu = wall - other_wall, cpu - other_cpu
    return Cost(wall, cpu, used.ru_maxrss / 1024)
