"""The actions check-gpu and list-vgpus, as Juju calls them."""

import json

import ops
import ops.testing
import pytest
import yaml

from gpu_actions import GpuActions
from kata import problems
from kata.gpu import configuration as gpu_configuration
from tests.unit import cards, kata_releases

OPTIONS = yaml.safe_load(kata_releases.CHARM.read_text())["config"]["options"]


@pytest.fixture
def machine(tmp_path):
    machine = cards.of_the_record(tmp_path / "root")
    return machine.offers("0000:04:00.0", {"nvidia-105": ("GRID P100-8Q", 2)})


@pytest.fixture
def run(machine):
    """Run an action on a unit of a charm that has nothing but these."""

    def run(action, installed=lambda _: None, **config):
        class Charm(ops.CharmBase):
            def __init__(self, framework):
                super().__init__(framework)
                self.gpu = GpuActions(self, machine, installed, lambda _: None)

        context = ops.testing.Context(
            Charm,
            meta={"name": "kata"},
            config={"options": OPTIONS},
            actions={"check-gpu": {}, "list-vgpus": {}},
        )
        context.run(context.on.action(action), ops.testing.State(config=config))
        return context

    return run


def test_check_gpu_answers_in_four_parts(run):
    results = run("check-gpu").action_results
    assert set(results) == {"ready", "report", "gpus", "checks"}
    assert results["ready"] == "false"
    assert "GPU 0000:04:00.0 [0302]" in results["report"]
    assert [each["bdf"] for each in json.loads(results["gpus"])] == [
        "0000:04:00.0",
        "0000:84:00.0",
    ]
    assert {"IOMMU", "release"} <= {each["name"] for each in json.loads(results["checks"])}


def test_check_gpu_reads_what_is_installed(run):
    asked = []

    def installed(wanted):
        asked.append(wanted.gpu_mode)
        return gpu_configuration.Installed((4, 1, 0), "go", "/shipped.toml")

    results = run("check-gpu", installed, **{"gpu-mode": "passthrough"}).action_results
    assert asked == ["passthrough"]
    assert "plug for passthrough: cold" in results["report"]


def test_a_release_that_does_not_fit_is_told_and_the_rest_still_shown(run):
    def installed(_):
        raise problems.Blocked("Kata 4.1.0 ships no fc")

    context = run("check-gpu", installed)
    assert context.action_logs == ["Kata 4.1.0 ships no fc"]
    assert context.action_results["gpus"] != "[]"


def test_a_bad_option_fails_the_action(run):
    with pytest.raises(ops.testing.ActionFailed, match="option gpu-plug='bus'"):
        run("check-gpu", **{"gpu-plug": "bus"})


def test_list_vgpus_shows_types_and_instances(run, machine):
    machine.put("/sys/class/mdev_bus/0000:04:00.0/mdev_supported_types/nvidia-105/create", "u-1")
    results = run("list-vgpus").action_results
    assert json.loads(results["types"])[0]["available"] == 1
    assert json.loads(results["instances"]) == [
        {"uuid": "u-1", "parent": "0000:04:00.0", "type": "nvidia-105", "group": 200}
    ]
    assert "0000:04:00.0 nvidia-105 (GRID P100-8Q): 1 free" in results["report"]


def test_and_says_so_where_there_are_none(run, machine):
    machine.path("/sys/class/mdev_bus/0000:04:00.0").unlink()
    assert run("list-vgpus").action_results["report"].startswith("no vGPU types")
