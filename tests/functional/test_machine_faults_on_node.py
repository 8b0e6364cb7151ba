"""What a machine and its network do to the charm: no room, no right to write, a wrong clock, no good
mirror. What served pods before serves them on, the unit says what is wrong, and once it is mended
the next hook needs nobody.
"""

import hashlib

import pytest

from tests.node import containers, image, juju, machine, standin, view
from tests.unit import web

NOW, NEXT = "3.32.0", "4.1.0"
OURS = ("/etc", "/opt", "/usr/local")
MAIN = "/etc/kata-containers/configuration.toml"


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    program = image.ready().sleep.read_bytes()
    return standin.archives((NOW, NEXT), folder, hypervisor=program)


@pytest.fixture(scope="module")
def unit(booted, archives):
    """A unit that runs the first release."""
    with machine.Machine.restored(juju.with_charm(booted), network=True) as node:
        containers.load_image(node)
        unit = juju.Unit(node, "kata/0")
        unit.relate("containerd", "kubernetes-worker")
        unit.attach("kata-archive", archives[NOW])
        assert unit.dispatch("install").ok
        yield unit


def in_use(unit):
    """What pods are served with: the links, the files, and the run of containerd."""
    seen = view.look(unit.node, OURS)
    release = seen.files["/opt/kata"].split()[1]
    mine = {path: what for path, what in seen.files.items() if not path.startswith("/opt/")}
    whole = {path: what for path, what in seen.files.items() if path.startswith(release)}
    return release, mine, whole, seen.run, seen.cri


def runs_kata(node):
    ran = containers.run(
        node, "echo", "kata", runtime="io.containerd.kata.v2", config_path=MAIN, check=False
    )
    return ran.out == "kata\n"


def refused(unit, event, *words):
    before = in_use(unit)
    result = unit.dispatch(event)
    assert result.ok, result.output
    assert unit.status.name in ("blocked", "waiting"), unit.status
    for word in words:
        assert word in unit.status.message
    assert in_use(unit) == before
    assert runs_kata(unit.node)


def test_a_full_disk_changes_nothing_and_heals(unit, archives):
    node = unit.node
    unit.attach("kata-archive", archives[NEXT])
    free = "$(($(stat -fc '%a*%S' /) - (4 << 20)))"
    node.run(f"fallocate -l {free} /var/full")
    refused(unit, "upgrade-charm", "disk of /opt/kata-releases is full", "make room")
    node.run("rm /var/full")
    assert unit.dispatch("update-status").ok
    assert (unit.status.name, unit.version) == ("active", NEXT)
    assert runs_kata(node)


def test_with_the_clock_set_back_it_goes_back_and_stays(unit, archives):
    node = unit.node
    node.run(["date", "-s", "2001-01-01"])
    unit.attach("kata-archive", archives[NOW])
    assert unit.dispatch("upgrade-charm").ok
    assert (unit.status.name, unit.version) == ("active", NOW)
    assert unit.dispatch("update-status").ok
    before = in_use(unit)
    node.run(["hwclock", "--hctosys"])
    assert unit.dispatch("update-status").ok
    assert unit.status.name == "active"
    assert in_use(unit) == before


def test_owners_and_modes_of_ours_are_put_right(unit):
    """Root runs and believes these files: nobody else may change them."""
    node = unit.node
    first = view.look(node)
    ours = ("/var/lib/kata-charm", "/usr/local/lib/kata-charm", "/etc/kata-containers")
    node.run(f"chown -R nobody {' '.join(ours)}; chmod -R go+w {' '.join(ours)}")
    assert unit.dispatch("config-changed").ok
    assert unit.status.name == "active"
    seen = view.look(node)
    assert view.change(first, seen).altered == ()
    assert seen.run == first.run


READ_ONLY = ("/opt/kata-releases", "/opt", "/usr/local/bin", "/etc/kata-containers")


@pytest.mark.parametrize("folder", [*READ_ONLY, "/var/lib/kata-charm"])
def test_a_read_only_file_system_changes_nothing(unit, archives, folder):
    unit.attach("kata-archive", archives[NEXT])
    unit.node.run(f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}")
    try:
        refused(unit, "upgrade-charm", "Read-only file system")
    finally:
        unit.node.run(["umount", folder])
        unit.attach("kata-archive", archives[NOW])


@pytest.fixture
def mirror(archives, certificate):
    """A mirror over TLS that the node trusts; what it does with a request is the test's."""
    server = web.Server(certificate)
    server.body = archives[NEXT].read_bytes()
    yield server
    server.shutdown()
    server.server_close()


certificate = web.certificate


@pytest.fixture
def at_mirror(unit, mirror, archives, certificate):
    """The unit, told to download the next release from the mirror."""
    assert unit.dispatch("config-changed").ok
    unit.attach("kata-archive", None)
    unit.node.copy_in(certificate, "/root/mirror.pem")
    unit.environment["SSL_CERT_FILE"] = "/root/mirror.pem"
    unit.config |= {
        "kata-version": NEXT,
        "archive-url": mirror.url("/{name}", web.FROM_NODE),
        "archive-sha256": hashlib.sha256(archives[NEXT].read_bytes()).hexdigest(),
    }
    yield unit
    unit.config.clear()
    unit.environment.clear()
    unit.attach("kata-archive", archives[NOW])
    assert unit.dispatch("config-changed").ok
    assert unit.status.name == "active"


def send_wrong_bytes(mirror):
    mirror.body = bytes(reversed(mirror.body))


def redirect_to_http(mirror):
    mirror.answer = lambda handler: (
        handler.reply(302, headers={"Location": f"http://{web.FROM_NODE}:{mirror.server_port}/"})
        or True
    )


def send_without_end(mirror):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 50))
        handler.end_headers()
        return True

    mirror.answer = answer


def refuse(mirror):
    mirror.answer = lambda handler: handler.reply(404) or True


def test_a_mirror_that_cannot_be_believed_changes_nothing(at_mirror, mirror):
    good = mirror.body
    for damage, words in (
        (send_wrong_bytes, "SHA-256"),
        (redirect_to_http, "https leads on to http"),
        (send_without_end, "larger than 8 GiB"),
        (refuse, "404"),
    ):
        damage(mirror)
        refused(at_mirror, "config-changed", words)
        # What was refused is asked for again when it is another edition.
        mirror.body, mirror.answer, mirror.etag = good, None, f'"after {words}"'
    # One that hangs up again and again, and a download that goes on from where it was.
    mirror.cut = len(good) // 3
    assert at_mirror.dispatch("config-changed").ok
    assert (at_mirror.status.name, at_mirror.version) == ("active", NEXT)
    assert runs_kata(at_mirror.node)


def test_without_a_network_what_runs_goes_on(at_mirror):
    at_mirror.environment["JUJU_CHARM_HTTPS_PROXY"] = f"http://{web.FROM_NODE}:9"
    refused(at_mirror, "config-changed", "tried again at the next hook")
