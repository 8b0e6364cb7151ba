"""Sandboxes as data and as a table."""

import json

from kata.sandbox import report as sandbox_report
from kata.sandbox import sandboxes
from tests.unit import sandbox_tree as tree


def test_the_table(node):
    tree.lay_go(node, 1, rss=50_000)
    tree.lay_rust(node, 2, pod=("kube-system", "dns"), ip="10.1.39.7")
    found = sandboxes.find(node, handlers={tree.sid(1): "kata"})
    assert sandbox_report.table(found).splitlines() == [
        "POD                            SANDBOX      VM         VCPUS  MEMORY MiB      UP",
        "default/nginx                  000000010000 qemu           1    195/2048  16m40s",
        "  pid 1001; CID 751925852; 10.1.39.154, fd00::103; handler kata; go shim 4.1.0",
        "kube-system/dns                000000020000 qemu           1      0/2048  16m40s",
        "  pid 1003; CID 751925852; 10.1.39.7, fd00::103; rust shim 4.1.0",
    ]


def test_an_empty_table_says_so():
    assert sandbox_report.table([]) == "no Kata sandboxes on this machine"


def test_what_is_wrong_stands_below(node):
    tree.lay_bundle(node, tree.sid(3))
    lines = sandbox_report.table(sandboxes.find(node)).splitlines()
    assert lines[1].split()[-3:] == ["?", "?/?", "?"]
    assert lines[2:] == ["  ! no shim process", "  ! no hypervisor process"]


def test_a_hostile_name_stays_in_its_line_and_in_80_columns(node):
    name = "evil\x1b[2J\n" + "中" * 40
    tree.lay_go(node, pod=("default", name), ip="10.0.0.1")
    table = sandbox_report.table(sandboxes.find(node))
    assert len(table.splitlines()) == 3
    assert all(len(line) <= 80 for line in table.splitlines())
    assert table.replace("\n", "").isprintable()
    data = json.loads(json.dumps(sandbox_report.data(sandboxes.find(node)[0])))
    assert data["pod"] == name, "programs get the name as it is"


def test_data_say_their_units(node):
    tree.lay_go(node, rss=3)
    data = sandbox_report.data(sandboxes.find(node, handlers={tree.sid(1): "kata"})[0])
    assert data["memory_in_use_bytes"] == 3 * tree.PAGE
    assert (data["memory_mib"], data["uptime_seconds"], data["vcpus"]) == (2048, 1000, 1)
    assert (data["handler"], data["shim"], data["release"]) == ("kata", "go", "4.1.0")
    assert data["containers"] == [
        {"id": tree.cid(1), "name": "nginx", "image": "docker.io/library/nginx:1.27"}
    ]
