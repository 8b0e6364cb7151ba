"""Downloads that may be cut off at any point and go on from there, and that prove what came.

What has come lies beside a note: from where, in which edition, and how much of it is safe on the
disk. So neither a power cut nor a server that hangs up costs more than the last few megabytes.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Generator
from http.client import HTTPResponse
from typing import IO, Any

from kata import problems
from kata.machine import disk
from kata.machine import node as kata_node
from kata.release import https, release

Progress = Callable[[int, "int | None"], object]
"""Told how many bytes there are, and how many there will be if the server says so."""

MOST_BYTES = 8 << 30
"""4.0.0's archive, the largest to date, has 2 GB."""
_PIECE = 256 << 10
_SAFE_EVERY = 64 << 20
# An attempt that brings so much does not count as a failure.
_PROGRESS = 1 << 20
_SPAN = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long to put up with a server. A hook holds up every other one of the machine.

    Attributes:
        quiet: seconds in which `least` bytes must come.
        least: bytes.
        attempts: how many may fail in a row.
        look_ups: the same where not even the server's name is found, which takes long to be told.
        pause: seconds before the second attempt; each further pause is twice as long.
        budget: seconds in all; the next hook goes on.
    """

    quiet: float = 30
    least: int = 64 << 10
    attempts: int = 5
    look_ups: int = 2
    pause: float = 1
    budget: float = 1800


@dataclasses.dataclass
class _Note:
    """What is known of a file that was begun."""

    url: str = ""
    etag: str = ""
    modified: str = ""
    safe: int = 0
    complete: bool = False
    # Why it was not good enough, and by which digest and edition of the charm: it is not fetched
    # again as long as all of that is the same.
    refused: str = ""
    against: str = ""


def fetch(
    node: kata_node.Node,
    url: str,
    path: str,
    *,
    sha256: str = "",
    progress: Progress = lambda _done, _total: None,
    patience: Patience = Patience(),
) -> str:
    """Download a file, or go on with it, or take it if it is there.

    Args:
        node: the machine.
        url: from where; plain http only where a digest is given.
        path: where to on the machine. Its folder must be there, and out of reach of others.
        sha256: what it must be; nothing if that is not known.
        progress: told now and then.
        patience: with the server.

    Returns:
        The file's SHA-256.

    Raises:
        Blocked: the operator must act: another address, digest, certificate, or more room.
        Waiting: the server does not answer, or too slowly. What has come is kept.
    """
    if urllib.parse.urlsplit(url).scheme != "https" and not sha256:
        raise problems.Blocked(f"{url}: plain http needs a digest; set archive-sha256, or https")
    transfer = _Transfer(node, url, path, sha256, progress, patience)
    deadline = time.monotonic() + patience.budget
    failures = 0
    while True:
        before = transfer.note.safe
        try:
            return transfer.attempt(deadline)
        except https.Failed as error:
            failures = 1 if transfer.note.safe - before >= _PROGRESS else failures + 1
            attempts = patience.look_ups if error.nameless else patience.attempts
            pause = max(error.wait, patience.pause * 2 ** (failures - 1))
            pause *= random.uniform(0.8, 1.2)  # noqa: S311 - so that a fleet does not ask at once
            if failures >= attempts or time.monotonic() + pause > deadline:
                raise problems.Waiting(
                    f"download from {transfer.host}: {error}; tried again at the next hook; "
                    "without a network attach kata-archive"
                ) from error
            time.sleep(pause)


def refuse(node: kata_node.Node, path: str, reason: str, sha256: str = "") -> None:
    """Throw away a downloaded file that is no good, and remember it: it is not fetched again."""
    note = _read_note(node, path)
    note.refused, note.against = reason, _against(sha256)
    note.safe, note.complete = 0, False
    _write_note(node, path, note)
    node.remove(path)


def forget(node: kata_node.Node, path: str) -> None:
    """Remove a downloaded file with its note."""
    node.remove(path)
    node.remove(f"{path}.json")


@dataclasses.dataclass
class _Transfer:
    """One file on its way here."""

    node: kata_node.Node
    url: str
    path: str
    sha256: str
    progress: Progress
    patience: Patience

    def __post_init__(self) -> None:
        self.host = urllib.parse.urlsplit(self.url).hostname or self.url
        self.name = self.path.rpartition("/")[2]
        self.note = _read_note(self.node, self.path)
        if self.note.url != self.url:
            self.note = _Note(self.url)
        if self.note.against != _against(self.sha256):
            self.note.refused = ""

    def attempt(self, deadline: float) -> str:
        """Go as far as it goes; return the digest once all is there."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self.node.path(self.path), flags, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                # Beyond what is known to be safe, a power cut may have left zeros.
                here = min(self.note.safe, os.fstat(descriptor).st_size)
                if self.note.complete:
                    return self._judge(_digest_of(file, here).hexdigest(), fresh=False)
                with self._opened(here) as response:
                    begun, total = self._agree(response, here)
                    digest = _digest_of(file, begun)
                    self._receive(response, file, digest, total, deadline)
                return self._judge(digest.hexdigest(), fresh=begun == 0)
        except OSError as error:
            raise problems.Blocked(
                f"cannot write {self.path}: {error.strerror}; mend it, then wait"
            ) from error

    def _opened(self, here: int) -> HTTPResponse:
        """Ask for the file from byte `here` on."""
        asked = {"User-Agent": "kata-charm", "Accept-Encoding": "identity"}
        if self.note.refused:
            asked |= {"If-None-Match": self.note.etag, "If-Modified-Since": self.note.modified}
        elif here:
            # A weak tag says "as good as", which half a file is not.
            tag = "" if self.note.etag.startswith("W/") else self.note.etag
            asked |= {"Range": f"bytes={here}-", "If-Range": tag or self.note.modified}
        try:
            return https.get(self.url, asked, self.patience.quiet)
        except https.Answered as answer:
            if answer.status == 304 and self.note.refused:
                raise problems.Blocked(self.note.refused) from answer
            if answer.status == 416 and here:
                self.note = _Note(self.url)
                raise https.Failed(str(answer)) from answer
            raise problems.Blocked(
                f"{self.host} answers {answer} for {self.name}; correct kata-version or "
                "archive-url, or attach kata-archive"
            ) from answer

    def _agree(self, response: HTTPResponse, here: int) -> tuple[int, int | None]:
        """Return at which byte the answer begins, and how many the whole file has, if known."""
        length = response.headers.get("Content-Length", "")
        begun, total = 0, int(length) if length.isdigit() else None
        if response.status == 206:
            span = _SPAN.fullmatch(response.headers.get("Content-Range", ""))
            if not span or int(span[1]) != here:
                self.note = _Note(self.url)
                raise https.Failed("it sent another part of the file")
            begun, total = here, int(span[2])
        self._check_size(begun, total)
        etag, modified = (response.headers.get(name, "") for name in ("ETag", "Last-Modified"))
        self.note = _Note(self.url, etag, modified, begun)
        return begun, total

    def _receive(
        self,
        response: HTTPResponse,
        file: IO[bytes],
        digest: Any,
        total: int | None,
        deadline: float,
    ) -> None:
        unsafe = 0
        try:
            for piece in self._pieces(response, deadline):
                file.write(piece)
                digest.update(piece)
                unsafe += len(piece)
                self.progress(file.tell(), total)
                if unsafe >= _SAFE_EVERY:
                    self._make_safe(file)
                    self._check_size(file.tell(), total)
                    unsafe = 0
        finally:
            self._make_safe(file)
        if total is not None and self.note.safe < total:
            raise https.Failed("the connection was cut off")
        self.note.complete = True
        _write_note(self.node, self.path, self.note)

    def _pieces(self, response: HTTPResponse, deadline: float) -> Generator[bytes]:
        """Yield what comes, unless it comes too slowly."""
        since, came = time.monotonic(), 0
        with https.worded(self.url, self.patience.quiet):
            while piece := response.read1(_PIECE):
                yield piece
                came += len(piece)
                now = time.monotonic()
                if now > deadline:
                    raise https.Failed("it takes too long")
                if now - since > self.patience.quiet:
                    if came < self.patience.least:
                        raise https.Failed("it is too slow")
                    since, came = now, 0

    def _make_safe(self, file: IO[bytes]) -> None:
        os.fsync(file.fileno())
        self.note.safe = file.tell()
        _write_note(self.node, self.path, self.note)

    def _check_size(self, here: int, total: int | None) -> None:
        if max(here, total or 0) > MOST_BYTES:
            forget(self.node, self.path)
            raise problems.Blocked(
                f"{self.name} from {self.host} is larger than {MOST_BYTES >> 30} GiB, and no "
                "release of Kata is; correct archive-url"
            )
        disk.require_room(self.node.path(self.path).parent, (total or here) - here)

    def _judge(self, digest: str, *, fresh: bool) -> str:
        if not self.sha256 or digest == self.sha256:
            return digest
        if not fresh:
            forget(self.node, self.path)
            self.note = _Note(self.url)
            raise https.Failed("what came before does not fit")
        reason = (
            f"{self.name} from {self.host}: its SHA-256 is {digest[:12]}..., not "
            f"{self.sha256[:12]}...; correct archive-sha256, or the file there"
        )
        refuse(self.node, self.path, reason, self.sha256)
        raise problems.Blocked(reason)


def _digest_of(file: IO[bytes], size: int) -> Any:
    """Cut a file to a size, and return the digest of that, with the file at its end."""
    file.truncate(size)
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest


def _read_note(node: kata_node.Node, path: str) -> _Note:
    try:
        return _Note(**release.remembered(node, f"{path}.json"))
    except TypeError:
        return _Note()


def _write_note(node: kata_node.Node, path: str, note: _Note) -> None:
    node.write(f"{path}.json", json.dumps(dataclasses.asdict(note)) + "\n", mode=0o600)


def _against(sha256: str) -> str:
    return f"{sha256} {pathlib.Path(__file__).stat().st_mtime_ns}"
