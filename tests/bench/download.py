"""A download from a mirror next door, beside writing the same bytes to the disk and no more."""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from kata.machine import node as kata_node
from kata.release import download
from tests.bench.rows import Row, alternately


def rows(rounds: int, folder: pathlib.Path, size: int = 512 << 20) -> Iterator[Row]:
    """Measure it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = pathlib.Path(name)
        served = root / "kata.tar.zst"
        sha256 = hashlib.sha256()
        with served.open("wb") as file:
            for _ in range(size >> 20):
                piece = os.urandom(1 << 20)
                file.write(piece)
                sha256.update(piece)
        digest = sha256.hexdigest()
        # In a process of its own: it must not share an interpreter with what is measured.
        command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1"]
        with subprocess.Popen(
            [*command, "--directory", name, "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as server:
            assert server.stdout
            port = re.search(r"port (\d+)", server.stdout.readline())
            assert port
            url = f"http://127.0.0.1:{port[1]}/{served.name}"
            node = kata_node.Node(root)

            def fetch() -> None:
                download.forget(node, "/fetched")
                download.fetch(node, url, "/fetched", sha256=digest)

            def write() -> None:
                copy = root / "copied"
                copy.unlink(missing_ok=True)
                with served.open("rb") as source, copy.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                    target.flush()
                    os.fsync(target.fileno())

            took = alternately({"fetch": fetch, "write": write}, rounds)
            server.terminate()
    yield Row(
        f"download of {size >> 20} MiB from this machine, checked",
        (size >> 20) / took["fetch"],
        "MiB/s",
        "the same bytes copied and synced",
        (size >> 20) / took["write"],
    )
