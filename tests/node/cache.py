"""Things that are made once and kept: images, snapshots, wheels.

Each lies in a folder of its own under `$KATA_CHARM_CACHE` (`~/.cache/kata-charm` by default), named
after what it was made from. It is made in a folder beside its place and renamed, so that a reader
finds it whole or not at all, and under a lock, so that two runs do not make it twice.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator

KEPT_FOR = 14 * 24 * 3600  # seconds that a thing may lie unused before it is cleared away
# Whoever changes the charm makes new snapshots at each try, of some 300 MB.
KEPT = 12  # things of a kind that stay however many come after them; a run needs five
_IN_USE = 4 * 3600  # seconds; a run or a soak may still go on from what it took

# Called with what is made, such as "images", when that begins (False) and when it is done (True):
# it takes a minute, and who waits wants to know.
watcher: Callable[[str, bool], object] | None = None


def root() -> pathlib.Path:
    """Return the cache folder, made if need be."""
    default = pathlib.Path.home() / ".cache" / "kata-charm"
    folder = pathlib.Path(os.environ.get("KATA_CHARM_CACHE") or default).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def key(*parts: str | bytes | pathlib.Path) -> str:
    """Return a short digest of texts, of files' contents and of folders' contents."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pathlib.Path):
            files = [part] if part.is_file() else sorted(p for p in part.rglob("*") if p.is_file())
            for file in files:
                if "__pycache__" not in file.parts:
                    digest.update(file.relative_to(part.parent).as_posix().encode())
                    digest.update(hashlib.sha256(file.read_bytes()).digest())
        else:
            data = part if isinstance(part, bytes) else part.encode()
            digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()[:16]


def made(kind: str, name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Return the folder `kind/name`, calling `make` with an empty folder if it is not there yet."""
    shelf = root() / kind
    place = shelf / name
    if not place.is_dir():
        shelf.mkdir(exist_ok=True)
        with _locked(shelf / f".{name}.lock"):
            if not place.is_dir():
                _clear_away(shelf)
                folder = pathlib.Path(tempfile.mkdtemp(dir=shelf, prefix=f".{name}."))
                try:
                    if watcher:
                        watcher(kind, False)
                    make(folder)
                    if watcher:
                        watcher(kind, True)
                    folder.chmod(0o755)
                    folder.rename(place)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
    os.utime(place)
    return place


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clear_away(shelf: pathlib.Path) -> None:
    """Remove what has not been used for long, and what an interrupted run left behind."""
    now = time.time()
    places = [(now - place.stat().st_mtime, place) for place in shelf.iterdir() if place.is_dir()]
    for number, (unused, place) in enumerate(sorted(places)):
        if unused > (KEPT_FOR if number < KEPT else _IN_USE):
            shutil.rmtree(place, ignore_errors=True)
