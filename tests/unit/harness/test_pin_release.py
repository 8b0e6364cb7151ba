"""A maintainer adds a release to the table of digests, from what GitHub's API says of it."""

import importlib.util
import json
import pathlib

import pytest

from kata.release import published, release

TOP = pathlib.Path(__file__).resolve().parents[3]
DIGESTS = {name: f"{number:064x}" for number, name in enumerate("abcdef", 1)}


@pytest.fixture(scope="module")
def pin_release():
    spec = importlib.util.spec_from_file_location("pin_release", TOP / "tools/pin_release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asset(name, digest, **more):
    """An asset as the API documents it; what nobody reads is left out."""
    about = {
        "url": f"https://api.github.com/repos/kata-containers/kata-containers/releases/assets/{name}",
        "browser_download_url": f"https://github.com/kata-containers/kata-containers/{name}",
        "name": name,
        "state": "uploaded",
        "content_type": "application/zstd",
        "size": 969565384,
        "digest": digest and f"sha256:{digest}",
    }
    return about | more


ASSETS = [
    asset("kata-static-4.3.0-amd64.tar.zst", DIGESTS["a"]),
    asset("kata-static-4.3.0-arm64.tar.zst", DIGESTS["b"]),
    asset("kata-go-static-4.3.0-amd64.tar.zst", DIGESTS["c"]),
    asset("kata-static-4.3.0-s390x.tar.zst", DIGESTS["d"]),
    asset("kata-tools-static-4.3.0-amd64.tar.zst", DIGESTS["e"]),
    asset("kata-containers-4.3.0-vendor.tar.gz", DIGESTS["f"]),
]
PINNED = {
    "kata-static-4.3.0-amd64.tar.zst": DIGESTS["a"],
    "kata-static-4.3.0-arm64.tar.zst": DIGESTS["b"],
    "kata-go-static-4.3.0-amd64.tar.zst": DIGESTS["c"],
}


@pytest.fixture
def github(server):
    """GitHub's API, as far as it tells of releases."""
    server.releases = {"4.3.0": {"tag_name": "4.3.0", "draft": False, "assets": ASSETS}}

    def answer(handler):
        tag = handler.path.removeprefix("/repos/kata-containers/kata-containers/releases/tags/")
        told = server.releases.get(tag)
        body = json.dumps(told or {"message": "Not Found", "status": "404"}).encode()
        kind = {"Content-Type": "application/json; charset=utf-8"}
        handler.reply(200 if told else 404, body, kind)
        return True

    server.answer = answer
    return server


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "digests.json"
    path.write_text((pathlib.Path(release.__file__).with_name("digests.json")).read_text())
    return path


def run(pin_release, github, table, *words):
    return pin_release.main([*words, "--api", github.url(""), "--table", str(table)])


def test_a_release_is_added_and_the_charm_knows_it(
    pin_release, github, table, monkeypatch, capsys
):
    before = json.loads(table.read_text())
    assert run(pin_release, github, table, "4.3.0") == 0
    after = json.loads(table.read_text())
    assert after.pop("4.3.0") == {"from": ["GitHub's release API"], "files": PINNED}
    assert after == before
    assert next(iter(json.loads(table.read_text()))) == "4.3.0"
    assert capsys.readouterr().out.count("\n") == 3
    monkeypatch.setattr(published, "_digests", lambda: json.loads(table.read_text()))
    (name,) = published.assets("4.3.0", "amd64", "auto", ["qemu"])
    assert published.known_digest("4.3.0", name) == DIGESTS["a"]


def test_github_is_asked_as_it_documents(pin_release, github, table, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    run(pin_release, github, table, "4.3.0")
    (request,) = github.asked
    assert request["path"] == "/repos/kata-containers/kata-containers/releases/tags/4.3.0"
    assert request["Accept"] == "application/vnd.github+json"
    assert request["X-Github-Api-Version"] == "2022-11-28"
    assert request["Authorization"] == "Bearer secret"
    monkeypatch.delenv("GITHUB_TOKEN")
    run(pin_release, github, table, "4.3.0")
    assert "Authorization" not in github.asked[-1]


def test_a_second_run_changes_nothing(pin_release, github, table):
    run(pin_release, github, table, "4.3.0")
    before = table.read_text()
    assert run(pin_release, github, table, "4.3.0") == 0
    assert table.read_text() == before


def test_the_table_is_written_as_it_was_found(pin_release, github, table):
    """So that a change of it reads well."""
    before = table.read_text()
    run(pin_release, github, table, "4.3.0")
    assert before[1:] in table.read_text()


def test_an_archive_that_was_uploaded_anew_is_not_just_believed(
    pin_release, github, table, capsys
):
    run(pin_release, github, table, "4.3.0")
    before = table.read_text()
    name = "kata-static-4.3.0-amd64.tar.zst"
    github.releases["4.3.0"]["assets"] = [asset(name, DIGESTS["f"])]
    assert run(pin_release, github, table, "4.3.0") == 1
    assert f"{name} was {DIGESTS['a']}, and GitHub says {DIGESTS['f']}" in capsys.readouterr().err
    assert table.read_text() == before
    assert run(pin_release, github, table, "4.3.0", "--replace") == 0
    assert json.loads(table.read_text())["4.3.0"]["files"] == PINNED | {name: DIGESTS["f"]}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (None, "404"),
        ({"tag_name": "4.3.0", "assets": []}, "GitHub has no digest of 4.3.0's archives"),
        ({"tag_name": "4.3.0", "assets": [asset(ASSETS[0]["name"], None)]}, "has no digest"),
        ({"tag_name": "4.3.0", "assets": [asset(ASSETS[0]["name"], "md5")]}, "has no digest"),
        ({"tag_name": "4.2.9", "assets": ASSETS}, "asked for 4.3.0, got 4.2.9"),
    ],
)
def test_what_github_cannot_say_changes_nothing(pin_release, github, table, capsys, told, words):
    github.releases["4.3.0"] = told
    before = table.read_text()
    assert run(pin_release, github, table, "4.3.0") == 1
    assert words in capsys.readouterr().err
    assert table.read_text() == before


def test_a_release_must_be_named(pin_release, table, capsys):
    with pytest.raises(SystemExit):
        pin_release.main(["", "--table", str(table)])
    assert "make pin-release VERSION=" in capsys.readouterr().err


def test_no_network_is_no_traceback(pin_release, table, capsys):
    assert pin_release.main(["4.3.0", "--api", "http://127.0.0.1:9", "--table", str(table)]) == 1
    assert "pin_release: " in capsys.readouterr().err
