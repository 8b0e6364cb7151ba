"""A throwaway container, run by containerd with a handler just as its CRI plugin would.

It lives in a namespace of containerd's that nobody else looks at: kubelet ends every pod that it
does not know, and CNI plugins ask the cluster about pods that are none. All that it consists of
is found again by its id, so that whatever an interruption leaves is removed by the next.
"""

import contextlib
import dataclasses
import os
import pathlib
import secrets
import select
import shutil
import signal
import time

from kata import problems
from kata.containerd import cri, daemon, grpc, protobuf
from kata.machine import node as kata_node
from kata.machine import vanishing
from kata.sandbox import oci, probe, remains

NAMESPACE = "kata-charm-verify"
PLACE = "/run/kata-charm-verify"
"""Holds a folder for each: its root file system while that is made, and what it prints."""

_API = "containerd.services"
# Folders that nobody else removes, from the inside out: ours, those of containerd's bundles, and
# cgroups of either version; Kata's Go shim leaves its own behind (seen with 4.1.0).
_FOLDERS = (
    PLACE,
    f"/run/containerd/io.containerd.runtime.v2.task/{NAMESPACE}",
    f"/var/lib/containerd/io.containerd.runtime.v2.task/{NAMESPACE}",
    *(
        f"/sys/fs/cgroup/{version}{cgroup}"
        for version in ("", "*/")
        for cgroup in ("kata_overhead/verify-*", f"{NAMESPACE}/*verify-*", NAMESPACE)
    ),
)
_STOPPED = 3  # containerd.v1.types.Status
_QUICK = 20  # seconds for what takes a moment
_SLOW = 120  # seconds to fetch an image, or to end a sandbox
_PATIENCE = 20  # seconds in which a shim that has been told to go is gone


@dataclasses.dataclass(frozen=True)
class Service:
    """The containerd to ask.

    Attributes:
        address: its socket, as on the machine.
        ctr: path of its own client.
        release: its release.
        state: its state folder.
    """

    address: str
    ctr: str
    release: tuple[int, int, int]
    state: str = daemon.STATE


def service(node: kata_node.Node, found: daemon.Containerd) -> Service:
    """Return how to ask a containerd that runs."""
    return Service(found.address(node), found.ctr, found.release, found.state(node))


class Throwaway:
    """One container, from nothing to nothing.

    Args:
        node: the machine.
        service: its containerd.
    """

    def __init__(self, node: kata_node.Node, service: Service) -> None:
        self.id = f"verify-{secrets.token_hex(6)}"
        self._node = node
        self._service = service
        # As containerd and mount see it; its path is the snapshot's key too, as with ctr's mounts.
        self._folder = node.path(f"{PLACE}/{self.id}")
        self._root = str(self._folder / "rootfs")
        headers = {"containerd-namespace": NAMESPACE}
        self._channel = grpc.Channel(node.path(service.address), headers)
        self._outputs: dict[str, int] = {}

    def close(self) -> None:
        """Hang up; `remove` is what removes it."""
        for descriptor in self._outputs.values():
            os.close(descriptor)
        self._outputs.clear()
        self._channel.close()

    def create(self, handler: cri.Handler, snapshotter: str, image: str, program: bytes) -> None:
        """Put everything in place: its root file system and its description.

        Args:
            handler: as CRI has loaded it.
            snapshotter: of the root file system.
            image: what else is in it; nothing for nothing. It is fetched if need be.
            program: the executable that it runs.

        Raises:
            Problem: containerd or the machine refuses.
        """
        os.makedirs(self._root, mode=0o700)
        for name in ("out", "err"):
            path = self._folder / name
            os.mkfifo(path, 0o600)
            self._outputs[name] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # Kata makes a network namespace where none is given, and loses it when it is killed.
        network = self._folder / "net"
        network.touch(0o600)
        self._node.run("unshare", f"--net={network}", "true", timeout=_QUICK)
        # Described first: what an interruption leaves from here on is found by this.
        runtime = protobuf.message(
            (1, handler.runtime_type), (2, oci.options(handler, self._service.release))
        )
        container = protobuf.message(
            (1, self.id),
            (4, runtime),
            (5, oci.specification(handler, NAMESPACE, self.id, (probe.PATH,), str(network))),
            (6, snapshotter),
            (7, self._root),
        )
        self._call("containers.v1.Containers/Create", (1, container))
        if image:
            self._fetch(image, snapshotter)
        else:
            labels = {"containerd.io/gc.root": "kata-charm"}
            prepared = self._call(
                "snapshots.v1.Snapshots/Prepare", (1, snapshotter), (2, self._root), (4, labels)
            )
            for mount in protobuf.messages(prepared, 1):
                self._mount(mount)
        file = pathlib.Path(self._root + probe.PATH)
        try:
            file.write_bytes(program)
            file.chmod(0o755)
        except OSError as error:
            raise problems.Blocked(f"cannot write {file}: {error.strerror}") from error
        finally:
            self._unmount(self._root)

    def start(self, handler: cri.Handler, snapshotter: str, timeout: float) -> None:
        """Create its task and start it: this is where a virtual machine boots.

        Raises:
            grpc.Failed: containerd or the shim refuses; in its own words.
        """
        where = (1, snapshotter), (2, self._root)
        mounts = protobuf.messages(self._call("snapshots.v1.Snapshots/Mounts", *where), 1)
        self._call(
            "tasks.v1.Tasks/Create",
            (1, self.id),
            *((3, mount) for mount in mounts),
            (5, str(self._folder / "out")),
            (6, str(self._folder / "err")),
            # containerd passes it on from 1.6.21 and 1.7.1 only, as it does for pods.
            (10, handler.runtime_path),
            timeout=timeout,
        )
        self._call("tasks.v1.Tasks/Start", (1, self.id), timeout=timeout)

    def answer(self, size: int, until: float) -> bytes:
        """Return that many bytes of what it prints.

        Args:
            size: how many.
            until: when to give up (time.monotonic).

        Raises:
            Blocked: it ended before, or the time is up.
        """
        printed: dict[str, bytes] = dict.fromkeys(self._outputs, b"")
        while len(printed["out"]) < size:
            if time.monotonic() > until:
                raise problems.Blocked("started, but nothing was heard from inside in time")
            for name in self._readable(0.2):
                printed[name] += os.read(self._outputs[name], 4096)
            if not printed["out"] and self._has_stopped():
                said = printed["err"].decode(errors="replace").strip()
                raise problems.Blocked(f"it ended at once: {said or 'it said nothing'}")
        return printed["out"]

    def remove(self) -> tuple[str, ...]:
        """Remove it, and whatever earlier ones have left.

        Returns:
            What could not be removed, and why.
        """
        listed = protobuf.messages(self._call("containers.v1.Containers/List"), 1)
        named = {protobuf.text(each, 1) for each in listed}
        trouble = [left for name in sorted(named | self._there()) for left in self._end(name)]
        for each in listed:
            snapshotter = protobuf.text(each, 6)
            key = (1, snapshotter), (2, protobuf.text(each, 7))
            trouble += self._try("containers.v1.Containers/Delete", (1, protobuf.text(each, 1)))
            self._unmount(key[1][1])
            trouble += self._try("snapshots.v1.Snapshots/Remove", *key)
            trouble += self._try("leases.v1.Leases/Delete", (1, key[1][1]), (2, 1))
        for name in protobuf.messages(self._call("images.v1.Images/List"), 1):
            image = (1, protobuf.text(name, 1)), (2, 1)
            trouble += self._try("images.v1.Images/Delete", *image)
        # What containerd was still about to start when it was told to forget it.
        for name in sorted(self._there()):
            trouble += self._end(name)
        if not trouble:
            trouble += self._try("namespaces.v1.Namespaces/Delete", (1, NAMESPACE))
        for name in vanishing.names(self._node, PLACE):
            folder = self._node.path(f"{PLACE}/{name}")
            if folder.is_dir():
                for mounted in ("rootfs", "net"):
                    self._unmount(str(folder / mounted))
                shutil.rmtree(folder, ignore_errors=True)
        for folder in _FOLDERS:
            for place in self._node.root.glob(folder.lstrip("/")):
                with contextlib.suppress(OSError):
                    place.rmdir()
        return tuple(trouble)

    # The pieces

    def _fetch(self, image: str, snapshotter: str) -> None:
        """Put an image on the machine, if it is not, and mount a copy that can be written to."""
        ctr = (self._service.ctr, "--address", self._service.address, "--namespace")
        pods = (*ctr, "k8s.io", "images")
        ours = (*ctr, NAMESPACE, "images")
        there = self._node.run(*pods, "ls", "--quiet", f"name=={image}", timeout=_QUICK)
        if there.out.strip():
            file = str(self._folder / "image.tar")
            self._node.run(*pods, "export", file, image, timeout=_SLOW)
            self._node.run(*ours, "import", "--snapshotter", snapshotter, file, timeout=_SLOW)
            os.unlink(file)
        else:
            self._node.run(*ours, "pull", "--snapshotter", snapshotter, image, timeout=_SLOW)
        words = ("--rw", "--snapshotter", snapshotter, image, self._root)
        self._node.run(*ours, "mount", *words, timeout=_SLOW)

    def _mount(self, mount: bytes) -> None:
        options = protobuf.texts(mount, 4)
        kind, source = protobuf.text(mount, 1), protobuf.text(mount, 2)
        # A bind mount is a flag for the kernel and no type.
        types = () if kind == "bind" else ("--types", kind)
        words = ("--options", ",".join(options)) if options else ()
        self._node.run("mount", *types, *words, "--", source or kind, self._root, timeout=_QUICK)

    def _unmount(self, place: str) -> None:
        if _is_mounted(place):
            self._node.run("umount", "--", place, check=False, timeout=_QUICK)

    def _readable(self, timeout: float) -> list[str]:
        watched = {descriptor: name for name, descriptor in self._outputs.items()}
        readable, _, _ = select.select(list(watched), [], [], timeout)
        if readable:
            time.sleep(0.01)  # an end that nobody holds is always readable
        return [watched[each] for each in readable]

    def _has_stopped(self) -> bool:
        with contextlib.suppress(grpc.Failed):
            process = protobuf.messages(self._call("tasks.v1.Tasks/Get", (1, self.id)), 1)
            return protobuf.read(process[0]).get(4, [0])[-1] == _STOPPED if process else False
        return True

    def _there(self) -> set[str]:
        """Return the ids of all of which there is something, whatever containerd knows."""
        return remains.names(self._node, self._service.state, NAMESPACE)

    def _end(self, name: str) -> list[str]:
        """End a container's task, with its virtual machine."""
        self._try("tasks.v1.Tasks/Kill", (1, name), (3, int(signal.SIGKILL)), (4, 1))
        with contextlib.suppress(problems.Problem):
            self._call("tasks.v1.Tasks/Wait", (1, name), timeout=_QUICK)
        patience = _PATIENCE
        try:
            self._call("tasks.v1.Tasks/Delete", (1, name), timeout=_SLOW)
        except problems.Problem:
            # containerd does not know it, or its shim does not do it: nobody tells it to go.
            patience = 0
        left = remains.end(self._node, self._service.state, NAMESPACE, name, patience)
        if not patience:
            time.sleep(1)  # containerd cleans up after a shim that is gone
            left = (*left, *self._try("tasks.v1.Tasks/Delete", (1, name), timeout=_SLOW))
        return list(left)

    def _try(
        self, method: str, *fields: tuple[int, protobuf.Value], timeout: float = _QUICK
    ) -> list[str]:
        """Call, and return what went wrong; what is not there is no trouble."""
        try:
            self._call(method, *fields, timeout=timeout)
        except grpc.Failed as failure:
            return [] if failure.code == grpc.NOT_FOUND else [f"{method}: {failure}"]
        except problems.Problem as problem:
            return [f"{method}: {problem}"]
        return []

    def _call(
        self, method: str, *fields: tuple[int, protobuf.Value], timeout: float = _QUICK
    ) -> bytes:
        return self._channel.call(f"{_API}.{method}", protobuf.message(*fields), timeout)


def _is_mounted(place: str) -> bool:
    """Return whether something is mounted there, if only another folder of the same disk."""
    with open("/proc/self/mountinfo", "rb") as file:
        return any(line.split()[4] == place.encode() for line in file)
