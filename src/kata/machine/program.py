"""Programs of ours for systemd to run: modules of this package in one file, for the machine's Python.

A charm's own folder is no place to run them from: Juju replaces it, and takes it away with the unit.
"""

import dataclasses
import os
import pathlib

from kata.machine import facts, node

_PACKAGE = pathlib.Path(__file__).parents[1]
_DATE = (1980, 1, 1, 0, 0, 0)  # the same modules make the same program


@dataclasses.dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
        path: where it is put.
        main: the module that is run, such as `containerd/guard_program`.
        modules: all that it imports of this package; nothing else but Python's own is there.
        record: a file in which is remembered what it was made from.
    """

    path: str
    main: str
    modules: tuple[str, ...]
    record: str

    def pack(self) -> bytes:
        """Return the program: one file that Python runs."""
        import io
        import zipfile

        sources = {f"kata/{module}.py": _PACKAGE / f"{module}.py" for module in self.modules}
        sources["__main__.py"] = _PACKAGE / f"{self.main}.py"
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for name, path in sources.items():
                archive.writestr(zipfile.ZipInfo(name, _DATE), path.read_bytes())
        return packed.getvalue()

    def ensure(self, machine: node.Node) -> bool:
        """Put the program on the machine.

        Returns:
            True if it is another one now.

        Raises:
            Blocked: a file cannot be written.
        """
        machine.path(self.path)  # so that a witness knows what this depends on
        changed = False
        if machine.read(self.record) != self._made_from(machine):
            changed = machine.write(self.path, self.pack().decode("utf-8", "surrogateescape"))
            machine.write(self.record, self._made_from(machine), mode=0o600)
        for path in (os.path.dirname(self.path), self.path):
            changed |= machine.reclaim(path)
        return changed

    def remove(self, machine: node.Node) -> bool:
        """Take the program away, and its folder if nothing else is in it.

        Returns:
            True if it was there.

        Raises:
            Blocked: a file cannot be removed.
        """
        machine.remove(self.record)
        removed = machine.remove(self.path)
        machine.remove(os.path.dirname(self.path))
        return removed

    def _made_from(self, machine: node.Node) -> str:
        """Return what tells whether the program is the one that our modules make: no need to pack."""
        modules = [("stat", f"{_PACKAGE}/{module}.py") for module in (*self.modules, self.main)]
        looked = facts.record(modules) + facts.record([("stat", self.path)], str(machine.root))
        return looked.decode("utf-8", "surrogateescape")
