"""What containerd's CRI plugin says of itself: its handlers as loaded, and the pods' handlers.

By Kubernetes' Container Runtime Interface (k8s.io/cri-api, pkg/apis/runtime/v1/api.proto).
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, cast

from kata import problems
from kata.containerd import grpc, protobuf

# v1 from containerd 1.6; v1alpha2 up to 1.7, with the same numbers.
_PACKAGES = ("runtime.v1", "runtime.v1alpha2")
_TIMEOUT = 10


@dataclasses.dataclass(frozen=True)
class Handler:
    """A runtime handler as containerd has loaded it.

    Attributes:
        name: the handler.
        runtime_type: such as `io.containerd.kata.v2`.
        runtime_path: the shim's path, if the handler gives one.
        options: its options table; None where it has none, which is not the same as an empty one.
        snapshotter: its snapshotter, or the plugin's own.
    """

    name: str
    runtime_type: str
    runtime_path: str = ""
    options: Mapping[str, Any] | None = None
    snapshotter: str = ""


@dataclasses.dataclass(frozen=True)
class Status:
    """What the plugin says of itself.

    Attributes:
        conditions: such as RuntimeReady and NetworkReady, and why not, empty where they hold.
        handlers: by name.
        pause: the image of the sandboxes' own container.
    """

    conditions: Mapping[str, str]
    handlers: Mapping[str, Handler]
    pause: str = ""


def status(address: pathlib.Path) -> Status:
    """Ask for the plugin's status.

    Raises:
        problems.Problem: it does not answer.
    """
    answer = _call(address, "RuntimeService/Status", protobuf.message((1, 1)))
    conditions: dict[str, str] = {}
    for part in protobuf.messages(answer, 1):
        for each in protobuf.messages(part, 1):
            holds = bool(protobuf.read(each).get(2))
            words = protobuf.text(each, 4) or protobuf.text(each, 3) or "no reason given"
            conditions[protobuf.text(each, 1)] = "" if holds else words
    config = _json(protobuf.mapping(answer, 2).get("config", ""))
    return Status(conditions, _handlers(config), str(config.get("sandboxImage") or ""))


def pod_handlers(address: pathlib.Path) -> dict[str, str]:
    """Return the runtime handler of every pod sandbox, by the sandbox's id; one question for all.

    Raises:
        problems.Problem: it does not answer.
    """
    answer = _call(address, "RuntimeService/ListPodSandbox")
    return {
        protobuf.text(each, 1): protobuf.text(each, 7) for each in protobuf.messages(answer, 1)
    }


def default_snapshotter(address: pathlib.Path) -> str:
    """Return the snapshotter of handlers that name none.

    containerd's CRI has had it in its status up to 1.7; the folder of images tells in all.

    Raises:
        problems.Problem: it does not answer.
    """
    answer = _call(address, "ImageService/ImageFsInfo")
    for usage in protobuf.messages(answer, 1):
        for place in protobuf.messages(usage, 2):
            _, known, name = protobuf.text(place, 1).rpartition("/io.containerd.snapshotter.v1.")
            if known:
                return name
    return "overlayfs"


def _call(address: pathlib.Path, method: str, request: bytes = b"") -> bytes:
    with contextlib.closing(grpc.Channel(address)) as channel:
        for package in _PACKAGES:
            try:
                return channel.call(f"{package}.{method}", request, _TIMEOUT)
            except grpc.Failed as failure:
                if failure.code != grpc.UNIMPLEMENTED:
                    raise
    raise problems.Blocked("containerd's CRI plugin is not loaded: see its journal")


def _handlers(config: Mapping[str, Any]) -> dict[str, Handler]:
    """Read the plugin's configuration as it prints it (containerd, pkg/cri/config, json tags)."""
    containerd = _table(config, "containerd")
    found: dict[str, Handler] = {}
    for name, runtime in _table(containerd, "runtimes").items():
        given = cast("dict[str, Any]", runtime) if isinstance(runtime, dict) else {}
        options = given.get("options")
        found[name] = Handler(
            name,
            str(given.get("runtimeType") or ""),
            str(given.get("runtimePath") or ""),
            cast("dict[str, Any]", options) if isinstance(options, dict) else None,
            str(given.get("snapshotter") or containerd.get("snapshotter") or ""),
        )
    return found


def _json(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _table(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
