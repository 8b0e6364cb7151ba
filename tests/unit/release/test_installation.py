"""From nothing to a release in use, to the next one, and back to nothing."""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import stat

import pytest

from kata import pace, problems
from kata.machine import disk
from kata.release import (
    archive,
    download,
    installation,
    published,
    release,
    sources,
    tree,
    unpacked,
)
from tests.unit import archives, kata_releases

options = kata_releases.options
QUICK = download.Patience(attempts=1)


@pytest.fixture(autouse=True)
def amd64(node, monkeypatch):
    """A machine with processes, and no digests but those of a test."""
    node.on("uname *", out="x86_64")
    node.lay({"/etc/passwd": "root:x:0:0", "/usr/bin/true": "", "/opt/other": "foreign"})
    node.path("/proc/1").mkdir(parents=True)
    node.path("/usr/local/bin").mkdir(parents=True)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "n", "6", "v", "x86_64")))
    monkeypatch.setattr(published, "_digests", dict)
    monkeypatch.setattr(
        download.fetch, "__kwdefaults__", download.fetch.__kwdefaults__ | {"patience": QUICK}
    )


@pytest.fixture
def attach(tmp_path):
    """Attach an archive, as `juju attach-resource` would: under one name, whatever it is."""

    def write(members, compression="tar.zst"):
        path = tmp_path / "resources/kata-archive.tar"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(
            members if isinstance(members, bytes) else archives.pack(members, compression)
        )
        return path

    return write


def ensure(node, attached=None, progress=lambda words: None, **asked):
    folder = installation.provide(node, options(**asked), attached, progress)
    return installation.select(node, folder)


def run_from(node, path, pid=77, maps=""):
    """Start a process of a program."""
    process = node.path(f"/proc/{pid}")
    shutil.rmtree(process, ignore_errors=True)
    process.mkdir()
    (process / "exe").symlink_to(path)
    (process / "maps").write_text(maps)


def folder(node):
    """Return the folder that is in use, as the node names it."""
    return str(node.path("/opt/kata").readlink())


def folders(node):
    return [f"{release.RELEASES}/{name}" for name in unpacked.folders(node)]


# An attached archive


@pytest.mark.parametrize("version", ["3.2.0", "3.32.0", "4.0.0", "4.1.0"])
def test_a_release_comes_into_use(node, attach, version):
    assert ensure(node, attach(archives.release(version))) is True
    found = release.installed(node)
    assert (found.version, found.kind, found.root) == (version, "archive", "/opt/kata")
    assert found.shims == {"go": f"/{archives.GO}", "rust": f"/{archives.RUST}"}
    assert re.fullmatch(rf"/opt/kata-releases/{version}-[0-9a-f]{{12}}", folder(node))
    shipped = found.shipped("qemu", "go")
    assert node.read(shipped.replace("/opt/kata", folder(node))) == "# Go qemu\n"


def test_who_may_see_what(node, attach):
    ensure(node, attach(archives.release()))
    modes = {
        path: stat.S_IMODE(node.path(path).stat().st_mode)
        for path in (release.RELEASES, folder(node), release.STATE, release.SELECTED)
    }
    assert modes == {
        release.RELEASES: 0o755,
        folder(node): 0o755,
        release.STATE: 0o700,
        release.SELECTED: 0o600,
    }


def test_a_second_run_changes_nothing_and_reads_nothing(node, attach, monkeypatch):
    path = attach(archives.release())
    ensure(node, path)
    before = node.tree()
    for module, name in ((sources, "_digest"), (archive, "holds"), (archive, "unpack")):
        monkeypatch.setattr(module, name, None)
    node.ran.clear()
    assert ensure(node, path) is False
    assert node.tree() == before
    assert node.ran == []


def test_the_same_file_attached_again_is_read_and_not_unpacked(node, attach, monkeypatch):
    path = attach(archives.release())
    ensure(node, path)
    path.write_bytes(path.read_bytes())
    os.utime(path, (1, 1))
    monkeypatch.setattr(archive, "unpack", None)
    assert ensure(node, path) is False


@pytest.mark.parametrize("version", ["2.0.4", "3.1.0"])
def test_a_release_without_a_version_file_is_asked(node, attach, version):
    words = f'kata containerd shim: id: "io.containerd.kata.v2", version: {version}, commit: 0'
    node.on(f"*/bin/{release.SHIMS['go'].rpartition('/')[2]} --version", out=words)
    ensure(node, attach(archives.release(version)))
    assert release.installed(node).version == version


def test_a_release_that_does_not_know_its_version_is_refused(node, attach):
    with pytest.raises(problems.Blocked, match="does not say its version"):
        ensure(node, attach(archives.release("2.0.4")))
    assert folders(node) == []


def test_an_empty_attachment_is_none(node, attach, server):
    server.answer = lambda handler: handler.reply(404) or True
    with pytest.raises(problems.Blocked, match="404"):
        ensure(node, attach(b""), archive_url=server.url("/"), archive_sha256="0" * 64)


def test_a_vanished_attachment_is_named(node, tmp_path):
    with pytest.raises(problems.Blocked, match=r"resource kata-archive cannot be read: No such"):
        ensure(node, tmp_path / "gone")


def test_an_attachment_must_have_the_digest_that_is_asked_for(node, attach):
    path = attach(archives.release())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(
        problems.Blocked, match="option archive-sha256: the attached kata-archive has"
    ):
        ensure(node, path, archive_sha256="0" * 64)
    assert folders(node) == []
    assert ensure(node, path, archive_sha256=digest) is True


def test_an_attachment_that_nobody_vouches_for_is_logged(node, attach, caplog, monkeypatch):
    path = attach(archives.release())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    ensure(node, path)
    assert f"{digest}, is unverified" in caplog.text
    caplog.clear()
    installation.remove(node)
    monkeypatch.setattr(
        published, "_digests", lambda: {"4.1.0": {"files": {"kata.tar.zst": digest}}}
    )
    ensure(node, path)
    assert "unverified" not in caplog.text


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (archives.release(architecture="arm64"), "not for amd64"),
        (b"not an archive at all" * 100, "no tar"),
        (archives.pack(archives.release())[:500], "kata-archive is refused"),
        ([archives.file("linux/Makefile")], "neither opt/kata/ nor .deb"),
        ([*archives.release(), archives.file("opt/kata/../../../etc/passwd", b"x")], "leaves"),
    ],
)
def test_a_bad_attachment_changes_nothing_and_is_read_once(
    node, attach, monkeypatch, members, words
):
    ensure(node, attach(archives.release("3.32.0")))
    before = {path: text for path, text in node.tree().items() if release.STATE not in path}
    path = attach(members)
    with pytest.raises(problems.Blocked, match=words):
        ensure(node, path)
    assert {p: text for p, text in node.tree().items() if release.STATE not in p} == before
    assert release.installed(node).version == "3.32.0"
    monkeypatch.setattr(archive, "holds", None)
    with pytest.raises(problems.Blocked, match=words):
        ensure(node, path)


def test_after_a_bad_attachment_a_good_one_will_do(node, attach):
    with pytest.raises(problems.Blocked):
        ensure(node, attach(b"x" * 1000))
    assert ensure(node, attach(archives.release())) is True


def test_a_next_edition_of_the_charm_reads_it_again(node, attach, monkeypatch, next_edition):
    path = attach(archives.release())
    with monkeypatch.context() as patch:
        patch.setattr(
            archive,
            "holds",
            lambda _file, name: (_ for _ in ()).throw(archive.Refused(name, "so")),
        )
        with pytest.raises(problems.Blocked):
            ensure(node, path)
    with pytest.raises(problems.Blocked, match="refused: so"):
        ensure(node, path)
    next_edition(sources)
    assert ensure(node, path) is True


# A full disk


def test_a_full_disk_changes_nothing_and_heals(node, attach, monkeypatch):
    ensure(node, attach(archives.release("3.32.0")))
    path = attach(archives.release("4.1.0"))
    with monkeypatch.context() as patch:
        patch.setattr(disk, "RESERVE", 1 << 60)
        with pytest.raises(problems.Blocked, match=r"disk of .*/opt/kata-releases is full"):
            ensure(node, path)
    assert release.installed(node).version == "3.32.0"
    assert len(list(node.path(release.RELEASES).iterdir())) == 1
    assert ensure(node, path) is True


def test_a_disk_that_does_not_keep_what_was_written_is_not_believed(node, attach, monkeypatch):
    def fail(_folder):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk, "sync", fail)
    with pytest.raises(problems.Blocked, match=r"cannot write /opt/kata-releases.*Input/output"):
        ensure(node, attach(archives.release()))
    assert release.installed(node) is None
    assert folders(node) == []


def test_a_place_that_cannot_be_written_is_named(node, attach):
    node.lay({release.RELEASES: "a file"})
    with pytest.raises(
        problems.Blocked, match=r"cannot write /opt/kata-releases/.*Not a directory"
    ):
        ensure(node, attach(archives.release()))


def test_a_state_folder_that_cannot_be_made_is_named(node, attach):
    node.lay({release.STATE: "a file"})
    with pytest.raises(
        problems.Blocked, match=rf"cannot install Kata: .*{release.STATE}.*: File ex"
    ):
        ensure(node, attach(archives.release()))


# What is somebody else's


def put_folder(node):
    node.lay({"/opt/kata/bin/kata-runtime": "theirs"})


def put_link(node):
    node.path("/opt/kata").symlink_to("/srv/kata")


def put_shim(node):
    node.lay({release.SHIM_LINK: "theirs"})


def put_shim_link(node):
    node.path(release.SHIM_LINK).symlink_to("/srv/kata/shim")


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (put_folder, "/opt/kata is there and not this charm's: move it elsewhere"),
        (put_link, "/opt/kata leads to /srv/kata, which is not this charm's"),
        (put_shim, f"{release.SHIM_LINK} is there and not this charm's"),
        (put_shim_link, f"{release.SHIM_LINK} leads to /srv/kata/shim, which is not"),
    ],
)
def test_what_is_foreign_is_named_and_left(node, attach, put, words):
    put(node)
    before = node.tree()
    with pytest.raises(problems.Blocked, match=words):
        ensure(node, attach(archives.release()))
    assert node.tree() == before
    installation.remove(node)
    assert node.tree() == before


# The shim


def test_the_shims_link_stays_and_what_it_leads_to_moves(node, attach):
    ensure(node, attach(archives.release()))
    found = release.installed(node)
    assert installation.ensure_shim(node, found, "rust") is True
    assert installation.ensure_shim(node, found, "rust") is False
    assert node.path(release.SHIM_LINK).readlink() == node.path("/").joinpath(f"/{archives.RUST}")
    assert installation.ensure_shim(node, found, "go") is True
    assert str(node.path(release.SHIM_LINK).readlink()) == f"/{archives.GO}"


def test_from_go_to_rust_and_back_there_is_a_shim_at_each_moment(node, attach, monkeypatch):
    ensure(node, attach(archives.release("3.32.0")))
    installation.ensure_shim(node, release.installed(node), "go")
    replace = os.replace

    def watched(source, target):
        replace(source, target)
        assert node.exists(node.path(release.SHIM_LINK).readlink()), f"none after {target}"

    for version, shim in (("4.1.0", "rust"), ("3.32.0", "go")):
        folder = installation.provide(
            node, options(), attach(archives.release(version, go=version != "4.1.0"))
        )
        _, found = installation.preview(node, folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", watched)
            with installation.switched(node, folder, found, shim):
                pass
        assert str(node.path(release.SHIM_LINK).readlink()) == found.shims[shim]


@pytest.mark.parametrize("path", [release.PREFIX, release.SHIM_LINK, "/elsewhere"])
def test_what_was_in_use_is_back_when_a_part_of_the_switch_is_refused(
    node, attach, monkeypatch, path
):
    ensure(node, attach(archives.release("3.32.0")))
    installation.ensure_shim(node, release.installed(node), "go")
    before = {name: text for name, text in node.tree().items() if release.STATE not in name}
    selected = node.read(release.SELECTED)
    folder = installation.provide(node, options(), attach(archives.release("4.1.0", go=False)))
    _, found = installation.preview(node, folder)
    link = type(node).link

    def refusing(self, name, target):
        if name == path and "3.32.0" not in target and target != before[name].removeprefix("-> "):
            raise problems.Blocked(f"cannot write {name}")
        return link(self, name, target)

    monkeypatch.setattr(type(node), "link", refusing)
    with pytest.raises(problems.Blocked, match=f"cannot write {path}"):
        with installation.switched(node, folder, found, "rust"):
            raise problems.Blocked(f"cannot write {path}")
    now = {name: text for name, text in node.tree().items() if release.STATE not in name}
    assert {name: text for name, text in now.items() if f"/{folder}/" not in name} == before
    assert node.read(release.SELECTED) == selected


def test_a_shim_that_is_not_there_is_refused(node, attach):
    ensure(node, attach(archives.release(go=False)))
    with pytest.raises(problems.Blocked, match="option shim=go"):
        installation.ensure_shim(node, release.installed(node), "go")


# From one release to the next


def test_an_upgrade_turns_the_link_and_removes_the_old(node, attach):
    ensure(node, attach(archives.release("3.32.0")))
    old = folder(node)
    assert ensure(node, attach(archives.release("4.1.0"))) is True
    assert folders(node) == [old, folder(node)]
    assert installation.collect(node) == ()
    assert folders(node) == [folder(node)]


@pytest.mark.parametrize("how", ["program", "deleted", "mapped"])
def test_a_release_that_something_runs_from_stays(node, attach, how):
    ensure(node, attach(archives.release("3.32.0")))
    old = folder(node)
    if how == "mapped":
        maps = f"7f0-7f1 r--p 00000000 08:01 42   {old}/share/kata-containers/image.img\n"
        run_from(node, "/usr/bin/true", maps=maps)
    else:
        run_from(node, f"{old}/bin/qemu-system-x86_64{' (deleted)' if how == 'deleted' else ''}")
    ensure(node, attach(archives.release("4.1.0")))
    before = node.tree(old)
    assert installation.collect(node) == (old,)
    assert node.tree(old) == before
    run_from(node, "/usr/bin/true")
    assert installation.collect(node) == ()
    assert folders(node) == [folder(node)]


def test_a_release_with_a_name_that_only_begins_the_same_is_not_in_use(node, attach):
    ensure(node, attach(archives.release("3.32.0")))
    run_from(node, f"{folder(node)}-other/bin/qemu")
    ensure(node, attach(archives.release("4.1.0")))
    assert installation.collect(node) == ()


def test_processes_that_end_meanwhile_do_no_harm(node, attach):
    ensure(node, attach(archives.release("3.32.0")))
    ensure(node, attach(archives.release("4.1.0")))
    node.path("/proc/78").mkdir()  # a kernel thread: no program, no maps
    assert installation.collect(node) == ()


def test_back_to_a_release_that_was_kept_needs_no_unpacking(node, attach, monkeypatch):
    old_archive = archives.pack(archives.release("3.32.0"))
    ensure(node, attach(old_archive))
    old = folder(node)
    run_from(node, f"{old}/bin/qemu-system-x86_64")
    ensure(node, attach(archives.release("4.1.0")))
    installation.collect(node)
    monkeypatch.setattr(archive, "unpack", None)
    assert ensure(node, attach(old_archive)) is True
    assert folder(node) == old
    assert installation.collect(node) == ()


def test_two_builds_of_one_version_are_two_releases(node, attach):
    ensure(node, attach(archives.release("4.1.0", text="one")))
    old = folder(node)
    assert ensure(node, attach(archives.release("4.1.0", text="two"))) is True
    assert old.rpartition("-")[0] == folder(node).rpartition("-")[0]
    assert old != folder(node)


def test_a_release_whose_shim_was_deleted_is_made_whole(node, attach):
    path = attach(archives.release())
    ensure(node, path)
    shutil.rmtree(node.path(f"{folder(node)}/runtime-rs"))
    ensure(node, path)
    assert node.exists(f"{folder(node)}/{release.SHIMS['rust']}")
    assert installation.collect(node) == ()
    assert [each.name[0] for each in node.path(release.RELEASES).iterdir()] == ["4"]


def test_a_link_that_was_moved_is_put_back(node, attach):
    path = attach(archives.release("3.32.0"))
    ensure(node, path)
    right = folder(node)
    node.path("/opt/kata").unlink()
    assert release.installed(node) is None
    assert ensure(node, path) is True
    assert folder(node) == right


# What a killed hook leaves


def test_leftovers_are_cleared(node, attach):
    node.lay(
        {
            f"{release.RELEASES}/.partial-0123/bin/half": "x",
            f"{release.RELEASES}/.gone-3.0.0-0123/bin/half": "x",
            f"{release.STATE}/debs/half.deb": "x",
        }
    )
    ensure(node, attach(archives.release()))
    found = "\n".join(node.tree())
    assert "partial" not in found
    assert "gone" not in found
    assert "half" not in found


class Dead(BaseException):
    """The hook is killed here: nothing more of it runs."""


def dies_at(monkeypatch, number):
    """Let the process end without a word before its n-th change to the disk."""
    counted = iter(range(number))

    def counting(real):
        def step(*args, **kwargs):
            if next(counted, None) is None:
                os._exit(9)
            return real(*args, **kwargs)

        return step

    for module, name in (
        (tree.Tree, "put"), (tree.Tree, "settle"), (disk, "sync"), (os, "replace"), (os, "rename"),
        (os, "unlink"), (os, "rmdir"), (shutil, "rmtree"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, counting(getattr(module, name)))


def whole(node):
    """What must hold whenever the power fails: what is reachable is a whole release."""
    link = node.path("/opt/kata")
    if not link.is_symlink():
        return
    record = json.loads(node.read(f"{link.readlink()}/{release.RECORD}"))
    members = archives.release(record["version"])
    for member, data in members:
        if member.isreg():
            path = member.name.removeprefix("./opt/kata")
            assert node.path(f"{link.readlink()}{path}").read_bytes() == data, path


@pytest.mark.parametrize("task", ["install", "upgrade", "collect", "remove"])
def test_killed_at_any_point_the_next_hook_makes_it_good(node, attach, monkeypatch, task):
    """The process is killed before each change in turn, and an undisturbed hook follows."""
    old, new = (archives.pack(archives.release(version)) for version in ("3.32.0", "4.1.0"))
    # The machine lives on: nothing has to be safe on the disk.
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(disk, "sync", lambda _folder: None)

    def act(what):
        if what == "remove":
            installation.remove(node)
            return
        if what == "upgrade":
            ensure(node, attach(new))
        else:
            ensure(node, attach(old))
        installation.ensure_shim(node, release.installed(node), "go")
        if what == "collect":
            ensure(node, attach(new))
        installation.collect(node)

    def begin():
        shutil.rmtree(node.root)
        node.lay({"/etc/passwd": "root:x:0:0", "/usr/local/bin/other": ""})
        node.path("/proc/1").mkdir(parents=True)
        if task != "install":
            act("install")

    begin()
    act(task)
    undisturbed = {path: text for path, text in node.tree().items() if "attached.json" not in path}
    points = 0
    for number in range(500):
        begin()
        child = os.fork()
        if not child:
            dies_at(monkeypatch, number)
            act(task)
            os._exit(0)
        died = os.waitpid(child, 0)[1] != 0
        whole(node)
        act(task)
        found = {path: text for path, text in node.tree().items() if "attached.json" not in path}
        assert found == undisturbed, f"killed before change {number}"
        if not died:
            break
        points += 1
    assert points >= {"install": 25, "upgrade": 25, "collect": 25, "remove": 8}[task]


# Downloads


def serve(web, members):
    """Serve an archive, and return its digest."""
    web.body = archives.pack(members)
    web.etag = f'"{hashlib.sha256(web.body).hexdigest()}"'
    return web.etag.strip('"')


def pin(monkeypatch, **files):
    """Let the charm know digests: `version_file=digest`, by the archive's kind."""
    table = {"4.1.0": {"files": {}}}
    for kind, digest in files.items():
        table["4.1.0"]["files"][f"{kind.replace('_', '-')}-4.1.0-amd64.tar.zst"] = digest
    monkeypatch.setattr(published, "_digests", lambda: table)


def test_a_release_is_downloaded_checked_and_not_kept_packed(node, secure, monkeypatch, caplog):
    pin(monkeypatch, kata_static=serve(secure, archives.release(go=False)))
    assert ensure(node, archive_url=secure.url("/{version}/{arch}/{name}")) is True
    assert [request["path"] for request in secure.asked] == [
        "/4.1.0/amd64/kata-static-4.1.0-amd64.tar.zst"
    ]
    assert release.installed(node).version == "4.1.0"
    assert not list(node.path(sources.DOWNLOADS).iterdir())
    assert "unverified" not in caplog.text
    assert ensure(node, archive_url=secure.url("/{name}")) is False
    assert len(secure.asked) == 1


def test_without_a_digest_the_log_says_so(node, secure, caplog):
    caplog.set_level(logging.WARNING)
    digest = serve(secure, archives.release(go=False))
    ensure(node, archive_url=secure.url("/{name}"))
    assert re.search(
        rf"kata-static-4.1.0-amd64.tar.zst, SHA-256 {digest}, is unverified", caplog.text
    )


def test_by_http_the_option_gives_the_digest(node, server):
    digest = serve(server, archives.release(go=False))
    assert ensure(node, archive_url=server.url("/{name}"), archive_sha256=digest) is True


def test_the_option_wins_over_what_is_known(node, secure, monkeypatch):
    pin(monkeypatch, kata_static="0" * 64)
    digest = serve(secure, archives.release(go=False, text="our own build"))
    url = secure.url("/{name}")
    with pytest.raises(problems.Blocked, match=r"SHA-256 is .* not 000000000000"):
        ensure(node, archive_url=url)
    assert ensure(node, archive_url=url, archive_sha256=digest) is True


def test_a_digest_that_becomes_known_is_held_against_what_is_installed(node, secure, monkeypatch):
    serve(secure, archives.release(go=False, text="forged"))
    ensure(node, archive_url=secure.url("/{name}"))
    pin(monkeypatch, kata_static=serve(secure, archives.release(go=False)))
    assert ensure(node, archive_url=secure.url("/{name}")) is True


def test_a_mirror_with_another_release_is_refused_and_not_asked_again(node, secure):
    serve(secure, archives.release("3.32.0"))
    for _ in range(2):
        with pytest.raises(
            problems.Blocked, match=r"amd64\.tar\.zst is refused: it is Kata 3\.32\.0, not"
        ):
            ensure(node, archive_url=secure.url("/{name}"))
    assert folders(node) == []
    assert [bool(request.get("If-None-Match")) for request in secure.asked] == [False, True]
    serve(secure, archives.release("4.1.0"))
    assert ensure(node, archive_url=secure.url("/{name}")) is True


def test_a_pinned_archive_is_the_release_whatever_it_says_of_itself(node, secure, monkeypatch):
    """Some have what git describe said in the place of their version."""
    members = [m for m in archives.release(go=False) if not m[0].name.endswith("VERSION")]
    members.append(archives.file("./opt/kata/VERSION", b"4.1.0-rc0-17-gabcdef\n"))
    pin(monkeypatch, kata_static=serve(secure, members))
    ensure(node, archive_url=secure.url("/{name}"))
    assert release.installed(node).version == "4.1.0"


def test_a_broken_download_is_refused_and_not_fetched_again(node, secure):
    serve(secure, archives.release())
    secure.body = secure.body[: len(secure.body) // 2]
    for _ in range(2):
        with pytest.raises(problems.Blocked, match=r"kata-static-4.1.0-amd64.tar.zst is refused"):
            ensure(node, archive_url=secure.url("/{name}"))
    assert len(secure.asked) == 2
    assert secure.asked[1]["If-None-Match"]


def test_another_mirror_needs_no_download(node, secure, server):
    serve(secure, archives.release(go=False))
    ensure(node, archive_url=secure.url("/{name}"))
    assert ensure(node) is False


def test_what_was_begun_for_another_release_is_thrown_away(node, secure):
    node.lay({f"{sources.DOWNLOADS}/kata-static-4.0.0-amd64.tar.zst": "half"})
    serve(secure, archives.release(go=False))
    ensure(node, archive_url=secure.url("/{name}"))
    assert not list(node.path(sources.DOWNLOADS).iterdir())


def test_firecracker_needs_both_archives_of_4_1(node, secure, monkeypatch):
    bodies = {
        "kata-static": archives.pack(archives.release(go=False)),
        "kata-go-static": archives.pack(archives.release(rust=False)),
    }
    digests = {kind: hashlib.sha256(body).hexdigest() for kind, body in bodies.items()}
    pin(monkeypatch, **{kind.replace("-", "_"): digest for kind, digest in digests.items()})

    def answer(handler):
        kind = handler.path.strip("/").partition("-4.1.0")[0]
        handler.reply(200, bodies[kind], {"ETag": kind})
        return True

    secure.answer = answer
    url = secure.url("/{name}")
    ensure(node, archive_url=url)
    assert "fc" not in release.installed(node).hypervisors("rust")
    assert ensure(node, archive_url=url, extra_runtime_classes="kata-fc=fc") is True
    found = release.installed(node)
    assert set(found.shims) == {"go", "rust"}
    assert found.archives == {
        f"{kind}-4.1.0-amd64.tar.zst": each for kind, each in digests.items()
    }
    assert found.hypervisors("rust") == ("clh", "dragonball", "fc", "qemu")
    # What has more than is needed will do.
    installation.collect(node)
    assert ensure(node, archive_url=url) is False
    assert ensure(node, archive_url=url, shim="go") is False


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"archive_sha256": "0" * 64}, "option archive-sha256: .* both needed; leave it empty"),
        ({"archive_url": "https://m/kata.tar.zst"}, "option archive-url: .* put {name} into it"),
        ({"kata_version": "1.13.0"}, "option kata-version=1.13.0: Kata 1.x has no archive"),
    ],
)
def test_options_that_cannot_be_met_are_named(node, asked, words):
    with pytest.raises(problems.Blocked, match=words):
        ensure(node, hypervisor="fc", **asked)


def test_detaching_an_archive_that_is_published_needs_no_download(node, attach, monkeypatch):
    path = attach(archives.release(go=False))
    ensure(node, path)
    pin(monkeypatch, kata_static=hashlib.sha256(path.read_bytes()).hexdigest())
    assert ensure(node, None) is False


def test_the_progress_is_told_at_a_pace(node, secure, monkeypatch):
    told, now = [], [100.0]

    def tick():
        now[0] += 0.1
        return now[0]

    monkeypatch.setattr(pace.time, "monotonic", tick)
    big = archives.file("./opt/kata/share/big", os.urandom(12 << 20))
    serve(secure, archives.release(go=False, more=[big]))
    ensure(
        node,
        archive_url=secure.url("/{name}"),
        progress=lambda words: told.append((now[0], words)),
    )
    assert len(told) > 2
    assert all(
        re.fullmatch(r"(downloading|unpacking) Kata 4\.1\.0: \d+ %", words) for _, words in told
    )
    times = [at for at, _ in told]
    assert min(after - before for before, after in itertools.pairwise(times)) >= 2


# Packages


DEBS = [archives.file("./kata-runtime_1.13.0_amd64.deb", b"!<arch>\nruntime")]
SHIM = "/usr/bin/containerd-shim-kata-v2"
SHIPPED = "/usr/share/defaults/kata-containers/configuration-qemu.toml"


def apt(node, version="1.13.0"):
    """Let apt-get install and purge the packages of Kata 1.x."""
    words = (
        f'kata-runtime containerd shim: id: "io.containerd.kata.v2", version: {version}, commit: 0'
    )
    node.on(f"*{SHIM} --version", out=words)
    node.on("apt-get *--simulate install *", out=f"Inst kata-runtime ({version} local [amd64])\n")
    node.on(
        "apt-get *=3 install *",
        effect=lambda _argv: node.lay(
            {SHIM: "", SHIPPED: "", "/var/lib/dpkg/info/kata-runtime.list": f"/.\n{SHIM}\n"}
        ),
    )
    node.on("dpkg-query *", out="installed kata-runtime\n")
    node.on("apt-get *--simulate purge *", out=f"Purg kata-runtime [{version}]\n")
    node.on(
        "apt-get *=3 purge *",
        effect=lambda _argv: [node.remove(SHIM), node.remove(SHIPPED)] and None,
    )


def test_a_tar_of_packages_is_installed(node, attach):
    apt(node)
    path = attach(DEBS, "tar")
    assert ensure(node, path) is True
    found = release.installed(node)
    assert (found.version, found.kind, found.root) == ("1.13.0", "packages", "/usr")
    assert found.shipped("qemu", "go") == SHIPPED
    installation.ensure_shim(node, found, "go")
    assert str(node.path(release.SHIM_LINK).readlink()) == SHIM
    assert not node.path(f"{release.STATE}/debs").exists()
    node.ran.clear()
    assert ensure(node, path) is False
    assert node.ran == []


def test_from_packages_to_an_archive_and_back(node, attach):
    apt(node)
    packages, packed = archives.pack(DEBS), archives.pack(archives.release("4.1.0"))
    ensure(node, attach(packages))
    installation.ensure_shim(node, release.installed(node), "go")

    assert ensure(node, attach(packed)) is True
    installation.ensure_shim(node, release.installed(node), "rust")
    run_from(node, SHIM)
    assert installation.collect(node) == ("kata-runtime",)
    assert node.exists(SHIM)
    run_from(node, "/usr/bin/true")
    assert installation.collect(node) == ()
    assert not node.exists(SHIM)

    assert ensure(node, attach(packages)) is True
    assert release.installed(node).version == "1.13.0"
    installation.ensure_shim(node, release.installed(node), "go")
    assert installation.collect(node) == ()
    assert folders(node) == []
    assert not node.path("/opt/kata").is_symlink()


def test_a_link_that_a_killed_hook_left_beside_packages_goes(node, attach):
    apt(node)
    ensure(node, attach(DEBS))
    node.path("/opt").mkdir(exist_ok=True)
    node.path("/opt/kata").symlink_to(f"{release.RELEASES}/4.1.0-0123456789ab")
    installation.collect(node)
    assert not node.path("/opt/kata").is_symlink()


@pytest.mark.parametrize("follows", ["the next hook", "the removal"])
def test_packages_that_a_killed_hook_left_beside_installed_ones_go(node, attach, follows):
    apt(node)
    path = attach(DEBS)
    ensure(node, path)
    node.lay({f"{release.STATE}/debs/kata-runtime_1.13.0-1_amd64.deb": "x"})
    if follows == "the removal":
        installation.remove(node)
    else:
        assert ensure(node, path) is False
    assert not node.path(f"{release.STATE}/debs").exists()


def test_packages_that_were_upgraded_tell_their_new_version(node, attach):
    apt(node)
    path = attach(DEBS)
    ensure(node, path)
    node.lay({SHIM: "newer"})
    node.on(f"*{SHIM} --version", out='kata containerd shim: id: "x", version: 1.13.1, commit: 0')
    assert ensure(node, path) is True
    assert release.installed(node).version == "1.13.1"


# Away again


def test_removal_leaves_what_was_there_before(node, attach, tmp_path):
    before = node.tree()
    ensure(node, attach(archives.release("3.32.0")))
    ensure(node, attach(archives.release("4.1.0")))
    installation.ensure_shim(node, release.installed(node), "go")
    assert installation.remove(node) == ()
    assert node.tree() == before
    assert not node.path(release.RELEASES).exists()
    assert installation.remove(node) == ()


def test_removal_keeps_what_a_sandbox_needs_and_names_it(node, attach):
    ensure(node, attach(archives.release("3.32.0")))
    ensure(node, attach(archives.release("4.1.0")))
    installation.ensure_shim(node, release.installed(node), "go")
    run_from(node, f"{folder(node)}/bin/containerd-shim-kata-v2")
    used = folder(node)
    assert installation.remove(node) == (used,)
    assert folders(node) == [used]
    assert folder(node) == used
    assert str(node.path(release.SHIM_LINK).readlink()) == f"/{archives.GO}"
    assert release.STATE not in "".join(node.tree())


def test_removal_purges_our_packages(node, attach):
    before = node.tree()
    apt(node)
    ensure(node, attach(DEBS))
    installation.ensure_shim(node, release.installed(node), "go")
    assert installation.remove(node) == ()
    left = {path: text for path, text in node.tree().items() if "/dpkg/" not in path}
    assert left == before


def test_removal_is_not_held_up_by_a_busy_apt(node, attach):
    apt(node)
    ensure(node, attach(archives.release("4.1.0")))
    ensure(node, attach(DEBS))
    node.on("apt-get *--simulate purge *", err="E: Could not get lock", status=100)
    with pytest.raises(problems.Waiting):
        installation.remove(node)
    assert folders(node) == []
    assert not node.path("/opt/kata").is_symlink()
    assert not node.exists(release.SELECTED)
    assert node.exists(release.PACKAGES)
    apt(node)
    assert installation.remove(node) == ()
    assert not node.exists(SHIM)
