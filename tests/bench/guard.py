"""What the guard adds to a start of containerd; where a hook has put it (`hooks`)."""

import pathlib

from tests.bench import meter, private
from tests.bench.rows import Row
from tests.node import view

# As the drop-in has it.
GUARD = ("/usr/bin/python3", "-I", "-S", "/usr/local/lib/kata-charm/guard.pyz")
START = r"""
: >/run/own.log
containerd --config /run/own.toml >/run/own.log 2>&1 &
until grep -q 'successfully booted' /run/own.log; do kill -0 $! || exit 1; sleep 0.005; done
kill -9 $!
"""
HEAD = """\
root = "/run/own/root"
state = "/run/own/state"
[grpc]
  address = "/run/own/c.sock"
[ttrpc]
  address = "/run/own/t.sock"
"""


def rows(rounds: int) -> list[Row]:
    """Measure the guard beside a containerd's own start."""
    settled = pathlib.Path(view.CONFIG).read_text()
    head, _, rest = settled.partition("\n")
    pathlib.Path("/run/own.toml").write_text(f"{head}\n{HEAD}{rest}")
    costs = meter.measured(
        {
            "start": meter.Contender(("bash", "-c", START)),
            "idle": meter.Contender(GUARD),
            "repair": meter.Contender(GUARD, files=[{view.CONFIG: private.CONFIG}]),
        },
        rounds,
    )
    healed = "runtimes.kata]" in pathlib.Path(view.CONFIG).read_text()
    against, start = "containerd's own start", costs["start"].wall * 1000
    return [
        Row(
            "guard, nothing to be done",
            costs["idle"].wall * 1000,
            "ms",
            aim="under 30 ms",
            bound=30,
            note=f"{against}: {start:.0f} ms",
        ),
        Row(
            "guard, a foreign rewrite healed",
            costs["repair"].wall * 1000,
            "ms",
            aim="under 300 ms",
            bound=300,
            note=f"{against}: {start:.0f} ms; {'healed' if healed else 'NOT HEALED'}",
        ),
    ]
