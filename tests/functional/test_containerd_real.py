"""Our edits before the judge that counts: a real containerd, of whatever release is there.

`CONTAINERD=/path/to/containerd` chooses another than the one on the PATH; `NVIDIA_CTK` names a real
nvidia-ctk for the tests with it.
"""

import os
import pathlib
import re
import shutil
import subprocess
import types

import pytest
from hypothesis import HealthCheck, assume, given, settings

from kata import problems
from kata.containerd import candidate as containerd_candidate
from kata.containerd import config as containerd_config
from kata.containerd import dump as containerd_dump
from kata.containerd import files as containerd_files
from kata.containerd import guard
from kata.containerd import handlers as containerd_handlers
from kata.containerd import sections as containerd_sections
from kata.containerd.config import Wanted
from kata.machine import node as kata_node
from tests.conftest import corpus
from tests.functional.local_containerd import BINARY, MAIN, LocalContainerd, release
from tests.unit.containerd_documents import documents

RELEASE = release()
CTK = os.environ.get("NVIDIA_CTK") or shutil.which("nvidia-ctk")
NAMES = ("kata", "untrusted")


def handler(name, *, config_path=False):
    return types.SimpleNamespace(
        name=name,
        configuration=f"/etc/kata-containers/configuration-{name}.toml",
        config_path=config_path,
        snapshotter="",
    )


def wanted(*names, known=()):
    handlers = [handler(name, config_path=name == "kata") for name in names or NAMES]
    sections = containerd_sections.render(handlers, RELEASE)
    return Wanted(tuple(each.name for each in handlers), sections, known)


def judged(node, changes=None):
    """Return what containerd makes of a node's configuration, or of what it would be."""
    disk = containerd_files.Changed(node, changes or {})
    return containerd_candidate.dump(node, BINARY, MAIN, disk)


def lay(node, files):
    for path, text in files.items():
        place = node.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode("utf-8", "surrogateescape"))


def accepted(root, files):
    """Put handlers into the files of a node and take them out, before containerd's eyes."""
    node = kata_node.Node(root)
    lay(node, files)
    if not containerd_candidate.dump_in_place(node, BINARY, MAIN).ok:
        return None
    before = judged(node)
    changes = containerd_files.plan(MAIN, node, RELEASE, wanted())
    after = judged(node, changes)
    assert after.ok, after.err
    assert containerd_dump.missing(after.out, NAMES) == []
    assert containerd_dump.difference(before.out, after.out, NAMES) == ""
    texts = {path: node.read(path) for path in changes}
    for path, text in changes.items():
        node.write(path, text)
    assert containerd_files.plan(MAIN, node, RELEASE, wanted()) == {}
    none = wanted()._replace(handlers=())
    assert containerd_files.plan(MAIN, node, RELEASE, none, changes) == texts
    return changes


V1, V2, V3 = (f'[plugins."{plugin}"' for plugin in containerd_config.CRI.values())
RUNC = '.containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
ODD = {
    "nothing at all": "",
    "only a comment": "# nothing\n",
    "only a comment, without an end of line": "# nothing",
    "version 2, nothing else": "version = 2\n",
    "no header, names of version 2": V2 + RUNC,
    "version 1": "version = 1\n" + V1 + RUNC,
    "version 2": "version = 2\n" + V2 + RUNC,
    "version 3": "version = 3\n" + V3 + RUNC,
    "version 3, names of version 2": "version = 3\n" + V2 + RUNC,
    "version 2, names of version 3": "version = 2\n" + V3 + RUNC,
    "inline at the top": 'version = 2\nplugins = { "io.containerd.grpc.v1.cri" = { sandbox_image = "a/b:1" } }',
    "inline handlers": "version = 2\n" + V2 + ".containerd]\nruntimes = { runc = "
    '{ runtime_type = "io.containerd.runc.v2", options = { SystemdCgroup = true } }, '
    'kata = { runtime_type = "io.containerd.kata.v2", options = {} } }\n',
    "dotted keys": 'version = 2\n[plugins]\n"io.containerd.grpc.v1.cri".sandbox_image = "a/b:1"\n'
    '"io.containerd.grpc.v1.cri".containerd.runtimes.runc.runtime_type = "io.containerd.runc.v2"\n',
    "windows line ends": ("version = 2\n" + V2 + RUNC).replace("\n", "\r\n"),
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_forms(tmp_path, text):
    accepted(tmp_path, {MAIN: text})


def test_a_missing_file(tmp_path):
    node = kata_node.Node(tmp_path)
    changes = containerd_files.plan(MAIN, node, RELEASE, wanted())
    after = judged(node, changes)
    assert containerd_dump.missing(after.out, NAMES) == []
    assert (
        containerd_dump.difference(
            containerd_candidate.dump_in_place(node, BINARY, MAIN).out, after.out, NAMES
        )
        == ""
    )


@pytest.mark.parametrize("path", corpus("containerd/*.toml"), ids=lambda path: path.name)
def test_real_files(tmp_path, path):
    text = path.read_bytes().decode().replace("/etc/containerd/conf.d", "conf.d")
    text = text.replace('disabled_plugins = ["cri"]', "disabled_plugins = []")  # blocked before
    if "broken" in path.name:
        assert accepted(tmp_path, {MAIN: text}) is None
    elif accepted(tmp_path, {MAIN: text}) is None:
        assert parsed_version(text) > highest()


def parsed_version(text):
    found = re.search(r"^version = (\d)", text, re.MULTILINE)
    return int(found[1]) if found else 1


def highest():
    return 2 if RELEASE < (2, 0) else 3 if RELEASE < (2, 3) else 4


class TestImports:
    CRI = "version = 2\n" + V2 + ']\nsandbox_image = "{}/pause:1"\n' + V2 + RUNC

    def test_a_copy_that_shadows_the_main_file(self, tmp_path):
        """As nvidia-ctk leaves it: the copy counts up to containerd 1.7, both do from 2.0."""
        changes = accepted(
            tmp_path,
            {
                MAIN: 'imports = ["conf.d/*.toml"]\n' + self.CRI.format("main"),
                "/etc/containerd/conf.d/99-nvidia.toml": self.CRI.format("copy"),
            },
        )
        shadowed = "/etc/containerd/conf.d/99-nvidia.toml"
        own = "/etc/containerd/conf.d/kata-charm.toml"
        assert list(changes) == [shadowed if RELEASE < (2, 0) else own]

    def test_an_import_of_an_import(self, tmp_path):
        accepted(
            tmp_path,
            {
                MAIN: 'imports = ["a.toml", "b.toml"]\nversion = 2\n',
                "/etc/containerd/a.toml": 'imports = ["deep/c.toml"]\n' + self.CRI.format("a"),
                "/etc/containerd/b.toml": self.CRI.format("b"),
                "/etc/containerd/deep/c.toml": self.CRI.format("c"),
            },
        )

    if RELEASE >= (2, 0):  # earlier ones replace whole tables

        @pytest.mark.parametrize("head", ["", "version = 2\n", "version = 3\n"])
        def test_a_drop_in_of_our_own_leaves_the_main_file_alone(self, tmp_path, head):
            table = V2 if "2" in head else V3
            main = 'imports = ["conf.d/*.toml"]\n' + head + table + RUNC
            changes = accepted(tmp_path, {MAIN: main, "/etc/containerd/conf.d/other.toml": head})
            assert list(changes) == ["/etc/containerd/conf.d/kata-charm.toml"]

        def test_what_others_import_is_cleared(self, tmp_path):
            foreign = V2 + '.containerd.runtimes.kata]\nruntime_type = "io.containerd.kata.v2"\n'
            foreign += V2 + '.containerd.runtimes.kata.options]\nRuntime = "kata"\n'
            changes = accepted(
                tmp_path,
                {
                    MAIN: 'imports = ["conf.d/*.toml"]\n' + self.CRI.format("main"),
                    "/etc/containerd/conf.d/old.toml": "version = 2\n" + foreign,
                },
            )
            assert sorted(changes) == [
                "/etc/containerd/conf.d/old.toml",
                MAIN,
            ]
            after = judged(kata_node.Node(tmp_path))
            assert "Runtime =" not in after.out


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(document=documents())
def test_any_configuration_that_containerd_reads(tmp_path_factory, document):
    _, text = document
    assume(accepted(tmp_path_factory.mktemp("any"), {MAIN: text}) is not None)


@pytest.fixture
def local(tmp_path):
    node = LocalContainerd(tmp_path)
    lay(node, {MAIN: ("version = 2\n" if RELEASE < (2, 0) else "version = 3\n") + node.head()})
    yield node
    node.stop()


def ensure(node, *names, **kwargs):
    handlers = [handler(name) for name in names or NAMES]
    return containerd_handlers.ensure(node, node.find(), handlers, **kwargs)


class TestRunning:
    def test_handlers_are_loaded_and_cri_is_ok(self, local):
        assert local.start()
        text = local.read(MAIN)
        assert ensure(local)
        assert not ensure(local)
        assert local.restarts == 2
        assert containerd_handlers.remove(local, local.find())
        assert (local.read(MAIN), local.restarts) == (text, 3)

    def test_a_cri_error_is_taken_back(self, local, monkeypatch):
        """Both spellings of `untrusted`, or a handler without a type: it starts, and CRI fails."""
        assert local.start()
        text = local.read(MAIN)
        render = containerd_sections.render

        def unfit(*args):
            schema = "v2" if RELEASE < (2, 0) else "v3"
            table = f'[plugins."{containerd_config.CRI[schema]}".containerd.'
            bad = table + 'default_runtime]\nruntime_type = "io.containerd.runc.v2"\n'
            bad += table + 'untrusted_workload_runtime]\nruntime_type = "io.containerd.kata.v2"\n'
            if RELEASE >= (2, 0):
                bad = table.removesuffix(".containerd.") + ']\nstream_idle_timeout = "never"\n'
                bad += table.removesuffix(".") + ']\ndefault_runtime_name = "none"\n'
            return {key: value + bad for key, value in render(*args).items()}

        monkeypatch.setattr(containerd_sections, "render", unfit)
        monkeypatch.setattr(containerd_dump, "difference", lambda *args: "")
        reason = "conflicting definitions" if RELEASE < (2, 0) else "no corresponding runtime"
        with pytest.raises(problems.Blocked, match=f"{reason}.*what worked before is back"):
            ensure(local)
        assert (local.read(MAIN), local.restarts) == (text, 3)
        with pytest.raises(problems.Blocked, match=reason):
            ensure(local)
        assert local.restarts == 3

    def test_the_guard_heals_a_rewrite_before_containerd_reads_it(self, local):
        assert local.start()
        rewritten = local.read(MAIN) + "# written anew\n"
        ensure(local)
        guard.ensure(local, local.find())
        healed = local.read(MAIN)
        lay(local, {MAIN: rewritten})
        local.before_start = lambda: self.guarded(local)
        assert local.start()
        assert local.read(MAIN).startswith(rewritten)
        assert local.read(MAIN).removeprefix(rewritten) in healed
        ensure(local)
        assert not ensure(local)
        assert local.restarts == 3

    @staticmethod
    def guarded(node):
        """Run the guard as systemd would, but in the folder that stands for the machine."""
        code = "import runpy, sys; sys.path.insert(0, sys.argv[1]); "
        code += "runpy.run_path(sys.argv[1])['main'](sys.argv[2])"
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-S", "-c", code, node.path(guard.PROGRAM), node.root],
            env={"INVOCATION_ID": f"{node.invocation + 1:032x}"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stderr


if CTK:

    @pytest.mark.parametrize("how", [(), ("--drop-in-config", "conf.d/99-nvidia.toml")])
    def test_what_nvidia_writes_anew_is_still_known_as_ours(tmp_path, how):
        node = kata_node.Node(tmp_path)
        head = "version = 2\n" if RELEASE < (2, 0) else "version = 3\n"
        table = V2 if RELEASE < (2, 0) else V3
        main = 'imports = ["conf.d/*.toml"]\n' + head + table + RUNC
        lay(node, {MAIN: main, "/etc/containerd/conf.d/other.toml": head})
        touched = set()

        def apply(wanted):
            changes = containerd_files.plan(MAIN, node, RELEASE, wanted, touched)
            touched.update(changes)
            for path, text in changes.items():
                node.remove(path) if text is None else node.write(path, text)

        apply(wanted())
        flags = [
            str(node.path(f"/etc/containerd/{each}")) if "/" in each else each for each in how
        ]
        if not how and RELEASE >= (2, 0):
            # It writes a drop-in unless told not to.
            flags = ["--drop-in-config", ""]
        command = [
            CTK,
            "runtime",
            "configure",
            "--runtime=containerd",
            f"--config={node.path(MAIN)}",
        ]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        apply(wanted(known=NAMES))
        after = judged(node)
        assert containerd_dump.missing(after.out, (*NAMES,)) == []
        assert "nvidia" in after.out
        apply(wanted(known=NAMES)._replace(handlers=()))
        for path in pathlib.Path(tmp_path, "etc/containerd").rglob("*.toml"):
            assert "kata" not in path.read_text(), path
