"""Sandboxes followed by hand: the commands that people use, one after the other.

`ctr c ls` and `ctr c info` for the pods, `ps` for the virtual machines, `ip netns exec … ip addr`
and `tc filter show` for their networks, `ip link` and `bridge link` for the host's. It is what the
actions are compared with, in what they find and in the time that they take.
"""

import json
import re
import subprocess
from collections.abc import Iterable
from typing import Any

_REDIRECT = re.compile(r"Egress Redirect to device (\S+?)\)")


def every() -> list[dict[str, Any]]:
    """Follow every Kata pod on this machine."""
    machines = _machines()
    pods = {each["ID"]: each for each in _containers() if _is_sandbox(each)}
    return [_followed(info, machines) for info in pods.values()]


def one(container: str) -> dict[str, Any]:
    """Follow one pod, from the id of a container of it, which `kubectl describe` shows."""
    own = _info(container)["Spec"]["annotations"]["io.kubernetes.cri.sandbox-id"]
    return _followed(_info(own), _machines())


def _containers() -> Iterable[dict[str, Any]]:
    for line in _said("ctr", "-n", "k8s.io", "containers", "ls").splitlines()[1:]:
        name, _, runtime = line.split()
        if "kata" in runtime:
            yield _info(name)


def _info(name: str) -> dict[str, Any]:
    return json.loads(_said("ctr", "-n", "k8s.io", "containers", "info", name))


def _is_sandbox(info: dict[str, Any]) -> bool:
    return info["Labels"].get("io.cri-containerd.kind") == "sandbox"


def _machines() -> dict[str, tuple[int, int]]:
    """Return pid and vsock CID by sandbox id, of all that `ps -ef | grep qemu` would show."""
    found: dict[str, tuple[int, int]] = {}
    for line in _said("ps", "-e", "-o", "pid=,args=", "-ww").splitlines():
        name = re.search(r"qemu\S* -name sandbox-([^, ]+)", line)
        cid = re.search(r"guest-cid=(\d+)", line)
        if name:
            found[name[1]] = int(line.split()[0]), int(cid[1]) if cid else 0
    return found


def _followed(info: dict[str, Any], machines: dict[str, tuple[int, int]]) -> dict[str, Any]:
    spec, labels = info["Spec"], info["Labels"]
    paths = [each.get("path", "") for each in spec["linux"]["namespaces"]]
    network = next(path for path in paths if "netns" in path)
    inside = ["ip", "netns", "exec", network.rpartition("/")[2]]
    links = _said(*inside, "ip", "addr")
    card = re.search(r"^(\d+): (eth0)@if(\d+):", links, re.MULTILINE)
    address = re.search(r"inet ([0-9.]+)/\d+ .*scope global", links)
    assert card
    assert address
    redirects = [
        _REDIRECT.findall(_said(*inside, "tc", "filter", "show", "dev", device, "ingress"))
        for device in ("eth0", "tap0_kata")
    ]
    outer = re.search(rf"^{card[3]}: (\S+?)@", _said("ip", "addr"), re.MULTILINE)
    assert outer
    ports = re.search(rf": {outer[1]}@.* master (\S+)", _said("bridge", "link"))
    pid, cid = machines.get(info["ID"], (None, None))
    return {
        "pod": labels["io.kubernetes.pod.name"],
        "id": info["ID"],
        "pid": pid,
        "cid": cid,
        "network": network,
        "ip": address[1],
        "redirects": redirects,
        "outer": outer[1],
        "bridge": ports[1] if ports else None,
    }


def _said(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
