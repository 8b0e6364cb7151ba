"""The only door to the machine: its files, its commands and its systemd units.

Every path is given as it is on the node and is resolved below `Node.root`, so that the same code
runs on a machine and over a folder that a test has laid out like one.
"""

import contextlib
import copy
import fcntl
import logging
import os
import pathlib
import stat
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from typing import NamedTuple

from kata import problems

log = logging.getLogger(__name__)

# Juju starts hooks with the agent's PATH: a fixed one keeps a stray program out.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"
# Juju puts its proxy settings here, and Debian's tools read the same names.
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

_BESIDE = ".kata-charm-"  # begins the name of what is made beside its place, and then moved there


class Ran(NamedTuple):
    """How a command ended: its exit status, and what it printed, as text."""

    status: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        """Whether the exit status was 0."""
        return self.status == 0

    @property
    def words(self) -> str:
        """The last line it printed, on standard error by preference: most often the reason."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.status}"


class CommandFailed(problems.Problem):
    """A command ended with an exit status other than 0, or could not run at all."""

    def __init__(self, argv: tuple[str, ...], ran: Ran) -> None:
        super().__init__(f"{pathlib.PurePath(argv[0]).name}: {ran.words}")
        self.argv = argv
        self.ran = ran


class Node:
    """A machine, or a folder that is laid out like one.

    Args:
        root: where the machine's file system starts; a test gives a folder of its own.
    """

    def __init__(self, root: pathlib.Path = pathlib.Path("/")) -> None:
        self.root = root
        self._above = "" if root == pathlib.Path("/") else str(root)
        self._ahead: tuple[str, str] | None = None

    # Files

    def path(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Return where `path`, absolute on the node, lies for this process."""
        return self.root / self.led(path).lstrip("/")

    def led(self, path: str | os.PathLike[str]) -> str:
        """Return `path` as it is, or as `once_linked` has it."""
        path = os.fspath(path)
        if self._ahead and f"{path}/".startswith(f"{self._ahead[0]}/"):
            return self._ahead[1] + path[len(self._ahead[0]) :]
        return path

    def once_linked(self, link: str, target: str) -> "Node":
        """Return this node as it will be to a reader when `link` leads to `target`."""
        seen = copy.copy(self)
        seen._ahead = (link, target)  # noqa: SLF001 - one of its own kind
        return seen

    def place(self, path: str) -> str:
        """Return what `path` returns, as text: a tenth of the time, for what is asked often."""
        return self._above + self.led(path)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Return whether something is there; a dangling link counts as nothing."""
        return self.path(path).exists()

    def read(self, path: str | os.PathLike[str]) -> str | None:
        """Return a file's text, or None where there is no such file, or can be none of that name.

        Bytes that are not UTF-8 survive a round trip through `write` unchanged.
        """
        try:
            return self.path(path).read_bytes().decode("utf-8", "surrogateescape")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return None

    def names(self, path: str | os.PathLike[str]) -> list[str]:
        """Return the names in a folder, sorted; none where there is no such folder."""
        try:
            return sorted(os.listdir(self.path(path)))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return []

    def write(self, path: str | os.PathLike[str], text: str, mode: int = 0o644) -> bool:
        """Write a file so that a reader sees the old text or the new one, never a part.

        A file that is there keeps its owner, its mode and, where it is a link, the link. A new
        one belongs to this process and gets `mode`.

        Returns:
            True if the text has changed.

        Raises:
            Blocked: the file system does not let it be written.
        """
        target = self.path(path)
        try:
            # A link stays a link: the file that it names is the one that is replaced.
            target = target.resolve(strict=True)
            known = target.stat()
        except FileNotFoundError:
            known = None
        self._clear(target.parent)
        if self.read(path) == text:
            return False
        with self._refused(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=_BESIDE)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.write(text.encode("utf-8", "surrogateescape"))
                    os.fchmod(file.fileno(), stat.S_IMODE(known.st_mode) if known else mode)
                    if known:
                        os.fchown(file.fileno(), known.st_uid, known.st_gid)
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(temporary, target)
            except BaseException:
                pathlib.Path(temporary).unlink(missing_ok=True)
                raise
            self._settle(target.parent)
        return True

    def link(self, path: str | os.PathLike[str], target: str) -> bool:
        """Make `path` a symbolic link to `target`, replacing a link in one step.

        Returns:
            True if the link has changed.

        Raises:
            Blocked: something that is not a link stands there, or it cannot be written.
        """
        place = self.path(path)
        self._clear(place.parent)
        if place.is_symlink():
            if os.readlink(place) == target:
                return False
        elif place.exists():
            raise problems.Blocked(
                f"{path} is in the way: expected nothing or a link there; move it elsewhere"
            )
        with self._refused(path):
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=_BESIDE) as folder:
                temporary = pathlib.Path(folder, place.name)
                temporary.symlink_to(target)
                os.replace(temporary, place)
            self._settle(place.parent)
        return True

    def remove(self, path: str | os.PathLike[str]) -> bool:
        """Remove a file or a link, or a folder if it is empty.

        Returns:
            True if it was there; a folder that is not empty stays, and counts as not removed.

        Raises:
            Blocked: the file system does not let it go.
        """
        place = self.path(path)
        self._clear(place.parent)
        with self._refused(path):
            try:
                if place.is_dir() and not place.is_symlink():
                    self._clear(place)
                    if any(place.iterdir()):
                        return False
                    place.rmdir()
                else:
                    place.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return False
            self._settle(place.parent)
        return True

    def move(self, path: str | os.PathLike[str], to: str | os.PathLike[str]) -> bool:
        """Rename a file, a link or a folder, with its owner and mode, within one file system.

        Returns:
            True if it was there.

        Raises:
            Blocked: something has that name already, or the file system does not let it go.
        """
        place, target = self.path(path), self.path(to)
        if target.is_symlink() or target.exists():
            raise problems.Blocked(f"{to} is in the way of {path}: move it elsewhere")
        with self._refused(path):
            try:
                os.rename(place, target)
            except FileNotFoundError:
                return False
            self._settle(target.parent)
        return True

    def reclaim(self, path: str | os.PathLike[str]) -> bool:
        """Make sure that a file or a folder of ours is root's, and that nobody else can change it.

        Returns:
            True if it was not so.

        Raises:
            Blocked: the file system does not let it be changed.
        """
        place = self.path(path)
        if place.is_symlink() or not place.exists():
            return False
        known = place.stat()
        mode = stat.S_IMODE(known.st_mode)
        if known.st_uid == os.geteuid() and not mode & 0o022:
            return False
        with self._refused(path):
            os.chown(place, os.geteuid(), os.getegid())
            place.chmod(mode & ~0o022)
        return True

    def put(self, path: str | os.PathLike[str], value: str) -> None:
        """Hand a value to the kernel through one of its files (sysfs), in a single write.

        Raises:
            Blocked: there is no such file, or the kernel refuses the value.
        """
        with self._refused(path):
            # Such a file may be there for writing only, and is never made or cut short.
            descriptor = os.open(self.path(path), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)

    def _clear(self, folder: pathlib.Path) -> None:
        """Remove what a `write` or a `link` that was killed has left in a folder."""
        with contextlib.suppress(OSError):
            for left in folder.glob(f"{_BESIDE}*"):
                if left.is_dir():
                    for link in left.iterdir():
                        link.unlink()
                    left.rmdir()
                elif _is_abandoned(left):
                    left.unlink()

    @contextlib.contextmanager
    def _refused(self, path: str | os.PathLike[str]) -> Generator[None]:
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise problems.Blocked(f"cannot write {path}: {reason}; mend it, then wait") from error

    def _settle(self, folder: pathlib.Path) -> None:
        """Make a rename or a removal in `folder` outlive a power cut."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # Commands

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60,
        text: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a command without a shell, in a fixed environment.

        Args:
            argv: the program and its arguments.
            check: raise when it fails.
            timeout: seconds until it is killed.
            text: its standard input; nothing by default.
            env: variables beside the fixed ones.

        Raises:
            CommandFailed: it failed and `check` is set.
        """
        given = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        # A hook's own PYTHONPATH and the like must not reach the programs of the machine.
        environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", **given, **(env or {})}
        try:
            done = subprocess.run(
                argv,
                input=(text or "").encode("utf-8", "surrogateescape"),
                capture_output=True,
                timeout=timeout,
                env=environment,
                check=False,
            )
            ran = Ran(done.returncode, _text(done.stdout), _text(done.stderr))
        except subprocess.TimeoutExpired as error:
            late = f"no answer within {timeout:g} s"
            ran = Ran(124, _text(error.stdout), f"{_text(error.stderr)}\n{late}")
        except OSError as error:
            ran = Ran(127, "", os.strerror(error.errno) if error.errno else str(error))
        except ValueError as error:  # a word that has a NUL in it, or can be none in this encoding
            ran = Ran(127, "", str(error))
        if not ran.ok:
            # Juju takes a process to write a line of its log: a command that works writes none.
            log.debug("%s: %s", argv, ran.words)
        if check and not ran.ok:
            raise CommandFailed(argv, ran)
        return ran

    # systemd

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Return properties of a systemd unit; what systemd does not know is empty."""
        asked = [f"--property={each}" for each in properties]
        ran = self.run("systemctl", "show", *asked, "--", name, check=False, timeout=30)
        said: dict[str, str] = {}
        for line in ran.out.splitlines():
            key, _, value = line.partition("=")
            said[key] = value
        return {each: said.get(each, "") for each in properties}


def _is_abandoned(file: pathlib.Path) -> bool:
    """Return whether nobody writes a file any more: the lock goes with the process."""
    with file.open("rb") as left:
        try:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _text(output: bytes | None) -> str:
    return (output or b"").decode("utf-8", "surrogateescape")
