"""Calls to a gRPC service behind a Unix socket."""

import contextlib
import socket
import threading

import pytest

from kata.containerd import grpc
from tests.unit.grpc_service import Service


@pytest.fixture
def service(tmp_path):
    """Start a service with a function that answers; return its path."""
    with contextlib.ExitStack() as stack:

        def start(answer):
            made = Service(tmp_path / "c.sock", answer)
            stack.callback(made.close)
            return made

        yield start


@pytest.fixture
def channel(tmp_path):
    with contextlib.ExitStack() as stack:

        def connect(headers=None):
            return stack.enter_context(
                contextlib.closing(grpc.Channel(tmp_path / "c.sock", headers))
            )

        yield connect


def test_a_call_and_its_answer(service, channel):
    made = service(lambda method, request: b"answer to " + request)
    assert channel().call("a.B/C", b"question") == b"answer to question"
    assert made.calls == [("a.B/C", b"question")]
    assert made.headers["content-type"] == "application/grpc"
    assert made.headers["te"] == "trailers"


def test_headers_go_with_every_call(service, channel):
    made = service(lambda *_: b"")
    channel({"containerd-namespace": "k8s.io"}).call("a.B/C")
    assert made.headers["containerd-namespace"] == "k8s.io"


def test_several_calls_share_a_connection(service, channel):
    service(lambda method, _: method.encode())
    talk = channel()
    assert [talk.call(f"a.B/{n}") for n in range(5)] == [f"a.B/{n}".encode() for n in range(5)]


@pytest.mark.parametrize("size", [0, 1, 16379, 16384, 65535, 300_000, 4_000_000])
def test_answers_of_any_size(service, channel, size):
    service(lambda *_: b"x" * size)
    assert len(channel().call("a.B/C", timeout=30)) == size


def test_a_request_of_several_frames(service, channel):
    service(lambda _, request: str(len(request)).encode())
    assert channel().call("a.B/C", b"x" * 50_000) == b"50000"


def test_a_failure_in_the_services_own_words(service, channel):
    service(lambda *_: (grpc.NOT_FOUND, "container %22x%22: not found"))
    with pytest.raises(grpc.Failed, match='container "x": not found') as caught:
        channel().call("a.B/C")
    assert caught.value.code == grpc.NOT_FOUND


def test_a_service_that_is_silent(service, channel):
    service(lambda *_: None)
    with pytest.raises(grpc.Unreachable, match=r"a\.B/C: no answer within 0\.2 s"):
        channel().call("a.B/C", timeout=0.2)


def test_nobody_listens(tmp_path):
    with pytest.raises(grpc.Unreachable, match="does not answer"):
        grpc.Channel(tmp_path / "c.sock")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100])
def test_somebody_else_listens(tmp_path, channel, said):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "c.sock"))
    listener.listen()

    def talk():
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(said)

    thread = threading.Thread(target=talk)
    thread.start()
    with pytest.raises(grpc.Unreachable, match=r"a\.B/C"):
        channel().call("a.B/C", timeout=5)
    thread.join()
    listener.close()


def test_headers_are_not_logged(service, channel, caplog):
    caplog.set_level(0)
    service(lambda *_: b"")
    channel().call("a.B/C")
    assert caplog.records == [], "each record of a hook starts a process"
