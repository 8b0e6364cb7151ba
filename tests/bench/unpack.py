"""A release archive unpacked, beside tar with the same decompressor.

python3 -m tests.bench.unpack ARCHIVE FOLDER    unpacks one, as a hook does
"""

import io
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator

from tests.bench import meter
from tests.bench.rows import Row

TAR = {"xz": ["tar", "-xJf"], "zst": ["tar", "--zstd", "-xf"]}
PACK = {"xz": ["xz", "-1", "-T0", "-c"], "zst": ["zstd", "-q", "-T0", "-c"]}


class _Again(io.RawIOBase):
    """A block again and again. Held as a whole it would count as memory of what is started here."""

    def __init__(self, block: bytes, start: int) -> None:
        self._block = block
        self._at = start

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes."""
        piece = self._block[self._at : self._at + size]
        while len(piece) < size:
            piece += self._block[: size - len(piece)]
        self._at = (self._at + size) % len(self._block)
        return piece


def archive(folder: pathlib.Path, kind: str, size: int) -> pathlib.Path:
    """Return an archive that unpacks to that many bytes: files large and small, as Kata's are."""
    place = folder / f"{size >> 20}-mib.tar.{kind}"
    if place.exists():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".partial")
    chance = random.Random(1)
    # Kata's own archives shrink to a third or so: a part is noise, the rest repeats itself.
    block = b"".join(
        chance.randbytes(96 << 10) + b"text of a program " * (10 << 10) for _ in range(16)
    )
    with partial.open("wb") as file:
        packed = subprocess.Popen(PACK[kind], stdin=subprocess.PIPE, stdout=file)
        with tarfile.open(fileobj=packed.stdin, mode="w|") as tar:
            left, number = size, 0
            while left > 0:
                length = min(left, (200 << 20) if number % 8 == 0 else (2 << 20))
                start = chance.randrange(len(block))
                member = tarfile.TarInfo(f"opt/kata/share/file-{number}")
                member.size = length
                tar.addfile(member, _Again(block, start))
                left, number = left - length, number + 1
        assert packed.stdin
        packed.stdin.close()
        if packed.wait():
            raise RuntimeError(f"{PACK[kind]}: {packed.returncode}")
    partial.rename(place)
    return place


def rows(
    rounds: int, folder: pathlib.Path, size: int = 1 << 30, kinds: tuple[str, ...] = ("xz", "zst")
) -> Iterator[Row]:
    """Measure both kinds."""
    environment = ["env", f"PYTHONPATH={os.pathsep.join(sys.path)}"]
    for kind in kinds:
        packed = archive(folder, kind, size)
        samples: dict[str, list[meter.Cost]] = {"ours": [], "tar": []}
        for number in range(rounds):
            for name in list(samples) if number % 2 == 0 else list(reversed(samples)):
                place = tempfile.mkdtemp(dir=folder)
                ours = [*environment, sys.executable, "-m", "tests.bench.unpack", packed, place]
                tar = [*TAR[kind], packed, "-C", place]
                argv = [str(word) for word in (ours if name == "ours" else tar)]
                once = meter.measured({name: meter.Contender(argv, os.getcwd())}, 1)
                samples[name].append(once[name])
                shutil.rmtree(place)
                os.sync()
        speed = {
            name: (size >> 20) / statistics.median(each.wall for each in runs)
            for name, runs in samples.items()
        }
        yield Row(
            f"unpacking {size >> 20:,} MiB, {kind}",
            speed["ours"],
            "MiB/s",
            "tar",
            speed["tar"],
            "at least 0.9",
            0.9,
            least=True,
        )
        yield Row(
            f"memory of unpacking, {kind}",
            max(each.memory for each in samples["ours"]),
            "MiB",
            aim="under 100 MB",
            bound=95,
        )


def main() -> None:
    """Unpack an archive."""
    from kata.release import archive as kata_archive
    from kata.release import tree

    packed, place = map(pathlib.Path, sys.argv[1:])
    with packed.open("rb", buffering=0) as file:
        kata_archive.unpack(file, tree.Tree(place), packed.name)


if __name__ == "__main__":
    main()
