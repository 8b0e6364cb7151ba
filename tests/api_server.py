"""A Kubernetes API server as far as this charm needs one: RuntimeClasses and Nodes, over TLS.

It answers as the real one does and can be made to fail in every way that a real one does. Tests
use it as an object:

    with api_server.ApiServer() as server:
        server.faults.append(Fault(status=500))
        … server.url, server.ca, server.token …
        assert server.requests[("GET", "/api/v1/nodes/one")] == 1

A demo or a benchmark runs it as a program, which keeps its objects in a folder and says there how
to reach it (`kubeconfig`, `access.json`):

    python -m tests.api_server --state DIR --node NAME=MACHINE-ID

Faults of the program are set by `POST /stand-in/faults`, a JSON list of `Fault`s, and what has
been asked of it is told by `GET /stand-in/requests`.
"""

import argparse
import base64
import collections
import contextlib
import dataclasses
import fnmatch
import functools
import http.server
import json
import pathlib
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

from tests import api_objects

NAMES = ("IP:127.0.0.1", "IP:::1", "DNS:localhost", "IP:10.0.2.2")  # the last: as QEMU's guests
PATCHES = ("apply-patch+yaml", "merge-patch+json", "strategic-merge-patch+json")


@dataclasses.dataclass
class Fault:
    """What goes wrong, for the requests that match.

    Attributes:
        verb: of the requests it meets, as a pattern.
        path: of the requests it meets, as a pattern.
        times: how many requests it meets; -1 for all.
        delay: seconds before anything else happens.
        drop: hang up without an answer.
        half: send half of the answer's body, then hang up.
        status: answer with this status instead.
        body: the body of that answer; by default a Status object of Kubernetes'.
        headers: further headers of that answer.
    """

    verb: str = "*"
    path: str = "*"
    times: int = -1
    delay: float = 0
    drop: bool = False
    half: bool = False
    status: int = 0
    body: str | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    def meets(self, verb, path):
        fits = fnmatch.fnmatchcase(verb, self.verb) and fnmatch.fnmatchcase(path, self.path)
        if not fits or self.times == 0:
            return False
        self.times -= self.times > 0
        return True


@dataclasses.dataclass
class User:
    """Whose a token is, and what it may do: verbs by resource; None for everything."""

    name: str = "kata/0"
    may: dict[str, list[str]] | None = None

    def allowed(self, verb, resource):
        return self.may is None or verb in self.may.get(resource, ())


class ApiServer:
    """The server, in a thread of its own from `with` on.

    Attributes:
        url, ca, token: how to reach it; `token` may do everything.
        users: token to `User`.
        objects: what it keeps.
        faults: what goes wrong; the first that meets a request counts.
        requests: how often each (verb, path) was asked for.
        connections: how often it was connected to, by TLS.
    """

    def __init__(self, address="127.0.0.1", port=0, token=None):
        self.objects = api_objects.Objects()
        self.faults = []
        self.requests = collections.Counter()
        self.connections = 0
        self.token = token or secrets.token_urlsafe(24)
        self.users = {self.token: User()}
        self.lock = threading.Lock()
        self.changed = lambda: None
        # The first one of a process serves all: a test that is none of TLS needs none of its own.
        self.ca, self.context = first_certificate()
        self._server = _Listener((address, port), self)
        self.port = self._server.server_address[1]
        self.url = f"https://{'127.0.0.1' if address == '0.0.0.0' else address}:{self.port}"

    def renew_certificate(self):
        """Make a new CA and a certificate by it: clients that trust the old one refuse it."""
        self.ca, self.context = certificate()

    def add_node(self, name, machine_id, **labels):
        """Put a node into the cluster, as its kubelet does."""
        labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **labels}
        info = dict.fromkeys(NODE_INFO, "") | {"machineID": machine_id, "systemUUID": machine_id}
        return self.objects.create(
            api_objects.NODE,
            {"metadata": {"name": name, "labels": labels}, "status": {"nodeInfo": info}},
            "kubelet",
        )

    def writes(self):
        """Return how many requests were meant to change something."""
        return sum(count for (verb, _), count in self.requests.items() if verb != "GET")

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # One request

    def answer(self, verb, target, headers, body):
        """Return (status, headers, body) of the answer to a request."""
        parts = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(parts.query))
        try:
            user = self.users.get(headers.get("Authorization", "").removeprefix("Bearer "))
            if user is None:
                raise api_objects.Refusal(401, "Unauthorized", "Unauthorized")
            for kind in api_objects.KINDS:
                head, _, name = parts.path.removeprefix(kind.path).partition("/")
                if parts.path.startswith(kind.path) and not head and "/" not in name:
                    said = self._do(verb, kind, name, query, headers, body, user)
                    break
            else:
                message = "the server could not find the requested resource"
                raise api_objects.Refusal(404, "NotFound", message, {})
        except api_objects.Refusal as refusal:
            return refusal.code, JSON, json.dumps(refusal.status).encode()
        created = said.pop(CREATED, False)
        return (201 if created else 200), JSON, json.dumps(said).encode()

    def _do(self, verb, kind, name, query, headers, body, user):
        form = headers.get("Content-Type", "").partition(";")[0].removeprefix("application/")
        doing = {"GET": "get" if name else "list", "POST": "create"}.get(verb, verb.lower())
        if not user.allowed(doing, kind.plural):
            shown = f' "{name}"' if name else ""
            raise kind.refusal(
                403,
                "Forbidden",
                name,
                f'{kind.resource}{shown} is forbidden: User "{user.name}" cannot {doing} resource '
                f'"{kind.plural}" in API group "{kind.group}" at the cluster scope',
            )
        manager = query.get("fieldManager") or headers.get("User-Agent", "").partition("/")[0]
        with self.lock:
            if doing == "list":
                return self.objects.list(kind, query.get("labelSelector", ""))
            if doing == "get":
                return self.objects.get(kind, name)
            if doing == "delete":
                options = read(body) if body else {}
                done = self.objects.delete(
                    kind, name, (options.get("preconditions") or {}).get("uid")
                )
            elif doing == "create" and not name:
                done = {**self.objects.create(kind, read(body), manager), CREATED: True}
            elif doing == "patch" and form == "apply-patch+yaml":
                new = name not in self.objects.stored[kind.plural]
                if "fieldManager" not in query:
                    message = (
                        'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is '
                        "required for apply patch"
                    )
                    raise api_objects.Refusal(422, "Invalid", message)
                force = query.get("force") == "true"
                done = self.objects.apply(kind, name, read(body), manager, force)
                done[CREATED] = new
            elif doing == "patch" and form in PATCHES:
                done = self.objects.patch(kind, name, read(body), manager)
            elif doing == "patch":
                message = (
                    "the body of the request was in an unknown format - accepted media types "
                    f"include: {', '.join(f'application/{each}' for each in PATCHES)}"
                )
                raise api_objects.Refusal(415, "UnsupportedMediaType", message)
            else:
                message = "the server does not allow this method on the requested resource"
                raise api_objects.Refusal(405, "MethodNotAllowed", message)
            self.changed()
            return done


JSON = {"Content-Type": "application/json"}
CREATED = "\0created"
NODE_INFO = (
    *("machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "architecture"),
    *("containerRuntimeVersion", "kubeletVersion", "kubeProxyVersion", "operatingSystem"),
)


def read(body):
    try:
        read = json.loads(body)
    except ValueError:
        import yaml

        try:
            read = yaml.safe_load(body)
        except yaml.YAMLError:
            read = None
    if not isinstance(read, dict):
        raise api_objects.Refusal(400, "BadRequest", "the body of the request cannot be read")
    return read


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, api):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.api = api

    def finish_request(self, request, client_address):
        # In the thread of the request, so that a slow client holds up itself alone.
        request.settimeout(30)
        with contextlib.suppress(OSError):
            with self.api.context.wrap_socket(request, server_side=True) as tls:
                self.api.connections += 1
                _Handler(tls, client_address, self)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception() if hasattr(sys, "exception") else None, OSError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_):
        pass

    def do_GET(self):
        api, verb = self.server.api, self.command
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.startswith("/stand-in/"):
            return self._stand_in(api, verb, path, body)
        with api.lock:
            api.requests[verb, path] += 1
            fault = next((each for each in api.faults if each.meets(verb, path)), Fault())
        time.sleep(fault.delay)
        if fault.drop:
            self.close_connection = True
            return None
        if fault.status:
            said = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
            said |= {"message": f"stand-in: {fault.status}", "code": fault.status}
            said |= {"reason": REASONS.get(fault.status, "")}
            body = json.dumps(said) if fault.body is None else fault.body
            return self._send(fault.status, JSON | fault.headers, body.encode())
        return self._send(*api.answer(verb, self.path, self.headers, body), half=fault.half)

    do_POST = do_PATCH = do_DELETE = do_PUT = do_GET

    def _send(self, status, headers, body, half=False):
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.wfile.flush()
        self.close_connection = self.close_connection or half

    def _stand_in(self, api, verb, path, body):
        with api.lock:
            if (verb, path) == ("POST", "/stand-in/faults"):
                api.faults = [Fault(**each) for each in json.loads(body)]
            elif (verb, path) == ("POST", "/stand-in/requests"):
                api.requests.clear()
            counted = [[*asked, count] for asked, count in sorted(api.requests.items())]
        self._send(200, JSON, json.dumps({"requests": counted}).encode())


REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


def certificate():
    """Return a new CA in PEM, and the server's side of TLS with a certificate by it."""
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30".split()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)

        def openssl(*more):
            command = ["openssl", *new, *more]
            subprocess.run(command, check=True, capture_output=True, cwd=folder, timeout=60)

        usage = "keyUsage=critical,keyCertSign"
        openssl("-subj=/CN=stand-in CA", "-addext", usage, "-keyout=ca.key", "-out=ca.crt")
        names = f"subjectAltName={','.join(NAMES)}"
        openssl(
            *("-subj=/CN=stand-in", "-CA=ca.crt", "-CAkey=ca.key", "-addext", names),
            *("-addext", "basicConstraints=critical,CA:FALSE", "-keyout=tls.key", "-out=tls.crt"),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        return (folder / "ca.crt").read_text(), context


@functools.cache
def first_certificate():
    return certificate()


# As a program


def main():
    read = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    read.add_argument("--state", required=True, type=pathlib.Path, help="folder for all it keeps")
    read.add_argument("--address", default="127.0.0.1", help="to listen on")
    read.add_argument("--port", default=0, type=int, help="to listen on; 0 for any")
    read.add_argument("--node", default=[], action="append", metavar="NAME=MACHINE-ID")
    asked = read.parse_args()
    asked.state.mkdir(parents=True, exist_ok=True)
    with ApiServer(asked.address, asked.port) as server:
        kept = asked.state / "objects.json"
        if kept.exists():
            server.objects.stored = json.loads(kept.read_text())
        for node in asked.node:
            name, _, machine_id = node.partition("=")
            if name not in server.objects.stored["nodes"]:
                server.add_node(name, machine_id)
        server.changed = lambda: kept.write_text(json.dumps(server.objects.stored, indent=2))
        server.changed()
        tell(asked.state, server)
        print(server.url, flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


def tell(folder, server):
    """Write down how to reach the server, for this charm and for kubectl."""
    access = {"server": server.url, "token": server.token, "ca": server.ca}
    ca = base64.b64encode(server.ca.encode()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "stand-in",
        "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "stand-in"}}],
        "clusters": [
            {
                "name": "stand-in",
                "cluster": {"server": server.url, "certificate-authority-data": ca},
            }
        ],
        "users": [{"name": "stand-in", "user": {"token": server.token}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config, indent=2))
    (folder / "access.json").write_text(json.dumps(access, indent=2))


if __name__ == "__main__":
    main()
