"""The host's end of the node's agent (`recipe/agent.py`, which describes the protocol)."""

import concurrent.futures
import contextlib
import itertools
import json
import pathlib
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.node import qmp

GRACE = 30  # seconds that an answer may come after a command's own time limit


class Gone(Exception):
    """The node has stopped before it could answer."""


class Result(NamedTuple):
    """How a command in the node ended."""

    rc: int
    out: str
    err: str
    seconds: float
    raw: bytes  # its standard output as bytes

    @property
    def ok(self) -> bool:
        """Whether the exit status was 0."""
        return self.rc == 0


class Failed(Exception):
    """A command in the node ended with an exit status other than 0."""

    def __init__(self, argv: list[str], result: Result):
        super().__init__(f"{' '.join(argv)[:300]}: {result.rc}\n{result.out}{result.err}")
        self.result = result


class Command:
    """A command that runs in the node."""

    def __init__(self, agent: "Agent", number: int, argv: list[str], timeout: float):
        self._agent = agent
        self._number = number
        self._argv = argv
        self._timeout = timeout
        self.answer: concurrent.futures.Future[Result] = concurrent.futures.Future()

    def done(self) -> bool:
        """Return whether it has ended."""
        return self.answer.done()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> bool:
        """Send a signal to it and its children; return False if it has ended already."""
        return self._agent.send({"kill": self._number, "signal": int(number)}, 10).wait().ok

    def wait(self, check: bool = False) -> Result:
        """Wait until it ends.

        Raises:
            Failed: it failed and `check` is set.
            Gone: the node stopped first.
            TimeoutError: the node does not answer.
        """
        try:
            result = self.answer.result(self._timeout + GRACE)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"no answer from the node: {self._argv}") from None
        if check and result.rc:
            raise Failed(self._argv, result)
        return result


class Agent:
    """A connection to the agent of one running node."""

    def __init__(self, path: pathlib.Path):
        self._socket = qmp.connected(path)
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()
        self._commands: dict[int, Command] = {}
        # The agent says that it is there with an answer that nobody asked for.
        self.booted = Command(self, 0, ["boot"], 0)
        self._commands[0] = self.booted
        threading.Thread(target=self._receive, daemon=True).start()

    def start(
        self,
        argv: list[str],
        timeout: float,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Command:
        """Start a command in the node."""
        given = {"argv": argv, "timeout": timeout, "env": env and dict(env), "cwd": cwd}
        return self.send(given, timeout, stdin)

    def send(self, request: dict[str, Any], timeout: float, stdin: bytes = b"") -> Command:
        """Send a request."""
        number = next(self._numbers)
        command = Command(self, number, request.get("argv", ["agent"]), timeout)
        self._commands[number] = command
        head = {**request, "id": number, "size": len(stdin)}
        with self._sending:
            try:
                self._socket.sendall(json.dumps(head).encode() + b"\n" + stdin)
            except OSError:
                raise Gone("the node has stopped") from None
        return command

    def close(self) -> None:
        """Hang up; whoever waits for an answer gets `Gone`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _receive(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as stream:
            while line := stream.readline():
                head = json.loads(line)
                out, err = stream.read(head["out"]), stream.read(head["err"])
                command = self._commands.pop(head["id"], None)
                if command is not None and len(err) == head["err"]:
                    texts = (each.decode(errors="replace") for each in (out, err))
                    command.answer.set_result(Result(head["rc"], *texts, head["seconds"], out))
        self._socket.close()
        for command in list(self._commands.values()):
            command.answer.set_exception(Gone("the node has stopped"))
