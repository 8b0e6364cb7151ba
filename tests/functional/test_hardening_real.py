"""The units of the services for Prometheus, judged by systemd's own programs."""

import re
import shutil
import subprocess

import pytest

from kata.observability import services
from kata.release import release
from tests.unit import kata_machine
from tests.unit.conftest import FakeNode

ANALYZE = shutil.which("systemd-analyze")
# From 0 to 10; services of a distribution are at 9 and above.
EXPOSURE = {services.MONITOR: 1.6, services.EXPORTER: 2.1}

pytestmark = pytest.mark.skipif(not ANALYZE, reason="this machine has no systemd-analyze")


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A machine with both units."""
    node = FakeNode(tmp_path / "node")
    containerd = kata_machine.make(node, monkeypatch, tmp_path)
    node.on("systemctl * kata-charm-*")
    services.ensure(node, release.installed(node), containerd.find(), 8090)
    return node


@pytest.mark.parametrize("unit", EXPOSURE)
def test_exposure_is_as_low_as_is_said(node, unit):
    words = [ANALYZE, "security", "--offline=true", "--no-pager"]
    place = node.path(f"{services.UNITS}/{unit}")
    done = subprocess.run([*words, place], capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze judges running services only")
    exposure = float(re.search(r"exposure level[^\d]*([\d.]+)", done.stdout)[1])
    assert exposure <= EXPOSURE[unit], done.stdout


@pytest.mark.parametrize("unit", EXPOSURE)
def test_every_line_is_understood(node, unit):
    place = node.path(f"{services.UNITS}/{unit}")
    done = subprocess.run([ANALYZE, "verify", place], capture_output=True, text=True, check=False)
    # The programs and containerd's unit are on the machine that the folder stands for.
    assert not re.search(r"[Uu]nknown (?:key|section|lvalue)|[Ff]ailed to parse", done.stderr)
