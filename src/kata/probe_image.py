"""An image with nothing but the probe in it, as containerd imports it."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping

from kata import host, probe

NAME = "localhost/kata-charm-probe:1"


def archive(machine: host.Architecture) -> bytes:
    """Return the image as a tar of an OCI layout (opencontainers/image-spec, image-layout.md)."""
    blobs: dict[str, bytes] = {}

    def put(kind: str, data: bytes) -> dict[str, object]:
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
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put("config.v1+json", _json(config)),
        "layers": [layer],
    }
    listed = put("manifest.v1+json", _json(manifest))
    listed["annotations"] = {"io.containerd.image.name": NAME}
    index = {"schemaVersion": 2, "manifests": [listed]}
    return _tar(
        {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": _json(index)} | blobs
    )


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
