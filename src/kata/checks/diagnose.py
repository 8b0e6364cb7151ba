"""Why pods with Kata fail on this machine: the causes that can be told, each with its remedy.

Two sources: what is not as it has to be, and what containerd and the kernel have written in the
journal. Nothing is changed.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator

from kata import problems, settings, terminal
from kata.checks import causes, readiness
from kata.containerd import daemon
from kata.machine import node as kata_node

SINCE = "24 hours ago"
_LINES = 5000
_TIMEOUT = 30
_SANDBOX = re.compile(r"\b[0-9a-f]{64}\b")
_POD = re.compile(
    r"\bName:(?P<pod>[^,{}]+),Uid:(?P<uid>[^,{}]*),Namespace:(?P<namespace>[^,{}]+),"
)
_FAILURE = re.compile(r"level=(?:error|fatal)|failed, error")
_UNEXPLAINED = 3


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that keeps pods from running, or did.

    Attributes:
        name: in a word or two.
        meaning: what is the matter.
        remedy: what to do about it.
        evidence: the last line that says so; empty where the machine itself does.
        times: how often it was said.
    """

    name: str
    meaning: str
    remedy: str
    evidence: str = ""
    times: int = 0


def look(node: kata_node.Node, options: settings.Settings, pod: str = "") -> tuple[Finding, ...]:
    """Return what keeps pods with Kata from running: what is wrong now before what was said.

    Args:
        node: the machine.
        options: the charm's.
        pod: namespace/name, to hear of this pod alone; of all by default.

    Raises:
        Blocked: pod is no namespace and name.
    """
    if pod and pod.count("/") != 1:
        raise problems.Blocked(f"pod={pod}: expected namespace/name, as kubectl shows it")
    wrong = [
        Finding(check.name, f"{check.found}; wanted: {check.wanted}", check.remedy)
        for check in readiness.checks(node, options)
        if not check.ok and check.required
    ]
    lines = [*_journal(node, options), *_kernel(node)]
    return (*wrong, *heard(about(lines, pod) if pod else lines))


def heard(lines: Iterable[str]) -> Iterator[Finding]:
    """Yield the causes that lines of a journal speak of, and the last failures without one."""
    found: dict[causes.Cause, list[str]] = {}
    unexplained: dict[str, str] = {}
    for line in lines:
        cause = causes.of(line)
        if cause:
            found.setdefault(cause, []).append(line)
        elif _FAILURE.search(line) and _POD.search(line):
            # Once for each pod: its last words.
            pod = _POD.search(line)
            unexplained[pod["pod"] if pod else ""] = line
    for cause, said in found.items():
        yield Finding(cause.name, cause.meaning, cause.remedy, said[-1], len(said))
    for line in list(unexplained.values())[-_UNEXPLAINED:]:
        yield Finding("unexplained", "a pod failed, in words not known here", "", line, 1)


def about(lines: Iterable[str], pod: str) -> list[str]:
    """Return the lines that are about a pod: by its name, its uid, or the id of a sandbox of it."""
    namespace, _, name = pod.partition("/")
    everything = list(lines)
    marks: set[str] = set()
    for line in everything:
        told = _POD.search(line)
        if told and (told["pod"], told["namespace"]) == (name, namespace):
            # The kernel names the pod's cgroup: its uid, with underscores under systemd.
            marks |= {told["uid"], told["uid"].replace("-", "_"), *_SANDBOX.findall(line)}
    marks.discard("")
    return [line for line in everything if any(mark in line for mark in marks)]


def report(findings: Iterable[Finding], pod: str = "") -> str:
    """Return findings as text of at most 80 columns."""
    lines: list[str] = []
    for number, each in enumerate(findings, 1):
        times = f" ({each.times} times)" if each.times > 1 else ""
        lines += terminal.wrapped(f"{number}. {each.name}{times}")
        lines += terminal.wrapped(each.meaning, 3)
        if each.remedy:
            lines += terminal.wrapped(f"Remedy: {each.remedy}", 3)
        if each.evidence:
            lines += terminal.wrapped(f"Said: {terminal.cut(each.evidence, 400)}", 3)
    if lines:
        return "\n".join(lines)
    of = f"of {terminal.plain(pod)} " if pod else ""
    return "\n".join(
        terminal.wrapped(
            f"Nothing was found that keeps pods with Kata from running: the machine is ready, and "
            f"the journal since {SINCE} tells {of}no failure."
        )
    )


def _journal(node: kata_node.Node, options: settings.Settings) -> list[str]:
    try:
        unit = daemon.find(node, options).unit
    except problems.Problem:
        return []
    return _lines(node, "--unit", unit)


def _kernel(node: kata_node.Node) -> list[str]:
    return _lines(node, "--dmesg")


def _lines(node: kata_node.Node, *asked: str) -> list[str]:
    ran = node.run(
        *("journalctl", *asked, "--since", SINCE, "--lines", str(_LINES)),
        *("--output", "short-iso", "--no-pager", "--quiet"),
        check=False,
        timeout=_TIMEOUT,
    )
    return ran.out.splitlines()
