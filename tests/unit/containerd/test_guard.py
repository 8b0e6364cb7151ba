"""The guard, as systemd runs it: the packed program, by the machine's own Python."""

import dataclasses
import os
import subprocess
import sys

import pytest

from kata.containerd import config as containerd_config
from kata.containerd import files as containerd_files
from kata.containerd import guard
from kata.containerd import handlers as containerd_handlers
from kata.containerd import memory as containerd_memory
from kata.containerd import version as containerd_release
from tests.unit.containerd_machine import CONFIG, MAIN, FakeContainerd, handler

DROP_IN = "/etc/systemd/system/containerd.service.d/kata-charm.conf"
REWRITTEN = CONFIG.replace("3.9", "3.10")
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


@pytest.fixture
def containerd(node, tmp_path):
    """A containerd with our handlers and the guard; the guard's own process can run it."""
    found = FakeContainerd(node)
    node.lay({MAIN: CONFIG})
    containerd_handlers.ensure(node, found.find(), [handler("kata")])
    guard.ensure(node, found.find())
    # What the guard runs is on this machine, not in the folder that stands for the node.
    program = tmp_path / "containerd"
    for place in (program, node.path(program)):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("#!/bin/sh\necho 'containerd x 1.6.20'\n")
        place.chmod(0o755)
    memory = containerd_memory.load(node)._replace(
        binary=str(program), stat=containerd_release.stat(node, str(program))
    )
    containerd_memory.save(node, memory)
    containerd_memory.settle(node, memory, containerd_files.read(MAIN, node))
    found.program = program
    return found


def start(node, invocation="this-start"):
    """Do what the drop-in makes systemd do; return what the journal gets."""
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); "
        "runpy.run_path(sys.argv[1])['main'](sys.argv[2])"
    )
    done = subprocess.run(
        [PYTHON, "-I", "-S", "-c", code, node.path(guard.PROGRAM), node.root],
        env={"INVOCATION_ID": invocation},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert done.stdout == ""
    return done.stderr


class TestStart:
    def test_with_nothing_to_do_it_only_tells_the_hooks(self, node, containerd):
        before = node.tree("/etc") | node.tree("/var")
        assert start(node) == ""
        assert node.tree("/etc") | node.tree("/var") == before
        assert node.read(containerd_memory.READ) == "this-start"

    def test_a_rewrite_is_healed_as_a_hook_would(self, node, containerd):
        node.lay({MAIN: REWRITTEN})
        memory = containerd_memory.load(node)
        changes = containerd_files.plan(MAIN, node, (1, 6, 20), memory.wanted)
        assert start(node) == f"kata-charm guard: put Kata's handlers back: {MAIN}\n"
        assert node.read(MAIN) == changes[MAIN]
        assert node.read(containerd_memory.READ) == "this-start"
        assert start(node) == ""

    def test_the_next_hook_restarts_nothing(self, node, containerd):
        node.lay({MAIN: REWRITTEN})
        start(node, containerd.invocation)
        found = containerd.find()
        containerd_handlers.ensure(node, found, [handler("kata")])
        assert not containerd_handlers.ensure(node, found, [handler("kata")])
        assert containerd.restarts == 1

    def test_mode_and_link_are_kept(self, node, containerd):
        node.path(MAIN).rename(node.path("/etc/real.toml"))
        node.path(MAIN).symlink_to("../real.toml")
        node.path("/etc/real.toml").write_text(REWRITTEN)
        node.path("/etc/real.toml").chmod(0o600)
        start(node)
        assert node.path(MAIN).is_symlink()
        assert node.path("/etc/real.toml").stat().st_mode & 0o777 == 0o600
        assert "runtimes.kata" in node.read(MAIN)

    def test_a_file_that_was_deleted_is_made_again(self, node, containerd):
        node.path(MAIN).unlink()
        start(node)
        assert "runtimes.kata" in node.read(MAIN)

    def test_a_new_import_that_shadows_the_main_file(self, node, containerd):
        start(node)
        shadow = "/etc/containerd/conf.d/99-nvidia.toml"
        node.lay({MAIN: 'imports = ["conf.d/*.toml"]\n' + REWRITTEN})
        start(node)
        node.lay({shadow: REWRITTEN})
        start(node)
        assert "runtimes.kata" in node.read(shadow)
        assert "runtimes.kata" not in node.read(MAIN)

    def test_another_release_is_asked_for_its_number(self, node, containerd):
        for place in (containerd.program, node.path(containerd.program)):
            place.write_text("#!/bin/sh\necho 'containerd x v2.0.11'\n")
        node.lay({MAIN: "# no version\n[plugins.cri]\nsandbox_image = 'x'\n"})
        start(node)
        assert containerd_config.CRI["v3"] in node.read(MAIN)


class TestLeftAlone:
    """Whatever it finds, containerd starts."""

    def refused(self, node, text=REWRITTEN):
        node.lay({MAIN: text})
        said = start(node)
        assert node.read(MAIN) == text
        assert not node.exists(containerd_memory.READ) or (
            node.read(containerd_memory.READ) != "this-start"
        )
        return said

    def test_a_file_that_is_no_toml(self, node, containerd):
        assert "line 2" in self.refused(node, 'version = 2\nx = "a"b"\n')

    def test_what_containerd_would_refuse(self, node, containerd):
        containerd.program.write_text("#!/bin/sh\necho 'containerd: no' >&2; exit 1\n")
        assert "would refuse Kata's handlers: containerd: no" in self.refused(node)

    def test_a_containerd_that_does_not_answer(self, node, containerd):
        containerd.program.write_text("#!/bin/sh\nexec sleep 60\n")
        assert "no answer within 10 s" in self.refused(node)

    def test_no_shim(self, node, containerd):
        node.path("/usr/local/bin/containerd-shim-kata-v2").unlink()
        assert "is missing: no handlers without it" in self.refused(node)

    @pytest.mark.parametrize(
        "text",
        [
            *("", "{", "[]", '{"handlers": ["kata"]}'),
            '{"handlers": [], "sections": {}, "known": [], "release": [1e999, 7, 0]}',
        ],
    )
    def test_a_memory_that_is_of_no_use(self, node, containerd, text):
        node.lay({containerd_memory.WANTED: text})
        assert self.refused(node) == ""

    def test_nothing_remembered(self, node, containerd):
        for name in node.names(containerd_memory.FOLDER):
            node.remove(f"{containerd_memory.FOLDER}/{name}")
        assert self.refused(node) == ""

    def test_handlers_that_were_taken_back(self, node, containerd):
        memory = containerd_memory.load(node)
        containerd_memory.save(node, memory._replace(wanted=memory.wanted._replace(handlers=())))
        assert self.refused(node) == ""


class TestInPlace:
    def test_systemd_is_told_once(self, node, containerd):
        node.ran.clear()
        assert not guard.ensure(node, containerd.find())
        assert [line for line in node.ran if "show" not in line] == []

    def test_the_drop_in_runs_the_program_within_a_limit_and_never_stops_the_start(
        self, node, containerd
    ):
        (command,) = [
            line for line in node.read(DROP_IN).splitlines() if line.startswith("ExecStartPre=")
        ]
        assert command.startswith("ExecStartPre=-/usr/bin/timeout --kill-after=1 20 ")
        assert command.endswith(f" -I -S {guard.PROGRAM}")

    def test_a_newer_charm_brings_a_newer_program(self, node, containerd, monkeypatch):
        newer = dataclasses.replace(guard._GUARD, modules=guard._GUARD.modules[:-1])
        monkeypatch.setattr(guard, "_GUARD", newer)
        node.ran.clear()
        assert guard.ensure(node, containerd.find())
        assert node.path(guard.PROGRAM).read_bytes() == newer.pack()
        assert "systemctl daemon-reload" not in node.ran

    @pytest.mark.parametrize("damage", ["removed", "edited"])
    def test_a_damaged_program_is_made_again(self, node, containerd, damage):
        if damage == "removed":
            node.remove(guard.PROGRAM)
        else:
            node.lay({guard.PROGRAM: "x"})
        assert guard.ensure(node, containerd.find())
        assert node.path(guard.PROGRAM).read_bytes() == guard._GUARD.pack()

    def test_when_the_unit_changes_so_does_the_place(self, node, containerd):
        found = containerd.find()
        other = type(found)(**{**vars(found), "unit": "snap.k8s.containerd.service"})
        assert guard.ensure(node, other)
        assert not node.exists(DROP_IN)
        assert node.exists("/etc/systemd/system/snap.k8s.containerd.service.d/kata-charm.conf")

    def test_after_a_crash_before_systemd_was_told(self, node, containerd):
        found = containerd.find()
        stale = type(found)(**{**vars(found), "reload": True})
        node.ran.clear()
        guard.ensure(node, stale)
        assert "systemctl daemon-reload" in node.ran

    def test_removed_nothing_is_left(self, node, containerd):
        node.lay({"/etc/systemd/system/other.service.d/x.conf": ""})
        assert guard.remove(node)
        assert node.tree("/etc/systemd") == {"/etc/systemd/system/other.service.d/x.conf": ""}
        assert not node.exists("/usr/local/lib/kata-charm")
        node.ran.clear()
        assert not guard.remove(node)
        assert node.ran == []


def test_the_same_modules_make_the_same_program():
    assert guard._GUARD.pack() == guard._GUARD.pack()
