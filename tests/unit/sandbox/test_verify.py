"""The proof that a handler isolates: what counts, and how it ends."""

import json
import os
import signal
import threading
import time

import pytest

from kata import problems, workload
from kata.containerd import cri, grpc
from kata.containerd.protobuf import message, messages, text
from kata.machine import tenancy
from kata.sandbox import hypervisor, throwaway, verify
from kata.sandbox.probe import Kernel
from kata.sandbox.sandboxes import Sandbox
from tests.node import standin
from tests.unit import kata_machine

HOST, GUEST = Kernel("6.8.0-45-generic", "#45-Ubuntu"), Kernel("6.12.1", "#1 SMP Kata")
VERDICT = verify.Verdict("kata", HOST, GUEST, 1.5)


def sandbox(pid):
    return Sandbox("verify-1", shim="go", shim_program="/opt/s", vm=hypervisor.Vm("qemu", pid=pid))


def hold_kvm(node, pid):
    folder = node.path(f"/proc/{pid}/fd")
    folder.mkdir(parents=True)
    (folder / "3").symlink_to("socket:[1]")
    (folder / "11").symlink_to("anon_inode:kvm-vm")


def test_a_virtual_machine_of_its_own(node):
    hold_kvm(node, 77)
    verdict = verify.judged(node, VERDICT, [sandbox(77)])
    assert verdict.verified
    assert verdict.notes == ("hypervisor qemu, pid 77", "shim go /opt/s")


@pytest.mark.parametrize("found", [[], [sandbox(None)]])
def test_no_hypervisors_process(node, found):
    verdict = verify.judged(node, VERDICT, found)
    assert verdict.trouble == "not isolated: no hypervisor's process belongs to it"


def test_the_hosts_own_kernel_inside(node):
    hold_kvm(node, 77)
    inside = verify.Verdict("kata", HOST, HOST, 1.5)
    verdict = verify.judged(node, inside, [sandbox(77)])
    assert verdict.trouble == "not isolated: the kernel inside is the host's, 6.8.0-45-generic"


def test_the_same_release_built_by_somebody_else_is_another_kernel(node):
    hold_kvm(node, 77)
    inside = verify.Verdict("kata", HOST, Kernel(HOST.release, "#1 SMP Kata"), 1.5)
    assert verify.judged(node, inside, [sandbox(77)]).verified


def test_emulation_isolates_and_is_told(node):
    verdict = verify.judged(node, VERDICT, [sandbox(77)])
    assert verdict.verified
    assert verdict.notes[-1].startswith("the hypervisor does not use KVM")


def test_a_handler_that_is_not_loaded(node, monkeypatch):
    monkeypatch.setattr(cri, "status", lambda _: cri.Status({}, kata_machine.LOADED))
    service = throwaway.Service("/run/c.sock", "/usr/bin/ctr", (1, 7, 0))
    with pytest.raises(problems.Blocked, match="no handler nope, only kata, runc, untrusted"):
        verify.sandbox(node, service, "nope")


def test_a_backtrace_is_no_news():
    said = (
        r"Others(\"failed\\n\\nCaused by:\\n    0: vsock\\n\\nStack backtrace:\\n   0: <unknown>"
    )
    assert verify.brief(said) == r"Others(\"failed Caused by: 0: vsock"
    assert len(verify.brief("words " * 200)) <= 400


# Alone, and in order


def test_two_proofs_do_not_run_at_once(node):
    with verify.in_order(node):
        with pytest.raises(problems.Waiting, match="another verify-sandbox runs"):
            with verify.in_order(node):
                pass
    with verify.in_order(node):
        pass


def test_a_proof_that_was_killed_does_not_keep_the_next_from_running(node):
    child = os.fork()
    if not child:
        with verify.in_order(node):
            os._exit(9)
    os.waitpid(child, 0)
    with verify.in_order(node):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_it_tidy_up_first(node, number):
    before = signal.getsignal(number)
    tidied = False
    with pytest.raises(verify.Interrupted, match=f"interrupted by {number.name}"):
        with verify.in_order(node):
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                tidied = True
    assert tidied
    assert signal.getsignal(number) == before


def test_no_signal_cuts_the_tidying_up_short(node):
    steps = []
    with pytest.raises(verify.Interrupted):
        with verify.in_order(node):
            with verify.undisturbed():
                os.kill(os.getpid(), signal.SIGTERM)
                steps.append("tidied")
            steps.append("not reached")
    assert steps == ["tidied"]


def test_the_lock_leaves_nothing_on_the_machine(node):
    with verify.in_order(node):
        pass
    assert node.tree() == {}
    assert node.exists(tenancy.STATE)


# The throwaway


class Containerd:
    """containerd's API as far as a throwaway container calls it: what there is, by kind."""

    def __init__(self):
        self.containers = {}
        self.snapshots = set()
        self.tasks = set()
        self.refuses = {}

    def answer(self, method, request):
        service, _, name = method.removeprefix("containerd.services.").partition("/")
        service = service.partition(".")[0]
        key = text(request, 2) if service == "snapshots" else text(request, 1)
        if (service, name) in self.refuses:
            return self.refuses[service, name]
        if (service, name) == ("containers", "Create"):
            container = messages(request, 1)[0]
            self.containers[text(container, 1)] = container
            return b""
        if name == "List":
            items = self.containers.values() if service == "containers" else ()
            return message(*((1, each) for each in items))
        if (service, name) in (("snapshots", "Prepare"), ("snapshots", "Mounts")):
            self.snapshots.add(key)
            mount = message((1, "bind"), (2, "/source"), (4, "rbind"), (4, "rw"))
            return message((1, mount))
        kinds = {"containers": self.containers, "snapshots": self.snapshots, "tasks": self.tasks}
        if (service, name) == ("tasks", "Create"):
            self.tasks.add(key)
            return b""
        if name in ("Delete", "Remove") and service in kinds:
            if key not in kinds[service]:
                return grpc.NOT_FOUND, "not found"
            kinds[service].pop(key) if service == "containers" else kinds[service].remove(key)
        if service == "leases":
            return grpc.NOT_FOUND, "not found"
        return b""


@pytest.fixture
def containerd(node, tmp_path, monkeypatch):
    from tests.unit.grpc_service import Service

    node.path("/run").mkdir(parents=True)
    monkeypatch.chdir(node.path("/run"))
    made = Containerd()
    service = Service(node.path("/run/c.sock"), made.answer)
    made.calls = service.calls
    node.on("mount *")
    node.on("unshare *")
    yield made
    service.close()


SERVICE = throwaway.Service("/run/c.sock", "/usr/bin/ctr", (1, 7, 30))
KATA = cri.Handler("kata", "io.containerd.kata.v2", "/usr/local/bin/shim", {"ConfigPath": "/k"})


@pytest.fixture
def made(node, containerd):
    made = throwaway.Throwaway(node, SERVICE)
    yield made
    made.close()


def test_it_is_described_before_anything_is_made(made, containerd):
    made.create(KATA, "overlayfs", "", b"program")
    methods = [method.removeprefix("containerd.services.") for method, _ in containerd.calls]
    assert methods == ["containers.v1.Containers/Create", "snapshots.v1.Snapshots/Prepare"]


def test_its_root_holds_the_program_and_is_unmounted_again(node, made):
    made.create(KATA, "overlayfs", "", b"program")
    root = f"/run/kata-charm-verify/{made.id}/rootfs"
    assert node.read(f"{root}/kata-probe") == "program"
    assert node.path(f"{root}/kata-probe").stat().st_mode & 0o111
    assert node.ran[1:] == [f"mount --options rbind,rw -- /source {node.path(root)}"]


def test_it_runs_as_cri_would_run_it(made, containerd):
    made.create(KATA, "overlayfs", "", b"program")
    made.start(KATA, "overlayfs", 5)
    container = containerd.containers[made.id]
    runtime = messages(container, 4)[0]
    assert text(runtime, 1) == "io.containerd.kata.v2"
    assert text(messages(runtime, 2)[0], 1) == "runtimeoptions.v1.Options"
    (create,) = [request for method, request in containerd.calls if "Tasks/Create" in method]
    assert text(create, 10) == "/usr/local/bin/shim"
    assert text(messages(create, 3)[0], 2) == "/source"


def test_nothing_is_left_of_it(node, made, containerd):
    made.create(KATA, "overlayfs", "", b"program")
    made.start(KATA, "overlayfs", 5)
    assert made.remove() == ()
    assert (containerd.containers, containerd.snapshots, containerd.tasks) == ({}, set(), set())
    assert not node.exists("/run/kata-charm-verify")
    assert containerd.calls[-1][0] == "containerd.services.namespaces.v1.Namespaces/Delete"


def test_what_an_interruption_has_left_is_removed_by_the_next(node, made, containerd):
    made.create(KATA, "overlayfs", "", b"program")
    made.start(KATA, "overlayfs", 5)
    other = throwaway.Throwaway(node, throwaway.Service("/run/c.sock", "ctr", (1, 7, 30)))
    assert other.remove() == ()
    other.close()
    assert containerd.containers == {}
    assert not node.exists("/run/kata-charm-verify")


def test_its_network_is_its_own_and_has_a_place(node, made, containerd):
    made.create(KATA, "overlayfs", "", b"program")
    path = node.path(f"/run/kata-charm-verify/{made.id}/net")
    assert node.ran[0] == f"unshare --net={path} true"
    (spaces,) = [
        json.loads(text(messages(each, 5)[0], 2))["linux"]["namespaces"]
        for each in containerd.containers.values()
    ]
    assert {"type": "network", "path": str(path)} in spaces


def test_what_a_killed_proof_has_left_is_removed_by_the_next_hook(node, made, containerd):
    node.write(tenancy.PROOF, made.id)
    made.create(KATA, "overlayfs", "", b"program")
    made.start(KATA, "overlayfs", 5)
    verify.clear(node, SERVICE)
    assert (containerd.containers, containerd.snapshots, containerd.tasks) == ({}, set(), set())
    assert not node.exists("/run/kata-charm-verify")
    assert not node.exists(tenancy.PROOF)


def test_what_does_not_go_is_tried_again(node, made, containerd):
    node.write(tenancy.PROOF, made.id)
    made.create(KATA, "overlayfs", "", b"program")
    containerd.refuses["snapshots", "Remove"] = (9, "snapshot is in use")
    with pytest.raises(problems.Blocked, match="snapshot is in use"):
        verify.clear(node, SERVICE)
    assert node.exists(tenancy.PROOF)


def test_what_cannot_be_removed_is_said(made, containerd):
    made.create(KATA, "overlayfs", "", b"program")
    containerd.refuses["snapshots", "Remove"] = (9, "snapshot is in use")
    (left,) = made.remove()
    assert left == "snapshots.v1.Snapshots/Remove: snapshot is in use"


def test_what_it_prints_comes_out(node, made):
    made.create(KATA, "overlayfs", "", b"program")
    out = node.path(f"/run/kata-charm-verify/{made.id}/out")
    writer = threading.Thread(target=lambda: out.write_bytes(b"x" * 391))
    writer.start()
    assert made.answer(391, time.monotonic() + 5) == b"x" * 391
    writer.join()


def test_silence_has_an_end(made):
    made.create(KATA, "overlayfs", "", b"program")
    with pytest.raises(problems.Blocked, match="nothing was heard from inside"):
        made.answer(391, time.monotonic() + 0.3)


def test_an_end_before_it_says_anything_is_told_with_its_words(node, made, containerd):
    made.create(KATA, "overlayfs", "", b"program")
    containerd.refuses["tasks", "Get"] = (grpc.NOT_FOUND, "no task")
    descriptor = os.open(
        node.path(f"/run/kata-charm-verify/{made.id}/err"), os.O_WRONLY | os.O_NONBLOCK
    )
    os.write(descriptor, b"exec format error\n")
    with pytest.raises(problems.Blocked, match="it ended at once: exec format error"):
        made.answer(391, time.monotonic() + 5)
    os.close(descriptor)


def test_an_image_that_pods_use_is_copied_and_not_pulled(node, made):
    node.on("/usr/bin/ctr *")
    node.on("*images ls --quiet name==localhost/tiny:1", "localhost/tiny:1\n")
    node.on("*export*", effect=lambda argv: open(argv[-2], "w").close())
    made.create(KATA, "overlayfs", "localhost/tiny:1", b"program")
    ctr = "/usr/bin/ctr --address /run/c.sock --namespace"
    assert [line.removeprefix(ctr).split()[:3] for line in node.ran[1:]] == [
        ["k8s.io", "images", "ls"],
        ["k8s.io", "images", "export"],
        ["kata-charm-verify", "images", "import"],
        ["kata-charm-verify", "images", "mount"],
    ]


def test_any_other_image_is_pulled(node, made):
    node.on("/usr/bin/ctr *")
    made.create(KATA, "overlayfs", "docker.io/library/busybox:1", b"program")
    assert "pull --snapshotter overlayfs docker.io/library/busybox:1" in node.ran[2]


def test_an_image_that_cannot_be_had(node, made):
    node.on("/usr/bin/ctr *")
    node.on("*pull*", err="ctr: pull access denied", status=1)
    with pytest.raises(problems.Problem, match="pull access denied"):
        made.create(KATA, "overlayfs", "docker.io/library/busybox:1", b"program")


# What a killed proof has left


@pytest.fixture
def machine(node, monkeypatch, tmp_path):
    kata_machine.make(node, monkeypatch, tmp_path)
    node.write(tenancy.PROOF, "verify-1")
    return node


def hook(node, tmp_path):
    given = {"kata-archive": standin.archive(kata_machine.RELEASE, tmp_path)}
    workload.ensure(node, kata_machine.options(), given, lambda _: None)


def test_the_next_hook_removes_it(machine, monkeypatch, tmp_path):
    cleared = []
    monkeypatch.setattr(verify, "clear", lambda _, service: cleared.append(service.address))
    hook(machine, tmp_path)
    machine.remove(tenancy.PROOF)
    hook(machine, tmp_path)
    assert cleared == ["/run/containerd/containerd.sock"]


def test_the_charm_does_not_go_without_it(machine, monkeypatch):
    cleared = []
    shim = machine.path(kata_machine.SHIM)
    monkeypatch.setattr(verify, "clear", lambda *_: cleared.append(shim.is_symlink()))
    workload.remove(machine, kata_machine.options())
    assert cleared == [True]


def test_no_hook_fails_for_it(machine, monkeypatch, tmp_path, caplog):
    def refuse(*_):
        raise problems.Waiting("another verify-sandbox runs")

    monkeypatch.setattr(verify, "clear", refuse)
    hook(machine, tmp_path)
    assert "what it has left stays: another verify-sandbox runs" in caplog.text
