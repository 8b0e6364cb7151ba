"""Downloads go on where they stopped, and end with the right file or with words."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time

import pytest

from kata import problems
from kata.machine import disk
from kata.release import download, https, release
from tests.unit import web

BODY = web.BODY
DIGEST = hashlib.sha256(BODY).hexdigest()
WHERE = f"{release.STATE}/downloads/kata.tar.zst"
# So that a test of a slow server is quick.
HASTY = download.Patience(quiet=0.5, least=1000, attempts=3, pause=0.01, budget=20)


@pytest.fixture(autouse=True)
def folder(node, monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    node.path(WHERE).parent.mkdir(parents=True)


def fetch(node, url, sha256=DIGEST, patience=HASTY, **more):
    return download.fetch(node, url, WHERE, sha256=sha256, patience=patience, **more)


def have(node):
    return node.path(WHERE).read_bytes()


def spoil(node, keep):
    """Keep so many bytes, as a hook that was killed there."""
    with node.path(WHERE).open("r+b") as file:
        file.truncate(keep)


# All is well


def test_a_file_comes_whole_and_private(node, server):
    told = []
    digest = fetch(node, server.url(), progress=lambda done, total: told.append((done, total)))
    assert digest == DIGEST
    assert have(node) == BODY
    assert node.path(WHERE).stat().st_mode & 0o777 == 0o600
    assert told[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_file_that_is_there_is_not_asked_for_again(node, server):
    fetch(node, server.url())
    assert fetch(node, server.url()) == DIGEST
    assert len(server.asked) == 1


def test_https_needs_no_digest_and_verifies_the_server(node, secure):
    assert fetch(node, secure.url(), sha256="") == DIGEST


def test_http_needs_a_digest(node, server):
    with pytest.raises(problems.Blocked, match="plain http needs a digest"):
        fetch(node, server.url(), sha256="")
    assert not server.asked


def test_a_server_that_does_not_say_how_much_will_do(node, server):
    def chunked(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for at in range(0, len(BODY), 1 << 20):
            handler.wfile.write(b"%x\r\n%s\r\n" % (1 << 20, BODY[at : at + (1 << 20)]))
        handler.wfile.write(b"0\r\n\r\n")
        return True

    server.answer = chunked
    totals = []
    fetch(node, server.url(), progress=lambda _done, total: totals.append(total))
    assert have(node) == BODY
    assert set(totals) == {None}


# It is cut off


def test_a_server_that_cuts_off_costs_nothing(node, server):
    server.cut = 3 << 20
    assert fetch(node, server.url()) == DIGEST
    assert [asked.get("Range") for asked in server.asked] == [
        None,
        f"bytes={3 << 20}-",
        f"bytes={6 << 20}-",
    ]


def test_a_download_goes_on_in_the_next_hook(node, server):
    server.cut = 1 << 18  # less than counts as progress
    with pytest.raises(problems.Waiting, match="cut off"):
        fetch(node, server.url())
    so_far = len(have(node))
    assert so_far == 3 << 18
    server.cut = None
    assert fetch(node, server.url()) == DIGEST
    assert server.asked[-1]["Range"] == f"bytes={so_far}-"
    assert server.asked[-1]["If-Range"] == '"one"'


def test_what_a_power_cut_left_unsafe_is_fetched_again(node, server):
    """The note says what is safe; the file may be longer, with zeros at its end."""
    server.cut = 1 << 18
    with pytest.raises(problems.Waiting):
        fetch(node, server.url())
    with node.path(WHERE).open("ab") as file:
        file.write(bytes(1 << 20))
    server.cut = None
    assert fetch(node, server.url()) == DIGEST
    assert server.asked[-1]["Range"] == f"bytes={3 << 18}-"


def test_a_file_shorter_than_its_note_goes_on_from_what_is_there(node, server):
    server.cut = 1 << 18
    with pytest.raises(problems.Waiting):
        fetch(node, server.url())
    spoil(node, 1000)
    server.cut = None
    assert fetch(node, server.url()) == DIGEST
    assert server.asked[-1]["Range"] == "bytes=1000-"


def test_without_a_note_it_begins_again(node, server):
    server.cut = 1 << 18
    with pytest.raises(problems.Waiting):
        fetch(node, server.url())
    node.path(f"{WHERE}.json").write_text("{half")
    server.cut = None
    assert fetch(node, server.url()) == DIGEST
    assert "Range" not in server.asked[-1]


def test_another_edition_begins_again(node, server):
    server.cut = 1 << 18
    server.body = b"old" * 1_000_000
    with pytest.raises(problems.Waiting):
        fetch(node, server.url())
    server.cut, server.body, server.etag = None, BODY, '"two"'
    assert fetch(node, server.url()) == DIGEST


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_another_edition_is_noticed_without_a_strong_tag(node, server, etag):
    """Nothing tells the two apart but the digest: then all is fetched once more, at once."""
    server.cut, server.etag = 1 << 18, etag
    server.body = b"old!" * (len(BODY) // 4)
    with pytest.raises(problems.Waiting):
        fetch(node, server.url())
    server.cut, server.body = None, BODY
    assert fetch(node, server.url()) == DIGEST


def test_a_server_without_ranges_sends_all_again(node, server):
    server.cut = 1 << 18
    with pytest.raises(problems.Waiting):
        fetch(node, server.url())
    server.cut, server.ranges = None, False
    assert fetch(node, server.url()) == DIGEST
    assert have(node) == BODY


def test_a_server_that_sends_another_range_is_not_believed(node, server):
    server.cut = 1 << 18
    with pytest.raises(problems.Waiting):
        fetch(node, server.url())
    server.cut = None

    def wrong(handler):
        if handler.headers.get("Range"):
            handler.reply(206, BODY[5:], {"Content-Range": f"bytes 5-{len(BODY) - 1}/{len(BODY)}"})
        return bool(handler.headers.get("Range"))

    server.answer = wrong
    assert fetch(node, server.url()) == DIGEST


def test_a_range_beyond_the_end_begins_again(node, server):
    server.cut = 1 << 18
    with pytest.raises(problems.Waiting):
        fetch(node, server.url())
    server.cut, server.body = None, b"short"
    short = hashlib.sha256(b"short").hexdigest()
    assert fetch(node, server.url(), sha256=short) == short


# It does not answer, or too slowly


def stop(handler):
    time.sleep(3)
    return True


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.02)
    return True


@pytest.mark.parametrize(
    ("answer", "words"), [(stop, "nothing came for 0.5 s"), (drip, "too slow")]
)
def test_a_server_that_hangs_is_given_up(node, server, answer, words):
    server.answer = answer
    begun = time.monotonic()
    with pytest.raises(problems.Waiting, match=f"127.0.0.1: .*{words}.*next hook"):
        fetch(node, server.url())
    assert time.monotonic() - begun < 5
    assert len(server.asked) == HASTY.attempts


def test_a_name_that_is_not_known_is_looked_up_twice(node, monkeypatch):
    """Each look may take a quarter of a minute: without a network no hook should wait for five."""
    looked_up = []

    def unknown(host, *_args, **_options):
        looked_up.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(problems.Waiting, match=r"name resolution; .* attach kata-archive"):
        fetch(node, "https://mirror.example/kata.tar.zst")
    assert looked_up == ["mirror.example"] * 2


def test_a_hook_ends_in_time_whatever_comes(node, server):
    def trickle(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 30))
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(bytes(10_000))
                time.sleep(0.01)
        return True

    server.answer = trickle
    begun = time.monotonic()
    with pytest.raises(problems.Waiting, match="takes too long"):
        fetch(node, server.url(), patience=download.Patience(quiet=1, least=1, budget=1.5))
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_a_server_with_troubles_is_asked_again(node, server, status):
    failures = [status, status]

    def failing(handler):
        if failures:
            handler.reply(failures.pop())
            return True
        return False

    server.answer = failing
    assert fetch(node, server.url()) == DIGEST


def test_a_server_may_ask_for_a_pause(node, server):
    def busy(handler):
        if len(server.asked) == 1:
            handler.reply(503, headers={"Retry-After": "1"})
        return len(server.asked) == 1

    server.answer = busy
    begun = time.monotonic()
    fetch(node, server.url())
    assert time.monotonic() - begun > 0.7


def test_no_network_is_no_fault_of_the_operator(node, server):
    url = server.url()
    server.shutdown()
    server.server_close()
    with pytest.raises(problems.Waiting, match=r"Connection refused.*attach kata-archive"):
        fetch(node, url)
    with pytest.raises(problems.Waiting, match=r"download from no\.such\.host\.invalid"):
        fetch(node, "https://no.such.host.invalid/kata.tar.zst")


def test_rubbish_instead_of_http_is_no_traceback(node, server):
    def rubbish(handler):
        handler.wfile.write(b"\x00\xff rubbish\r\n\r\n")
        handler.close_connection = True
        return True

    server.answer = rubbish
    with pytest.raises(problems.Waiting, match="rubbish"):
        fetch(node, server.url())


# It is not there, or not what it should be


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_for_the_operator(node, server, status):
    server.answer = lambda handler: handler.reply(status) or True
    words = rf"127\.0\.0\.1 answers {status} .* for kata\.tar\.zst; correct kata-version"
    with pytest.raises(problems.Blocked, match=words):
        fetch(node, server.url())
    assert len(server.asked) == 1


def test_wrong_bytes_are_refused_and_not_fetched_again(node, server):
    server.body = BODY[:-1] + b"!"
    for _ in range(3):
        with pytest.raises(problems.Blocked, match=f"SHA-256 is .* not {DIGEST[:12]}"):
            fetch(node, server.url())
    assert not have(node)
    asked = [request.get("If-None-Match") for request in server.asked]
    assert asked == [None, '"one"', '"one"']


def test_once_the_mirror_is_mended_it_goes_on_by_itself(node, server):
    server.body = b"wrong" * 1000
    with pytest.raises(problems.Blocked):
        fetch(node, server.url())
    server.body, server.etag = BODY, '"two"'
    assert fetch(node, server.url()) == DIGEST


def test_once_the_option_is_mended_it_goes_on_by_itself(node, server):
    with pytest.raises(problems.Blocked):
        fetch(node, server.url(), sha256="0" * 64)
    assert fetch(node, server.url()) == DIGEST


def test_a_file_that_was_refused_later_is_not_fetched_again(node, secure):
    fetch(node, secure.url(), sha256="")
    download.refuse(node, WHERE, "no Kata in it")
    assert not node.path(WHERE).exists()
    with pytest.raises(problems.Blocked, match="no Kata in it"):
        fetch(node, secure.url(), sha256="")
    secure.etag = '"two"'
    assert fetch(node, secure.url(), sha256="") == DIGEST


def test_a_next_edition_of_the_charm_looks_again(node, secure, next_edition):
    fetch(node, secure.url(), sha256="")
    download.refuse(node, WHERE, "no Kata in it")
    next_edition(download)
    assert fetch(node, secure.url(), sha256="") == DIGEST


def test_a_file_that_changed_on_the_disk_is_fetched_again(node, server):
    fetch(node, server.url())
    with node.path(WHERE).open("r+b") as file:
        file.write(b"spoilt")
    assert fetch(node, server.url()) == DIGEST
    assert len(server.asked) == 2


@pytest.mark.parametrize("declared", [True, False])
def test_a_file_without_end_is_refused(node, server, monkeypatch, declared):
    monkeypatch.setattr(download, "MOST_BYTES", 2 << 20)
    monkeypatch.setattr(download, "_SAFE_EVERY", 1 << 20)

    def endless(handler):
        handler.send_response(200)
        if declared:
            handler.send_header("Content-Length", str(1 << 50))
        else:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not declared:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(BODY), BODY))
        return True

    server.answer = endless
    with pytest.raises(problems.Blocked, match=r"larger than .* GiB.*correct archive-url"):
        fetch(node, server.url())
    assert not node.path(WHERE).exists() or not have(node)


def test_a_disk_without_room_is_named_first(node, server, monkeypatch):
    monkeypatch.setattr(disk, "RESERVE", 1 << 60)
    with pytest.raises(problems.Blocked, match=r"downloads is full: .* MiB needed; make room"):
        fetch(node, server.url())
    assert not have(node)


def test_a_disk_that_fails_is_named(node, server):
    shutil.rmtree(node.path(WHERE).parent)
    node.lay({f"{release.STATE}/downloads": "a file"})
    with pytest.raises(problems.Blocked, match=r"cannot write .*kata\.tar\.zst: Not a directory"):
        fetch(node, server.url())


def test_a_link_in_its_place_is_not_followed(node, server):
    node.lay({"/etc/passwd": "root"})
    node.path(WHERE).symlink_to(node.path("/etc/passwd"))
    with pytest.raises(problems.Blocked):
        fetch(node, server.url())
    assert node.read("/etc/passwd") == "root"


# Where it leads


def redirect(to):
    def answer(handler):
        handler.reply(302, headers={"Location": to})
        return True

    return answer


def test_a_redirection_within_https_is_followed(node, secure, certificate):
    """GitHub sends every download on to another host."""
    other = web.Server(certificate)
    secure.answer = redirect(other.url("/elsewhere?sig=1"))
    other.cut = 3 << 20
    assert fetch(node, secure.url(), sha256="") == DIGEST
    assert [request.get("Range") for request in other.asked][:2] == [None, f"bytes={3 << 20}-"]
    other.shutdown()
    other.server_close()


def test_a_redirection_from_https_to_http_is_refused(node, secure, server):
    secure.answer = redirect(server.url())
    with pytest.raises(
        problems.Blocked, match=r"leads on to http .*not followed; correct archive-url"
    ):
        fetch(node, secure.url())
    assert not server.asked


def test_a_redirection_from_http_may_go_to_https(node, server, secure):
    server.answer = redirect(secure.url())
    assert fetch(node, server.url()) == DIGEST


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:1", "/"])
def test_a_redirection_to_anything_else_comes_to_nothing(node, server, to):
    server.answer = redirect(to)
    with pytest.raises(problems.Problem):
        fetch(node, server.url())
    assert not node.path(WHERE).exists() or not have(node)


def test_a_server_that_nobody_vouches_for_is_refused(node, secure, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(
        problems.Blocked, match=r"certificate of 127\.0\.0\.1 is not trusted: self"
    ):
        fetch(node, secure.url())
    assert not secure.asked


def test_an_address_that_is_none_is_for_the_operator(node):
    with pytest.raises(problems.Blocked, match="option archive-url"):
        fetch(node, "https://127.0.0.1:port/kata.tar.zst")


# Proxies


@pytest.fixture
def proxy():
    server = web.Server()
    yield server
    server.shutdown()
    server.server_close()


def test_a_proxy_is_used(node, server, proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", proxy.url("/"))
    fetch(node, "http://mirror.example/kata.tar.zst")
    assert [request["path"] for request in proxy.asked] == ["http://mirror.example/kata.tar.zst"]


def test_a_proxy_is_used_for_https(node, monkeypatch, proxy):
    """It is asked for a tunnel, and this one does not know how."""
    monkeypatch.setenv("https_proxy", proxy.url("/"))
    with pytest.raises(problems.Waiting, match="Tunnel connection failed: 501"):
        fetch(node, "https://mirror.example/kata.tar.zst")


@pytest.mark.parametrize(
    "no_proxy", ["127.0.0.1", "localhost,127.0.0.0/8", "10.0.0.0/8, 127.0.0.0/8"]
)
def test_no_proxy_may_name_hosts_and_networks(node, server, proxy, monkeypatch, no_proxy):
    monkeypatch.setenv("http_proxy", proxy.url("/"))
    monkeypatch.setenv("no_proxy", no_proxy)
    fetch(node, server.url())
    assert not proxy.asked


def test_other_networks_go_by_the_proxy(node, server, proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", proxy.url("/"))
    monkeypatch.setenv("no_proxy", "10.0.0.0/8,nonsense/99,example.org")
    fetch(node, server.url())
    assert proxy.asked


# What lies about


def test_nothing_of_a_secret_address_is_in_the_note_of_another(node, server):
    fetch(node, server.url("/a?token=1"))
    fetch(node, server.url("/b"))
    note = json.loads(node.read(f"{WHERE}.json"))
    assert note["url"] == server.url("/b")
    assert os.stat(node.path(f"{WHERE}.json")).st_mode & 0o777 == 0o600


def test_forgetting_leaves_nothing(node, server):
    fetch(node, server.url())
    download.forget(node, WHERE)
    assert not list(node.path(WHERE).parent.iterdir())


def test_only_files_of_the_web_are_asked_for(node):
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"):
        with pytest.raises(problems.Problem):
            fetch(node, url)
        with pytest.raises((problems.Problem, https.Failed)):
            https.get(url, {}, 1)
