"""What a release ships, by generation, and what Kata publishes it as."""

import json
import pathlib
import re

import pytest

from kata import problems
from kata.release import published, release
from tests import conftest
from tests.unit import archives, kata_releases

GO = "/opt/kata/share/defaults/kata-containers"
RUST = f"{GO}/runtime-rs"


def surveyed(node, members, root="/opt/kata"):
    """Return what is found in the files of an archive, laid out on a node."""
    files = {f"/{member.name.lstrip('./')}": data for member, data in members if member.isreg()}
    node.lay({path: data.decode("latin-1") for path, data in files.items()})
    return release.survey(node.path(root), root)


# What is in a tree


@pytest.mark.parametrize(
    ("version", "dragonball", "clh"),
    [
        ("3.0.0", f"{GO}/configuration-dragonball.toml", None),
        ("3.2.0", f"{GO}/configuration-dragonball.toml", None),
        ("3.3.0", f"{RUST}/configuration-dragonball.toml", "cloud-hypervisor"),
        ("3.29.0", f"{RUST}/configuration-dragonball.toml", "cloud-hypervisor"),
        ("3.30.0", f"{RUST}/configuration-dragonball.toml", "clh-runtime-rs"),
        ("4.1.0", f"{RUST}/configuration-dragonball.toml", "clh-runtime-rs"),
    ],
)
def test_each_generation_of_3_and_4_is_known(node, version, dragonball, clh):
    shims, found = surveyed(node, archives.release(version))
    assert shims == {
        "go": "/opt/kata/bin/containerd-shim-kata-v2",
        "rust": "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
    }
    assert found["go"]["qemu"] == f"{GO}/configuration-qemu.toml"
    assert found["go"]["qemu-nvidia-gpu"] == f"{GO}/configuration-qemu-nvidia-gpu.toml"
    assert "dragonball" not in found["go"]
    assert found["rust"]["dragonball"] == dragonball
    if clh:
        assert found["rust"]["clh"] == f"{RUST}/configuration-{clh}.toml"
        assert found["rust"]["qemu"] == f"{RUST}/configuration-qemu-runtime-rs.toml"
        assert found["rust"]["fc"] == f"{RUST}/configuration-rs-fc.toml"


def test_2_has_the_go_shim_alone(node):
    shims, found = surveyed(node, archives.release("2.5.2", rust=False))
    assert list(shims) == ["go"]
    assert sorted(found["go"]) == ["clh", "fc", "qemu", "qemu-nvidia-gpu"]


def test_the_rust_archive_of_4_1_cannot_run_firecracker(node):
    """It ships the configuration, and Firecracker itself comes with the Go shim's archive."""
    _, found = surveyed(node, archives.release("4.1.0", go=False))
    assert sorted(found["rust"]) == ["clh", "dragonball", "qemu"]


def test_1_came_as_packages_below_usr(node):
    node.lay(
        {
            "/usr/bin/containerd-shim-kata-v2": "",
            "/usr/share/defaults/kata-containers/configuration-qemu.toml": "",
            "/usr/share/defaults/kata-containers/configuration-fc.toml": "",
        }
    )
    shims, found = release.survey(node.path("/usr"), "/usr")
    assert shims == {"go": "/usr/bin/containerd-shim-kata-v2"}
    assert found["go"] == {
        "qemu": "/usr/share/defaults/kata-containers/configuration-qemu.toml",
        "fc": "/usr/share/defaults/kata-containers/configuration-fc.toml",
    }


def test_the_first_releases_of_1_had_one_configuration(node):
    node.lay(
        {
            "/usr/bin/containerd-shim-kata-v2": "",
            "/usr/share/defaults/kata-containers/configuration.toml": "",
        }
    )
    _, found = release.survey(node.path("/usr"), "/usr")
    assert found["go"] == {"qemu": "/usr/share/defaults/kata-containers/configuration.toml"}


def test_a_dangling_default_is_no_configuration(node):
    """4.1.0's archive of the Rust shim has the Go shim's link, and not what it leads to."""
    _, found = surveyed(node, archives.release("4.1.0", go=False))
    node.path(f"{GO}/configuration.toml").symlink_to("configuration-qemu.toml")
    node.path(f"{GO}/configuration-qemu.toml").symlink_to("nowhere")
    assert release.survey(node.path("/opt/kata"), "/opt/kata")[1] == found


SHIPPED = conftest.corpus("kata/*/configuration-*.toml")


@pytest.mark.parametrize("path", SHIPPED, ids=[f"{p.parent.name}/{p.name}" for p in SHIPPED])
def test_every_configuration_that_kata_ships_has_a_name(node, path):
    version, _, rust = path.parent.name.partition("-")
    shim = "rust" if rust else "go"
    root = "/usr" if version.startswith("1.") else "/opt/kata"
    place = f"{root}/{release.CONFIGURATIONS}{'/runtime-rs' if rust else ''}/{path.name}"
    node.lay({f"{root}/{release.SHIMS[shim]}": "", place: path.read_text()})
    shims, found = release.survey(node.path(root), root)
    ((name, there),) = found[shim].items()
    assert there == place
    there = release.Release(version, "archive", root, shims, found)
    assert there.shipped(name, shim) == place
    # The table of the hypervisor is named after it, but for Firecracker's and Cloud Hypervisor's.
    tables = re.findall(r"^\[hypervisor\.([a-z-]+)\]", path.read_text(), re.MULTILINE)
    assert tables[0][:3] in {name[:3], {"fc": "fir", "clh": "clo"}.get(name)}


# What is installed


def installed(version="4.1.0", shims=("go", "rust")):
    return kata_releases.installed(version, {("qemu", shim): f"/{shim}.toml" for shim in shims})


@pytest.mark.parametrize(
    ("version", "shims", "default"),
    [
        ("2.0.0", ["go"], "go"),
        ("3.32.0", ["go", "rust"], "go"),
        ("4.0.0", ["go", "rust"], "rust"),
        ("4.1.0", ["go"], "go"),
        ("4.1.0", ["rust"], "rust"),
    ],
)
def test_the_default_is_the_releases_own(version, shims, default):
    there = installed(version, shims)
    assert there.default_shim == default
    assert there.shim("auto") == default
    assert [there.shim(shim) for shim in shims] == list(shims)


def test_a_shim_that_is_not_there_is_refused():
    with pytest.raises(
        problems.Blocked, match=r"option shim=rust: .* 2\.5\.2 has go; set shim=go"
    ):
        installed("2.5.2", ["go"]).shim("rust")


def test_a_hypervisor_that_is_not_there_is_refused():
    words = r"option hypervisor=fc: Kata 4\.1\.0 with the rust shim ships qemu; set one of these"
    with pytest.raises(problems.Blocked, match=words):
        installed().shipped("fc", "rust")


@pytest.mark.parametrize(
    ("version", "number"),
    [("4.1.0", (4, 1, 0)), ("3.10.1", (3, 10, 1)), ("3.3.0-rc0", (3, 3, 0)), ("odd", (0, 0, 0))],
)
def test_versions_compare_as_numbers(version, number):
    assert release.number(version) == number


def test_what_a_shim_says_of_itself_is_understood(node):
    for words, version in [
        (
            'kata-runtime containerd shim: id: "io.containerd.kata.v2", version: 1.13.0-alpha0, c',
            "1.13.0-alpha0",
        ),
        (
            'Kata Containers containerd shim (Golang): id: "io.containerd.kata.v2", version: 4.1.0, c',
            "4.1.0",
        ),
        (
            "Kata Containers containerd shim (Rust): id: io.containerd.kata.v2, version: 4.1.0, c",
            "4.1.0",
        ),
    ]:
        node.on("*/bin/shim --version", out=words)
        assert release.version_of(node, "/bin/shim") == version
    node.on("*/bin/shim --version", err="Exec format error", status=126)
    with pytest.raises(problems.Blocked, match=r"does not say its version .Exec format error"):
        release.version_of(node, "/bin/shim")


def test_a_spoilt_record_is_no_release(node):
    for text in ("", "{half", "[]", '{"version": "4.1.0"}', '{"kind": "archive"}'):
        node.lay({release.SELECTED: text, f"{release.RELEASES}/x/{release.RECORD}": text})
        assert release.installed(node) is None
        assert release.recorded(node, f"{release.RELEASES}/x") is None


# What is published


@pytest.mark.parametrize(
    ("version", "architecture", "names"),
    [
        ("2.0.0", "amd64", ["kata-static-2.0.0-x86_64.tar.xz"]),
        ("3.1.3", "amd64", ["kata-static-3.1.3-x86_64.tar.xz"]),
        ("3.2.0", "arm64", ["kata-static-3.2.0-arm64.tar.xz"]),
        ("3.20.0", "amd64", ["kata-static-3.20.0-amd64.tar.xz"]),
        ("3.21.0", "amd64", ["kata-static-3.21.0-amd64.tar.zst"]),
        ("4.0.0", "arm64", ["kata-static-4.0.0-arm64.tar.zst"]),
        ("4.1.0", "amd64", ["kata-static-4.1.0-amd64.tar.zst"]),
    ],
)
def test_each_generation_has_its_name(version, architecture, names):
    assert published.assets(version, architecture, "auto", ["qemu"]) == tuple(names)


@pytest.mark.parametrize(
    ("shim", "hypervisors", "kinds"),
    [
        ("auto", ["qemu", "clh"], ["kata-static"]),
        ("rust", ["dragonball"], ["kata-static"]),
        ("go", ["qemu"], ["kata-go-static"]),
        ("go", ["fc", "qemu"], ["kata-go-static"]),
        ("auto", ["qemu", "fc"], ["kata-static", "kata-go-static"]),
    ],
)
def test_from_4_1_the_shim_and_firecracker_decide(shim, hypervisors, kinds):
    names = [f"{kind}-4.1.0-amd64.tar.zst" for kind in kinds]
    assert published.assets("4.1.0", "amd64", shim, hypervisors) == tuple(names)


def test_before_4_1_one_archive_has_all():
    for shim in ("auto", "go", "rust"):
        names = published.assets("4.0.0", "amd64", shim, ["fc", "qemu"])
        assert names == ("kata-static-4.0.0-amd64.tar.zst",)


def test_1_has_no_archive():
    with pytest.raises(problems.Blocked, match=r"kata-version=1\.13\.0: .*attach the resource"):
        published.assets("1.13.0", "amd64", "auto", ["qemu"])


def test_downloads_come_from_github_or_from_the_mirror():
    def at(template, architecture="amd64", version="4.1.0"):
        return published.address(template, version, architecture, "kata.tar.zst")

    github = "https://github.com/kata-containers/kata-containers/releases/download/4.1.0/"
    assert at("") == f"{github}kata.tar.zst"
    assert at("https://m/{version}/{arch}/{name}") == "https://m/4.1.0/amd64/kata.tar.zst"
    assert at("https://m/kata/", "arm64") == "https://m/kata/kata.tar.zst"
    assert at("https://m/fixed.tar.zst") == "https://m/fixed.tar.zst"
    with pytest.raises(problems.Blocked, match=r"has archives for arm64 from 3\.2\.0 on"):
        at("", "arm64", "3.1.0")
    assert at("https://m/{name}", "arm64", "3.1.0") == "https://m/kata.tar.zst"


TABLE = json.loads(pathlib.Path(release.__file__).with_name("digests.json").read_bytes())


def test_every_digest_belongs_to_an_archive_that_the_charm_may_ask_for():
    for version, row in TABLE.items():
        mine = {
            name
            for architecture in ("amd64", "arm64")
            for shim in ("go", "rust")
            for name in published.assets(version, architecture, shim, ["qemu", "fc"])
        }
        assert row["files"].keys() <= mine
        assert row["from"]
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in row["files"].values())
    digests = [digest for row in TABLE.values() for digest in row["files"].values()]
    assert len(digests) == len(set(digests))


def test_the_default_release_is_known_on_both_architectures():
    version = kata_releases.DEFAULTS["kata-version"]
    for architecture in ("amd64", "arm64"):
        (name,) = published.assets(version, architecture, "auto", ["qemu"])
        digest = published.known_digest(version, name)
        assert published.is_known(digest)
    assert published.known_digest(version, "kata-static-none.tar.zst") == ""
    assert published.known_digest("9.9.9", "kata-static-9.9.9-amd64.tar.zst") == ""
    assert not published.is_known("")
