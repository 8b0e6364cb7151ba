"""The points at which the tests on a node cut a process short."""

import os
import pathlib
import random
import subprocess
import sys

import pytest

from tests.node import points, points_in_process

CHANGES = """
import os, pathlib, subprocess, time
os.mkdir("folder")
pathlib.Path("folder/file").write_text("x")
open("folder/file").read()
os.rename("folder/file", "folder/other")
subprocess.run(["/bin/sleep", "0.5"])
os.symlink("other", "folder/link")
"""
EVENTS = ["os.mkdir", "open", "os.rename", "subprocess.Popen", "os.symlink"]


@pytest.fixture
def run(tmp_path):
    """Run the changes in a folder of their own; returns how they ended, what was told, what is there."""

    def start(how, number=0, seconds=0.0):
        told = tmp_path / "told"
        place = tmp_path / f"{how}-{number}-{seconds}"
        place.mkdir()
        watched = pathlib.Path(points_in_process.__file__).read_text()
        done = subprocess.run(
            [sys.executable, "-c", watched + CHANGES],
            cwd=place,
            env={"PATH": "/none:/bin", points.VARIABLE: f"{how} {told} {number} {seconds}"},
            timeout=60,
            check=False,
        )
        return done.returncode, told.read_text(), sorted(os.listdir(place / "folder"))

    return start


def test_all_changes_are_counted_and_nothing_else(run):
    status, told, there = run("record")
    assert status == 0
    assert [line.split("\t")[1] for line in told.splitlines()] == EVENTS
    assert there == ["link", "other"]


@pytest.mark.parametrize(("number", "there"), [(2, []), (3, ["file"]), (4, ["other"])])
def test_a_process_is_killed_before_its_change(run, number, there):
    status, told, found = run("kill", number)
    assert status == -9
    assert found == there
    assert told.startswith(f"\n{points_in_process.MARK}")
    assert EVENTS[number - 1] in told


def test_a_process_is_killed_while_a_command_runs(run):
    status, _, there = run("kill", 4, 0.2)
    assert status < 0
    assert there == ["other"]


def test_a_point_that_does_not_come_disturbs_nothing(run):
    assert run("kill", 99) == (0, "", ["link", "other"])


def test_each_area_has_its_share():
    def point(number, subject):
        return points.Point(number, 0.0, 0.0, "open", subject)

    found = [point(n, "/opt/kata-releases/.partial/bin/x") for n in range(300)]
    found += [point(300, "/etc/containerd/config.toml"), point(301, "/opt/.kata-charm-1/kata")]
    chosen = points.spread(found, 6, random.Random(1))
    assert sorted(each.area for each in chosen) == sorted(
        2 * ["unpack", "containerd's file", "switch"]
    )
    assert chosen == points.spread(found, 6, random.Random(1))
