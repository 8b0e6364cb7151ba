"""Calls to a gRPC service behind a Unix socket: one request, one answer.

It is HTTP/2 with a length before the message and the outcome in the trailers (grpc, "gRPC over
HTTP2"). The h2 library speaks the former; the latter is all that is here.
"""

import contextlib
import logging
import pathlib
import socket
import struct
import time
import urllib.parse
from collections.abc import Mapping

from kata import problems

# grpc, doc/statuscodes.md
OK, UNKNOWN, NOT_FOUND, ALREADY_EXISTS, UNIMPLEMENTED = 0, 2, 5, 6, 12
_HEAD = struct.Struct(">BI")
_CHUNK = 1 << 16
# containerd's own limit for an answer (defaults.DefaultMaxRecvMsgSize).
_MOST = 16 << 20


class Failed(problems.Problem):
    """A call failed: its status code and the service's own words."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Unreachable(problems.Problem):
    """The service does not answer."""


class Channel:
    """A connection to a service.

    Args:
        path: its Unix socket.
        headers: sent with every call.

    Raises:
        Unreachable: nobody listens there.
    """

    def __init__(self, path: pathlib.Path, headers: Mapping[str, str] | None = None) -> None:
        # h2 takes 40 ms to import, and hooks do without it.
        import h2.config
        import h2.connection

        # Every record of a hook is a process of its own, and this has several for each header.
        logging.getLogger("hpack").setLevel(logging.WARNING)
        self._path = path
        self._headers = headers or {}
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5)
        try:
            self._socket.connect(str(path))
            self._http = h2.connection.H2Connection(
                h2.config.H2Configuration(header_encoding="utf-8")
            )
            self._http.initiate_connection()
            self._http.increment_flow_control_window(_MOST)
            self._socket.sendall(self._http.data_to_send())
        except OSError as error:
            self._socket.close()
            raise Unreachable(f"{path} does not answer: {error}") from error

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def call(self, method: str, request: bytes = b"", timeout: float = 10) -> bytes:
        """Call a method and return its answer.

        Args:
            method: `package.Service/Method`.
            request: the message.
            timeout: seconds until it is given up.

        Raises:
            Failed: the service says that it failed.
            Unreachable: it does not answer, or not in time.
        """
        import h2.exceptions

        until = time.monotonic() + timeout
        try:
            stream = self._send(method, request, timeout)
            return self._answer(stream, until)
        except (OSError, h2.exceptions.ProtocolError) as error:
            reason = (
                f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else error
            )
            raise Unreachable(f"{self._path}: {method}: {reason}") from error

    def _send(self, method: str, request: bytes, timeout: float) -> int:
        stream = self._http.get_next_available_stream_id()
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"/{method}",
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
            "grpc-timeout": f"{int(timeout * 1000)}m",
            **self._headers,
        }
        self._http.send_headers(stream, list(headers.items()))
        self._http.increment_flow_control_window(_MOST, stream)
        data = _HEAD.pack(0, len(request)) + request
        for start in range(0, len(data), self._http.max_outbound_frame_size):
            piece = data[start : start + self._http.max_outbound_frame_size]
            self._http.send_data(stream, piece, end_stream=start + len(piece) == len(data))
        self._socket.sendall(self._http.data_to_send())
        return stream

    def _answer(self, stream: int, until: float) -> bytes:
        import h2.events

        body = bytearray()
        told: dict[str, str] = {}
        while True:
            self._socket.settimeout(max(0.01, until - time.monotonic()))
            data = self._socket.recv(_CHUNK)
            if not data:
                raise ConnectionError("the connection was closed")
            for event in self._http.receive_data(data):
                if getattr(event, "stream_id", stream) != stream:
                    continue  # an earlier call's, given up
                if isinstance(event, h2.events.DataReceived):
                    body += event.data or b""
                    self._http.acknowledge_received_data(event.flow_controlled_length or 0, stream)
                elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    told |= _headers(event)
                elif isinstance(event, h2.events.StreamReset):
                    raise ConnectionError("the call was cut off")
                elif isinstance(event, h2.events.StreamEnded):
                    return _outcome(told, bytes(body))
            with contextlib.suppress(BrokenPipeError):
                self._socket.sendall(self._http.data_to_send())


def _headers(event: object) -> dict[str, str]:
    return {str(name): str(value) for name, value in getattr(event, "headers", ())}


def _outcome(told: Mapping[str, str], body: bytes) -> bytes:
    try:
        code = int(told.get("grpc-status", str(UNKNOWN)))
    except ValueError:
        code = UNKNOWN
    if code != OK:
        words = urllib.parse.unquote(told.get("grpc-message", "")) or f"status {code}"
        raise Failed(code, words)
    if len(body) < _HEAD.size or _HEAD.unpack_from(body)[1] != len(body) - _HEAD.size:
        raise ConnectionError("the answer is not whole")
    return body[_HEAD.size :]
