"""An image with nothing but the probe in it, as containerd imports it."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any, NamedTuple

from kata.machine import host
from kata.sandbox import probe

NAME = "localhost/kata-charm-probe:1"


class Image(NamedTuple):
    """The image.

    Attributes:
        archive: a tar of an OCI layout (opencontainers/image-spec, image-layout.md).
        names: what containerd calls it once it is imported: CRI adds a name after its digest.
    """

    archive: bytes
    names: tuple[str, str]


def make(machine: host.Architecture) -> Image:
    """Return the image for a machine; it is the same each time."""
    blobs: dict[str, bytes] = {}

    def put(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    layer = put("layer.v1.tar", _tar({probe.PATH.lstrip("/"): probe.program(machine)}))
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {"Entrypoint": [probe.PATH], "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put("config.v1+json", _json(config)),
        "layers": [layer],
    }
    listed = put("manifest.v1+json", _json(manifest))
    listed["annotations"] = {"io.containerd.image.name": NAME}
    index = {"schemaVersion": 2, "manifests": [listed]}
    head = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": _json(index)}
    return Image(_tar(head | blobs), (NAME, manifest["config"]["digest"]))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.mode, member.size = 0o755, len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
