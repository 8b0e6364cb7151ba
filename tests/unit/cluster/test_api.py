"""A conversation with the API server, and every way in which it can fail."""

import logging
import socket
import subprocess
import sys
import threading
import time

import pytest
from lightkube.resources import node_v1

from kata import problems
from kata.cluster import api, credentials
from tests import api_server

CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
CLASS = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "kata"},
    "handler": "kata",
}
AGAIN = "; tried again at the next event"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(api, "TIMEOUT", 0.2)
    monkeypatch.setattr(api, "PATIENCE", 0.5)


def refused(act, kind=problems.Waiting):
    """Return in what words an act ends; they fit a status."""
    with pytest.raises(kind) as caught:
        act()
    said = str(caught.value)
    assert len(said) <= 160
    assert "\n" not in said
    assert said.endswith(AGAIN)
    return said


READ = lambda server: server.read(f"{CLASSES}/kata")
APPLY = lambda server: server.apply(CLASS, force=False)
DELETE = lambda server: server.delete(node_v1.RuntimeClass, "kata")
ANY = pytest.mark.parametrize("act", [READ, APPLY, DELETE], ids=["read", "apply", "delete"])


# When it goes well


def test_an_object_is_applied_read_listed_and_deleted(server):
    assert server.read(f"{CLASSES}/kata") is None
    server.apply(CLASS, force=False)
    assert server.read(f"{CLASSES}/kata")["handler"] == "kata"
    [item] = server.read(CLASSES, labelSelector="!none")["items"]
    assert item["metadata"]["name"] == "kata"
    server.delete(node_v1.RuntimeClass, "kata")
    assert server.read(f"{CLASSES}/kata") is None


def test_reads_share_one_connection(stand_in, server):
    for _ in range(5):
        server.read(CLASSES)
    assert stand_in.connections == 1
    assert stand_in.requests == {("GET", CLASSES): 5}


def test_the_first_url_that_answers_is_used(stand_in):
    dead = f"https://127.0.0.1:{free_port()}"
    access = credentials.Access(dead, stand_in.token, stand_in.ca, (stand_in.url,))
    server = api.Server(access)
    assert server.read(CLASSES)["items"] == []
    server.apply(CLASS, force=False)
    server.close()


def test_an_api_that_the_server_lacks_is_not_an_object_that_is_not_there(server):
    said = refused(lambda: server.read("/apis/node.k8s.io/v9/runtimeclasses/kata"), api.Absent)
    assert "(404)" in said


@pytest.mark.parametrize("proxy", ["https_proxy", "HTTPS_PROXY", "ALL_PROXY"])
@ANY
def test_no_proxy_is_used(server, stand_in, monkeypatch, proxy, act):
    monkeypatch.setenv(proxy, f"http://127.0.0.1:{free_port()}")
    stand_in.objects.apply(*stored(), "me", False)
    act(server)


# When it does not


@ANY
def test_nobody_listens(stand_in, act):
    server = api.Server(
        credentials.Access(f"https://127.0.0.1:{free_port()}", "token", stand_in.ca)
    )
    assert ": Connection refused;" in refused(lambda: act(server))


@ANY
def test_the_name_is_unknown(stand_in, act):
    server = api.Server(credentials.Access("https://nowhere.invalid:6443", "token", stand_in.ca))
    said = refused(lambda: act(server))
    assert said.startswith("control plane nowhere.invalid:6443: ")


@ANY
@pytest.mark.usefixtures("impatient")
def test_it_is_too_slow(stand_in, server, act):
    stand_in.faults.append(api_server.Fault(delay=1))
    assert "no answer within 0.2 s" in refused(lambda: act(server))


@pytest.mark.usefixtures("impatient")
def test_it_never_comes_to_an_end(stand_in):
    """Each byte comes in time, but there is no end to them."""
    with dribble(stand_in) as url:
        server = api.Server(credentials.Access(url, stand_in.token, stand_in.ca))
        started = time.monotonic()
        assert "no answer" in refused(lambda: READ(server))
        assert time.monotonic() - started < 5
        server.close()


def test_the_answer_is_too_large(stand_in, server, monkeypatch):
    monkeypatch.setattr(api, "LARGEST", 1 << 20)
    stand_in.faults.append(api_server.Fault(status=200, body=f'"{"x" * (2 << 20)}"'))
    assert "more than 1 MiB" in refused(lambda: READ(server))


@ANY
def test_it_hangs_up(stand_in, server, act):
    stand_in.faults.append(api_server.Fault(drop=True))
    refused(lambda: act(server))


@pytest.mark.parametrize("fault", [{"drop": True}, {"half": True}, {"status": 500}])
def test_after_a_failure_it_can_be_asked_again(stand_in, server, fault):
    stand_in.objects.apply(*stored(), "me", False)
    stand_in.faults.append(api_server.Fault(times=1, **fault))
    refused(lambda: READ(server))
    assert READ(server)["handler"] == "kata"


@ANY
def test_the_answer_ends_half_way(stand_in, server, act):
    stand_in.objects.apply(*stored(), "me", False)
    stand_in.faults.append(api_server.Fault(half=True))
    refused(lambda: act(server))


@ANY
def test_the_certificate_has_changed(stand_in, act):
    access = credentials.Access(stand_in.url, stand_in.token, stand_in.ca)
    stand_in.renew_certificate()
    server = api.Server(access)
    said = refused(lambda: act(server))
    assert "certificate" in said
    assert server.refused
    assert not stand_in.requests  # the token has not been shown to it
    server.close()


@ANY
def test_the_certificate_is_for_another_name(act):
    with api_server.ApiServer(address="0.0.0.0") as stand_in:
        url = stand_in.url.replace("127.0.0.1", "127.0.0.2")
        server = api.Server(credentials.Access(url, stand_in.token, stand_in.ca))
        said = refused(lambda: act(server), api.Refused)
    assert "its certificate is not the one expected (IP address mismatch" in said


@pytest.mark.parametrize("ca", ["", "garbage", "-----BEGIN CERTIFICATE-----\nx\n"])
@ANY
def test_the_ca_is_no_certificate(stand_in, ca, act):
    """Then none is trusted, least of all those of the machine."""
    server = api.Server(credentials.Access(stand_in.url, stand_in.token, ca))
    assert "not valid PEM" in refused(lambda: act(server), api.Refused)


@pytest.mark.parametrize("url", ["http://127.0.0.1:6443", "ftp://x", "x", ""])
def test_the_token_is_sent_by_tls_or_not_at_all(stand_in, url):
    server = api.Server(credentials.Access(url, stand_in.token, stand_in.ca))
    assert "not an https URL" in refused(lambda: READ(server))


@ANY
def test_the_token_is_refused(stand_in, server, act):
    stand_in.users.clear()
    assert "refuses our credentials (401)" in refused(lambda: act(server), api.Refused)
    assert server.refused


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (READ, "get runtimeclasses/kata"),
        (APPLY, "patch RuntimeClass kata"),
        (DELETE, "delete RuntimeClass kata"),
    ],
)
def test_a_permission_is_missing(stand_in, server, act, what):
    stand_in.users[stand_in.token].may = {}
    assert f"does not let us {what} (403)" in refused(lambda: act(server), api.Forbidden)
    assert not server.refused


@ANY
def test_an_admission_webhook_has_the_word(stand_in, server, act):
    words = 'admission webhook "policy.example" denied the request: RuntimeClasses are frozen'
    stand_in.faults.append(api_server.Fault(status=403, body=status(403, words)))
    assert "(403: policy.example: RuntimeClasses are frozen)" in refused(lambda: act(server))


@pytest.mark.parametrize("code", [400, 408, 409, 410, 418, 422, 429, 500, 502, 503, 504])
@ANY
def test_any_other_answer_is_passed_on(stand_in, server, act, code):
    stand_in.faults.append(api_server.Fault(status=code, body=status(code, "etcd is\nnot  well")))
    said = refused(lambda: act(server))
    assert f"({code}: etcd is not well)" in said


@ANY
def test_it_does_not_sleep_for_a_server_that_is_overloaded(stand_in, server, act):
    words = "Too many requests, please try again later.\n"
    headers = {"Retry-After": "30", "Content-Type": "text/plain; charset=utf-8"}
    stand_in.faults.append(api_server.Fault(status=429, body=words, headers=headers))
    started = time.monotonic()
    assert "(429: Too many requests" in refused(lambda: act(server))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", ["application/json", "text/html", ""])
@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", "<html>", "\0", '{"kind": "Status"}', "[" * 200000]
)
@pytest.mark.parametrize("code", [200, 302, 404, 502])
@ANY
def test_an_answer_of_something_else_entirely(stand_in, server, act, code, body, kind):
    headers = {"Content-Type": kind, "Location": "https://elsewhere.invalid/"}
    stand_in.faults.append(api_server.Fault(status=code, body=body, headers=headers))
    if code == 200 and act is not READ and (act is DELETE or body.startswith("{")):
        return  # taken at its word
    refused(lambda: act(server))


@ANY
def test_what_was_said_in_confidence_is_not_repeated(stand_in, server, act, caplog):
    caplog.set_level(logging.DEBUG)
    said = f"you sent me Bearer {stand_in.token}"
    stand_in.faults.append(api_server.Fault(status=500, body=status(500, said)))
    assert stand_in.token not in refused(lambda: act(server))
    assert stand_in.token not in caplog.text
    assert stand_in.token not in repr(server.access)


@ANY
def test_requests_are_not_logged(stand_in, server, act, caplog):
    """Each record of a hook is a process of its own."""
    caplog.set_level(logging.DEBUG)
    stand_in.objects.apply(*stored(), "me", False)
    act(server)
    assert caplog.records == []


def test_a_read_needs_no_library():
    code = (
        "import sys; sys.path[:0] = ['src']; from kata.cluster import api, credentials;"
        "server = api.Server(credentials.Access('https://127.0.0.1:1', 'token', 'x'));"
        "\ntry: server.read('/')\nexcept api.Refused: pass\n"
        "sys.exit(sum(name in sys.modules for name in ('lightkube', 'httpx2', 'yaml')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What the tests need


def status(code, message):
    import json

    return json.dumps(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": api_server.REASONS.get(code, ""),
            "code": code,
        }
    )


def stored():
    from tests import api_objects

    return api_objects.RUNTIME_CLASS, "kata", CLASS


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class dribble:
    """A server that sends a byte of its answer now and then, for ever."""

    def __init__(self, stand_in):
        self.context = stand_in.context

    def __enter__(self):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        return f"https://127.0.0.1:{self.listening.getsockname()[1]}"

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.listening.close()

    def _serve(self):
        plain, _ = self.listening.accept()
        try:
            with self.context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not self.done.wait(0.05):
                    connection.sendall(b" ")
        except OSError:
            pass
