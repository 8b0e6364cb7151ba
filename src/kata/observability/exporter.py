"""The exporter: what systemd runs to answer Prometheus on the loopback address (see `services`)."""

import argparse
import http
import http.server
import logging
import pathlib
import threading
from collections.abc import Sequence

from kata.machine import node as kata_node
from kata.observability import exposition, measures

ADDRESS = "127.0.0.1"
PATH = "/metrics"
_PATIENCE = 10  # seconds that a client may be silent


class Server(http.server.ThreadingHTTPServer):
    """Answers one question: how the node fares."""

    daemon_threads = True

    def __init__(self, port: int, found: measures.Measures) -> None:
        super().__init__((ADDRESS, port), _Handler)
        self._found = found
        self._turn = threading.Lock()

    def answer(self) -> bytes:
        """Return the metrics as they are now."""
        with self._turn:
            return exposition.text(self._found.families()).encode()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = _PATIENCE
    server_version = "kata-charm"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(http.HTTPStatus.NOT_FOUND, f"see {PATH}")
            return
        body = self.server.answer()
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Content-Type", exposition.CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing of each scrape."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--unit", required=True, help="containerd's systemd unit")
    parser.add_argument("--state", required=True, help="containerd's state folder")
    parser.add_argument("--socket", required=True, help="containerd's socket")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("/"))
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    place = measures.Place(given.unit, given.state, given.socket)
    found = measures.Measures(kata_node.Node(given.root), place)
    with Server(given.port, found) as server:
        server.answer()  # the journal counts from here on
        server.serve_forever()


if __name__ == "__main__":
    main()
