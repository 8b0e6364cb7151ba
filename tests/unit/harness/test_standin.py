"""The archives that stand in for Kata's releases: shaped like them, and plainly not them."""

import io
import subprocess
import sys
import tarfile

import pytest
import tomlkit

from tests.node import standin, standin_shim

CONFIGURATIONS = "opt/kata/share/defaults/kata-containers"
GO, RUST = "opt/kata/bin", "opt/kata/runtime-rs/bin"
CRI, CURRENT = "cri.runtimeoptions.v1.Options", "runtimeoptions.v1.Options"


def opened(path):
    data = path.read_bytes()
    if path.suffix == ".zst":
        unpack = ["zstd", "-dc"]
        data = subprocess.run(unpack, input=data, capture_output=True, check=True).stdout
    return tarfile.open(fileobj=io.BytesIO(data))


@pytest.mark.parametrize(
    ("release", "go", "name", "shims"),
    [
        ("2.0.4", False, "kata-static-2.0.4-x86_64.tar.xz", {GO}),
        ("3.0.0", False, "kata-static-3.0.0-x86_64.tar.xz", {GO, RUST}),
        ("3.2.0", False, "kata-static-3.2.0-amd64.tar.xz", {GO, RUST}),
        ("3.32.0", False, "kata-static-3.32.0-amd64.tar.zst", {GO, RUST}),
        ("4.0.0", False, "kata-static-4.0.0-amd64.tar.zst", {GO, RUST}),
        ("4.1.0", False, "kata-static-4.1.0-amd64.tar.zst", {RUST}),
        ("4.1.0", True, "kata-go-static-4.1.0-amd64.tar.zst", {GO}),
    ],
)
def test_an_archive(tmp_path, release, go, name, shims):
    path = standin.archive(release, tmp_path, go=go)
    assert path.name == name
    with opened(path) as tar:
        members = {member.name: member for member in tar}
        assert {
            each for each in (GO, RUST) if f"{each}/containerd-shim-kata-v2" in members
        } == shims
        assert tar.extractfile("opt/kata/VERSION").read() == f"{release}\n".encode()
        files = [n for n in members if n.endswith(".toml") and members[n].isreg()]
        assert files
        for file in files:
            said = tomlkit.parse(tar.extractfile(file).read().decode())
            ((table, keys),) = said["hypervisor"].items()
            assert keys["default_memory"] == 2048, table
        for member in members.values():
            assert member.uid == 0
            if member.issym():
                # Each link leads to something in the archive.
                assert f"{member.name.rpartition('/')[0]}/{member.linkname}" in members


def test_keys_come_and_go(tmp_path):
    def qemu(release):
        with opened(standin.archive(release, tmp_path, compression="gz")) as tar:
            return tar.extractfile(f"{CONFIGURATIONS}/configuration-qemu.toml").read().decode()

    assert "hotplug_vfio_on_root_bus" in qemu("3.2.0")
    assert "hotplug_vfio_on_root_bus" not in qemu("3.32.0")
    assert "\n#debug_console_enabled = true\n" in qemu("2.5.2")
    assert "\ndebug_console_enabled = false\n" in qemu("3.32.0")


def test_an_archive_is_the_same_each_time(tmp_path):
    first = standin.archive("4.1.0", tmp_path / "a")
    assert first.read_bytes() == standin.archive("4.1.0", tmp_path / "b").read_bytes()


def test_packages(tmp_path):
    path = standin.debs("1.13.0", tmp_path)
    with tarfile.open(path) as tar:
        names = [each.partition("_")[0] for each in tar.getnames()]
        assert names == ["kata-runtime", "kata-proxy", "kata-shim"]
        tar.extractall(tmp_path, filter="data")
    deb = next(tmp_path.glob("kata-runtime_*.deb"))
    asked = ["dpkg-deb", "--field", deb, "Package", "Version"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert said == "Package: kata-runtime\nVersion: 1.13.0-1\n"


@pytest.mark.parametrize(("release", "knows"), [("2.0.4", {CRI}), ("2.2.0", {CRI, CURRENT})])
def test_message_types_that_a_generation_knows(tmp_path, release, knows):
    with opened(standin.archive(release, tmp_path)) as tar:
        shim = tar.extractfile(f"{GO}/containerd-shim-kata-v2").read()
    names: dict = {"__name__": "shim"}
    exec(compile(shim, "shim", "exec"), names)
    assert set(names["TYPES"]) == knows
    (tmp_path / "shim").write_bytes(shim)
    said = subprocess.run(
        [sys.executable, tmp_path / "shim", "--version"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"version: {release}, commit: stand-in" in said


def request(options=b""):
    """Return containerd's Create request, with the given content of its field `options`."""
    field = standin_shim.field
    payload = field(1, b"some-id") + field(2, b"/bundle" * 40)
    payload += field(standin_shim.OPTIONS, options) if options else b""
    return field(1, b"containerd.task.v2.Task") + field(2, b"Create") + field(3, payload)


def any_of(kind):
    return standin_shim.field(1, kind.encode()) + standin_shim.field(2, b"\x12\x05/path")


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
def test_options_are_taken_off(prefix):
    assert standin_shim.without_options(request(any_of(prefix + CURRENT))) == request()


def test_a_request_without_options_passes_as_it_is():
    assert standin_shim.without_options(request()) == request()
    other = standin_shim.field(2, b"Start") + standin_shim.field(3, b"anything")
    assert standin_shim.without_options(other) == other


def test_unknown_options_are_refused():
    assert standin_shim.without_options(request(any_of("containerd.runc.v1.Options"))) is None
