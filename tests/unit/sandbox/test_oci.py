"""What a shim is given, just as containerd's CRI plugin would give it."""

import json

import pytest

from kata.containerd import cri, protobuf
from kata.sandbox import oci

KATA, RUNC = "io.containerd.kata.v2", "io.containerd.runc.v2"


def options(table, kind=KATA, release=(1, 7, 30)):
    """Return the type and the content of the message."""
    message = oci.options(cri.Handler("h", kind, options=table), release)
    return protobuf.text(message, 1), protobuf.messages(message, 2)


def test_no_table_is_no_message():
    assert oci.options(cri.Handler("h", KATA), (1, 7, 30)) == b""


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ((1, 3, 0), "cri.runtimeoptions.v1.Options"),
        ((1, 4, 13), "cri.runtimeoptions.v1.Options"),
        ((1, 5, 0), "runtimeoptions.v1.Options"),
        ((2, 3, 4), "runtimeoptions.v1.Options"),
    ],
)
def test_an_empty_table_is_a_message_all_the_same(release, name):
    assert options({}, release=release) == (name, [])


def test_keys_that_mean_nothing_here_are_dropped():
    assert options({"Runtime": "kata", "RuntimeRoot": "/x"}) == ("runtimeoptions.v1.Options", [])


def test_the_path_of_a_configuration():
    _, (content,) = options({"ConfigPath": "/etc/kata.toml"})
    assert protobuf.text(content, 2) == "/etc/kata.toml"


def test_runcs_own_options():
    name, (content,) = options({"SystemdCgroup": True, "BinaryName": "crun"}, RUNC)
    assert name == "containerd.runc.v1.Options"
    assert protobuf.read(content) == {6: [b"crun"], 9: [1]}


@pytest.mark.parametrize(
    ("kind", "table", "cgroup"),
    [
        (KATA, None, "/parent/one"),
        (KATA, {"SystemdCgroup": True}, "/parent/one"),
        (RUNC, None, "/parent/one"),
        (RUNC, {"SystemdCgroup": True}, "system.slice:parent:one"),
    ],
)
def test_the_specification(kind, table, cgroup):
    handler = cri.Handler("h", kind, options=table)
    message = oci.specification(handler, "parent", "one", ("/probe",), "/n")
    assert protobuf.text(message, 1) == "types.containerd.io/opencontainers/runtime-spec/1/Spec"
    spec = json.loads(protobuf.text(message, 2))
    assert spec["process"]["args"] == ["/probe"]
    assert spec["linux"]["cgroupsPath"] == cgroup
    assert {each["type"] for each in spec["linux"]["namespaces"]} >= {"pid", "network", "mount"}
    assert {"type": "network", "path": "/n"} in spec["linux"]["namespaces"]
    assert "/dev/shm" in {each["destination"] for each in spec["mounts"]}
