"""Ask a database of known faults about everything in a lock file: `make audit`.

    python tools/audit.py requirements.txt

Ends with 0 if the database knew every package and no fault of any, with 1 if it knows faults, and
with 2 if it could not be asked. pip-audit itself passes over what the database does not tell.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

ASK = ("--require-hashes", "--disable-pip", "--progress-spinner=off", "--format=json")


def judge(answer: dict[str, Any]) -> tuple[int, list[str]]:
    """Return how to end, and what to say, about pip-audit's answer."""
    packages = answer["dependencies"]
    untold = [each["name"] for each in packages if "skip_reason" in each]
    faults = [
        f"{each['name']} {each['version']}: {fault['id']}"
        f" ({', '.join(fault['aliases']) or 'no other name'}),"
        f" mended in {', '.join(fault['fix_versions']) or 'no release yet'}"
        for each in packages
        for fault in each.get("vulns", ())
    ]
    if faults:
        return 1, faults
    if untold or not packages:
        return 2, [f"NOT AUDITED: no answer about {len(untold)} of {len(packages)} packages"]
    return 0, [f"{len(packages)} packages, no known fault"]


def main(lock: str) -> int:
    """Ask, say what was answered, and return the exit status."""
    program = str(pathlib.Path(sys.executable).with_name("pip-audit"))
    ran = subprocess.run(
        [program, "--requirement", lock, *ASK],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    try:
        status, words = judge(json.loads(ran.stdout))
    except ValueError:
        last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        status, words = 2, [f"NOT AUDITED: the database cannot be asked: {last[:200]}"]
    print("\n".join(words))
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
