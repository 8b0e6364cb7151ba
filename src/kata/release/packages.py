"""Kata as Debian packages: from an apt source, or from a tar of packages as the older charm took.

charmhelpers takes keys, and sources that have a name (`ppa:...`, `cloud:...`). A plain `deb` line
is a file of ours, and apt-get is run through the node: apt's own words are the best answer to "why
not", and charmhelpers drops them and tries in vain for two minutes.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Collection, Generator, Iterable
from typing import Any

from kata import limits, problems
from kata.machine import node as kata_node
from kata.release import release

log = logging.getLogger(__name__)

DEAD_SOURCE = "/etc/apt/sources.list.d/kata-containers.list"
"""The older charm's apt source (charmed-kubernetes/charm-kata, reactive/kata.py). Its repository,
on the openSUSE Build Service, stopped in 2020-09."""
_DEAD_REPOSITORY = "download.opensuse.org/repositories/home:/katacontainers:"

_SOURCE = "/etc/apt/sources.list.d/kata-charm.list"
ROOTS = ("/usr", release.PREFIX)
"""Where packages put Kata: those of 1.x, and those made of an archive."""
_SOURCES = ("/etc/apt/sources.list.d", "/etc/apt/trusted.gpg.d", "/etc/apt/keyrings")
_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    # It would restart services, containerd among them (man needrestart).
    "NEEDRESTART_SUSPEND": "1",
}
_APT = (
    "apt-get",
    "--assume-yes",
    "--allow-downgrades",
    "--option=Dpkg::Options::=--force-confold",
    "--option=DPkg::Lock::Timeout=120",
    "--option=Acquire::Retries=3",
)
_SECONDS = 1800
# A key server, or Launchpad, may be slow; charmhelpers itself would wait for ever.
_SOURCE_SECONDS = 300
_SLOW = "what package-source or package-key names is slow; tried again at the next hook"
# Whoever holds the lock, or serves the packages, may be back the next time.
_PASSING = re.compile(
    r"could not get lock|unable to acquire|another process using it|failed to fetch|timed out"
    r"|temporary failure|could ?n.t resolve|could not connect|unable to connect|connection failed",
    re.IGNORECASE,
)
_REMEDIES = (
    (re.compile(r"NO_PUBKEY|not signed|GPG error|signature", re.IGNORECASE), "package-key"),
    (re.compile(r"space", re.IGNORECASE), "the room on the disk"),
)


def ensure(
    node: kata_node.Node,
    packages: tuple[str, ...],
    source: str,
    key: str,
    progress: Callable[[str], object] = lambda _words: None,
) -> bool:
    """Install packages from an apt source.

    Args:
        node: the machine.
        packages: names, or `name=version`.
        source: as add-apt-repository takes it; empty for the machine's own sources.
        key: of the source, in ASCII armour or as an id; empty for none.
        progress: told before it takes long.

    Returns:
        True if anything has changed.

    Raises:
        Blocked, Waiting: why not, in apt's words.
    """
    digest = hashlib.sha256(key.encode()).hexdigest() if key else ""
    asked = {"packages": list(packages), "source": source, "key": digest}
    if _is_there(node, asked):
        return False
    progress(f"installing {' '.join(packages)}")
    before, former = _source_files(node), node.read(_SOURCE)
    try:
        if source.startswith("deb "):
            # A line with a password is nothing for other users of the machine.
            mode = 0o600 if "@" in source else 0o644
            text = f"# The option package-source of the Juju charm kata.\n{source}\n"
            node.write(_SOURCE, text, mode=mode)
        else:
            node.remove(_SOURCE)
        named = "distro" if source.startswith("deb ") or not source else source
        if key or named != "distro":
            _add_source(named, key)
        updated = _apt(node, "update", check=False)
        _install(node, packages, asked, _source_files(node) - before, updated)
    except problems.Problem:
        for path in _source_files(node) - before:
            node.remove(path)
        if former:
            node.write(_SOURCE, former)
        raise
    return True


def ensure_files(node: kata_node.Node, files: Iterable[pathlib.Path], digest: str) -> bool:
    """Install packages from files.

    Args:
        node: the machine.
        files: the packages, as this process sees them.
        digest: of the tar that they came in.

    Returns:
        True if anything has changed.

    Raises:
        Blocked, Waiting: why not, in apt's words.
    """
    asked = {"attached": digest}
    if _is_there(node, asked):
        return False
    _install(node, tuple(str(file) for file in files), asked, set())
    return True


def are_from(node: kata_node.Node, digest: str) -> bool:
    """Tell whether the packages of a tar are installed, by its digest."""
    return _is_there(node, {"attached": digest})


def shim(node: kata_node.Node) -> str:
    """Return the path of the shim that came as a package.

    Raises:
        Blocked: there is none.
    """
    for root in ROOTS:
        if node.path(root).is_symlink():
            continue  # to an unpacked archive
        shims, _ = release.survey(node.path(root), root)
        if shims:
            return next(iter(shims.values()))
    raise problems.Blocked(
        "the packages bring no containerd-shim-kata-v2; correct packages, or attach others"
    )


def remove(node: kata_node.Node, running: Collection[str]) -> tuple[str, ...]:
    """Purge the packages that this charm installed, and take its apt source away.

    Args:
        node: the machine.
        running: the programs that run.

    Returns:
        The packages that stay, because something runs from them or needs them.

    Raises:
        Blocked, Waiting: why not, in apt's words.
    """
    record = release.remembered(node, release.PACKAGES)
    if not record:
        return ()
    ours = _installed_of(node, record.get("added", []))
    used = [name for name in ours if not _files_of(node, name).isdisjoint(running)]
    if used:
        return tuple(ours)
    if ours:
        plan = _apt(node, "--simulate", "purge", *ours)
        others = set(re.findall(r"^(?:Purg|Remv) (\S+)", plan.out, re.MULTILINE)) - set(ours)
        if others:
            log.warning("packages stay, because %s needs them: %s", sorted(others), ours)
            return tuple(ours)
        _apt(node, "purge", *ours)
    for path in record.get("files", []):
        node.remove(str(path))
    node.remove(release.PACKAGES)
    return ()


def remove_dead_source(node: kata_node.Node) -> bool:
    """Take away the apt source that the older charm left. Its packages are left alone.

    Returns:
        True if it was there.
    """
    if _DEAD_REPOSITORY not in (node.read(DEAD_SOURCE) or ""):
        return False
    log.info("removing %s: its repository is dead", DEAD_SOURCE)
    return node.remove(DEAD_SOURCE)


def _is_there(node: kata_node.Node, asked: dict[str, Any]) -> bool:
    record = release.remembered(node, release.PACKAGES)
    shim = record.get("shim")
    return record.get("asked") == asked and bool(shim) and node.exists(str(shim))


def _install(
    node: kata_node.Node,
    packages: tuple[str, ...],
    asked: dict[str, Any],
    files: set[str],
    updated: kata_node.Ran | None = None,
) -> None:
    plan = _apt(node, "--simulate", "install", *packages, updated=updated)
    # An upgrade shows the old version in brackets.
    new = set(re.findall(r"^Inst (\S+) \(", plan.out, re.MULTILINE))
    record = release.remembered(node, release.PACKAGES)
    record = {
        "added": sorted({*map(str, record.get("added", [])), *new}),
        "files": sorted({*map(str, record.get("files", [])), *files}),
    }
    # Before anything is installed: it is ours to remove even if the power fails meanwhile.
    node.write(release.PACKAGES, json.dumps(record) + "\n", mode=0o600)
    _apt(node, "install", *packages)
    try:
        there = shim(node)
    except problems.Blocked:
        if new:
            _apt(node, "purge", *sorted(new))
        raise
    record |= {"asked": asked, "shim": there}
    node.write(release.PACKAGES, json.dumps(record) + "\n", mode=0o600)


@contextlib.contextmanager
def _fixed_path() -> Generator[None]:
    """Have the programs that charmhelpers starts come from the fixed PATH, as ours do."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = kata_node.PATH
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _add_source(source: str, key: str) -> None:
    import importlib
    import subprocess

    fetch: Any = importlib.import_module("charmhelpers.fetch")
    try:
        with _fixed_path(), limits.within(_SOURCE_SECONDS, _SLOW):
            fetch.add_source(source, key or None, fail_invalid=True)
    except AttributeError as error:  # how charmhelpers takes it that gpg finds no key
        raise problems.Blocked("option package-key: gpg finds no key in it; correct it") from error
    except (fetch.SourceConfigError, subprocess.CalledProcessError, OSError) as error:
        raise problems.Blocked(
            f"option package-source or package-key: {error}"[:150] + "; correct it"
        ) from error


def _apt(
    node: kata_node.Node,
    *words: str,
    check: bool = True,
    updated: kata_node.Ran | None = None,
) -> kata_node.Ran:
    """Run apt-get; mend what a power cut has left of dpkg's work first, if it asks for that."""
    ran = node.run(*_APT, *words, check=False, timeout=_SECONDS, env=_ENVIRONMENT)
    if not ran.ok and "dpkg --configure -a" in ran.out + ran.err:
        mend = ("dpkg", "--force-confold", "--configure", "-a")
        node.run(*mend, check=False, timeout=_SECONDS, env=_ENVIRONMENT)
        ran = node.run(*_APT, *words, check=False, timeout=_SECONDS, env=_ENVIRONMENT)
    if check and not ran.ok:
        raise _refusal(ran, updated)
    return ran


def _refusal(ran: kata_node.Ran, updated: kata_node.Ran | None) -> problems.Problem:
    """Return why apt-get did not do it: what kept it from fetching the lists comes first."""
    said = [*_complaints(updated), *_complaints(ran)] or [ran.words]
    if any(_PASSING.search(line) for line in said):
        line = next(line for line in said if _PASSING.search(line))
        return problems.Waiting(f"apt: {line[:120]}; tried again at the next hook")
    for pattern, what in _REMEDIES:
        for line in said:
            if pattern.search(line):
                return problems.Blocked(f"apt: {line[:120]}; see to {what}")
    return problems.Blocked(f"apt: {said[0][:120]}; correct packages or their source")


def _complaints(ran: kata_node.Ran | None) -> list[str]:
    lines = [line.strip() for line in (f"{ran.out}\n{ran.err}" if ran else "").splitlines()]
    said = [line[3:] for line in lines if line.startswith(("E: ", "W: "))]
    return [line for line in lines if " Depends: " in line] + said


def _source_files(node: kata_node.Node) -> set[str]:
    found: set[str] = set()
    for folder in _SOURCES:
        place = node.path(folder)
        if place.is_dir():
            found |= {f"{folder}/{each.name}" for each in place.iterdir()}
    return found


def _installed_of(node: kata_node.Node, names: Iterable[str]) -> list[str]:
    names = list(names)
    if not names:
        return []
    form = "${db:Status-Status} ${Package}\\n"
    ran = node.run("dpkg-query", "--show", f"--showformat={form}", *names, check=False)
    return re.findall(r"^installed (\S+)", ran.out, re.MULTILINE)


def _files_of(node: kata_node.Node, name: str) -> set[str]:
    lists = node.path("/var/lib/dpkg/info").glob(f"{name}*.list")
    return {
        line
        for each in lists
        if each.name.removesuffix(".list").partition(":")[0] == name
        for line in each.read_text("utf-8", "surrogateescape").splitlines()
    }
