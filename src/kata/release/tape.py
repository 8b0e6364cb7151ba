"""A packed archive as a tape: decompressed by a second thread, and read forward only.

Decompressing and writing then take two processors, as with `tar` and its decompressor, and no more
than a few megabytes wait between them. The compression is told by the first bytes, not by the
name.
"""

import contextlib
import itertools
import queue
import threading
import types
from collections.abc import Iterator
from typing import Any, BinaryIO

_READ = 256 << 10
_PIECE = 1 << 20
_WAITING = 8
"""Pieces between the two threads."""
_WINDOW = 128 << 20
"""The most that a decompressor may ask for: xz -9 takes 65 MB, zstd --ultra -22 takes 128 MB."""


class Damaged(Exception):
    """The archive is cut off, corrupt, or packed in a way that is not known."""


class Tape:
    """The unpacked bytes of an archive, in order, as a file that tarfile can read headers from.

    Args:
        source: the packed archive, at its start; it is read by another thread until `close`.
    """

    def __init__(self, source: BinaryIO) -> None:
        self.read_in = 0
        """Bytes of `source` that have been read."""
        self.last = b""
        """What the last `read` returned."""
        self._source = source
        self._at = 0
        self._piece = memoryview(b"")
        self._allowed = 0
        self._pieces: queue.Queue[bytes | Exception | None] = queue.Queue(_WAITING)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decompress", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the second thread, and wait for it."""
        self._stopped.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._pieces.get(timeout=0.05)
        self._thread.join()

    # What tarfile asks of a file

    def allow(self, size: int) -> None:
        """Let `read` return so many bytes from here on: a header may claim any length."""
        self._allowed = size

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, fewer only at the end.

        Raises:
            Damaged: more than `allow` lets through.
        """
        if not 0 <= size <= self._allowed:
            raise Damaged("a header is too long")
        self._allowed -= size
        self.last = b"".join(self._next(size))
        return self.last

    def tell(self) -> int:
        """Return how many bytes have gone by."""
        return self._at

    def seek(self, position: int) -> int:
        """Go forward to a position."""
        if position < self._at:
            raise Damaged("a header points back")
        for _ in self._next(position - self._at):
            pass
        return self._at

    # Contents

    def take(self, size: int) -> Iterator[memoryview]:
        """Yield the next `size` bytes in pieces.

        Raises:
            Damaged: the archive ends before.
        """
        end = self._at + size
        yield from self._next(size)
        if self._at != end:
            raise Damaged("it ends in the middle")

    def drain(self, most: int) -> None:
        """Read to the end, so that the decompressor sees its check sums.

        Raises:
            Damaged: that takes more than `most` bytes.
        """
        for piece in self._next(most):
            del piece
        if self._fill():
            raise Damaged("it has no end")

    def _next(self, size: int) -> Iterator[memoryview]:
        while size > 0 and self._fill():
            piece = self._piece[:size]
            self._piece = self._piece[size:]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def _fill(self) -> bool:
        """Return whether there is more, with some of it at hand."""
        while not self._piece:
            piece = self._pieces.get()
            if piece is None or isinstance(piece, Exception):
                self._pieces.put(piece)  # for whoever asks again
                if piece is None:
                    return False
                raise piece
            self._piece = memoryview(piece)
        return True

    # The other thread

    def _run(self) -> None:
        end: Exception | None = None
        try:
            for piece in _decompressed(self._packed()):
                if not self._put(piece):
                    return
        except Exception as error:  # noqa: BLE001 - it is raised again where the tape is read
            end = error
        self._put(end)

    def _put(self, piece: bytes | Exception | None) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._pieces.put(piece, timeout=0.1)
                return True
        return False

    def _packed(self) -> Iterator[bytes]:
        while data := self._source.read(_READ):
            self.read_in += len(data)
            yield data


def _decompressed(packed: Iterator[bytes]) -> Iterator[bytes]:
    """Yield pieces of what was packed, none much longer than `_PIECE`."""
    head = next(packed, b"")
    packed = itertools.chain((head,), packed)
    for magic, decompress in _MAGIC.items():
        if head.startswith(magic):
            return decompress(packed)
    if head[257:262] == b"ustar":
        return packed
    raise Damaged("it is no tar, plain or packed with gzip, xz or zstd")


def _from_xz(packed: Iterator[bytes]) -> Iterator[bytes]:
    import lzma

    decoder: lzma.LZMADecompressor | None = None
    data = b""
    try:
        while data := data or next(packed, b""):
            if decoder is None:
                data = data.lstrip(b"\0")  # padding between two streams
                if not data:
                    continue
                decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW)
            yield decoder.decompress(data, _PIECE)
            while not decoder.eof and not decoder.needs_input:
                yield decoder.decompress(b"", _PIECE)
            data = decoder.unused_data
            if decoder.eof:
                decoder = None
    except lzma.LZMAError as error:
        raise Damaged(f"xz: {error}") from error
    if decoder is not None:
        raise Damaged("it ends in the middle")


def _from_gzip(packed: Iterator[bytes]) -> Iterator[bytes]:
    import zlib

    decoder = None
    data = b""
    try:
        while data := data or next(packed, b""):
            if decoder is None:
                data = data.lstrip(b"\0")
                if not data:
                    continue
                decoder = zlib.decompressobj(wbits=31)  # with gzip's header and check sum
            yield decoder.decompress(data, _PIECE)
            data = decoder.unconsumed_tail
            if not data:
                # What is decompressed already, but did not fit into the last piece.
                while not decoder.eof and (more := decoder.decompress(b"", _PIECE)):
                    yield more
            if decoder.eof:
                data = decoder.unused_data
                decoder = None
    except zlib.error as error:
        raise Damaged(f"gzip: {error}") from error
    if decoder is not None:
        raise Damaged("it ends in the middle")


def _from_zstd(packed: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    def read(_size: int) -> bytes:
        return next(packed, b"")

    source: Any = types.SimpleNamespace(read=read)
    try:
        decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        with decoder.stream_reader(source, read_across_frames=True, closefd=False) as reader:
            while piece := reader.read(_PIECE):
                yield piece
    except zstandard.ZstdError as error:
        raise Damaged(f"zstd: {error}") from error


_MAGIC = {b"\xfd7zXZ\0": _from_xz, b"\x1f\x8b": _from_gzip, b"\x28\xb5\x2f\xfd": _from_zstd}
