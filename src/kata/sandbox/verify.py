"""The proof that a handler isolates: a sandbox is booted with it, looked at and removed again.

It counts as isolated if a hypervisor's process belongs to it, and if the kernel that answers from
inside is not the host's.
"""

import contextlib
import dataclasses
import fcntl
import os
import re
import signal
import textwrap
import time
from collections.abc import Generator, Sequence
from types import FrameType

from kata import problems
from kata.containerd import cri, grpc
from kata.machine import host, tenancy, vanishing
from kata.machine import node as kata_node
from kata.sandbox import probe, sandboxes, throwaway

# What a process holds open for each virtual machine that KVM runs for it (Linux, kvm_main.c).
_KVM = "anon_inode:kvm-vm"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the proof has come to.

    Attributes:
        handler: the handler.
        host: the machine's kernel.
        guest: the kernel inside, None where it did not get so far.
        seconds: from asking containerd until the inside answered.
        trouble: why it is not verified; nothing if it is.
        notes: what else was seen.
    """

    handler: str
    host: probe.Kernel
    guest: probe.Kernel | None = None
    seconds: float | None = None
    trouble: str = ""
    notes: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether the sandbox was isolated."""
        return not self.trouble


class Interrupted(problems.Waiting):
    """The proof was cut off from outside."""


def sandbox(
    node: kata_node.Node,
    service: throwaway.Service,
    handler: str,
    *,
    image: str = "",
    timeout: float = 120,
) -> Verdict:
    """Boot a sandbox with a handler as containerd has loaded it, and look at it.

    Args:
        node: the machine.
        service: its containerd.
        handler: the handler.
        image: an image to use; by default a file system that holds nothing but the probe.
        timeout: seconds that the sandbox may take to answer.

    Raises:
        Problem: containerd cannot be asked, does not know the handler, or something cannot be
            prepared. That the sandbox does not start is a verdict.
    """
    loaded = cri.status(node.path(service.address)).handlers
    if handler not in loaded:
        known = ", ".join(sorted(loaded))
        raise problems.Blocked(f"containerd has loaded no handler {handler}, only {known}")
    wanted = loaded[handler]
    snapshotter = wanted.snapshotter or cri.default_snapshotter(node.path(service.address))
    verdict = Verdict(handler, host_kernel())
    with in_order(node), _throwaway(node, service) as made:
        made.create(wanted, snapshotter, image, probe.program(host.machine(node)))
        began = time.monotonic()
        try:
            made.start(wanted, snapshotter, timeout)
            guest = probe.read(made.answer(probe.SIZE, began + timeout))
        except (grpc.Failed, grpc.Unreachable, problems.Blocked) as problem:
            return dataclasses.replace(verdict, trouble=f"no sandbox: {brief(problem)}")
        seconds = time.monotonic() - began
        found = [each for each in sandboxes.find(node, service.state) if each.id == made.id]
        verdict = dataclasses.replace(verdict, guest=guest, seconds=round(seconds, 2))
        return judged(node, verdict, found)


def clear(node: kata_node.Node, service: throwaway.Service) -> None:
    """Remove what a proof that was killed has left on the machine: a virtual machine, say.

    Raises:
        Problem: containerd cannot be asked, something does not go, or a proof runs.
    """
    with in_order(node), contextlib.closing(throwaway.Throwaway(node, service)) as made:
        _refuse(_removed(node, made))


def brief(problem: object) -> str:
    """Return what a shim or containerd said, in one line; Rust adds a backtrace to it."""
    said = str(problem).partition("Stack backtrace")[0]
    return textwrap.shorten(re.sub(r"\\+[nt]", " ", said), 400, placeholder=" …")


def host_kernel() -> probe.Kernel:
    """Return what the machine's own kernel calls itself."""
    said = os.uname()
    return probe.Kernel(said.release, said.version)


def judged(node: kata_node.Node, verdict: Verdict, found: Sequence[sandboxes.Sandbox]) -> Verdict:
    """Return a verdict with what speaks for and against isolation.

    Args:
        node: the machine.
        verdict: with the kernels known.
        found: the sandbox as it is seen from the host, if it is.
    """
    pid = found[0].vm.pid if found else None
    if pid is None:
        trouble = "not isolated: no hypervisor's process belongs to it"
        return dataclasses.replace(verdict, trouble=trouble)
    vm, shim = found[0].vm, found[0]
    notes = [f"hypervisor {vm.hypervisor}, pid {pid}", f"shim {shim.shim} {shim.shim_program}"]
    if not _uses_kvm(node, pid):
        notes.append("the hypervisor does not use KVM: it emulates, which is slow")
    trouble = ""
    if verdict.guest == verdict.host:
        trouble = f"not isolated: the kernel inside is the host's, {verdict.host.release}"
    return dataclasses.replace(verdict, trouble=trouble, notes=(*verdict.notes, *notes))


def _uses_kvm(node: kata_node.Node, pid: int) -> bool:
    folder = f"/proc/{pid}/fd"
    for name in vanishing.names(node, folder):
        with contextlib.suppress(OSError):
            if os.readlink(node.path(f"{folder}/{name}")) == _KVM:
                return True
    return False


@contextlib.contextmanager
def _throwaway(node: kata_node.Node, service: throwaway.Service) -> Generator[throwaway.Throwaway]:
    """Give a throwaway container, and remove it, and what earlier ones have left, in any case.

    Raises:
        Blocked: something of it is left.
    """
    with contextlib.closing(throwaway.Throwaway(node, service)) as made:
        made.remove()
        node.write(tenancy.PROOF, made.id, mode=0o600)
        try:
            yield made
        finally:
            left = _removed(node, made)
        _refuse(left)


def _removed(node: kata_node.Node, made: throwaway.Throwaway) -> tuple[str, ...]:
    """Remove all throwaway containers, undisturbed; return what is left."""
    with undisturbed():
        left = made.remove()
        if not left:
            node.remove(tenancy.PROOF)
    return left


def _refuse(left: tuple[str, ...]) -> None:
    if left:
        raise problems.Blocked(f"the sandbox could not be removed: {'; '.join(left)}")


@contextlib.contextmanager
def in_order(node: kata_node.Node) -> Generator[None]:
    """Do something alone on a machine, and tidy up if a signal is to end the process.

    No two proofs run at once: each removes what it finds of others.

    Raises:
        Waiting: another one runs.
        Interrupted: a signal came.
    """
    folder = node.path(tenancy.STATE)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise problems.Waiting("another verify-sandbox runs on this machine; wait") from None
    before = {each: signal.signal(each, _stop) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(descriptor)


@contextlib.contextmanager
def undisturbed() -> Generator[None]:
    """Keep signals back until something is done, whichever thread the kernel hands them to."""
    came: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: came.append(number)) for each in _SIGNALS
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if came:
            signal.raise_signal(came[0])


def _stop(number: int, _: FrameType | None) -> None:
    raise Interrupted(f"interrupted by {signal.Signals(number).name}; nothing is left behind")
