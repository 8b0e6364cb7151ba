"""A node that is a folder, and whose commands are answered by the test."""

import fnmatch
import pathlib
from collections.abc import Callable, Mapping

import pytest

from kata.machine import node as kata_node
from tests.unit.web import certificate, secure, server  # noqa: F401 - fixtures for all


class FakeNode(kata_node.Node):
    """A `Node` over a temporary folder; commands are answered from a list, and remembered.

    `on("systemctl restart *", err="no", status=1)` answers every command whose words, joined by
    spaces, match. The newest matching answer wins. `effect` is called with the argv first, to
    change the tree as the real command would. A command that nobody answers fails with 127, as
    one that is not installed.
    """

    def __init__(self, root: pathlib.Path):
        super().__init__(root)
        self.ran: list[str] = []
        self._answers: list[tuple[str, kata_node.Ran, Callable[..., object] | None]] = []

    def path(self, path):
        """Follow absolute links on the way below the root, as the kernel does on a machine."""
        place = self.root
        *folders, last = pathlib.PurePath(self.led(path)).parts[1:] or ("",)
        for folder in folders:
            place /= folder
            if place.is_symlink() and (target := place.readlink()).is_absolute():
                place = self.path(target)
        return place / last

    def on(self, pattern, out="", err="", status=0, effect=None):
        self._answers.insert(0, (pattern, kata_node.Ran(status, out, err), effect))

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60,
        text: str | None = None,
        env: Mapping[str, str] | None = None,
    ):
        line = " ".join(argv)
        self.ran.append(line)
        ran = kata_node.Ran(127, "", "No such file or directory")
        for pattern, answer, effect in self._answers:
            if fnmatch.fnmatchcase(line, pattern):
                given = effect(argv) if effect else None
                ran = given if isinstance(given, kata_node.Ran) else answer
                break
        if check and not ran.ok:
            raise kata_node.CommandFailed(argv, ran)
        return ran

    def lay(self, files: Mapping[str, str]):
        """Put files into the tree: absolute paths to texts."""
        for path, text in files.items():
            place = self.path(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text.encode("utf-8", "surrogateescape"))

    def tree(self, top="/") -> dict[str, str]:
        """Return every file and link below `top`: path to text, or to `-> target`."""
        found: dict[str, str] = {}
        for place in sorted(self.path(top).rglob("*")):
            name = "/" + str(place.relative_to(self.root))
            if place.is_symlink():
                found[name] = f"-> {place.readlink()}"
            elif place.is_file():
                found[name] = place.read_bytes().decode("utf-8", "surrogateescape")
        return found


@pytest.fixture
def node(tmp_path):
    return FakeNode(tmp_path / "root")
