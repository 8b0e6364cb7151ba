"""Measures everything, or the subjects that are named; prints a table, and writes JSON."""

import argparse
import datetime as dt
import json
import os
import pathlib
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import rich.console
import rich.progress
import rich.table

from tests.bench import download, edit, fleet, private, restarts, rows, sandboxes, unpack

FOLDER = pathlib.Path("build/bench")


def subjects(rounds: int) -> Mapping[str, Callable[[], Iterable[rows.Row]]]:
    """Return what can be measured, in the table's order."""
    few = max(1, rounds // 3)

    def hooks() -> Iterator[rows.Row]:
        yield from map(rows.row, private.run("tests.bench.hooks", str(rounds)))

    return {
        "hooks": hooks,
        "restarts": restarts.rows,
        "unpack": lambda: unpack.rows(few, FOLDER),
        "edit": lambda: edit.rows(rounds),
        "sandboxes": sandboxes.rows,
        "download": lambda: download.rows(few, FOLDER),
        "fleet": fleet.rows,
    }


def machine() -> dict[str, object]:
    """Describe this machine, and what else it does."""
    model = re.search(
        r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE
    )
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "memory-gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(each, 1) for each in os.getloadavg()],
        "when": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
    }


def main() -> int:
    """Measure."""
    read = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    read.add_argument("--rounds", type=int, default=15, help="of each hook; others have fewer")
    read.add_argument("--json", type=pathlib.Path, default=FOLDER.with_suffix(".json"))
    read.add_argument("--markdown", type=pathlib.Path, help="write the table for a document too")
    read.add_argument("subject", nargs="*", help=f"of {', '.join(subjects(1))}; all by default")
    asked = read.parse_args()
    known = subjects(asked.rounds)
    if unknown := set(asked.subject) - set(known):
        read.error(f"no such subject: {', '.join(unknown)}; there are {', '.join(known)}")
    console = rich.console.Console()
    found: dict[str, list[rows.Row]] = {}
    told: dict[str, object] = {"before": machine()}
    failed: dict[str, str] = {}
    for name in asked.subject or known:
        console.print(f"[bold]{name}[/bold] …")
        try:
            found[name] = list(known[name]())
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            console.print(f"{name} was not measured: {failed[name]}", style="red", markup=False)
    every = [each for group in found.values() for each in group]
    told |= {"after": machine(), "rounds": asked.rounds, "failed": failed}
    told["rows"] = [{"subject": name, **e.data()} for name, group in found.items() for e in group]
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    if asked.markdown:
        asked.markdown.write_text(rows.markdown(every) + "\n")
    table = rich.table.Table(*rows.HEADS, title="What the charm costs")
    for name, group in found.items():
        for each in group:
            style = {True: "", False: "red", None: "dim"}[each.met]
            table.add_row(*rows.cells(each), style=style)
        table.add_section()
    console.print(table)
    console.print(f"{json.dumps(told['after'])}\nwritten to {asked.json}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
