"""Real web servers for tests, in threads: they do with each request what a test says."""

import contextlib
import http.server
import ssl
import subprocess
import threading

import pytest

FROM_NODE = "10.0.2.2"  # this machine, for QEMU's guests
BODY = bytes(range(256)) * 4096 * 8  # 8 MiB


class Server(http.server.ThreadingHTTPServer):
    """A server that does with each request what a test says, and remembers them."""

    daemon_threads = True

    def __init__(self, certificate=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.body = BODY
        self.etag = '"one"'
        self.modified = ""
        self.ranges = True
        self.cut = None  # bytes after which a connection is cut; None for never
        self.answer = None  # a function that answers instead
        self.scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path="/kata.tar.zst", host="127.0.0.1"):
        return f"{self.scheme}://{host}:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        pass  # clients hang up, and certificates are refused, by design


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(dict(self.headers) | {"path": self.path})
        if self.server.answer and self.server.answer(self):
            return
        tag, body = self.server.etag, self.server.body
        if tag and self.headers.get("If-None-Match") == tag:
            self.reply(304)
            return
        start = 0
        span = self.headers.get("Range", "")
        fits = self.headers.get("If-Range") in (None, tag, self.server.modified or None)
        if span and self.server.ranges and fits:
            start = int(span.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.reply(416)
                return
        headers = {"ETag": tag, "Last-Modified": self.server.modified}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.reply(206 if start else 200, body[start:], headers)

    def reply(self, status, body=b"", headers=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        cut = self.server.cut
        with contextlib.suppress(OSError):
            self.wfile.write(body if cut is None else body[:cut])
        self.close_connection = True


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A key and a certificate of this machine, signed by nobody else."""
    place = tmp_path_factory.mktemp("tls") / "both.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=127.0.0.1", "-addext", f"subjectAltName=IP:127.0.0.1,IP:{FROM_NODE}"]
    made = subprocess.run([*argv, "-keyout", "-", "-out", "-"], capture_output=True, check=True)
    place.write_bytes(made.stdout)
    return place


@pytest.fixture
def secure(certificate, monkeypatch):
    """A server whose certificate this machine trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = Server(certificate)
    yield server
    server.shutdown()
    server.server_close()
