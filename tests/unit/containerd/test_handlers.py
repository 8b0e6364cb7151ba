"""Our handlers in a containerd that runs: written, read, checked, taken back."""

import json

import pytest

from kata import problems
from kata.containerd import attempt
from kata.containerd import handlers as containerd_handlers
from kata.containerd import memory as containerd_memory
from tests.unit.containerd_machine import CONFIG, MAIN, FakeContainerd, handler

KATA = [handler("kata")]
BOTH = [handler("kata", config_path=True), handler("untrusted")]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    from kata.containerd import service as containerd_service

    monkeypatch.setattr(containerd_service, "READY", 0)


@pytest.fixture
def containerd(node):
    found = FakeContainerd(node)
    node.lay({MAIN: CONFIG})
    return found


def ensure(containerd, handlers=KATA, **kwargs):
    return containerd_handlers.ensure(containerd.node, containerd.find(), handlers, **kwargs)


def refusing_kata(text):
    return "kata is not for me" if "io.containerd.kata.v2" in text else ""


class TestWritten:
    def test_handlers_are_added_and_containerd_reads_them(self, node, containerd):
        assert ensure(containerd, BOTH)
        assert node.read(MAIN).startswith(CONFIG)
        assert "runtimes.untrusted" in containerd.started_with
        assert containerd.restarts == 1

    def test_a_second_time_changes_nothing_and_asks_systemd_alone(self, node, containerd):
        ensure(containerd)
        found, tree = containerd.find(), node.tree()
        node.ran.clear()
        assert not containerd_handlers.ensure(node, found, KATA)
        assert (node.ran, node.tree(), containerd.restarts) == ([], tree, 1)

    def test_other_handlers_are_written_and_read(self, node, containerd):
        ensure(containerd)
        assert ensure(containerd, BOTH)
        assert containerd.restarts == 2
        assert "ConfigPath" in containerd.started_with

    def test_owner_mode_and_link_are_kept(self, node, containerd):
        node.path(MAIN).rename(node.path("/etc/real.toml"))
        node.path(MAIN).symlink_to("../real.toml")
        node.path("/etc/real.toml").chmod(0o640)
        ensure(containerd)
        assert node.path(MAIN).is_symlink()
        assert node.path("/etc/real.toml").stat().st_mode & 0o777 == 0o640
        assert "kata" in node.read("/etc/real.toml")

    def test_a_missing_file_is_made_and_goes_again(self, node, containerd):
        node.path(MAIN).unlink()
        ensure(containerd)
        assert "version = 2" in node.read(MAIN)
        assert "runtimes.runc" in node.read(MAIN)
        containerd_handlers.remove(node, containerd.find())
        assert node.read(MAIN) is None

    def test_what_is_remembered_is_for_root_alone(self, node, containerd):
        ensure(containerd)
        folder = node.path(containerd_memory.FOLDER)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o600}


class TestRemoved:
    def test_everything_is_as_before(self, node, containerd):
        before = node.tree()
        ensure(containerd, BOTH)
        assert containerd_handlers.remove(node, containerd.find())
        assert node.tree() == before
        assert containerd.restarts == 2
        assert "kata" not in containerd.started_with

    def test_a_second_time_changes_nothing(self, node, containerd):
        ensure(containerd)
        containerd_handlers.remove(node, containerd.find())
        assert not containerd_handlers.remove(node, containerd.find())
        assert containerd.restarts == 2

    def test_with_containerd_gone_its_file_is_still_cleaned(self, node, containerd):
        ensure(containerd)
        node.ran.clear()
        assert containerd_handlers.remove(node, None)
        assert node.read(MAIN) == CONFIG
        assert node.ran == []


class TestForeignRewrite:
    """The containerd charm writes the file anew and restarts containerd."""

    def test_seen_by_the_guard_needs_no_restart_of_ours(self, node, containerd):
        ensure(containerd)
        node.lay({MAIN: CONFIG.replace("3.9", "3.10")})
        containerd.run += 1
        node.lay({containerd_memory.READ: containerd.invocation})
        assert ensure(containerd)
        assert containerd.restarts == 1
        assert "3.10" in node.read(MAIN)
        assert "runtimes.kata" in node.read(MAIN)

    def test_not_restarted_yet_needs_none_either(self, node, containerd):
        ensure(containerd)
        node.lay({MAIN: CONFIG.replace("3.9", "3.10")})
        assert ensure(containerd)
        assert containerd.restarts == 1

    def test_not_seen_by_the_guard_is_mended_with_one_restart(self, node, containerd):
        ensure(containerd)
        node.lay({MAIN: CONFIG.replace("3.9", "3.10")})
        containerd.start()
        assert ensure(containerd)
        assert containerd.restarts == 2
        assert "runtimes.kata" in containerd.started_with


class TestRefused:
    def test_a_file_that_is_broken_is_named_and_left_alone(self, node, containerd):
        broken = CONFIG + 'x = "a"b"\n'
        node.lay({MAIN: broken})
        with pytest.raises(problems.Blocked, match=rf"cannot read.*{MAIN}.*line"):
            ensure(containerd)
        assert (node.read(MAIN), containerd.restarts) == (broken, 0)
        node.lay({MAIN: CONFIG})
        assert ensure(containerd)

    def test_a_configuration_that_containerd_refuses_is_left_alone(self, node, containerd):
        node.on(
            "/usr/bin/containerd --config * config dump", err="containerd: no such type", status=1
        )
        with pytest.raises(problems.Blocked, match=f"{MAIN}: no such type; mend it"):
            ensure(containerd)
        assert (node.read(MAIN), containerd.restarts) == (CONFIG, 0)

    def test_what_containerd_would_refuse_is_never_written(self, node, containerd):
        pattern = "/usr/bin/containerd --config */candidate/0.toml config dump"
        node.on(
            pattern,
            err="containerd: bad: /var/lib/kata-charm/containerd/candidate/0.toml",
            status=1,
        )
        with pytest.raises(problems.Blocked, match=f"would refuse Kata's handlers.*bad: {MAIN}"):
            ensure(containerd)
        assert (node.read(MAIN), containerd.restarts) == (CONFIG, 0)
        assert not node.exists(attempt.FILE)

    def test_a_change_of_anything_else_is_never_written(self, node, containerd):
        pattern = "/usr/bin/containerd --config */candidate/0.toml config dump"
        other = CONFIG.replace("3.9", "3.1") + (
            '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]\n'
            'runtime_type = "io.containerd.kata.v2"\n'
        )
        node.on(pattern, out=other)
        with pytest.raises(problems.Blocked, match=r"would change plugins.*sandbox_image"):
            ensure(containerd)
        assert node.read(MAIN) == CONFIG

    def test_handlers_that_an_import_hides_are_not_left_there(self, node, containerd):
        importing = CONFIG.replace("version = 2\n", 'version = 2\nimports = ["/etc/other.toml"]\n')
        node.lay({MAIN: importing, "/etc/other.toml": "version = 2\n"})
        node.on(f"/usr/bin/containerd --config *{MAIN} config dump", out=CONFIG)
        with pytest.raises(problems.Blocked, match="handler kata has no effect"):
            ensure(containerd)
        assert (node.read(MAIN), containerd.restarts) == (importing, 0)
        assert containerd_memory.load(node) is None

    def test_a_disabled_cri_plugin_is_named(self, node, containerd):
        text = 'disabled_plugins = ["cri"]\n'
        node.lay({MAIN: text})
        with pytest.raises(problems.Blocked, match='disabled_plugins has "cri"'):
            ensure(containerd)
        assert node.read(MAIN) == text

    def test_a_link_to_nothing_is_named(self, node, containerd):
        node.path(MAIN).unlink()
        node.path(MAIN).symlink_to("/gone.toml")
        with pytest.raises(problems.Blocked, match=r"link to /gone\.toml"):
            ensure(containerd)
        assert node.path(MAIN).is_symlink()

    def test_a_containerd_in_trouble_is_not_restarted(self, node, containerd):
        containerd.cri = lambda text: "no sandbox image"
        with pytest.raises(problems.Blocked, match="before any change of ours: no sandbox image"):
            ensure(containerd)
        assert (node.read(MAIN), containerd.restarts) == (CONFIG, 0)

    def test_a_file_that_cannot_be_written(self, node, containerd, monkeypatch):
        write = type(node).write

        def full(self, path, text, mode=0o644):
            if path == MAIN:
                raise problems.Blocked(f"cannot write {MAIN}: No space left on device")
            return write(self, path, text, mode)

        monkeypatch.setattr(type(node), "write", full)
        with pytest.raises(problems.Blocked, match="No space left"):
            ensure(containerd)
        assert (node.read(MAIN), containerd.restarts) == (CONFIG, 0)
        monkeypatch.setattr(type(node), "write", write)
        assert ensure(containerd)


class TestTakenBack:
    @pytest.fixture(params=["does not start", "CRI plugin in error"])
    def unwilling(self, request, containerd):
        kind = "refuses" if request.param == "does not start" else "cri"
        setattr(containerd, kind, refusing_kata)
        return containerd

    def test_what_worked_is_put_back(self, node, unwilling):
        with pytest.raises(
            problems.Blocked, match="kata is not for me; what worked before is back"
        ):
            ensure(unwilling)
        assert (node.read(MAIN), unwilling.active, unwilling.restarts) == (CONFIG, "active", 2)

    def test_the_same_is_not_tried_again(self, node, unwilling):
        for _ in range(3):
            with pytest.raises(problems.Blocked, match="kata is not for me"):
                ensure(unwilling)
        assert unwilling.restarts == 2

    def test_something_new_is(self, node, unwilling):
        with pytest.raises(problems.Blocked):
            ensure(unwilling)
        unwilling.refuses = unwilling.cri = lambda text: ""
        assert ensure(unwilling, BOTH)
        assert unwilling.active == "active"

    @pytest.mark.parametrize("how", ["restarted by somebody", "asked to", "another containerd"])
    def test_it_is_tried_again_when(self, node, unwilling, how):
        with pytest.raises(problems.Blocked):
            ensure(unwilling)
        unwilling.refuses = unwilling.cri = lambda text: ""
        if how == "restarted by somebody":
            unwilling.start()
        elif how == "another containerd":
            node.lay({"/usr/bin/containerd": "another one"})
        assert ensure(unwilling, again=how == "asked to")

    def test_earlier_handlers_come_back(self, node, containerd):
        ensure(containerd)
        good = node.read(MAIN), node.read(containerd_memory.WANTED)
        containerd.cri = lambda text: "no" if "untrusted" in text else ""
        with pytest.raises(problems.Blocked):
            ensure(containerd, BOTH)
        assert (node.read(MAIN), node.read(containerd_memory.WANTED)) == good
        assert not ensure(containerd) or containerd.restarts == 3

    def test_an_edit_of_somebody_else_in_between_is_kept(self, node, containerd):
        def edited(text):
            node.lay({MAIN: node.read(MAIN) + "# an urgent note\n"})
            return refusing_kata(text)

        containerd.refuses = edited
        with pytest.raises(problems.Blocked):
            ensure(containerd)
        assert "# an urgent note" in node.read(MAIN)

    def test_when_nothing_helps_it_says_so(self, node, containerd):
        containerd.refuses = lambda text: "out of disk" if containerd.restarts else ""
        with pytest.raises(problems.Blocked, match="is not back without them: out of disk"):
            ensure(containerd)
        assert node.read(MAIN) == CONFIG


class TestInterrupted:
    """The hook is killed, or the power cut, before a write or a command."""

    @pytest.mark.parametrize("how", ["killed", "power cut"])
    @pytest.mark.parametrize("unwilling", [False, True])
    def test_at_any_point(self, tmp_path, how, unwilling, monkeypatch):
        from tests.unit.conftest import FakeNode

        point, finished = 0, False
        while not finished:
            node = FakeNode(tmp_path / f"{point}")
            containerd = FakeContainerd(node)
            if unwilling:
                containerd.cri = refusing_kata
            node.lay({MAIN: CONFIG})
            finished = self.interrupted_at(point, containerd, monkeypatch)
            if how == "power cut":
                for path in ("/run/kata-charm/read", "/run/kata-charm/serves"):
                    node.remove(path)
                containerd.start()
            if unwilling:
                with pytest.raises(problems.Blocked, match="kata is not for me"):
                    ensure(containerd)
                    ensure(containerd)
                assert node.read(MAIN) == CONFIG
                assert "kata" not in containerd.started_with
            else:
                ensure(containerd)
                assert not ensure(containerd)
                assert "runtimes.kata" in containerd.started_with
            assert not node.exists(attempt.FILE)
            point += 1
        assert point > 12

    def interrupted_at(self, point, containerd, monkeypatch):
        class Killed(BaseException):
            pass

        left = [point]

        def dying(method):
            def step(self, *args, **kwargs):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return method(self, *args, **kwargs)

            return step

        kind = type(containerd.node)
        with monkeypatch.context() as patch:
            for name in ("write", "remove", "run"):
                patch.setattr(kind, name, dying(getattr(kind, name)))
            try:
                ensure(containerd)
            except Killed:
                return False
            except problems.Blocked:
                pass
        return True


class TestWhoElseWrites:
    def test_an_edit_between_our_read_and_our_write_is_kept(self, node, containerd):
        edits = iter(["# once\n", "# twice\n"])
        dump = containerd._dump

        def and_edit(argv):
            ran = dump(argv)
            if "candidate" in argv[2]:
                node.lay({MAIN: node.read(MAIN) + next(edits, "")})
            return ran

        node.on("/usr/bin/containerd --config * config dump", effect=and_edit)
        assert ensure(containerd)
        assert node.read(MAIN).startswith(CONFIG + "# once\n# twice\n")
        assert "runtimes.kata" in containerd.started_with

    def test_a_file_that_never_stands_still_is_waited_for(self, node, containerd):
        dump = containerd._dump

        def and_edit(argv):
            ran = dump(argv)
            if "candidate" in argv[2]:
                node.lay({MAIN: node.read(MAIN) + "# again\n"})
            return ran

        node.on("/usr/bin/containerd --config * config dump", effect=and_edit)
        with pytest.raises(problems.Waiting, match="does not stand still"):
            ensure(containerd)
        assert "kata" not in node.read(MAIN)


class TestNotRunning:
    def test_a_stopped_containerd_is_not_started(self, node, containerd):
        containerd.active = "inactive"
        with pytest.raises(problems.Blocked, match=r"containerd\.service is inactive"):
            ensure(containerd)
        assert (containerd.active, containerd.restarts) == ("inactive", 0)
        assert "runtimes.kata" in node.read(MAIN)
        containerd.start()
        ensure(containerd)
        assert containerd.restarts == 0
        assert not ensure(containerd)

    def test_one_that_failed_before_us_is_left_alone(self, node, containerd):
        containerd.active = "failed"
        with pytest.raises(problems.Blocked, match=r"containerd\.service is failed"):
            ensure(containerd)
        assert node.read(MAIN) == CONFIG

    def test_one_that_starts_is_waited_for(self, node, containerd):
        containerd.active = "activating"
        with pytest.raises(problems.Waiting):
            ensure(containerd)
        assert node.read(MAIN) == CONFIG

    def test_stopped_later_it_is_reported(self, node, containerd):
        ensure(containerd)
        containerd.active = "inactive"
        with pytest.raises(problems.Blocked, match="inactive"):
            ensure(containerd)

    def test_started_by_others_with_an_error_it_is_reported(self, node, containerd):
        ensure(containerd)
        containerd.cri = lambda text: "no sandbox image"
        containerd.start()
        with pytest.raises(problems.Blocked, match="does not serve pods: no sandbox image"):
            ensure(containerd)


def test_a_memory_that_is_broken_is_made_anew(node, containerd):
    ensure(containerd)
    good = json.loads(node.read(containerd_memory.WANTED))
    for broken in ("", "{", "[]", "null", '{"handlers": 3}'):
        node.lay({containerd_memory.WANTED: broken})
        ensure(containerd)
        assert json.loads(node.read(containerd_memory.WANTED))["sections"] == good["sections"]
