"""Runs in the node: pods through containerd's CRI plugin, as kubelet makes them.

cri_pods.py NAME UID HANDLER IMAGE   prints the ids of the sandbox and of its container
"""

import contextlib
import pathlib
import sys

from kata.containerd import grpc, protobuf

SERVICE = "runtime.v1.RuntimeService"
SOCKET = pathlib.Path("/run/containerd/containerd.sock")
message = protobuf.message


def call(method, *fields):
    with contextlib.closing(grpc.Channel(SOCKET)) as channel:
        return channel.call(f"{SERVICE}/{method}", message(*fields), 120)


def run(name, uid, handler, image):
    metadata = message((1, name), (2, uid), (3, "default"))
    folder = f"/var/log/pods/default_{name}_{uid}"
    labels = {
        "io.kubernetes.pod.name": name,
        "io.kubernetes.pod.namespace": "default",
        "io.kubernetes.pod.uid": uid,
    }
    pod = message((1, metadata), (2, name), (3, folder), (6, labels), (8, message((1, ""))))
    sandbox = protobuf.text(call("RunPodSandbox", (1, pod), (2, handler)), 1)
    words = [(3, word) for word in ("/bin/sleep", "100000")]
    container = message((1, message((1, "app"))), (2, message((1, image))), *words, (6, labels))
    made = call("CreateContainer", (1, sandbox), (2, container), (3, pod))
    call("StartContainer", (1, protobuf.text(made, 1)))
    return sandbox, protobuf.text(made, 1)


if __name__ == "__main__":
    try:
        print(*run(*sys.argv[1:]))
    except grpc.Failed as failure:
        sys.exit(str(failure))
