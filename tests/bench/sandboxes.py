"""`list-sandboxes` and `inspect-sandbox` beside following each sandbox by hand.

python3 -m tests.bench.sandboxes list|inspect|by-hand    times one look, where sandboxes are
"""

import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.bench.rows import Row
from tests.node import by_hand, pod_records
from tests.node import sandboxes_at_scale as scale

COMPARED = 100


def rows(counts: tuple[int, ...] = (1, 10, 100, 1000)) -> Iterator[Row]:
    """Measure both actions among more and more sandboxes."""
    took: dict[int, float] = {}
    for count in counts:
        with scale.standing(count, containerd=True) as beside:

            def look(what: str, beside: scale.Beside = beside) -> Any:
                return json.loads(beside.run(sys.executable, "-m", "tests.bench.sandboxes", what))

            listed = look("list")
            if listed["count"] != count:
                raise RuntimeError(f"{listed['count']} of {count} sandboxes were found")
            took[count] = listed["seconds"]
            hand = look("by-hand")["seconds"] if count <= COMPARED else None
            speed = {"aim": "at least 20 times faster", "bound": 1 / 20}
            last = {"aim": "under 2 s", "bound": 2000.0}
            yield Row(
                f"list-sandboxes, {count:,}",
                took[count] * 1000,
                "ms",
                "the deploy record's commands" if hand else "",
                hand * 1000 if hand else None,
                **(speed if count == COMPARED else last if count == 1000 else {}),
            )
            if count == max(counts):
                yield Row(
                    f"inspect-sandbox among {count:,}",
                    look("inspect")["seconds"] * 1000,
                    "ms",
                    aim="under 1 s",
                    bound=1000,
                )
    if len(counts) > 1:
        less, most = sorted(counts)[-2:]
        yield Row(
            f"list-sandboxes, time a sandbox, {most:,}",
            took[most] / most * 1000,
            "ms",
            f"{less:,}",
            took[less] / less * 1000,
            "linear",
            1.5,
        )


def main() -> None:
    """Look three times, and print the middle one's seconds."""
    from kata.containerd import cri
    from kata.machine import node
    from kata.sandbox import network, picture, report, sandboxes

    here = node.Node()

    def found() -> Any:
        handlers = cri.pod_handlers(pathlib.Path(pod_records.CONTAINERD))
        return sandboxes.find(here, handlers=handlers)

    def listed() -> int:
        seen = found()
        report.table(seen)
        json.dumps([report.data(each) for each in seen])
        return len(seen)

    def inspect() -> int:
        seen = found()
        one = sandboxes.pick(seen, pod=f"default/{pod_records.pod(len(seen) // 2)}")
        picture.draw(one, network.look(here, one.id, one.network))
        return len(seen)

    work = {"list": listed, "inspect": inspect, "by-hand": lambda: len(by_hand.every())}
    times: list[float] = []
    count = 0
    for _ in range(1 if sys.argv[1] == "by-hand" else 3):
        began = time.perf_counter()
        count = work[sys.argv[1]]()
        times.append(time.perf_counter() - began)
    json.dump({"seconds": sorted(times)[len(times) // 2], "count": count}, sys.stdout)


if __name__ == "__main__":
    main()
