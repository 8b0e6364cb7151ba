"""How often containerd restarts, on a throwaway node with real systemd and containerd."""

import pathlib
import tempfile
from collections.abc import Iterator

from tests.bench import private
from tests.bench.rows import Row
from tests.node import image, juju, machine, snapshot, standin, view


def rows() -> Iterator[Row]:
    """Count them."""
    with machine.Machine.restored(juju.with_charm(snapshot.booted())) as node:
        unit = juju.Unit(node)
        unit.relate("containerd", "kubernetes-worker")
        program = image.ready().sleep.read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            packed = standin.archive("3.32.0", pathlib.Path(folder), hypervisor=program)
            unit.attach("kata-archive", packed)
        _dispatch(unit, "install")
        count = _starts(unit)
        for what, event, options, most in (
            ("no change", "config-changed", {}, 0),
            ("a setting of Kata", "config-changed", {"default-memory": 1024}, 0),
            ("a handler", "config-changed", {"extra-runtime-classes": "kata-clh=clh"}, 1),
        ):
            unit.config.update(options)
            _dispatch(unit, event)
            before, count = count, _starts(unit)
            yield _row(what, count - before, most)
        # Somebody writes the file anew and restarts containerd, and tells nobody.
        node.copy_in(private.CONFIG, view.CONFIG)
        node.run(["systemctl", "restart", "containerd"], timeout=120)
        count = _starts(unit)
        _dispatch(unit, "update-status")
        if "runtimes.kata]" not in node.run(["cat", view.CONFIG]).out:
            raise RuntimeError("the rewrite was not healed")
        yield _row("a foreign rewrite, healed by the guard", _starts(unit) - count, 0)


def _dispatch(unit: juju.Unit, event: str) -> None:
    result = unit.dispatch(event)
    if not result.ok or result.status.name != "active":
        raise RuntimeError(f"{event}: {result}")


def _starts(unit: juju.Unit) -> int:
    said = unit.node.run(["journalctl", "--unit", "containerd", "--output", "cat"]).out
    return said.count("Started containerd")


def _row(what: str, count: int, most: int) -> Row:
    return Row(f"containerd restarts: {what}", count, "", aim=str(most), bound=most)
