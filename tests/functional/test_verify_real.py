"""The proof of isolation with a real containerd of this machine, whose shim is runc's.

`CONTAINERD=/path/to/containerd` takes another release. Everything lies in a folder of the test's;
what the proof makes outside it, it has to remove. Needs root.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from kata import problems
from kata.containerd import cri
from kata.machine import host
from kata.sandbox import probe, probe_image, throwaway, verify
from tests.functional.local_containerd import BINARY, MAIN, LocalContainerd, release

CTR = pathlib.Path(BINARY).with_name("ctr")
CRI = "io.containerd.cri.v1.runtime" if release() >= (2, 0) else "io.containerd.grpc.v1.cri"
CONFIG = """
version = {version}
{head}
[plugins."{plugin}"]
  restrict_oom_score_adj = true
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."{plugin}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."{plugin}".containerd.runtimes.kata]
  runtime_type = "io.containerd.runc.v2"
[plugins."{plugin}".containerd.runtimes.kata-gone]
  runtime_type = "io.containerd.kata-gone.v2"
[plugins."{plugin}".containerd.runtimes.kata-options]
  runtime_type = "io.containerd.kata-gone.v2"
  [plugins."{plugin}".containerd.runtimes.kata-options.options]
    ConfigPath = "/etc/kata.toml"
"""
KEYS = ('root = "{root}/lib"', 'state = "{root}/run"', "disabled_plugins = []")


class Machine(LocalContainerd):
    """A folder with a containerd in it, in which /proc, cgroups and the folder itself are real."""

    def __init__(self, root):
        super().__init__(root)
        for name in ("proc", "sys", root.parts[1]):
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).symlink_to(f"/{name}")
        head = "\n".join(KEYS).format(root=root)
        head += f'\n[grpc]\naddress = "{root}/c.sock"\n[ttrpc]\naddress = "{root}/t.sock"'
        version = 3 if release() >= (2, 0) else 2
        text = CONFIG.format(head=head, root=root, plugin=CRI, version=version)
        self.path(MAIN).write_text(text)

    @property
    def service(self):
        return throwaway.Service(f"{self.root}/c.sock", str(CTR), release(), f"{self.root}/run")

    def start(self):
        # Shims of the same release come first.
        before = os.environ["PATH"]
        os.environ["PATH"] = f"{pathlib.Path(BINARY).parent}:{before}"
        try:
            return super().start()
        finally:
            os.environ["PATH"] = before

    def ctr(self, *words, **more):
        argv = [CTR, "--address", self.service.address, *words]
        return subprocess.run(argv, capture_output=True, check=True, timeout=60, **more).stdout

    def prove(self, handler, **more):
        return verify.sandbox(self, self.service, handler, **{"timeout": 20, **more})

    def traces(self):
        """Return whatever a proof has left."""
        left = [line for line in self.ctr("namespaces", "ls").decode().split() if "verify" in line]
        left += [
            line for line in pathlib.Path("/proc/mounts").read_text().split() if "verify" in line
        ]
        left += [str(p) for p in pathlib.Path("/sys/fs/cgroup").glob("**/*kata-charm-verify*")]
        left += [str(p) for p in self.root.glob("run/kata-charm-verify*")]
        for place in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = place.read_bytes()
            except OSError:
                continue
            if b"kata-charm-verify" in line or line == b"/kata-probe\0":
                left.append(line.decode())
        for kind in ("containers", "tasks", "snapshots", "images", "leases", "content"):
            said = self.ctr("--namespace", throwaway.NAMESPACE, kind, "ls").decode()
            left += said.splitlines()[1:]
        return left


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    made = Machine(tmp_path_factory.mktemp("m"))
    assert made.start(), made.path("/log").read_text()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def clean(machine):
    yield
    assert machine.traces() == []


def test_runc_under_a_kata_name_is_not_isolated(machine):
    verdict = machine.prove("kata")
    assert not verdict.verified
    assert verdict.trouble == "not isolated: no hypervisor's process belongs to it"
    assert verdict.guest == verdict.host == verify.host_kernel()
    assert 0 < verdict.seconds < 20


def test_a_shim_that_is_not_there(machine):
    for handler in ("kata-gone", "kata-options"):
        verdict = machine.prove(handler)
        assert verdict.guest is None
        assert "containerd-shim-kata-gone-v2" in verdict.trouble


def test_a_handler_that_nobody_has_configured(machine):
    with pytest.raises(problems.Blocked, match="containerd has loaded no handler kata-clh"):
        machine.prove("kata-clh")


def test_the_handlers_as_loaded(machine):
    handlers = cri.status(machine.path(machine.service.address)).handlers
    assert handlers["kata"].runtime_type == "io.containerd.runc.v2"
    assert handlers["kata"].options is None
    assert handlers["kata-options"].options == {"ConfigPath": "/etc/kata.toml"}


def test_an_image_that_is_there_is_used_and_stays(machine):
    image = probe_image.make(host.machine(machine))
    machine.ctr("--namespace", "k8s.io", "images", "import", "-", input=image.archive)
    verdict = machine.prove("kata", image=probe_image.NAME)
    assert verdict.guest == verify.host_kernel()
    listed = machine.ctr("--namespace", "k8s.io", "images", "ls", "--quiet").decode().split()
    assert sorted(listed) == sorted(image.names)


def test_an_image_that_cannot_be_had(machine):
    with pytest.raises(problems.Problem):
        machine.prove("kata", image="localhost:1/none:1")


def test_a_proof_that_is_ended_tidies_up(machine):
    child = os.fork()
    if not child:
        verify.probe.SIZE = 1 << 20  # so that it waits for more than there is to hear
        try:
            machine.prove("kata", timeout=60)
        except verify.Interrupted:
            os._exit(7)
        os._exit(1)
    wait_for_task(machine)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert machine.traces() == []


def test_what_a_killed_proof_has_left_is_removed_by_the_next(machine):
    child = os.fork()
    if not child:
        verify.probe.SIZE = 1 << 20
        machine.prove("kata", timeout=60)
        os._exit(1)
    wait_for_task(machine)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert machine.traces()
    assert machine.prove("kata").guest == verify.host_kernel()


def test_containerd_restarts_between(machine):
    machine.start()
    assert machine.prove("kata").guest == verify.host_kernel()


def test_containerd_is_down(machine):
    machine.stop()
    try:
        with pytest.raises(problems.Problem, match="does not answer"):
            machine.prove("kata")
    finally:
        machine.start()


def wait_for_task(machine):
    until = time.monotonic() + 30
    while b"RUNNING" not in machine.ctr("--namespace", throwaway.NAMESPACE, "tasks", "ls"):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_probe_needs_nothing_of_the_machine(tmp_path):
    """It runs where there is no other file: not even a loader."""
    program = tmp_path / "probe"
    program.write_bytes(probe.program("amd64" if os.uname().machine == "x86_64" else "arm64"))
    program.chmod(0o755)
    code = f"import os; os.chroot({str(tmp_path)!r}); os.execv('/probe', ['/probe'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert probe.read(process.stdout.read(probe.SIZE)) == verify.host_kernel()
        finally:
            process.kill()
