"""What the journal tells of sandboxes that start, or do not."""

import pytest

from kata.checks import causes
from kata.machine import node as kata_node
from kata.observability import starts
from kata.observability.starts import Line

SID = "4300115210aab2f7995c7d011a380a412b5982beb4974f509472073c68e4714a"
# As containerd 1.6 spells a pod, and as 2.1 and later do.
PODS = (
    "&PodSandboxMetadata{Name:nginx,Uid:0a1b,Namespace:default,Attempt:0,}",
    r"name:\"nginx\" uid:\"0a1b\" namespace:\"default\" attempt:1",
)


def begins(time, pod, verb="RunPodSandbox"):
    return Line(time, f'one containerd[7]: time="…" level=info msg="{verb} for {pod}"')


def returns(time, pod, sandbox=SID):
    words = rf'level=info msg="RunPodSandbox for {pod} returns sandbox id \"{sandbox}\""'
    return Line(time, words)


def fails(time, pod, why):
    return Line(time, f'level=error msg="RunPodSandbox for {pod} failed, error" error="{why}"')


def taken(*lines, sandboxes=(SID,)):
    found = starts.Starts()
    found.take(lines, sandboxes)
    return found


def seconds(found):
    told = {sample.suffix: sample.value for sample in found.seconds.samples()}
    return told["_count"], told["_sum"]


def failures(found):
    return {cause: count for cause, count in found.failures.items() if count}


@pytest.mark.parametrize("pod", PODS)
@pytest.mark.parametrize("verb", ["RunPodSandbox", "RunPodsandbox"])
def test_a_start_is_timed(pod, verb):
    assert seconds(taken(begins(10, pod, verb), returns(12.5, pod))) == (1, 2.5)


def test_starts_side_by_side_are_told_apart():
    one, other = PODS
    found = taken(
        begins(10, one), begins(11, other), returns(12, other, "b" * 64), returns(14, one),
        sandboxes=(SID, "b" * 64),
    )  # fmt: skip
    assert seconds(found) == (2, 5)


def test_what_is_not_katas_is_not_timed():
    assert seconds(taken(begins(10, PODS[0]), returns(12, PODS[0]), sandboxes=())) == (0, 0)


def test_a_start_that_began_before_the_exporter_is_not_timed():
    assert seconds(taken(returns(12, PODS[0]))) == (0, 0)


def test_a_line_that_comes_with_a_later_scrape_still_belongs():
    found = starts.Starts()
    found.take([begins(10, PODS[0])], ())
    found.take([returns(14, PODS[0])], (SID,))
    assert seconds(found) == (1, 4)


@pytest.mark.parametrize(
    ("why", "cause"),
    [
        ('no runtime for \\"kata\\" is configured', "no-handler"),
        ("failed to create containerd task: failed to create shim task: not found", "options-table"),
        ("failed to create shim task: something that nobody has seen", "unknown"),
    ],
)  # fmt: skip
def test_a_failure_is_counted_by_its_cause(why, cause):
    found = taken(begins(1, PODS[0]), fails(2, PODS[0], why))
    assert failures(found) == {cause: 1}
    assert seconds(found) == (0, 0)


@pytest.mark.parametrize(
    "why",
    [
        "failed to setup network for sandbox: no address",
        "failed to pull image: not there",
        "failed to create shim task: OCI runtime create failed: runc create failed: no",
        "context deadline exceeded",
    ],
)
def test_what_has_nothing_to_do_with_kata_is_not_counted(why):
    assert failures(taken(fails(2, PODS[0], why))) == {}


def test_a_killed_hypervisor_counts_once():
    found = taken(
        Line(1, "one kernel: oom-kill:constraint=CONSTRAINT_MEMCG,task=qemu-system-x86,pid=7"),
        Line(1, "one kernel: Memory cgroup out of memory: Killed process 7 (qemu-system-x86) x"),
        Line(2, "one kernel: Out of memory: Killed process 8 (mysqld) total-vm"),
    )
    assert failures(found) == {"out-of-memory": 1}


def test_every_cause_is_there_from_the_start():
    names = set(starts.Starts().failures)
    assert {"no-kvm", "guest-silent", "out-of-memory", "unknown"} <= names
    assert names - {"unknown"} <= set(causes.names())


class TestJournal:
    def test_it_begins_now_and_goes_on_from_there(self, node):
        node.on("journalctl * --lines 0 *", out="-- cursor: s=1\n")
        journal = starts.Journal(node, "containerd.service")
        assert journal.read() == []
        node.on(
            "journalctl * --after-cursor s=1 *",
            out="1763990000.123456 one containerd[7]: hello there\n-- cursor: s=2\n",
        )
        assert journal.read() == [Line(1763990000.123456, "one containerd[7]: hello there")]
        node.on("journalctl * --after-cursor s=2 *", out="")
        assert journal.read() == []
        assert node.ran[-1].endswith("_SYSTEMD_UNIT=containerd.service + _TRANSPORT=kernel")

    def test_a_journal_that_cannot_be_read_is_said(self, node):
        with pytest.raises(kata_node.CommandFailed):
            starts.Journal(node, "containerd.service").read()
