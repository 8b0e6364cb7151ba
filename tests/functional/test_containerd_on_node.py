"""Our handlers and the guard on a real node: systemd, containerd, restarts, faults, power cuts."""

import importlib.util
import json
import os
import pathlib
import shutil
import time

import pytest

from tests.node import cache, containerd_charm, machine, snapshot

HERE = pathlib.Path(__file__).parent
REPOSITORY = HERE.parents[1]
DRIVER = HERE / "containerd_driver.py"
PACKAGES = ("jinja2", "markupsafe", "tomlkit")
MAIN = "/etc/containerd/config.toml"
SHIM = "/usr/local/bin/containerd-shim-kata-v2"
# A containerd that does as it is told by a file, once it has read handlers of ours.
WILFUL = """#!/bin/bash
case "$*" in *config*|*version*) exec /usr/bin/containerd.real "$@" ;; esac
if grep -qs 'begin, the charm' /etc/containerd/config.toml; then sh /root/whim; fi
exec -a /usr/bin/containerd /usr/bin/containerd.real "$@"
"""
# A containerd whose first look at what the charm is about to write takes long enough for an edit.
MEANWHILE = f"""#!/bin/bash
case "$*" in *candidate*dump*) test -e /root/edited || {{
  touch /root/edited; echo '# by an administrator' >> {MAIN}; }} ;;
esac
exec -a /usr/bin/containerd /usr/bin/containerd.real "$@"
"""
# Another release in the place of the one that runs.
NEWER = """#!/bin/bash
case "$*" in *--version*|*-v) echo 'containerd github.com/containerd/containerd v1.7.24 88bf19b' ;;
*) exec -a /usr/bin/containerd /usr/bin/containerd.real "$@" ;; esac
"""
POWER_CUTS = int(os.environ.get("KATA_POWER_CUTS", "1"))


@pytest.fixture(scope="module")
def prepared(booted):
    """A node with our code on it, saved."""

    def prepare(node):
        for name in ("src/kata", "templates"):
            node.copy_in_tree(REPOSITORY / name, f"/root/work/{name}")
        for name in PACKAGES:
            folder = pathlib.Path(importlib.util.find_spec(name).origin).parent
            node.copy_in_tree(folder, f"/root/work/lib/{name}")
        node.copy_in(DRIVER, "/root/work/driver.py")
        node.copy_in(pathlib.Path(shutil.which("true")).read_bytes(), SHIM, 0o755)
        node.run("systemctl start containerd && sync")

    sources = [REPOSITORY / name for name in ("src/kata", "templates")]
    return snapshot.after(booted, cache.key(DRIVER, pathlib.Path(__file__), *sources), prepare)


@pytest.fixture
def node(prepared):
    with machine.Machine.restored(prepared) as restored:
        yield restored


def call(node, *words, **kwargs):
    """Call the code under test in the node."""
    command = ["python3", "/root/work/driver.py", *words]
    return json.loads(node.run(command, timeout=400, **kwargs).out)


def ensure(node, *handlers):
    return call(node, "ensure", *(handlers or ("kata", "untrusted")))


def refused(said, *words):
    assert said["problem"] == "Blocked", said
    for word in words:
        assert word in said["message"]
    assert "\n" not in said["message"]
    return said["message"]


def read(node, path=MAIN):
    return node.copy_out(path).decode()


def handlers(node):
    """The handlers in the configuration that containerd would start with."""
    dump = node.run(["containerd", "config", "dump"]).out
    lines = [line.strip() for line in dump.splitlines()]
    start = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.'
    names = [line.removeprefix(start).rstrip("]") for line in lines if line.startswith(start)]
    return {name for name in names if "." not in name}


def cri(node):
    return node.run("ctr plugins ls | awk '$2 == \"cri\" {print $4}'").out.strip()


def invocation(node):
    return node.run(["systemctl", "show", "-P", "InvocationID", "containerd"]).out.strip()


def is_active(node):
    return node.run(["systemctl", "is-active", "containerd"], check=False).out.strip()


def everything(node):
    """What is on the node where we write, with modes and owners."""
    places = "/etc/containerd /etc/systemd/system /usr/local /var/lib/kata-charm /run/kata-charm"
    listed = f"find {places} -printf '%p %M %u %g %l\\n' 2>/dev/null | sort"
    sums = f"find {places} -type f -exec sha256sum {{}} + 2>/dev/null | sort"
    return node.run(f"{listed}; {sums}; true").out


def wilful(node, whim):
    """Have containerd do something else when it would read our handlers."""
    node.run("mv /usr/bin/containerd /usr/bin/containerd.real")
    node.copy_in(WILFUL, "/usr/bin/containerd", 0o755)
    node.copy_in(whim + "\n", "/root/whim")
    node.run("systemctl restart containerd")


def test_a_life(node):
    """In, again, other handlers, out: restarts are counted, and nothing is left."""
    before = everything(node)
    first = invocation(node)
    assert ensure(node)["changed"]
    assert handlers(node) == {"runc", "kata", "untrusted"}
    assert cri(node) == "ok"
    second = invocation(node)
    assert second != first
    assert not ensure(node)["changed"]
    assert invocation(node) == second
    assert ensure(node, "kata")["changed"]
    assert handlers(node) == {"runc", "kata"}
    assert call(node, "remove")["changed"]
    assert everything(node) == before
    assert (handlers(node), cri(node)) == ({"runc"}, "ok")


def test_the_guard_heals_a_rewrite_when_containerd_starts(node):
    ensure(node)
    node.copy_in(containerd_charm.WRITTEN, MAIN, 0o600)
    node.run("systemctl restart containerd")
    assert handlers(node) == {"runc", "kata", "untrusted"}
    assert cri(node) == "ok"
    assert "pause:3.9" in read(node)
    assert "Runtime = " not in node.run(["containerd", "config", "dump"]).out
    assert node.run(["stat", "-c%a", MAIN]).out == "600\n"
    journal = node.run("journalctl -u containerd -o cat --no-pager").out
    assert f"kata-charm guard: put Kata's handlers back: {MAIN}" in journal
    run = invocation(node)
    ensure(node)
    assert not ensure(node)["changed"]
    assert invocation(node) == run
    call(node, "remove")
    assert read(node) == containerd_charm.WRITTEN


@pytest.mark.parametrize(
    "damage",
    [
        "echo x > /usr/local/lib/kata-charm/guard.pyz",
        "rm /usr/local/lib/kata-charm/guard.pyz",
        "mv /usr/bin/python3 /usr/bin/python3.away",
        f"rm {SHIM}",
        "echo x > /var/lib/kata-charm/containerd/wanted.json",
        "rm -r /var/lib/kata-charm",
    ],
)
def test_a_damaged_guard_never_stops_containerd(node, damage):
    ensure(node)
    node.copy_in(containerd_charm.WRITTEN, MAIN)
    node.run(f"{damage}; systemctl restart containerd")
    assert is_active(node) == "active"
    assert cri(node) == "ok"


def test_a_guard_that_hangs_is_ended(node):
    ensure(node)
    node.copy_in("import time; time.sleep(300)", "/tmp/x/__main__.py")
    node.run("python3 -m zipapp /tmp/x -o /usr/local/lib/kata-charm/guard.pyz")
    node.run("systemctl restart containerd", timeout=30)
    assert is_active(node) == "active"


def test_a_cri_error_is_taken_back(node):
    text = read(node)
    said = call(node, "ensure", "kata", "untrusted", "--unfit")
    refused(said, "conflicting definitions", "what worked before is back")
    assert (read(node), is_active(node), cri(node)) == (text, "active", "ok")
    run = invocation(node)
    refused(call(node, "ensure", "kata", "untrusted", "--unfit"), "conflicting definitions")
    assert invocation(node) == run
    assert ensure(node)["changed"]


@pytest.mark.parametrize(
    ("whim", "words"),
    [
        ("echo 'level=fatal msg=\"no space for kata\"'; kill -9 $PPID", "no space for kata"),
        ("sleep 1000", ""),
    ],
    ids=["dies at its start", "hangs at its start"],
)
def test_a_containerd_that_does_not_start_with_it(node, whim, words):
    node.copy_in(
        "[Service]\nTimeoutStartSec=20\n", "/etc/systemd/system/containerd.service.d/t.conf"
    )
    node.run("systemctl daemon-reload")
    wilful(node, whim)
    text = read(node)
    refused(ensure(node), words, "what worked before is back")
    assert (read(node), is_active(node), cri(node)) == (text, "active", "ok")


def test_what_others_broke_is_named_and_left(node):
    broken = 'version = 2\n[debug]\nlevel = "in"fo"\n'
    node.copy_in(broken, MAIN)
    run = invocation(node)
    refused(ensure(node), MAIN, "(3, ")
    assert (read(node), invocation(node)) == (broken, run)
    node.copy_in("version = 2\n", MAIN)
    assert ensure(node)["changed"]


def test_a_stopped_containerd_is_not_started_behind_anyones_back(node):
    node.run("systemctl stop containerd")
    refused(ensure(node), "containerd.service is inactive", "systemctl start")
    assert is_active(node) == "inactive"
    node.run("systemctl start containerd")
    run = invocation(node)
    assert handlers(node) == {"runc", "kata", "untrusted"}
    assert not ensure(node)["problem"]
    assert invocation(node) == run


def replace_binary(node, program):
    """Put another program in the place of the containerd that runs on."""
    node.run("mv /usr/bin/containerd /usr/bin/containerd.real")
    node.copy_in(program, "/usr/bin/containerd", 0o755)


def test_a_file_that_somebody_deleted_is_there_when_containerd_starts(node):
    ensure(node)
    node.run(f"rm {MAIN} && systemctl restart containerd")
    assert (is_active(node), cri(node)) == ("active", "ok")
    assert handlers(node) == {"runc", "kata", "untrusted"}
    ensure(node)
    run = invocation(node)
    assert not ensure(node)["changed"]
    assert invocation(node) == run
    call(node, "remove")
    assert node.run(["test", "-e", MAIN], check=False).rc == 1


def test_a_file_that_is_a_link_stays_one(node):
    text = read(node)
    node.run(f"mv {MAIN} /srv/real.toml && ln -s /srv/real.toml {MAIN}")
    assert ensure(node)["changed"]
    assert handlers(node) == {"runc", "kata", "untrusted"}
    assert node.run(["readlink", MAIN]).out == "/srv/real.toml\n"
    call(node, "remove")
    assert node.run(["readlink", MAIN]).out == "/srv/real.toml\n"
    assert read(node, "/srv/real.toml") == text


def test_an_edit_between_our_read_and_our_write_is_kept(node):
    text = read(node)
    replace_binary(node, MEANWHILE)
    node.run("systemctl restart containerd")
    assert ensure(node)["changed"]
    assert "# by an administrator" in read(node)
    assert handlers(node) == {"runc", "kata", "untrusted"}
    call(node, "remove")
    assert read(node) == text + "# by an administrator\n"


def test_another_release_of_containerd_under_our_feet(node):
    ensure(node)
    text, run = read(node), invocation(node)
    replace_binary(node, NEWER)
    assert not ensure(node)["problem"]
    assert (read(node), invocation(node)) == (text, run), "nothing that runs is touched"
    node.run("systemctl restart containerd")
    assert (is_active(node), cri(node)) == ("active", "ok")
    assert handlers(node) == {"runc", "kata", "untrusted"}
    assert not ensure(node)["changed"]


FULL = """
mkdir /tmp/c && mount -t tmpfs -o size=16k tmpfs /tmp/c && cp -a /etc/containerd/. /tmp/c/
mount --bind /tmp/c /etc/containerd
cat /dev/zero > /etc/containerd/full
true
"""
READ_ONLY = (
    "mount --bind /etc/containerd /etc/containerd && mount -o remount,ro,bind /etc/containerd"
)


@pytest.mark.parametrize(
    ("fault", "mended", "words"),
    [
        (f"chattr +i {MAIN}", f"chattr -i {MAIN}", MAIN),
        (FULL, "rm /etc/containerd/full", "No space left"),
        (READ_ONLY, "umount /etc/containerd", "Read-only file system"),
    ],
    ids=["immutable file", "full disk", "read-only file system"],
)
def test_where_it_cannot_be_written_nothing_changes(node, fault, mended, words):
    node.run(fault)
    text, run = read(node), invocation(node)
    refused(ensure(node), words)
    assert (read(node), invocation(node)) == (text, run)
    node.run(mended)
    assert ensure(node)["changed"]
    assert cri(node) == "ok"


@pytest.mark.parametrize("delay", [0.2 + 3.6 * (n + 0.5) / POWER_CUTS for n in range(POWER_CUTS)])
def test_a_power_cut_while_it_is_written_or_read(node, delay):
    text = read(node)
    node.start(["python3", "/root/work/driver.py", "ensure", "kata", "untrusted"])
    time.sleep(delay)
    node.power_cut()
    node.boot()
    assert is_active(node) == "active"
    assert not ensure(node)["problem"]
    assert handlers(node) == {"runc", "kata", "untrusted"}
    assert cri(node) == "ok"
    assert not ensure(node)["changed"]
    call(node, "remove")
    assert read(node) == text
    assert (
        "kata" not in node.run("find /etc/containerd /etc/systemd /var/lib/kata-charm; true").out
    )
