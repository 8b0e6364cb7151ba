"""Why pods fail: from the machine's state, and from the journal."""

import pytest

from kata import problems
from kata.checks import diagnose
from tests.unit import kata_machine

ID = "4300115210aab2f7995c7d011a380a412b5982beb4974f509472073c68e4714a"
UID = "0a1b2c3d-0000-4000-8000-000000000001"


def said(words, pod="nginx-kata", namespace="default", uid=UID, minute=10):
    return (
        f'2026-11-24T03:{minute}:00+0000 one containerd[77]: time="…" level=error msg="RunPodSandbox '
        f"for &PodSandboxMetadata{{Name:{pod},Uid:{uid},Namespace:{namespace},Attempt:0,}} failed, "
        f'error" error="failed to create containerd task: {words}"'
    )


RECORD = "failed to create shim task: not found"
NO_HANDLER = r"no runtime for \"kata\" is configured"


@pytest.fixture
def node(node, monkeypatch, tmp_path):
    """A machine that is ready."""
    kata_machine.make(node, monkeypatch, tmp_path)
    return node


def journal(node, *lines, kernel=()):
    node.on("journalctl --unit containerd.service *", "\n".join(lines))
    node.on("journalctl --dmesg *", "\n".join(kernel))


def look(node, pod=""):
    return diagnose.look(node, kata_machine.options(), pod)


def test_nothing_is_wrong(node):
    assert look(node) == ()
    report = diagnose.report((), "default/nginx")
    assert "of default/nginx no failure" in report.replace("\n", " ")


def test_the_deploy_records_failure_is_named_with_its_remedy(node):
    journal(node, said(RECORD, minute=10), said(RECORD, minute=11))
    (finding,) = look(node)
    assert finding.name == "options-table"
    assert "remove the options table" in finding.remedy
    assert finding.times == 2
    assert "03:11" in finding.evidence, "the last time that it was said"


def test_what_is_wrong_now_comes_before_what_was_said(node):
    journal(node, said(NO_HANDLER))
    node.path("/etc/kata-containers/configuration.toml").unlink()
    names = [each.name for each in look(node)]
    assert names == ["kata: guest", "untrusted: guest", "no-handler"]


def test_one_pod_alone(node):
    other = "ffffffff-0000-4000-8000-000000000002"
    journal(
        node,
        said(RECORD),
        said(NO_HANDLER, pod="web", uid=other),
        said(NO_HANDLER, namespace="other", uid=other),
    )
    assert [each.name for each in look(node, "default/nginx-kata")] == ["options-table"]
    assert [each.name for each in look(node, "default/web")] == ["no-handler"]
    assert look(node, "default/none") == ()


def test_a_pods_sandbox_and_its_cgroup_are_about_the_pod_too(node):
    created = (
        f'2026 one containerd[7]: level=info msg="RunPodSandbox for &PodSandboxMetadata{{'
        f'Name:nginx-kata,Uid:{UID},Namespace:default,Attempt:0,}} returns sandbox id \\"{ID}\\""'
    )
    guest = (
        f'2026 one containerd[7]: level=error msg="timed out connecting to vsock 3" sandbox={ID}'
    )
    cgroup = f"kubepods-pod{UID.replace('-', '_')}.slice"
    oom = f"2026 one kernel: oom-kill:oom_memcg=/{cgroup},task=qemu-system-x86,pid=5"
    elsewhere = "2026 one kernel: oom-kill:oom_memcg=/kubepods-podffff.slice,task=qemu-system-x86"
    journal(node, created, guest, kernel=(oom, elsewhere))
    found = {each.name: each for each in look(node, "default/nginx-kata")}
    assert set(found) == {"guest-silent", "out-of-memory"}
    assert found["out-of-memory"].times == 1


def test_a_machine_killed_for_memory(node):
    journal(node, kernel=("one kernel: Out of memory: Killed process 7 (qemu-system-x86) x",))
    (finding,) = look(node)
    assert "overhead-memory" in finding.remedy


def test_words_that_are_not_known_are_shown_once_a_pod(node):
    lines = [said(f"something new {n}", pod=f"p{n % 5}") for n in range(20)]
    journal(node, *lines)
    found = look(node)
    assert [each.name for each in found] == ["unexplained"] * 3
    assert "something new 19" in found[-1].evidence


def test_ordinary_lines_are_no_failures(node):
    journal(node, '2026 one containerd[7]: level=info msg="StartContainer"', "", "level=error x")
    assert look(node) == ()


@pytest.mark.parametrize("pod", ["nginx", "a/b/c"])
def test_a_pod_is_a_namespace_and_a_name(node, pod):
    with pytest.raises(problems.Blocked, match=f"pod={pod}: expected namespace/name"):
        look(node, pod)


def test_the_journal_is_asked_for_a_day_and_a_bounded_number_of_lines(node):
    journal(node)
    look(node)
    asked = [line for line in node.ran if line.startswith("journalctl")][-2:]
    assert all("--since 24 hours ago --lines 5000" in line for line in asked)


def test_no_containerd_is_a_finding_too(node):
    node.on("systemctl show *", "LoadState=not-found\n")
    assert look(node)[0].name == "containerd"


def test_the_report_fits_a_terminal_whatever_was_said(node):
    journal(node, said(RECORD), said("new \x1b[2J\t" + "x" * 900, pod="p"))
    lines = diagnose.report(look(node)).splitlines()
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    assert lines[0] == "1. options-table"
    assert any(line.startswith("   Remedy: remove the options table") for line in lines)
