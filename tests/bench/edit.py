"""The edit of containerd's configuration, beside parsing and printing it with tomlkit."""

import types
from collections.abc import Iterator

import tomlkit

from kata.containerd import files, sections
from kata.containerd.config import Wanted
from tests.bench.rows import Row, alternately

MAIN = "/etc/containerd/config.toml"
RELEASE = (1, 7, 24)
HEAD = """\
version = 2
# what an administrator wrote
root = "/var/lib/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.example/pause:3.9"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
"""
MIRROR = """\
  [plugins."io.containerd.grpc.v1.cri".registry.mirrors."registry-{0}.example"]
    endpoint = ["https://mirror-{0}.example:5000", "https://registry-{0}.example"] # site {0}
  [plugins."io.containerd.grpc.v1.cri".registry.configs."registry-{0}.example".tls]
    insecure_skip_verify = false
    ca_file = "/etc/ssl/registry-{0}.pem"
"""


class _Disk:
    """A disk with one file."""

    def __init__(self, text: str):
        self.text = text

    def read(self, path: str) -> str | None:
        return self.text if path == MAIN else None

    def names(self, path: str) -> list[str]:
        return []


def text(size: int) -> str:
    """Return a configuration of about that many bytes."""
    pieces = [HEAD]
    length = len(HEAD)
    while length < size:
        pieces.append(MIRROR.format(len(pieces)))
        length += len(pieces[-1])
    return "".join(pieces)


def wanted() -> Wanted:
    """Return our handlers, as a hook asks for them."""
    handlers = [
        types.SimpleNamespace(
            name=name, configuration="/etc/kata.toml", config_path=True, snapshotter=""
        )
        for name in ("kata", "untrusted")
    ]
    return Wanted(("kata", "untrusted"), sections.render(handlers, RELEASE))


def rows(rounds: int, sizes: tuple[int, int] = (10_000, 1_000_000)) -> Iterator[Row]:
    """Measure it on a small and on a large file."""
    handlers = wanted()
    seconds: dict[int, float] = {}
    for size in sizes:
        written = text(size)
        took = alternately(
            {
                "ours": lambda disk=_Disk(written): files.plan(MAIN, disk, RELEASE, handlers),
                "tomlkit": lambda written=written: tomlkit.dumps(tomlkit.parse(written)),
            },
            rounds if size < 100_000 else max(1, rounds // 5),  # tomlkit takes its time
        )
        seconds[size] = took["ours"] / len(written)
        yield Row(
            f"containerd config edit, {size // 1000:,} kB",
            took["ours"] * 1000,
            "ms",
            "tomlkit parses and prints",
            took["tomlkit"] * 1000,
            "at most 1.5 times",
            1.5,
        )
    small, large = (seconds[size] * 1e6 for size in sizes)
    yield Row(
        "containerd config edit, time a byte",
        large,
        "µs",
        "the small file",
        small,
        "linear",
        1.5,
    )
