"""Kata as packages: what is asked of apt, what it answers, and what is taken away again."""

import importlib
import json
import os
import stat
import subprocess

import pytest
from charmhelpers import osplatform

from kata import problems
from kata.machine import node as kata_node
from kata.release import packages, release

SHIM = "/usr/bin/containerd-shim-kata-v2"
SOURCE = "deb https://apt.example/kata jammy main"
LIST = "/etc/apt/sources.list.d/kata-charm.list"
PPA_LIST = "/etc/apt/sources.list.d/kata-ubuntu-ppa-jammy.list"
KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n-----END PGP PUBLIC KEY BLOCK-----"
KEY_FILE = "/etc/apt/trusted.gpg.d/ABCD.gpg"
NAMES = ("kata-runtime", "kata-proxy=1.13.0", "kata-shim")


@pytest.fixture
def fetch(node, monkeypatch):
    """charmhelpers, which knows Ubuntu only; what it adds is a file on the node."""
    monkeypatch.setattr(osplatform, "get_platform", lambda: "ubuntu")
    fetch = importlib.import_module("charmhelpers.fetch")
    asked = []

    def add_source(source, key=None, fail_invalid=False):
        asked.append((source, key, fail_invalid))
        if source != "distro":
            node.lay({PPA_LIST: source})
        if key:
            node.lay({KEY_FILE: "key"})

    monkeypatch.setattr(fetch, "add_source", add_source)
    monkeypatch.setattr(fetch, "asked", asked, raising=False)
    return fetch


@pytest.fixture
def apt(node):
    """An apt that has the packages, beside one that is there and one that is upgraded."""
    node.lay({"/etc/apt/sources.list.d/ubuntu.sources": "theirs"})
    apt_works(node)


def apt_works(node):
    plan = (
        "Inst qemu-vanilla (5.2 kata [amd64])\n"
        "Inst libc6 [2.35] (2.36 jammy [amd64])\n"
        "Inst kata-runtime (1.13.0 kata [amd64])\n"
        "Conf kata-runtime (1.13.0 kata [amd64])\n"
    )
    node.on("apt-get * update")
    node.on("apt-get *--simulate install *", out=plan)
    node.on("apt-get *=3 install *", effect=lambda _argv: node.lay({SHIM: ""}))
    node.on("dpkg-query *", out="installed kata-runtime\ninstalled qemu-vanilla\n")
    node.on(
        "apt-get *--simulate purge *", out="Purg kata-runtime [1.13.0]\nPurg qemu-vanilla [5.2]\n"
    )
    node.on("apt-get *=3 purge *", effect=lambda _argv: node.remove(SHIM) and None)
    for name in ("kata-runtime", "qemu-vanilla"):
        files = f"/.\n/usr/bin/{name}\n" + (f"{SHIM}\n" if name == "kata-runtime" else "")
        node.lay({f"/var/lib/dpkg/info/{name}.list": files})


def ensure(node, names=NAMES, source=SOURCE, key=KEY):
    return packages.ensure(node, names, source, key)


def ran(node, word):
    """Return the commands with a word in them, without apt-get's options."""
    return [
        " ".join(part for part in line.split() if not part.startswith("--option"))
        for line in node.ran
        if word in line
    ]


# Installing


def test_packages_come_from_their_source(node, fetch, apt):
    assert ensure(node) is True
    assert fetch.asked == [("distro", KEY, True)]
    assert node.read(LIST).splitlines()[1:] == [SOURCE]
    assert ran(node, "apt-get") == [
        "apt-get --assume-yes --allow-downgrades update",
        "apt-get --assume-yes --allow-downgrades --simulate install kata-runtime kata-proxy=1.13.0 kata-shim",
        "apt-get --assume-yes --allow-downgrades install kata-runtime kata-proxy=1.13.0 kata-shim",
    ]


def test_apt_keeps_configuration_and_restarts_no_service(node, fetch, apt, monkeypatch):
    seen = []
    real = node.run
    monkeypatch.setattr(
        node, "run", lambda *argv, **more: seen.append((argv, more)) or real(*argv, **more)
    )
    ensure(node)
    argv, more = seen[-1]
    assert "--option=Dpkg::Options::=--force-confold" in argv
    assert more["env"] == {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    assert 0 < more["timeout"] <= 1800


def test_a_second_run_asks_nobody(node, fetch, apt):
    ensure(node)
    node.ran.clear()
    fetch.asked.clear()
    assert ensure(node) is False
    assert (node.ran, fetch.asked) == ([], [])


@pytest.mark.parametrize(
    "other", [{"names": ("kata-runtime",)}, {"source": f"{SOURCE} extra"}, {"key": ""}]
)
def test_another_wish_is_met(node, fetch, apt, other):
    ensure(node)
    assert ensure(node, **other) is True


def test_a_shim_that_is_gone_is_installed_again(node, fetch, apt):
    ensure(node)
    node.remove(SHIM)
    assert ensure(node) is True
    assert node.exists(SHIM)


def test_a_source_with_a_name_is_for_charmhelpers(node, fetch, apt):
    ensure(node, source="ppa:kata/stable", key="")
    assert fetch.asked == [("ppa:kata/stable", None, True)]
    assert not node.exists(LIST)
    packages.remove(node, ())
    assert not node.exists(PPA_LIST)


def test_another_source_takes_the_place_of_the_first(node, fetch, apt):
    ensure(node, source="deb https://one.example/ ./")
    ensure(node, source="deb https://two.example/ ./")
    assert "one" not in node.read(LIST)
    node.on("apt-get *--simulate install *", err="E: Unable to locate package x", status=100)
    with pytest.raises(problems.Blocked):
        ensure(node, source="deb https://three.example/ ./")
    assert "two" in node.read(LIST)
    apt_works(node)
    ensure(node, source="ppa:kata/stable")
    assert not node.exists(LIST)


def test_without_a_source_the_machines_own_will_do(node, fetch, apt):
    ensure(node, source="", key="")
    assert fetch.asked == []
    packages.remove(node, ())
    ensure(node, source="", key=KEY)
    assert fetch.asked == [("distro", KEY, True)]


def test_the_record_names_what_is_new_before_it_is_installed(node, fetch, apt):
    """Else nobody would know after a power cut whose packages these are."""
    recorded = []
    node.on(
        "apt-get *=3 install *",
        effect=lambda _argv: (
            recorded.append(json.loads(node.read(release.PACKAGES))) or node.lay({SHIM: ""})
        ),
    )
    ensure(node)
    expected = {"added": ["kata-runtime", "qemu-vanilla"], "files": [LIST, KEY_FILE]}
    assert recorded == [expected]
    assert node.path(release.PACKAGES).stat().st_mode & 0o777 == 0o600


def test_what_a_power_cut_left_of_dpkgs_work_is_mended_first(node, fetch, apt):
    words = "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct it."
    node.on("apt-get *--simulate install *", err=words, status=100)

    def configure(_argv):
        node.on("apt-get *--simulate install *", out="Inst kata-runtime (1.13.0 kata [amd64])\n")

    node.on("dpkg --force-confold --configure -a", effect=configure)
    assert ensure(node) is True


def test_files_are_installed_without_the_network(node, apt, tmp_path):
    debs = [tmp_path / "kata-runtime.deb", tmp_path / "kata-shim.deb"]
    assert packages.ensure_files(node, debs, "digest") is True
    assert not any("update" in line for line in node.ran)
    assert node.ran[-1].endswith(f" install {debs[0]} {debs[1]}")
    assert packages.are_from(node, "digest")
    assert not packages.are_from(node, "another")
    assert packages.ensure_files(node, debs, "digest") is False


# What can go wrong


@pytest.mark.parametrize(
    ("err", "kind", "words"),
    [
        (
            "E: Unable to locate package kata-rutime",
            problems.Blocked,
            "apt: Unable to locate package kata-rutime; correct packages",
        ),
        ("E: Version '9' for 'kata-shim' was not found", problems.Blocked, "'kata-shim' was not"),
        (
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 9 (apt)",
            problems.Waiting,
            r"Could not get lock .*; tried again at the next hook",
        ),
        (
            "E: Failed to fetch http://apt.example/k.deb  404  Not Found",
            problems.Waiting,
            "Failed to fetch",
        ),
        (
            "E: You don't have enough free space in /var/cache/apt/archives/.",
            problems.Blocked,
            "see to the room on the disk",
        ),
        (
            "E: The repository 'x' is not signed.\nE: Something",
            problems.Blocked,
            "not signed.; see to package-key",
        ),
        ("dpkg: cannot start", problems.Blocked, "apt: dpkg: cannot start"),
    ],
)
def test_apts_own_words_are_passed_on(node, fetch, apt, err, kind, words):
    node.on("apt-get *--simulate install *", err=err, status=100)
    before = {path: text for path, text in node.tree().items() if "dpkg" not in path}
    with pytest.raises(kind, match=words) as caught:
        ensure(node)
    assert len(str(caught.value)) <= 200
    assert {path: text for path, text in node.tree().items() if "dpkg" not in path} == before


def test_unmet_dependencies_are_named(node, fetch, apt):
    node.on(
        "apt-get *--simulate install *",
        out="The following packages have unmet dependencies:\n"
        " kata-runtime : Depends: kata-proxy (>= 1.13) but it is not installable\n",
        err="E: Unable to correct problems, you have held broken packages.",
        status=100,
    )
    with pytest.raises(problems.Blocked, match=r"apt: kata-runtime : Depends: kata-proxy"):
        ensure(node)


def test_a_network_that_is_down_is_the_reason(node, fetch, apt):
    """Not that the package cannot be located, which follows from it."""
    node.on(
        "apt-get * update",
        err="W: Failed to fetch https://apt.example/kata/InRelease  Temporary failure resolving",
    )
    node.on("apt-get *--simulate install *", err="E: Unable to locate package x", status=100)
    with pytest.raises(problems.Waiting, match="Temporary failure resolving"):
        ensure(node)


def test_a_foreign_source_that_is_broken_keeps_nobody_from_installing(node, fetch, apt):
    node.on("apt-get * update", err="E: The repository 'theirs' is not signed.", status=100)
    assert ensure(node) is True


def test_packages_without_kata_are_taken_away_again(node, fetch, apt):
    node.on("apt-get *=3 install *")
    with pytest.raises(problems.Blocked, match="bring no containerd-shim-kata-v2"):
        ensure(node)
    assert node.ran[-1].endswith("purge kata-runtime qemu-vanilla")
    assert not node.exists(LIST)
    assert node.exists("/etc/apt/sources.list.d/ubuntu.sources")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda fetch: fetch.SourceConfigError("Unknown source: 'x'"),
            "package-source or package-key: Unknown",
        ),
        (
            lambda _fetch: subprocess.CalledProcessError(1, ["add-apt-repository", "x"]),
            "package-source or package-key: Command",
        ),
        (
            lambda _fetch: FileNotFoundError(2, "No such file", "gpg"),
            "package-source or package-key: .*gpg",
        ),
        (lambda _fetch: AttributeError("'NoneType' has no 'group'"), "package-key"),
    ],
)
def test_a_source_or_key_that_will_not_do_is_named(node, fetch, apt, monkeypatch, make, words):
    def add_source(*_args, **_more):
        node.lay({PPA_LIST: "half"})
        raise make(fetch)

    monkeypatch.setattr(fetch, "add_source", add_source)
    with pytest.raises(problems.Blocked, match=f"option {words}.*; correct it"):
        ensure(node, source="ppa:kata/stable")
    assert not node.exists(PPA_LIST)


# Taking away


def test_what_charmhelpers_starts_ends_in_time_and_comes_from_the_fixed_path(
    node, fetch, apt, monkeypatch
):
    seen = []

    def slow(*_, **__):
        seen.append(os.environ["PATH"])
        subprocess.check_call(["sleep", "60"])

    monkeypatch.setattr(fetch, "add_source", slow)
    monkeypatch.setattr(packages, "_SOURCE_SECONDS", 0.2)
    monkeypatch.setenv("PATH", "/evil:" + os.environ["PATH"])
    before = os.environ["PATH"]
    with pytest.raises(problems.Waiting, match=r"no answer within 0.2 s: .*tried again"):
        ensure(node, source="ppa:kata/kata")
    assert seen == [kata_node.PATH]
    assert os.environ["PATH"] == before


def test_a_source_with_a_password_is_roots_alone(node, fetch, apt):
    ensure(node, source="deb https://me:secret@mirror.example/kata ./")
    place = node.path("/etc/apt/sources.list.d/kata-charm.list")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_only_what_we_added_goes(node, fetch, apt):
    ensure(node)
    assert packages.remove(node, ()) == ()
    assert ran(node, "purge")[-1].endswith("purge kata-runtime qemu-vanilla")
    assert not node.exists(LIST)
    assert not node.exists(KEY_FILE)
    assert node.exists("/etc/apt/sources.list.d/ubuntu.sources")
    assert not node.exists(release.PACKAGES)
    node.ran.clear()
    assert packages.remove(node, ()) == ()
    assert node.ran == []


def test_packages_that_something_runs_from_stay(node, fetch, apt):
    ensure(node)
    assert packages.remove(node, {"/usr/bin/qemu-vanilla"}) == ("kata-runtime", "qemu-vanilla")
    assert node.exists(release.PACKAGES)
    assert not ran(node, "purge")


def test_packages_that_others_need_by_now_stay(node, fetch, apt):
    ensure(node)
    node.on("apt-get *--simulate purge *", out="Purg kata-runtime [1]\nRemv their-tool [2]\n")
    assert packages.remove(node, ()) == ("kata-runtime", "qemu-vanilla")
    assert len(ran(node, "purge")) == 1


def test_packages_that_somebody_purged_meanwhile_are_no_trouble(node, fetch, apt):
    ensure(node)
    node.on("dpkg-query *", err="no packages found matching kata-runtime", status=1)
    assert packages.remove(node, ()) == ()
    assert not ran(node, "purge")


def test_a_package_of_another_architecture_has_its_own_list(node, fetch, apt):
    ensure(node)
    node.lay({"/var/lib/dpkg/info/qemu-vanilla:amd64.list": "/usr/bin/qemu-other\n"})
    node.lay({"/var/lib/dpkg/info/qemu-vanilla-extra.list": "/usr/bin/not-ours\n"})
    assert packages.remove(node, {"/usr/bin/not-ours"}) == ()
    ensure(node)
    assert packages.remove(node, {"/usr/bin/qemu-other"}) != ()


def test_a_held_lock_keeps_the_record(node, fetch, apt):
    ensure(node)
    node.on("apt-get *=3 purge *", err="E: Could not get lock /var/lib/dpkg/lock", status=100)
    with pytest.raises(problems.Waiting):
        packages.remove(node, ())
    assert node.exists(release.PACKAGES)


# The older charm


def test_the_dead_source_goes(node):
    line = (
        "deb http://download.opensuse.org/repositories/home:/katacontainers:/releases:/"
        "x86_64:/master/xUbuntu_20.04/ /"
    )
    node.lay({packages.DEAD_SOURCE: line, SHIM: ""})
    assert packages.remove_dead_source(node) is True
    assert not node.exists(packages.DEAD_SOURCE)
    assert node.exists(SHIM)
    assert packages.remove_dead_source(node) is False


def test_a_source_of_that_name_that_lives_stays(node):
    node.lay({packages.DEAD_SOURCE: "deb https://apt.example/kata jammy main"})
    assert packages.remove_dead_source(node) is False
    assert node.exists(packages.DEAD_SOURCE)


def test_a_shim_in_the_prefix_counts_unless_it_is_an_archives(node):
    with pytest.raises(problems.Blocked, match="bring no containerd-shim-kata-v2"):
        packages.shim(node)
    node.lay({"/opt/kata-releases/x/bin/containerd-shim-kata-v2": ""})
    node.path("/opt/kata").symlink_to(node.path("/opt/kata-releases/x"))
    with pytest.raises(problems.Blocked):
        packages.shim(node)
    node.path("/opt/kata").unlink()
    node.lay({"/opt/kata/bin/containerd-shim-kata-v2": ""})
    assert packages.shim(node) == "/opt/kata/bin/containerd-shim-kata-v2"
