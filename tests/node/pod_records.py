"""What containerd and its CRI plugin write down of pods: names, specifications, labels, records.

Pods have numbers here, from which all else follows.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

CONTAINERD = "/run/containerd/containerd.sock"
RUNTIME = "io.containerd.kata.v2"
IMAGE = "docker.io/library/nginx:1.27"
SPECIFICATION = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


def identity(number: int) -> tuple[str, str]:
    """Return the ids of a sandbox and of the container in it, as long as containerd's."""
    return f"{number:08x}" * 7 + "5a5a5a5a", f"{number:08x}" * 7 + "c0c0c0c0"


def pod(number: int) -> str:
    """Return a pod's name; its namespace is `default`."""
    return f"pod-{number:04}"


def space(number: int) -> str:
    """Return the name of a pod's network namespace, as CNI's callers form it."""
    return f"cni-{number:08x}-5a5a-4000-8000-000000000000"


def address(number: int) -> str:
    """Return a pod's address, one of 10.64.0.0/10."""
    return f"10.{64 + number // 62500}.{number // 250 % 250}.{number % 250 + 2}"


def _annotations(number: int, container: str) -> dict[str, str]:
    sandbox, _ = identity(number)
    common = {
        "sandbox-id": sandbox,
        "sandbox-name": pod(number),
        "sandbox-namespace": "default",
        "sandbox-uid": _uid(number),
    }
    if container == sandbox:
        own = {"container-type": "sandbox", "sandbox-log-directory": f"/var/log/pods/{number}"}
    else:
        own = {
            "container-type": "container",
            "container-name": "app",
            "image-name": IMAGE,
        }
    return {f"io.kubernetes.cri.{key}": value for key, value in {**common, **own}.items()}


def _uid(number: int) -> str:
    return f"0a1b2c3d-0000-4000-8000-{number:012}"


def specification(number: int, container: str, network: str) -> dict[str, Any]:
    """Return a specification as containerd's CRI plugin makes it (3 kB)."""
    sandbox, _ = identity(number)
    folder = f"/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{sandbox}"
    capabilities = [
        *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW"),
        *("CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE"),
        *("CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"),
    ]
    kernel = [
        {"destination": place, "type": kind, "source": kind, "options": ["nosuid", "noexec"]}
        for place, kind in (
            *(("/proc", "proc"), ("/dev", "tmpfs"), ("/dev/pts", "devpts"), ("/sys", "sysfs")),
            *(("/dev/mqueue", "mqueue"), ("/sys/fs/cgroup", "cgroup")),
        )
    ]
    bound = [
        {"destination": f"/etc/{file}", "type": "bind", "source": f"{folder}/{file}",
         "options": ["rbind", "rprivate", "rw"]}
        for file in ("hosts", "hostname", "resolv.conf")
    ]  # fmt: skip
    spaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    return {
        "ociVersion": "1.0.2-dev",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/pause"] if container == sandbox else ["nginx", "-g", "daemon off;"],
            "env": ["PATH=/bin", *(f"SERVICE_{each}_PORT=8080" for each in range(20))],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
            "oomScoreAdj": -998,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": pod(number),
        "mounts": [*kernel, *bound],
        "annotations": _annotations(number, container),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}], "cpu": {"shares": 2}},
            "cgroupsPath": f"/kubepods/besteffort/pod{_uid(number)}/{container}",
            "namespaces": [*spaces, {"type": "network", **({"path": network} if network else {})}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"],
        },
    }


def describe(numbers: Iterable[int]) -> None:
    """Make containers in containerd, with the labels and the records of its CRI plugin.

    The plugin reads them when containerd starts (containerd, pkg/cri/server/restart.go).
    """
    from kata.containerd import grpc, protobuf

    headers = {"containerd-namespace": "k8s.io"}
    with contextlib.closing(grpc.Channel(pathlib.Path(CONTAINERD), headers)) as channel:
        for number in numbers:
            network = f"/var/run/netns/{space(number)}"
            for container in identity(number):
                spec = json.dumps(specification(number, container, network)).encode()
                record = _record(number, container, network)
                made = protobuf.message(
                    (1, container),
                    (2, _labels(number, container)),
                    (3, IMAGE),
                    (4, protobuf.message((1, RUNTIME))),
                    (5, protobuf.message((1, SPECIFICATION), (2, spec))),
                    (6, "overlayfs"),
                    (7, container),
                    (10, record),
                )
                method = "containerd.services.containers.v1.Containers/Create"
                channel.call(method, protobuf.message((1, made)), 30)


def _labels(number: int, container: str) -> dict[str, str]:
    own = "sandbox" if container == identity(number)[0] else "container"
    return {
        "io.cri-containerd.kind": own,
        "io.kubernetes.pod.name": pod(number),
        "io.kubernetes.pod.namespace": "default",
        "io.kubernetes.pod.uid": _uid(number),
    }


def _record(number: int, container: str, network: str) -> dict[str, bytes]:
    """Return CRI's own record of a sandbox (containerd, pkg/cri/store/sandbox/metadata.go)."""
    from kata.containerd import protobuf

    if container != identity(number)[0]:
        return {}
    about = {"name": pod(number), "namespace": "default", "uid": _uid(number)}
    metadata = {
        "ID": container,
        "Name": f"{pod(number)}_default_{_uid(number)}_0",
        "Config": {"metadata": about, "linux": {}},
        "NetNSPath": network,
        "IP": address(number),
        "RuntimeHandler": "kata",
    }
    value = json.dumps({"Version": "v1", "Metadata": metadata}).encode()
    kind = "github.com/containerd/cri/pkg/store/sandbox/Metadata"
    return {"io.cri-containerd.sandbox.metadata": protobuf.message((1, kind), (2, value))}
