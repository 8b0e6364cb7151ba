"""Archives for tests: small releases of Kata as each generation packs them, and hostile ones."""

import gzip
import io
import lzma
import tarfile

import zstandard

MACHINES = {"amd64": 62, "arm64": 183}
GO = "opt/kata/bin/containerd-shim-kata-v2"
RUST = "opt/kata/runtime-rs/bin/containerd-shim-kata-v2"
DEFAULTS = "opt/kata/share/defaults/kata-containers"
COMPRESSIONS = {
    "tar": lambda data: data,
    "tar.gz": lambda data: gzip.compress(data, 1),
    "tar.xz": lambda data: lzma.compress(data, preset=1),
    "tar.zst": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
}


def program(architecture="amd64", text="shim"):
    """Return what begins like a program of an architecture."""
    head = b"\x7fELF\x02\x01\x01" + bytes(11) + MACHINES[architecture].to_bytes(2, "little")
    return head + text.encode()


def file(name, data=b"", mode=0o644, **more):
    return _member(name, tarfile.REGTYPE, mode, data=data, **more)


def folder(name, mode=0o755, **more):
    return _member(name, tarfile.DIRTYPE, mode, **more)


def link(name, to, **more):
    return _member(name, tarfile.SYMTYPE, 0o777, linkname=to, **more)


def hard(name, to, **more):
    return _member(name, tarfile.LNKTYPE, 0o644, linkname=to, **more)


def device(name, kind):
    return _member(name, kind, 0o600)


def pack(members, compression="tar.zst"):
    """Return an archive's bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return COMPRESSIONS[compression](out.getvalue())


def release(version="4.1.0", go=True, rust=True, architecture="amd64", text="", more=()):
    """Return the members of a small release, as `tar .` packs them.

    `text` makes two releases of one version differ.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    members = [folder("./"), folder("./opt"), folder("./opt/kata"), folder("./opt/kata/bin")]
    if (major, minor) >= (3, 2):
        members.append(file("./opt/kata/VERSION", f"{version}\n".encode()))
    shim = program(architecture, f"{version} {text}")
    if go:
        members.append(file(f"./{GO}", shim, 0o755))
        for name in ("qemu", "clh", "fc", "qemu-nvidia-gpu"):
            path = f"./{DEFAULTS}/configuration-{name}.toml"
            members.append(file(path, f"# Go {name}\n".encode()))
        members.append(file("./opt/kata/bin/firecracker", program(architecture), 0o755))
    if rust:
        members.append(file(f"./{RUST}", shim, 0o755))
        rust_files = f"./{DEFAULTS}/runtime-rs"
        names = ["qemu-runtime-rs", "clh-runtime-rs", "rs-fc", "dragonball"]
        if (major, minor) < (3, 30):
            names[1] = "cloud-hypervisor"
        if (major, minor) < (3, 3):
            rust_files, names = f"./{DEFAULTS}", ["dragonball"]
        for name in names:
            path = f"{rust_files}/configuration-{name}.toml"
            members.append(file(path, f"# Rust {name}\n".encode()))
    members.append(link(f"./{DEFAULTS}/configuration.toml", "configuration-qemu.toml"))
    members.append(file("./opt/kata/share/kata-containers/vmlinux-6.1", b"kernel " * 5000))
    members.append(link("./opt/kata/share/kata-containers/vmlinux.container", "vmlinux-6.1"))
    return [*members, *more]


def _member(name, kind, mode, data=b"", linkname="", **more):
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname = kind, mode, linkname
    member.size, member.mtime = len(data), 1_700_000_000
    for key, value in more.items():
        setattr(member, key, value)
    return member, data
