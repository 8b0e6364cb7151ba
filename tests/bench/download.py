"""A download from a mirror next door, beside writing the same bytes to the disk and no more."""

import functools
import hashlib
import http.server
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterator

from kata.machine import node as kata_node
from kata.release import download
from tests.bench.rows import Row, alternately


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


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
        handler = functools.partial(_Quiet, directory=name)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/{served.name}"
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
            server.shutdown()
    yield Row(
        f"download of {size >> 20} MiB from this machine, checked",
        (size >> 20) / took["fetch"],
        "MiB/s",
        "the same bytes copied and synced",
        (size >> 20) / took["write"],
    )
