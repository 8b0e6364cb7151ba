"""A throwaway node: one QEMU process, its disk, and commands run in it.

    with machine.Machine() as node:
        node.boot()
        print(node.run("uname -r").out)

Everything that a machine writes lies in a temporary folder; it is gone with the machine.
"""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tests.node import accelerator, agent, cache, image, pci, qmp

# What QEMU emulates dearly and nobody here needs: glibc takes wide registers wherever it finds them.
DEAR = "avx avx2 fma f16c xsave xsaveopt erms smap umip pku mpx la57".split()
BOOT = 180  # seconds; emulation on a busy machine takes 15
PORTS = ("slot0", "slot1", "slot2")
LARGE = 8 << 20  # bytes: a larger file takes a disk of its own, not the agent's narrow line
# Modules that a node has no use for, and which test themselves or wait for a device as they load.
IDLE = (
    *("aesni_intel", "ghash_clmulni_intel", "crct10dif_pclmul", "crc32_pclmul"),
    *("sha1_ssse3", "sha256_ssse3", "sha512_ssse3", "iTCO_wdt", "pcspkr", "psmouse"),
)
KERNEL = (
    *("console=ttyS0", "quiet", "root=/dev/vda", "rw", "net.ifnames=0", "intel_iommu=on"),
    *("mitigations=off", "tsc=reliable", "no_timer_check", "audit=0", "random.trust_cpu=on"),
    # What lies at one address in every process QEMU need translate only once: hooks run in two
    # thirds of the time.
    *("nokaslr", "norandmaps"),
    *("cryptomgr.notests", f"modprobe.blacklist={','.join(IDLE)}"),
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a machine is made of; a snapshot can be restored only into the same."""

    variant: str = "node"
    memory: int = 2048  # MiB
    cpus: int = 2
    cpu: str = ""
    """More of QEMU's properties of a CPU, such as `vendor=GenuineIntel`."""
    kernel: tuple[str, ...] = KERNEL
    """The kernel's command line."""

    def key(self) -> str:
        """Return a digest of everything that a saved state depends on."""
        version = subprocess.run(
            ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
        ).stdout
        return cache.key(version, image.ready(self.variant).folder.name, *self.hardware())

    def hardware(self) -> list[str]:
        """Return the part of QEMU's command line that a saved state depends on."""
        in_hardware = accelerator.chosen(image.ready(self.variant).kernel) == "kvm"
        cpu = "host,migratable=no" if in_hardware else ",".join(("max", *(f"-{x}" for x in DEAR)))
        board = f"q35,sata=off,smbus=off,memory-backend=ram{',kernel-irqchip=split' * in_hardware}"
        command = [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-no-reboot", "-accel", "kvm" if in_hardware else "tcg,thread=multi"),
            *("-cpu", f"{cpu},{self.cpu}" if self.cpu else cpu),
            *("-machine", board, "-m", str(self.memory), "-smp", str(self.cpus)),
            *("-device", "intel-iommu,intremap=on"),
            *("-append", " ".join(self.kernel)),
            *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
            *("-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=agent,name=agent"),
        ]
        for number, port in enumerate(PORTS, 1):
            command += ["-device", f"pcie-root-port,id={port},chassis={number},slot={number}"]
        # Room for the large memory of a GPU, which firmware must set aside before it is plugged.
        room = "mem-reserve=64M,pref64-reserve=256G"
        return [*command, "-device", f"pcie-root-port,id=gpu,chassis=9,slot=9,{room}"]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A machine saved while it ran: its disk, its memory."""

    folder: pathlib.Path
    spec: Spec

    @property
    def disk(self) -> pathlib.Path:
        """The disk as it was, for overlays."""
        return self.folder / "disk.qcow2"

    @property
    def memory(self) -> pathlib.Path:
        """QEMU's migration stream."""
        return self.folder / "memory"


class Machine:
    """A node. It does not run before `boot` or `restore`.

    Args:
        spec: what it is made of; that of the snapshot if there is one.
        snapshot: start from this saved machine instead of the bare image.
        network: let it reach the world outside (10.0.2.2 is the host); apt then works in it.
        functions: let functions be plugged into it, such as a GPU.
    """

    def __init__(
        self,
        spec: Spec | None = None,
        snapshot: Snapshot | None = None,
        *,
        network: bool = False,
        functions: bool = False,
    ):
        self.spec = snapshot.spec if snapshot else spec or Spec()
        self.network = network
        self.functions = functions
        self.seconds = 0.0  # how long the last start took
        self._snapshot = snapshot
        self.image = image.ready(self.spec.variant)
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="node-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._functions: dict[str, list[pci.Function]] = {}
        base = (snapshot.disk, "qcow2") if snapshot else (self.image.disk, "raw")
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", base[1], "-b", base[0]]
        subprocess.run([*create, self.disk], check=True)

    @classmethod
    def restored(
        cls, snapshot: Snapshot, *, network: bool = False, functions: bool = False
    ) -> "Machine":
        """Return a machine that goes on from where `snapshot` was saved."""
        machine = cls(snapshot=snapshot, network=network, functions=functions)
        try:
            machine.restore()
        except BaseException:
            machine.close()
            raise
        return machine

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Life

    @property
    def disk(self) -> pathlib.Path:
        """Its own layer over the disk it started from."""
        return self._folder / "disk.qcow2"

    @property
    def running(self) -> bool:
        """Whether its QEMU runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def console(self) -> str:
        """What the kernel and systemd wrote to the serial console since the last start."""
        log = self._folder / "console"
        return log.read_text(errors="replace") if log.exists() else ""

    def boot(self) -> "Machine":
        """Start it from its disk and wait until systemd is through (8 s, or 3 s with KVM)."""
        began = time.monotonic()
        self._start()
        try:
            self._agent.booted.answer.result(BOOT)
        except (concurrent.futures.TimeoutError, agent.Gone) as error:
            self.power_cut()
            raise RuntimeError(f"the node did not boot:\n{self.console[-2000:]}") from error
        self.run(["systemctl", "is-system-running", "--wait"], timeout=BOOT, check=False)
        self.run(["udevadm", "settle"])
        self.seconds = time.monotonic() - began
        return self

    def restore(self) -> "Machine":
        """Go on from the snapshot (0.5 s); only before anything else has run on the disk."""
        if not self._snapshot:
            raise ValueError("this machine has no snapshot: boot it")
        began = time.monotonic()
        self._start("-incoming", f"exec:cat {self._snapshot.memory}")
        limit = began + 60
        while self._qmp("query-status")["status"] == "inmigrate":
            if time.monotonic() > limit:
                raise TimeoutError("the node was not restored: QEMU still reads its state")
            time.sleep(0.01)
        self._qmp("cont")
        # It was saved earlier, and takes that time for now.
        self._agent.send({"clock": time.time()}, 10).wait(check=True)
        self.seconds = time.monotonic() - began
        return self

    def save(self, folder: pathlib.Path) -> None:
        """Save it into a folder, to be a `Snapshot` there; it is stopped by this."""
        if self._functions:
            raise ValueError("a machine with a plugged function cannot be saved: unplug it")
        self.run("sync")
        self._qmp("stop")
        self._qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        self._qmp("migrate", uri=f"exec:cat > {folder / 'memory'}")
        while (status := self._qmp("query-migrate")["status"]) != "completed":
            if status in ("failed", "cancelled"):
                raise RuntimeError(f"the node was not saved: {self._qmp('query-migrate')}")
            time.sleep(0.02)
        self._qmp("quit")
        self._ended()
        shutil.move(self.disk, folder / "disk.qcow2")

    def power_cut(self) -> None:
        """Kill it on the spot: what was not flushed to the disk is lost."""
        if (process := self._process) is not None:
            process.kill()
            self._ended()

    def poweroff(self, timeout: float = 90) -> None:
        """Shut it down in order.

        Raises:
            TimeoutError: it was not off in time, and was killed.
        """
        self._leave("poweroff", timeout)

    def reboot(self, timeout: float = 90) -> None:
        """Shut it down in order and boot it again.

        QEMU ends at the reset and is started anew, which under emulation is far quicker.
        """
        self._leave("reboot", timeout)
        self.boot()

    def close(self) -> None:
        """Stop it and forget all that it wrote."""
        self.power_cut()
        shutil.rmtree(self._folder, ignore_errors=True)

    # Commands and files

    def run(
        self,
        argv: list[str] | str,
        *,
        timeout: float = 120,
        stdin: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        check: bool = True,
    ) -> agent.Result:
        """Run a command as root: words, or a line for bash.

        Args:
            argv: the command.
            timeout: seconds until it and its children are killed, with exit status 124.
            stdin: its standard input.
            env: variables beside the agent's.
            cwd: its working folder.
            check: raise when it fails.

        Raises:
            agent.Failed: it failed and `check` is set.
            agent.Gone: the node stopped meanwhile.
        """
        started = self.start(argv, timeout=timeout, stdin=stdin, env=env, cwd=cwd)
        return started.wait(check=check)

    def start(
        self,
        argv: list[str] | str,
        *,
        timeout: float = 120,
        stdin: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> agent.Command:
        """Start a command as `run` does, and do not wait for it."""
        words = ["/bin/bash", "-c", argv] if isinstance(argv, str) else argv
        data = stdin.encode() if isinstance(stdin, str) else stdin
        return self._agent.start(words, timeout, data, env, cwd)

    def copy_in(
        self, source: pathlib.Path | bytes | str, dest: str, mode: int | None = None
    ) -> None:
        """Write a file, with the folders above it; `source` is a path, or the content itself."""
        folder = str(pathlib.PurePosixPath(dest).parent)
        if isinstance(source, pathlib.Path):
            mode = source.stat().st_mode & 0o7777 if mode is None else mode
        permissions = f"{0o644 if mode is None else mode:o}"
        script = 'mkdir -p "$1" && : > "$2" && chmod "$3" "$2" && '
        words = ["/bin/sh", "-c", script, "sh", folder, dest, permissions]
        if isinstance(source, pathlib.Path) and source.stat().st_size > LARGE:
            words[2] += 'head -c "$4" "$5" > "$2"'
            with self._lent(source) as device:
                self.run([*words, str(source.stat().st_size), device], timeout=600)
        else:
            words[2] += 'cat > "$2"'
            content = source.read_bytes() if isinstance(source, pathlib.Path) else source
            self.run(words, stdin=content)

    def copy_in_tree(self, folder: pathlib.Path, dest: str) -> None:
        """Copy what is in a folder below `dest`, owned by root, links and modes kept."""
        with tempfile.NamedTemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                tar.add(folder, ".", filter=_as_root)
            file.flush()
            words = ["/bin/sh", "-c", 'mkdir -p "$1" && tar -x -C "$1" < "$2"', "sh", dest]
            if file.tell() > LARGE:
                with self._lent(pathlib.Path(file.name)) as device:
                    self.run([*words, device], timeout=600)
            else:
                self.run([*words, "/dev/stdin"], stdin=pathlib.Path(file.name).read_bytes())

    def copy_out(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            agent.Failed: there is no such file.
        """
        return self.run(["cat", "--", path]).raw

    # Devices

    def plug(self, name: str, driver: str, port: str = "slot0", **properties: Any) -> None:
        """Plug a device into a port, `slot0` to `slot2` or `gpu`; properties as QEMU's."""
        self._qmp("device_add", driver=driver, id=name, bus=port, **properties)

    def unplug(self, name: str) -> None:
        """Unplug a device, or a GPU with all its functions, and wait until the node let it go."""
        functions = self._functions.pop(name, [])
        self._qmp("device_del", id=name)
        for each in [name, *(f.name for f in functions if f.name != name)]:
            self._monitor.wait_for("DEVICE_DELETED", device=each)
        for function in functions:
            function.close()

    @contextlib.contextmanager
    def _lent(self, file: pathlib.Path) -> Iterator[str]:
        """Show a file to the node as a disk; yields the device, padded to whole sectors."""
        name = "lent"
        self._qmp(
            "blockdev-add", driver="file", node_name=name, filename=str(file), read_only=True
        )
        self.plug(name, "virtio-blk-pci", PORTS[-1], drive=name, serial=name)
        device = f"/dev/disk/by-id/virtio-{name}"
        self.run(f"until test -e {device}; do sleep 0.1; done", timeout=30)
        try:
            yield device
        finally:
            self.unplug(name)
            self._qmp("blockdev-del", node_name=name)

    def plug_gpu(
        self, name: str = "gpu0", functions: tuple[pci.Kind, ...] = pci.H100
    ) -> list[str]:
        """Plug what looks like a GPU, with the functions that come with it in one IOMMU group.

        The kernel reads its configuration space as of a real one; there is nothing behind it. A
        machine with it cannot be saved.

        Returns:
            The functions' addresses in the node, such as "0000:04:00.0".
        """
        if not self.functions:
            raise ValueError("make the machine with functions=True")
        before = self._pci()
        plugged = [pci.Function(f"{name}.{n}", kind, n) for n, kind in enumerate(functions)]
        plugged[0].name = name
        self._functions[name] = plugged
        # Function 0 comes last: with it the slot counts as filled, and the guest looks at all.
        for number, function in reversed(list(enumerate(plugged))):
            self._monitor.pass_descriptor(function.name, function.descriptor)
            place = {"addr": f"0.{number}", "multifunction": True, "fd": function.name}
            self.plug(function.name, "x-pci-proxy-dev", "gpu", **place)
        return self._appeared(before, len(plugged))

    # QEMU

    def _start(self, *more: str) -> None:
        if self.running:
            raise ValueError("the node runs already")
        for name in ("agent", "qmp", "console"):
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).unlink()
        with (self._folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                # Should this process be killed, QEMU goes with it.
                ["setpriv", "--pdeathsig", "KILL", *self._command(), *more],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        self._monitor = self._connected(qmp.Monitor, "qmp")
        self._agent = self._connected(agent.Agent, "agent")

    def _command(self) -> list[str]:
        folder = self._folder
        # A process that answers for a plugged function shares it. What is not shared the kernel
        # gives in huge pages, and a node is restored four times as fast.
        memory = "memory-backend-memfd,share=on" if self.functions else "memory-backend-ram"
        # What the node flushes goes to the file, and outlives QEMU; that it outlives this machine
        # nobody asks.
        disk = "if=none,id=disk,format=qcow2,discard=unmap,cache=unsafe"
        return [
            *self.spec.hardware(),
            *("-object", f"{memory},id=ram,size={self.spec.memory}M"),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd)),
            *("-drive", f"{disk},file={self.disk}"),
            *("-netdev", f"user,id=net,restrict={'off' if self.network else 'on'}"),
            *("-chardev", f"socket,id=agent,path={folder / 'agent'},server=on,wait=off"),
            *("-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"),
            *("-serial", f"file:{folder / 'console'}"),
        ]

    def _connected(self, connect: Any, name: str) -> Any:
        limit = time.monotonic() + 30
        while True:
            try:
                return connect(self._folder / name)
            except (FileNotFoundError, ConnectionRefusedError):
                if not self.running or time.monotonic() > limit:
                    self.power_cut()
                    said = (self._folder / "stderr").read_text(errors="replace")
                    raise RuntimeError(f"QEMU did not start: {said[-1000:]}") from None
                time.sleep(0.01)

    def _pci(self) -> set[str]:
        return set(self.run(["ls", "/sys/bus/pci/devices"]).out.split())

    def _appeared(self, before: set[str], count: int) -> list[str]:
        """Return the PCI functions that have come since, when they all have and have drivers."""
        limit = time.monotonic() + 30
        while len(new := self._pci() - before) < count:
            if time.monotonic() > limit:
                raise TimeoutError(f"{count} PCI functions were plugged, and {len(new)} came")
            time.sleep(0.05)
        self.run(["udevadm", "settle"])
        return sorted(new)

    def _qmp(self, command: str, **arguments: Any) -> Any:
        return self._monitor(command, **arguments)

    def _leave(self, how: str, timeout: float) -> None:
        self.run(["systemctl", "--no-block", how])
        assert self._process
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.power_cut()
            raise TimeoutError(f"{how}: the node still ran after {timeout:g} s") from None
        self._ended()

    def _ended(self) -> None:
        # A test may cut the power in a thread of its own, as another closes the machine.
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        for each in ("_agent", "_monitor"):
            if connection := self.__dict__.pop(each, None):
                connection.close()
        for functions in self._functions.values():
            for function in functions:
                function.close()
        self._functions.clear()


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
