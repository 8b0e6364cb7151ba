"""NVIDIA's .run host driver."""

import pytest

from kata import problems
from kata.gpu import vgpu_driver
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
    machine.on("nvidia-uninstall *")
    assert vgpu_driver.remove(machine)
    assert machine.ran[-1] == "nvidia-uninstall -q --ui=none"
