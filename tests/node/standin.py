"""Small archives in the shape of Kata's releases, for tests and the demo.

    standin.archive("3.32.0", folder)   # kata-static-3.32.0-amd64.tar.zst
    standin.debs("1.13.0", folder)      # a tar of Debian packages

They hold no Kata. The shim is `standin_shim.py`: containerd starts it, and its pods run, without
a virtual machine. Paths, names, links and the keys of the configuration files are those of the
release (kata-containers at its tags 1.13.0 to 4.1.0); kernels and images are a few bytes. Who
shows something with it must say that it is a stand-in.
"""

import io
import pathlib
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.node import standin_configuration

SHIM = pathlib.Path(__file__).parent / "standin_shim.py"
MONITOR = pathlib.Path(__file__).parent / "standin_monitor.py"
NOTHING = b"#!/bin/sh\nexec sleep infinity\n"
FOLDER = "share/defaults/kata-containers"
WHEN = 1_767_225_600  # every file's time, so that an archive made twice is the same


class Part(NamedTuple):
    """A file of an archive; a link if `link` is set."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    link: str = ""


def archive(
    release: str,
    folder: pathlib.Path,
    compression: str | None = None,
    hypervisor: bytes = NOTHING,
    go: bool = False,
) -> pathlib.Path:
    """Write a release's archive into a folder; return its path.

    Args:
        release: such as "3.32.0", from 2.0.0 on.
        folder: where to.
        compression: "xz", "zst" or "gz"; the release's own by default.
        hypervisor: the program that runs for each sandbox; `Image.sleep` for a node's.
        go: from 4.1.0 on, the archive with the Go shim.
    """
    number = standin_configuration.number(release)
    compression = compression or ("zst" if number >= (3, 21, 0) else "xz")
    machine = "amd64" if number >= (3, 2, 0) else "x86_64"
    name = f"kata-{'go-' if go else ''}static-{release}-{machine}.tar.{compression}"
    shims = ["go"] if go or number < (3, 0, 0) else ["go", "rust"]
    if number >= (4, 1, 0) and not go:
        shims = ["rust"]
    parts = list(_release(release, shims, hypervisor))
    return _packed([Part(f"opt/kata/{each.path}", *each[1:]) for each in parts], folder / name)


def archives(
    releases: Iterable[str], folder: pathlib.Path, hypervisor: bytes = NOTHING
) -> dict[str, pathlib.Path]:
    """Write what each of these releases comes as, packages for 1.x; return the paths by release."""
    return {
        each: (debs if each.startswith("1.") else archive)(each, folder, hypervisor=hypervisor)
        for each in releases
    }


def debs(release: str, folder: pathlib.Path, hypervisor: bytes = NOTHING) -> pathlib.Path:
    """Write Kata 1.x's packages, in one tar; return its path."""
    parts: dict[str, list[Part]] = {
        "kata-runtime": [
            Part("usr/bin/containerd-shim-kata-v2", _shim(release, "go"), 0o755),
            Part("usr/bin/kata-runtime", _tool(release), 0o755),
            Part("usr/bin/qemu-system-x86_64", hypervisor, 0o755),
            Part(
                f"usr/{FOLDER}/configuration-qemu.toml",
                standin_configuration.text(release, "qemu", "go"),
            ),
            Part(f"usr/{FOLDER}/configuration.toml", link="configuration-qemu.toml"),
            *(Part(f"usr/{p.path}", *p[1:]) for p in _guest()),
        ],
        "kata-proxy": [Part("usr/libexec/kata-containers/kata-proxy", NOTHING, 0o755)],
        "kata-shim": [Part("usr/libexec/kata-containers/kata-shim", NOTHING, 0o755)],
    }
    with tempfile.TemporaryDirectory() as scratch:
        built = [_deb(name, release, parts[name], pathlib.Path(scratch)) for name in parts]
        files = [Part(deb.name, deb.read_bytes()) for deb in built]
        return _packed(files, folder / f"kata-{release}-debs.tar")


def _release(release: str, shims: list[str], hypervisor: bytes) -> Iterator[Part]:
    number = standin_configuration.number(release)
    yield Part("VERSION", f"{release}\n".encode())
    yield Part("bin/qemu-system-x86_64", hypervisor, 0o755)
    yield Part("bin/cloud-hypervisor", hypervisor, 0o755)
    yield Part("libexec/virtiofsd", NOTHING, 0o755)
    yield from _guest()
    if "go" in shims:
        yield Part("bin/containerd-shim-kata-v2", _shim(release, "go"), 0o755)
        yield Part("bin/kata-runtime", _tool(release), 0o755)
        yield Part("bin/kata-monitor", _monitor(number), 0o755)
        yield Part("bin/firecracker", hypervisor, 0o755)
        yield Part("bin/jailer", NOTHING, 0o755)
        kinds = ["qemu", "clh", "fc", *(["qemu-nvidia-gpu"] if number >= (3, 2, 0) else [])]
        for kind in kinds:
            yield Part(
                f"{FOLDER}/configuration-{kind}.toml",
                standin_configuration.text(release, kind, "go"),
            )
        yield Part(f"{FOLDER}/configuration.toml", link="configuration-qemu.toml")
    if "rust" in shims:
        yield Part("runtime-rs/bin/containerd-shim-kata-v2", _shim(release, "rust"), 0o755)
        yield Part("bin/kata-ctl", _tool(release), 0o755)
        # The Rust shim's only configuration lay beside the Go shim's until 3.3.0.
        own = f"{FOLDER}/runtime-rs" if number >= (3, 3, 0) else FOLDER
        names = {"dragonball": "dragonball"}
        if number >= (3, 3, 0):
            names |= {"qemu-runtime-rs": "qemu"}
            names |= {"clh-runtime-rs" if number >= (4, 0, 0) else "cloud-hypervisor": "clh"}
        if number >= (4, 1, 0):
            names |= {"qemu-nvidia-gpu-runtime-rs": "qemu-nvidia-gpu"}
        for name, kind in names.items():
            yield Part(
                f"{own}/configuration-{name}.toml",
                standin_configuration.text(release, kind, "rust"),
            )
        if own != FOLDER:
            default = "qemu-runtime-rs" if number >= (4, 0, 0) else "dragonball"
            yield Part(f"{own}/configuration.toml", link=f"configuration-{default}.toml")


def _guest() -> Iterator[Part]:
    shared = "share/kata-containers"
    for name, real in {
        "vmlinux.container": "vmlinux-6.1.0-stand-in",
        "vmlinuz.container": "vmlinuz-6.1.0-stand-in",
        "kata-containers.img": "kata-stand-in.image",
        "kata-containers-initrd.img": "kata-stand-in.initrd",
    }.items():
        yield Part(f"{shared}/{real}", b"a stand-in\n")
        yield Part(f"{shared}/{name}", link=real)


def _shim(release: str, language: str) -> bytes:
    text = SHIM.read_text()
    text = text.replace('RELEASE = "0.0.0"', f'RELEASE = "{release}"')
    if language == "rust":
        text = text.replace('LANGUAGE = "Golang"', 'LANGUAGE = "Rust"')
    elif standin_configuration.number(release) < (2, 2, 0):
        text = text.replace('("runtimeoptions.v1.Options", ', "(")
        text = text.replace(
            '("cri.runtimeoptions.v1.Options")', '("cri.runtimeoptions.v1.Options",)'
        )
    return text.encode()


def _monitor(number: tuple[int, ...]) -> bytes:
    text = MONITOR.read_text()
    if number < (2, 2, 0):
        text = text.replace('"--runtime-endpoint"', '"--containerd-address"')
    return text.encode()


def _tool(release: str) -> bytes:
    return f"#!/bin/sh\necho 'kata-runtime  : {release} (stand-in)'\n".encode()


def _deb(name: str, release: str, parts: list[Part], scratch: pathlib.Path) -> pathlib.Path:
    tree = scratch / name
    for part in parts:
        place = tree / part.path
        place.parent.mkdir(parents=True, exist_ok=True)
        if part.link:
            place.symlink_to(part.link)
        else:
            place.write_bytes(part.content)
            place.chmod(part.mode)
    control = {
        "Package": name,
        "Version": f"{release}-1",
        "Architecture": "amd64",
        "Maintainer": "Nobody <nobody@localhost>",
        "Description": "stand-in for a package of Kata Containers",
    }
    (tree / "DEBIAN").mkdir()
    text = "".join(f"{field}: {value}\n" for field, value in control.items())
    (tree / "DEBIAN/control").write_text(text)
    deb = scratch / f"{name}_{release}-1_amd64.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, deb],
        check=True,
        capture_output=True,
    )
    return deb


def _packed(parts: list[Part], place: pathlib.Path) -> pathlib.Path:
    """Write a tar, compressed as its name says."""
    buffer = io.BytesIO()
    how = place.suffix.removeprefix(".")
    with tarfile.open(fileobj=buffer, mode=f"w:{how}" if how in ("xz", "gz") else "w") as tar:
        above = {str(each) for part in parts for each in pathlib.PurePath(part.path).parents}
        for folder in sorted(above - {"."}):
            tar.addfile(_member(folder, tarfile.DIRTYPE, 0o755))
        for part in parts:
            if part.link:
                member = _member(part.path, tarfile.SYMTYPE, 0o777)
                member.linkname = part.link
                tar.addfile(member)
            else:
                member = _member(part.path, tarfile.REGTYPE, part.mode)
                member.size = len(part.content)
                tar.addfile(member, io.BytesIO(part.content))
    data = buffer.getvalue()
    if how == "zst":
        packed = subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True)
        data = packed.stdout
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return place


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, WHEN
    return member
