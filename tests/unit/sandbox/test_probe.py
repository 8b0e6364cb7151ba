"""The program that tells a kernel from another, and the image it comes in."""

import io
import json
import os
import subprocess
import tarfile

import pytest

from kata.machine import host
from kata.machine import node as kata_node
from kata.sandbox import probe, probe_image

HERE = kata_node.Node()
MACHINES = ("amd64", "arm64")


def run(program, tmp_path, *before):
    """Run the probe, and return what it wrote while it still waits."""
    path = tmp_path / "probe"
    path.write_bytes(program)
    path.chmod(0o755)
    process = subprocess.Popen([*before, path], stdout=subprocess.PIPE)
    try:
        return process.stdout.read(probe.SIZE), process.poll()
    finally:
        process.kill()
        process.communicate()


def test_it_says_which_kernel_runs_it_and_waits(tmp_path):
    answer, ended = run(probe.program(host.machine(HERE)), tmp_path)
    assert probe.read(answer) == (os.uname().release, os.uname().version)
    assert answer.endswith(b"\n")
    assert ended is None


def test_on_arm64_it_makes_the_same_calls():
    """Follow the few instructions that it consists of (Arm ARM, C6.2: MOVZ, MOVK, SVC, B)."""
    program = probe.program("arm64")
    at = int.from_bytes(program[24:32], "little") - 0x400000  # the entry point
    registers, calls = [0] * 31, []
    while len(calls) < 4:
        word = int.from_bytes(program[at : at + 4], "little")
        at += 4
        if word >> 23 in (0b110100101, 0b111100101):  # MOVZ, MOVK
            shift, value = (word >> 21 & 3) * 16, word >> 5 & 0xFFFF
            kept = registers[word & 31] & ~(0xFFFF << shift) if word >> 29 & 1 else 0
            registers[word & 31] = kept | value << shift
        elif word >> 26 == 0b000101:  # B, backwards
            at += 4 * ((word & 0x3FFFFFF) - (1 << 26)) - 4
        else:
            assert word == 0xD4000001  # SVC #0
            calls.append((registers[8], *registers[:4]))
    answer = 0x500200
    assert calls[0][:2] == (160, answer)  # uname
    assert calls[1][:4] == (64, 1, answer, probe.SIZE)  # write
    assert calls[2] == calls[3] == (73, 0, 0, 0, 0)  # ppoll without end, again and again
    assert program[answer - 0x500000 :] == bytes(390) + b"\n"


@pytest.mark.parametrize("machine", MACHINES)
def test_it_is_a_small_static_program(machine):
    program = probe.program(machine)
    assert len(program) < 1024
    assert program[:5] == b"\x7fELF\x02"
    assert int.from_bytes(program[18:20], "little") == {"amd64": 62, "arm64": 183}[machine]
    kinds = [int.from_bytes(program[64 + 56 * n :][:4], "little") for n in range(3)]
    assert 3 not in kinds, "no PT_INTERP: it needs no loader"


@pytest.mark.parametrize("answer", [b"", b"\0" * 390, b"\0" * 392])
def test_half_an_answer_is_none(answer):
    with pytest.raises(ValueError, match="bytes instead of 391"):
        probe.read(answer)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_image_is_an_oci_layout(machine):
    with tarfile.open(fileobj=io.BytesIO(probe_image.make(machine).archive)) as tar:
        files = {each.name: tar.extractfile(each).read() for each in tar}
    index = json.loads(files["index.json"])
    (listed,) = index["manifests"]
    assert listed["annotations"]["io.containerd.image.name"] == probe_image.NAME

    def blob(descriptor):
        data = files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert len(data) == descriptor["size"]
        return data

    manifest = json.loads(blob(listed))
    config = json.loads(blob(manifest["config"]))
    assert (config["architecture"], config["os"]) == (machine, "linux")
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    with tarfile.open(fileobj=io.BytesIO(blob(manifest["layers"][0]))) as layer:
        (member,) = layer
        assert f"/{member.name}" == config["config"]["Entrypoint"][0]
        assert layer.extractfile(member).read() == probe.program(machine)
        assert member.mode & 0o111
