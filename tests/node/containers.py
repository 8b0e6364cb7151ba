"""Containers on a node: an image small enough to make here, and one run of it."""

import hashlib
import io
import json
import pathlib
import tarfile
from typing import Any

from tests.node import agent, cache, machine, snapshot

IMAGE = "localhost/tiny:1"
APPLETS = ("sh", "sleep", "echo", "uname", "cat", "ls", "ip", "ps", "id", "mount", "true", "false")
WHEN = 1_767_225_600


def with_image(base: machine.Snapshot) -> machine.Snapshot:
    """Return a snapshot in which containerd has the image."""
    name = cache.key("image", pathlib.Path(__file__))
    return snapshot.after(base, name, load_image)


def load_image(node: machine.Machine, name: str = IMAGE) -> None:
    """Put an image with busybox into containerd, in the namespace of Kubernetes."""
    archive = oci(node.image.busybox.read_bytes(), name)
    node.run(["ctr", "-n", "k8s.io", "images", "import", "-"], stdin=archive)


def run(
    node: machine.Machine,
    *command: str,
    runtime: str = "io.containerd.runc.v2",
    config_path: str | None = None,
    check: bool = True,
) -> agent.Result:
    """Run a command in a container that is gone afterwards; `load_image` comes first."""
    options = ["--rm", "--runtime", runtime]
    if config_path:
        options += ["--runtime-config-path", config_path]
    words = ["ctr", "-n", "k8s.io", "run", *options, IMAGE, "one", *command]
    return node.run(words, check=check)


def oci(busybox: bytes, name: str) -> bytes:
    """Return an OCI image layout, as a tar, of an image with nothing but busybox in it."""
    layer = _tar({
        **{f"{folder}/": None for folder in ("bin", "dev", "etc", "proc", "root", "sys", "tmp")},
        "bin/busybox": busybox,
        **{f"bin/{applet}": pathlib.PurePath("busybox") for applet in APPLETS},
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    })  # fmt: skip
    blobs: dict[str, bytes] = {}

    def put(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        media = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    layers = [put("layer.v1.tar", layer)]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put("config.v1+json", json.dumps(config).encode()),
        "layers": layers,
    }
    listed = put("manifest.v1+json", json.dumps(manifest).encode())
    listed["annotations"] = {"io.containerd.image.name": name}
    index = {"schemaVersion": 2, "manifests": [listed]}
    return _tar({
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps(index).encode(),
        **blobs,
    })  # fmt: skip


def _tar(files: dict[str, bytes | pathlib.PurePath | None]) -> bytes:
    """Pack contents, links (paths) and folders (None)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.mode, member.mtime = 0o755, WHEN
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, bytes):
                member.size = len(content)
            else:
                member.type, member.linkname = tarfile.SYMTYPE, str(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()
