"""A gRPC service on a Unix socket, as containerd has one: it answers by a function of the test."""

import contextlib
import socket
import struct
import threading

import h2.config
import h2.connection
import h2.events


class Service:
    """`answer(method, request)` returns the answer, or (status, message), or None for silence.

    Attributes:
        calls: the methods that were called, with their requests.
        headers: of the last call.
    """

    def __init__(self, path, answer):
        self.calls = []
        self.headers = {}
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        http.initiate_connection()
        bodies = {}
        with contextlib.suppress(OSError), connection:
            connection.sendall(http.data_to_send())
            while data := connection.recv(1 << 16):
                for event in http.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self.headers = dict(event.headers)
                        bodies[event.stream_id] = (self.headers[":path"][1:], bytearray())
                    elif isinstance(event, h2.events.DataReceived):
                        bodies[event.stream_id][1].extend(event.data)
                        http.acknowledge_received_data(len(event.data), event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        method, body = bodies.pop(event.stream_id)
                        self._reply(connection, http, event.stream_id, method, bytes(body[5:]))
                connection.sendall(http.data_to_send())

    def _reply(self, connection, http, stream, method, request):
        self.calls.append((method, request))
        said = self._answer(method, request)
        if said is None:
            return
        if isinstance(said, tuple):
            status, message = said
            headers = [(":status", "200"), ("grpc-status", str(status)), ("grpc-message", message)]
            http.send_headers(stream, headers, end_stream=True)
            return
        http.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        data = struct.pack(">BI", 0, len(said)) + said
        for start in range(0, len(data), 16384):
            while http.local_flow_control_window(stream) < 16384:
                connection.sendall(http.data_to_send())
                http.receive_data(connection.recv(1 << 16))
            http.send_data(stream, data[start : start + 16384])
        http.send_headers(stream, [("grpc-status", "0")], end_stream=True)
