"""NVIDIA's .run host driver."""

import os

import pytest

from kata import problems
from kata.gpu import mdev, vgpu_driver
from tests.unit import cards

BUILD = "/lib/modules/6.8.0-45-generic/build"


@pytest.fixture
def machine(tmp_path):
    machine = cards.Machine(tmp_path / "root")
    machine.lay({f"{BUILD}/Makefile": ""})
    machine.on("sh *")
    machine.on("depmod")
    return machine


@pytest.fixture
def package(tmp_path):
    file = tmp_path / "NVIDIA-Linux-x86_64-418.87.01.run"
    file.write_bytes(b"#!/bin/sh\n# makeself\n" + bytes(100))
    return file


def test_it_is_installed_with_the_records_flags(machine, package):
    assert vgpu_driver.ensure_installed(machine, package)
    assert machine.ran[0] == (
        f"sh {package} -a -q --ui=none --no-cc-version-check --no-opengl-files "
        f"--no-install-libglvnd --kernel-source-path={BUILD}"
    )
    assert machine.ran[1:4] == ["depmod", "modprobe nvidia", "modprobe nvidia-vgpu-vfio"]


def test_once(machine, package):
    vgpu_driver.ensure_installed(machine, package)
    machine.lay({vgpu_driver.VERSION: "418.87.01\n"})
    machine.ran.clear()
    assert not vgpu_driver.ensure_installed(machine, package)
    assert machine.ran == []
    assert vgpu_driver.loaded_version(machine) == "418.87.01"


def test_again_for_another_file_or_another_kernel(machine, package):
    vgpu_driver.ensure_installed(machine, package)
    package.write_bytes(b"#!/bin/sh\n# another\n")
    assert vgpu_driver.ensure_installed(machine, package)
    release = "6.8.0-50-generic"
    machine.lay({"/proc/sys/kernel/osrelease": release, f"/lib/modules/{release}/build/M": ""})
    assert vgpu_driver.ensure_installed(machine, package)


def test_headers_are_needed(machine, package):
    machine.lay({"/proc/sys/kernel/osrelease": "6.9.9\n"})
    with pytest.raises(problems.Blocked, match=r"install linux-headers-6\.9\.9"):
        vgpu_driver.ensure_installed(machine, package)
    assert machine.ran == []


def test_the_installers_own_reason_is_told(machine, package):
    machine.on("sh *", err="see the log", status=1)
    machine.lay({vgpu_driver.LOG: "-> x\nERROR: Unable to build the NVIDIA kernel module.\n"})
    with pytest.raises(problems.Blocked, match="Unable to build the NVIDIA kernel module"):
        vgpu_driver.ensure_installed(machine, package)
    assert not machine.exists(vgpu_driver.RECORD)


def test_another_kind_of_file_is_not_run(machine, package):
    package.write_bytes(b"PK\x03\x04")
    with pytest.raises(problems.Blocked, match="resource vgpu-driver is not NVIDIA's installer"):
        vgpu_driver.ensure_installed(machine, package)
    assert machine.ran == []


def test_only_our_own_is_uninstalled(machine, package):
    assert not vgpu_driver.remove(machine)
    assert machine.ran == []
    vgpu_driver.ensure_installed(machine, package)
    machine.ran.clear()
    machine.on("nvidia-uninstall *")
    assert vgpu_driver.remove(machine)
    assert machine.ran == [
        "systemctl stop nvidia-vgpud",
        "systemctl stop nvidia-vgpu-mgr",
        "modprobe -r nvidia-vgpu-vfio nvidia",
        "nvidia-uninstall -q --ui=none",
    ]


def test_a_large_file_is_read_once(machine, package, monkeypatch):
    reads = []
    digest = vgpu_driver._digest
    monkeypatch.setattr(vgpu_driver, "_digest", lambda path: reads.append(1) or digest(path))
    for _ in range(3):
        vgpu_driver.ensure_installed(machine, package)
    os.utime(package, (0, 0))  # the same file, fetched again
    vgpu_driver.ensure_installed(machine, package)
    assert machine.ran.count("depmod") == 1
    assert len(reads) == 2


def test_nouveau_makes_room_for_it_and_comes_back(machine, package):
    before = machine.tree("/etc")
    machine.lay({"/sys/module/nouveau/refcnt": "0\n"})
    vgpu_driver.ensure_installed(machine, package)
    assert machine.ran.index("modprobe -r nouveau") < machine.ran.index(
        next(each for each in machine.ran if each.startswith("sh "))
    )
    assert "blacklist nouveau" in machine.read("/etc/modprobe.d/kata-charm-gpu.conf")
    machine.on("nvidia-uninstall *")
    vgpu_driver.remove(machine)
    assert machine.ran[-1] == "modprobe nouveau"
    assert machine.tree("/etc") == before


def test_nouveau_in_use_asks_for_a_reboot_and_nothing_stays_of_it(machine, package):
    before = machine.tree("/etc"), machine.tree("/var")
    machine.lay({"/sys/module/nouveau/refcnt": "3\n"})
    machine.on("modprobe -r nouveau", err="FATAL: Module nouveau is in use.", status=1)
    with pytest.raises(problems.Blocked, match=r"reboot needed: .* nouveau, which is in use"):
        vgpu_driver.ensure_installed(machine, package)
    assert not any(each.startswith("sh ") for each in machine.ran)
    machine.ran.clear()
    assert vgpu_driver.remove(machine)
    assert machine.ran == ["modprobe nouveau"]
    assert (machine.tree("/etc"), machine.tree("/var")) == before


def test_the_types_are_waited_for(machine, package, monkeypatch):
    machine.card("0000:04:00.0", **cards.P100)
    machine.on("modprobe nvidia", effect=lambda _: machine.lay({vgpu_driver.VERSION: "535\n"}))

    def later(seconds):
        machine.offers("0000:04:00.0", {"nvidia-105": ("GRID P100-8Q", 2)})

    monkeypatch.setattr(mdev.time, "sleep", later)
    vgpu_driver.ensure_installed(machine, package)
    assert mdev.types(machine)
