"""Lives of the charm in which hooks are killed and the power is cut, one after the other: `make soak`.

    KATA_SOAK_MINUTES=30    how long
    KATA_SOAK_SEED=1        the first life; the next one has the next number
    KATA_SOAK_TIMES=2       how often each stage is cut short before it may end
    KATA_SOAK_SHORT=1       lives without the stages that install packages

A life with a number is the same each time, but for the moments within a command that runs. What
was tried, and what was not as it must be, is printed as it happens, and counted at the end.
"""

import collections
import os
import pathlib
import random
import sys
import tempfile
import time

import rich.console
import rich.table

from tests.node import agent, image, juju, life, machine, snapshot

# What a node or a hook that does not come back looks like from here.
FAILURES = (AssertionError, RuntimeError, TimeoutError, agent.Failed, agent.Gone)
HOW = {"kill": "hook killed", "cut": "power cut"}


def live(number: int, how: str, times: int, base, archives, undisturbed, tell, until) -> None:
    """Live one life, cut short in each stage, for as long as there is time."""
    chance = random.Random(f"{number} {how}")
    with machine.Machine.restored(base) as node:
        unit = life.Life(node, archives)
        for stage in filter(lambda each: each.name in undisturbed, life.STAGES):
            if time.monotonic() > until:
                return
            for trial in unit.disturbed(stage, undisturbed, how, times, chance):
                tell(number, trial)


def main() -> int:
    """Soak until the time is over."""
    minutes, seed, times = (
        float(os.environ.get(f"KATA_SOAK_{name}") or default)
        for name, default in (("MINUTES", 30), ("SEED", 1), ("TIMES", 2))
    )
    stages = life.SHORT if os.environ.get("KATA_SOAK_SHORT") else life.STAGES
    console = rich.console.Console(highlight=False, width=160)
    until = time.monotonic() + 60 * minutes
    tried: collections.Counter[tuple[str, str]] = collections.Counter()
    areas: collections.Counter[tuple[str, str]] = collections.Counter()
    faults: list[str] = []

    def tell(number: int, trial: life.Trial) -> None:
        if trial.point:
            tried[trial.how, trial.stage] += 1
            areas[trial.how, trial.point.area] += 1
        where = (
            f"{trial.point.event} {trial.point.subject}" if trial.point else "nothing: it ended"
        )
        what = f"life {number}, {trial.stage}: {HOW[trial.how]} before {where}"
        console.print(f"{what}: {'; '.join(trial.faults) or 'as it must be'}", markup=False)
        faults.extend(f"{what}: {each}" for each in trial.faults)

    image.ensure_commands()
    base = juju.with_charm(snapshot.booted())
    number = int(seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        archives = life.archives(pathlib.Path(scratch))
        with machine.Machine.restored(base) as node:
            undisturbed = life.Life(node, archives).undisturbed(stages)
        known = sum(len(each.points) for each in undisturbed.values())
        console.print(f"{known} points in {len(undisturbed)} stages of an undisturbed life")
        while time.monotonic() < until:
            for how in HOW:
                if time.monotonic() < until:
                    try:
                        live(number, how, int(times), base, archives, undisturbed, tell, until)
                    except FAILURES as error:
                        faults.append(f"life {number}, {how}: {error}")
                        console.print(f"life {number} ended: {error}", markup=False)
            number += 1
    console.print(_table("stage", [stage.name for stage in stages], tried))
    console.print(_table("area", sorted({area for _, area in areas}), areas))
    for each in faults:
        console.print(each, style="red", markup=False)
    console.print(
        f"{sum(tried.values())} points tried, {len(faults)} faults, lives {int(seed)} to {number - 1}"
    )
    return 1 if faults else 0


def _table(what: str, names: list[str], counted: collections.Counter) -> rich.table.Table:
    table = rich.table.Table(what, *HOW.values())
    for name in names:
        table.add_row(name, *(str(counted[how, name]) for how in HOW))
    table.add_row(
        "all", *(str(sum(n for (h, _), n in counted.items() if h == how)) for how in HOW)
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
