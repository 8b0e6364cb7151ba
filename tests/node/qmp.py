"""QEMU's machine protocol, as much of it as a node needs."""

import json
import pathlib
import socket
import time
from typing import Any


class Refused(Exception):
    """QEMU refused a command."""


def connected(path: pathlib.Path) -> socket.socket:
    """Return a connection to a socket in the file system."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


class Monitor:
    """A connection to a running QEMU."""

    def __init__(self, path: pathlib.Path):
        self._socket = connected(path)
        self._socket.settimeout(120)
        self._stream = self._socket.makefile("rb")
        self._stream.readline()
        self.events: list[dict[str, Any]] = []
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run a command; underscores in argument names stand for hyphens.

        Raises:
            Refused: QEMU did not do it.
        """
        self._send(command, arguments)
        return self._answer(command)

    def pass_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU an open file that later commands call `name`."""
        self._send("getfd", {"fdname": name}, [descriptor])
        self._answer("getfd")

    def wait_for(self, event: str, timeout: float = 60, **matching: Any) -> dict[str, Any]:
        """Wait for an event whose data has the given values.

        Raises:
            TimeoutError: it did not come.
        """
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            for seen in self.events:
                data = seen.get("data", {})
                if seen["event"] == event and matching.items() <= data.items():
                    self.events.remove(seen)
                    return data
            # QEMU sends what has happened meanwhile before the answer.
            self("query-name")
            time.sleep(0.01)
        raise TimeoutError(f"QEMU: no {event} within {timeout:g} s")

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self._socket.close()

    def _send(self, command: str, arguments: dict[str, Any], files: list[int] | None = None):
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        data = json.dumps({"execute": command, "arguments": named}).encode()
        # QEMU takes a descriptor with the first byte of the command that uses it.
        socket.send_fds(self._socket, [data], files or [])

    def _answer(self, command: str) -> Any:
        while line := self._stream.readline():
            said = json.loads(line)
            if "event" in said:
                self.events.append(said)
            elif "error" in said:
                raise Refused(f"{command}: {said['error']['desc']}")
            else:
                return said["return"]
        raise Refused(f"{command}: QEMU has ended")
