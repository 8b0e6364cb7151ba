"""The node's disk: Debian 12 with containerd, made once with mmdebstrap and kept.

    python3 -m tests.node.image [VARIANT]

makes it ahead of time. Making it needs root, or sudo without a password; nothing else here does.
"""

import contextlib
import dataclasses
import gzip
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile

from tests.node import cache

RECIPE = pathlib.Path(__file__).parent / "recipe"
SUITE = "bookworm"
DISK = 12 << 30  # bytes; a sparse file
PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "kmod", "procps", "iproute2", "pciutils", "e2fsprogs"),
    *("containerd", "runc", "containernetworking-plugins", "busybox-static"),
    *("python3", "python3-yaml", "strace", "xz-utils", "zstd", "gnupg", "ca-certificates"),
)
# `vmm` can start virtual machines of its own, under the node's /dev/kvm.
VARIANTS: dict[str, tuple[str, ...]] = {"node": (), "vmm": ("qemu-system-x86", "seabios")}
# Units that cost a boot time and give a test nothing.
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "systemd-tmpfiles-clean.timer"),
    *("systemd-timesyncd.service", "getty@tty1.service", "serial-getty@ttyS0.service"),
    *("systemd-update-utmp.service", "systemd-pstore.service", "systemd-hwdb-update.service"),
    *("systemd-firstboot.service", "dev-hugepages.mount", "dev-mqueue.mount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-random-seed.service"),
    *("systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "systemd-logind.service"),
    *(f"modprobe@{each}.service" for each in ("configfs", "dm_mod", "drm", "fuse", "loop")),
    *("systemd-update-utmp-runlevel.service", "systemd-user-sessions.service"),
    *("systemd-ask-password-console.path", "systemd-ask-password-wall.path"),
)
FILES = {
    "etc/hostname": "node\n",
    "etc/hosts": "127.0.0.1 localhost\n10.0.2.15 node\n",
    # QEMU's user network answers names here.
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/fstab": "/dev/vda / ext4 defaults 0 0\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
}
# What of systemd's generators a node keeps: they mount its disk, and serve its console.
GENERATORS = ("systemd-fstab-generator", "systemd-getty-generator")
# What the machine that runs the tests must have: a command, and the Debian package it comes in.
COMMANDS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "modprobe": "kmod",
    "cpio": "cpio",
    "tcc": "tcc",
}
# And a file, and its package.
PRESENT = {
    pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg"): "debian-archive-keyring",
    pathlib.Path("/usr/include/stdio.h"): "libc6-dev",
}


@dataclasses.dataclass(frozen=True)
class Image:
    """A disk to lay overlays on, with its kernel and a small initrd beside it."""

    folder: pathlib.Path

    @property
    def disk(self) -> pathlib.Path:
        """The root file system, raw."""
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> pathlib.Path:
        """The kernel as QEMU starts it at once: to unpack itself takes it 3 s under emulation."""
        return self.folder / "vmlinux"

    @property
    def packed_kernel(self) -> pathlib.Path:
        """The kernel as Debian's package has it."""
        return self.folder / "vmlinuz"

    @property
    def sleep(self) -> pathlib.Path:
        """A program of the node's own that does nothing for a given time."""
        return self.folder / "sleep"

    @property
    def busybox(self) -> pathlib.Path:
        """The node's static busybox."""
        return self.folder / "busybox"

    @property
    def initrd(self) -> pathlib.Path:
        """Busybox and the modules that the root disk needs."""
        return self.folder / "initrd"


def ready(variant: str = "node") -> Image:
    """Return the image of a variant, made now if this recipe has none yet (about 40 s)."""
    name = cache.key(pathlib.Path(__file__), RECIPE, variant, platform.machine())

    def make(folder: pathlib.Path) -> None:
        # Not with the rest: the part of this that runs as root knows nothing of the charm.
        from kata.gpu import guest_kernel

        ensure_commands()
        command = [sys.executable, "-m", "tests.node.image", "--into", str(folder), variant]
        log = folder / "build.log"
        here = pathlib.Path(__file__).parents[2]
        with log.open("w") as file:
            done = subprocess.run(
                _as_root(command), cwd=here, stdout=file, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode:
            raise RuntimeError(f"the node's image was not made:\n{log.read_text()[-3000:]}")
        made = Image(folder)
        made.kernel.write_bytes(guest_kernel.unpacked(made.packed_kernel.read_bytes()))

    return Image(cache.made("images", f"{variant}-{name}", make))


def missing_packages() -> list[str]:
    """Return the Debian packages that this machine lacks for running nodes."""
    # mke2fs and modprobe lie in sbin, which an ordinary user's PATH may lack.
    places = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    packages = [pkg for cmd, pkg in COMMANDS.items() if not shutil.which(cmd, path=places)]
    return packages + [package for file, package in PRESENT.items() if not file.exists()]


def ensure_commands() -> bool:
    """Install what this machine lacks for running nodes; return True if anything was."""
    packages = missing_packages()
    if packages:
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
        for command in (["apt-get", "update", "-q"], install):
            done = subprocess.run(_as_root(command), capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return bool(packages)


def _as_root(command: list[str]) -> list[str]:
    if os.geteuid() == 0:
        return command
    return ["sudo", "-n", "--preserve-env=PATH,http_proxy,https_proxy,no_proxy", *command]


def _build(folder: pathlib.Path, variant: str) -> None:
    """Make disk, kernel and initrd in `folder`; runs as root."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    root = folder / "root"
    try:
        _install(root, [*PACKAGES, *VARIANTS[variant]])
        _tune(root)
        (version,) = os.listdir(root / "usr/lib/modules")
        shutil.move(root / "boot" / f"vmlinuz-{version}", folder / "vmlinuz")
        for program in ("usr/bin/sleep", "usr/bin/busybox"):
            shutil.copy(root / program, folder)
        _make_initrd(root, version, folder / "initrd")
        with (folder / "disk.raw").open("wb") as disk:
            disk.truncate(DISK)
        _run("mke2fs", "-q", "-F", "-t", "ext4", "-N", "262144", "-d", root, folder / "disk.raw")
        owner = int(os.environ.get("SUDO_UID", "0")), int(os.environ.get("SUDO_GID", "0"))
        for file in ("disk.raw", "vmlinuz", "initrd", "sleep", "busybox"):
            (folder / file).chmod(0o755)
            os.chown(folder / file, *owner)
    finally:
        _run("rm", "-rf", "--one-file-system", root)


def _install(root: pathlib.Path, packages: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _run(
            *("mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(packages)}"),
            # A node keeps apt's lists, so that apt works in it at once.
            "--skip=cleanup/apt/lists",
            *('--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"'),
            *(f"--aptopt={line}" for line in _proxies()),
            *(
                f"--dpkgopt=path-exclude=/usr/share/{each}/*"
                for each in ("man", "doc", "locale", "info")
            ),
            f"--customize-hook={RECIPE / 'kernel.sh'}",
            *(SUITE, root, *_sources(pathlib.Path(scratch))),
        )


def _sources(scratch: pathlib.Path) -> list[pathlib.Path]:
    """Return this machine's own apt sources for the suite, if it is of that suite.

    Elsewhere mmdebstrap's default for the suite serves.
    """
    chosen: list[pathlib.Path] = []
    files = [pathlib.Path("/etc/apt/sources.list")]
    for file in files + sorted(pathlib.Path("/etc/apt/sources.list.d").glob("*")):
        if not file.is_file() or file.suffix not in (".list", ".sources"):
            continue
        separator = "\n\n" if file.suffix == ".sources" else "\n"
        # Debian's own archive: a suite of that name with the component main, not a third party's.
        ours = [
            entry
            for entry in re.split(r"\n\s*\n" if separator == "\n\n" else "\n", file.read_text())
            if re.search(rf"(?<!\S){SUITE}(?!\S)|(?<!\S){SUITE}-", entry)
            and re.search(r"(?<!\S)main(?!\S)", entry)
            and not re.match(r"\s*(#[^\n]*)?$", entry)
        ]
        if ours:
            chosen.append(scratch / file.name)
            chosen[-1].write_text(separator.join(ours) + "\n")
    return chosen


def _proxies() -> list[str]:
    """Return this machine's own proxy settings for apt."""
    said = _run("apt-config", "dump", "Acquire").splitlines()
    return [line for line in said if re.match(r"Acquire::https?::(.*::)?Proxy\b", line)]


def _tune(root: pathlib.Path) -> None:
    """Give the node a name, a network, and the agent; take away what only costs time."""
    for path, text in FILES.items():
        with contextlib.suppress(FileNotFoundError):
            (root / path).unlink()
        (root / path).write_text(text)
    shutil.copy(RECIPE / "agent.py", root / "usr/local/sbin/node-agent")
    for unit in ("node-agent.service", "node-network.service"):
        shutil.copy(RECIPE / unit, root / "etc/systemd/system")
    _run("chroot", root, "systemctl", "-q", "enable", "node-agent", "node-network")
    _run("chroot", root, "systemctl", "-q", "mask", *MASKED)
    # Each start of systemd, and each daemon-reload, runs them all.
    (root / "etc/systemd/system-generators").mkdir()
    for generator in (root / "lib/systemd/system-generators").iterdir():
        if generator.name not in GENERATORS:
            (root / "etc/systemd/system-generators" / generator.name).symlink_to("/dev/null")
    for archive in (root / "var/cache/apt").glob("*.bin"):
        archive.unlink()


def _make_initrd(root: pathlib.Path, version: str, initrd: pathlib.Path) -> None:
    modules: dict[str, pathlib.Path] = {}
    for name in ("virtio_pci", "virtio_blk", "ext4"):
        asked = _run("modprobe", "-d", root, "-S", version, "--show-depends", name)
        for path in re.findall(r"^insmod (\S+)", asked, re.MULTILINE):
            modules[pathlib.PurePath(path).name] = pathlib.Path(path)
    with tempfile.TemporaryDirectory() as scratch:
        tree = pathlib.Path(scratch)
        for folder in ("bin", "dev", "modules", "root"):
            (tree / folder).mkdir()
        shutil.copy(root / "bin/busybox", tree / "bin")
        (tree / "bin/sh").symlink_to("busybox")
        shutil.copy(RECIPE / "init", tree)
        (tree / "init").chmod(0o755)
        for path in modules.values():
            shutil.copy(path, tree / "modules")
        (tree / "modules/order").write_text("\n".join(modules) + "\n")
        names = "\n".join(str(p.relative_to(tree)) for p in sorted(tree.rglob("*")))
        packed = subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"],
            input=names.encode(),
            capture_output=True,
            cwd=tree,
            check=True,
        ).stdout
    initrd.write_bytes(gzip.compress(packed, 1))


def _run(*command: str | pathlib.Path) -> str:
    print("+", *command, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]}: exit status {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    if "--into" in sys.argv:
        _build(pathlib.Path(sys.argv[2]), sys.argv[3])
    else:
        print(ready(*sys.argv[1:]).folder)
