"""Finding the containerd that serves the node's pods."""

import types

import pytest

from kata import problems
from kata.containerd import daemon, service
from tests.unit.containerd_machine import MAIN, FakeContainerd


def options(service="auto", config="auto"):
    return types.SimpleNamespace(containerd_service=service, containerd_config=config)


def find(node, **kwargs):
    return daemon.find(node, options(**kwargs))


def test_the_running_unit(node):
    fake = FakeContainerd(node)
    found = find(node)
    assert found == daemon.Containerd(
        unit="containerd.service",
        active="active",
        invocation=fake.invocation,
        pid=100,
        config=MAIN,
        binary="/usr/bin/containerd",
        release=(1, 6, 20),
        arguments=("/usr/bin/containerd",),
    )
    assert found.ctr == "/usr/bin/ctr"
    assert (found.address(node), found.state(node)) == (
        "/run/containerd/containerd.sock",
        "/run/containerd",
    )


def test_canonical_kubernetes_own_before_another(node):
    FakeContainerd(node)
    shown = "LoadState=loaded\nActiveState=active\nMainPID=7\nInvocationID=i\nExecStart=\n\n"
    node.on("systemctl show *", out=shown + shown)
    node.lay({"/proc/7/cmdline": "/snap/k8s/1/bin/containerd\0--address\0/run/k8s.sock\0"})
    node.lay({"/snap/k8s/1/bin/containerd": ""})
    node.path("/proc/7/exe").symlink_to("/snap/k8s/1/bin/containerd")
    node.on("/snap/k8s/1/bin/containerd --version", out="containerd containerd.io v2.1.3 x\n")
    found = find(node)
    assert (found.unit, found.release) == ("snap.k8s.containerd.service", (2, 1, 3))
    assert found.ctr == "/snap/k8s/1/bin/ctr"
    assert found.address(node) == "/run/k8s.sock"


@pytest.mark.parametrize("service", ["other", "other.service"])
def test_the_one_that_the_option_names(node, service):
    FakeContainerd(node, unit="other.service")
    assert find(node, service=service).unit == "other.service"


def test_none(node):
    FakeContainerd(node, unit="other.service")
    with pytest.raises(problems.Blocked, match=r"containerd not found: no unit .*; install it"):
        find(node)
    with pytest.raises(problems.Blocked, match=r"no unit x\.service; correct the option"):
        find(node, service="x")


def test_a_unit_without_its_program(node):
    FakeContainerd(node)
    node.path("/usr/bin/containerd").unlink()
    with pytest.raises(problems.Blocked, match="reinstall containerd"):
        find(node)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "/x/c.toml"],
        ["--config=/x/c.toml"],
        ["-c", "/x/c.toml"],
        ["-config=/x/c.toml"],
        ["--log-level", "debug", "-c=/x/c.toml"],
        ["-c", "x/c.toml"],
    ],
)
def test_the_configuration_that_it_was_started_with(node, arguments):
    FakeContainerd(node)
    node.lay({"/proc/100/cmdline": "\0".join(["/usr/bin/containerd", *arguments, ""])})
    assert find(node).config == "/x/c.toml"
    assert find(node, config="/y.toml").config == "/y.toml"


def test_when_it_is_stopped_the_unit_tells(node):
    fake = FakeContainerd(node)
    fake.active = "inactive"
    found = find(node)
    assert (found.is_active, found.pid, found.config) == (False, 0, MAIN)


def test_a_program_that_was_replaced_while_it_runs(node):
    fake = FakeContainerd(node)
    assert find(node).release == (1, 6, 20)
    node.path("/proc/100/exe").unlink()
    node.path("/proc/100/exe").symlink_to("/usr/bin/containerd (deleted)")
    node.path("/usr/bin/containerd").unlink()
    node.lay({"/usr/bin/containerd": "a newer one"})
    fake.release = "1.7.30"
    assert find(node).release == (1, 7, 30)


def test_its_release_is_asked_once(node):
    FakeContainerd(node)
    find(node)
    node.ran.clear()
    find(node)
    assert [line.split()[1] for line in node.ran] == ["show"]


@pytest.mark.parametrize(
    ("said", "release"),
    [
        (
            "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
            (1, 6, 20),
        ),
        ("containerd github.com/containerd/containerd/v2 v2.0.11 1b5cd6f8", (2, 0, 11)),
        ("containerd containerd.io 1.7.2 0cae528dd6cb557f7201036e9f43420650207b58", (1, 7, 2)),
        ("containerd github.com/containerd/containerd/v2 2.3.4+unknown ", (2, 3, 4)),
    ],
)
def test_releases_as_they_are_printed(node, said, release):
    FakeContainerd(node)
    node.on("/usr/bin/containerd --version", out=said)
    assert find(node).release == release


def test_one_that_does_not_say_its_release(node):
    FakeContainerd(node)
    node.on("/usr/bin/containerd --version", err="Segmentation fault", status=139)
    with pytest.raises(problems.Blocked, match="Segmentation fault; reinstall containerd"):
        find(node)


def test_where_it_listens_and_keeps_its_state_by_its_configuration(node):
    FakeContainerd(node)
    node.lay({MAIN: 'state = "/run/x"\n[grpc]\naddress = "/run/x.sock"\n'})
    assert (find(node).address(node), find(node).state(node)) == ("/run/x.sock", "/run/x")
    node.lay({MAIN: "state = \n"})
    assert find(node).address(node) == daemon.ADDRESS


def test_a_run_that_has_said_nothing_yet_does_not_hide_why_the_last_one_ended(node):
    fake = FakeContainerd(node)
    fake.refuses = lambda text: "no"
    node.on("journalctl _SYSTEMD_INVOCATION_ID=*")
    node.on(
        "journalctl _SYSTEMD_UNIT=containerd.service --since=-5min *",
        out="containerd: no space left\n",
    )
    assert service.restart(node, fake.find()) == "no space left"
