"""The charm's life in a cluster: deployed, used, changed and removed. In order."""

import json
import pathlib
from typing import Any

import pytest

from tests.integration import actions, answers, conftest
from tests.integration.clusters import Cluster
from tests.integration.conftest import Deployment, Ops

# The files of containerd's in which something of the charm's stands.
FILES = "grep -rl 'kata charm: begin' /etc/containerd"
CLASS = {"runtime_class": "kata"}
ANNOTATION = {"untrusted": True}


@pytest.mark.abort_on_fail
@pytest.mark.skip_if_deployed
async def test_deploy(
    ops_test: Ops, deployment: Deployment, cluster: Cluster, packed: pathlib.Path | None
) -> None:
    charm = await conftest.pack(ops_test, cluster, packed)
    await deployment.deploy(cluster.bundle, charm=charm)
    await deployment.settle(cluster.control_plane, cluster.worker, "kata", minutes=90)
    for unit in await deployment.units():
        assert unit.message.startswith("Kata runtime available ("), unit


@pytest.mark.abort_on_fail
async def test_the_leader_has_made_the_class_and_the_nodes_are_labelled(
    deployment: Deployment,
) -> None:
    made = json.loads(await deployment.kubectl("get runtimeclass kata -o json"))
    assert made["handler"] == "kata"
    assert set(made["overhead"]["podFixed"]) == {"cpu", "memory"}
    nodes = await deployment.kubectl("get node -l katacontainers.io/kata-runtime=true -o name")
    assert len(nodes.split()) == len(await deployment.units())


@pytest.mark.abort_on_fail
@pytest.mark.parametrize("way", [CLASS, ANNOTATION], ids=["class", "annotation"])
async def test_a_pod_runs_and_sees_another_kernel(
    deployment: Deployment, cluster: Cluster, way: dict[str, Any]
) -> None:
    plain = await deployment.kernel_in(answers.pod("plain"))
    host = (await deployment.shell("uname -r", f"{cluster.worker}/leader")).strip()
    assert plain == host
    inside = await deployment.kernel_in(answers.pod("guarded", **way))
    assert inside
    assert inside != host


async def test_a_second_update_changes_nothing(deployment: Deployment) -> None:
    """A hook on a machine where all is well restarts nothing, whatever the option was."""
    unit = await deployment.unit()
    since = "systemctl show containerd snap.k8s.containerd -p ActiveEnterTimestampMonotonic"
    before = await deployment.shell(since, unit)
    await deployment.juju("config", "kata", "default-memory=1024")
    await deployment.settle("kata")
    await deployment.juju("config", "kata", "--reset", "default-memory")
    await deployment.settle("kata")
    assert await deployment.shell(since, unit) == before


@pytest.mark.parametrize("name", actions.ACTIONS)
async def test_actions_answer(deployment: Deployment, name: str) -> None:
    manifest = answers.pod("seen", runtime_class="kata")
    await deployment.shell(answers.apply(deployment.cluster.kubectl, manifest))
    await deployment.kubectl("wait --for=condition=Ready pod/seen --timeout=300s")
    node = (await deployment.kubectl("get pod seen -o jsonpath={.spec.nodeName}")).strip()
    unit = await _unit_on(deployment, node)
    parameters, result, words = actions.ACTIONS[name]
    answer = await deployment.action(name, unit, **parameters)
    assert answer.completed, answer.message
    assert words in answer.results[result]
    assert all(len(line) <= 80 for line in answer.results.get("table", "").splitlines())


async def test_a_pod_made_through_the_api_is_proven_too(deployment: Deployment) -> None:
    leader = next(each.name for each in await deployment.units())
    answer = await deployment.action("verify-sandbox", leader, level="pod", timeout="600")
    assert answer.completed or "leader" in answer.message, answer.message


async def test_the_handlers_outlive_a_rewrite(deployment: Deployment, cluster: Cluster) -> None:
    """The containerd charm writes its file anew for an option; the guard is there first."""
    if cluster.name == "charmed":
        await deployment.juju("config", "containerd", "no_proxy=rewrite.example")
        await deployment.settle("containerd")
    else:
        cut = "sed -i '/kata charm: begin/,/kata charm: end/d'"
        line = f"{FILES} | xargs -r {cut} && systemctl restart snap.k8s.containerd"
        await deployment.shell(line, f"{cluster.worker}/leader")
    inside = await deployment.kernel_in(answers.pod("after", runtime_class="kata"))
    assert inside != (await deployment.shell("uname -r")).strip()


async def test_gpu_mode_on_and_off(deployment: Deployment) -> None:
    """Without a card a machine says so and stays well; the class comes and goes."""
    await deployment.juju("config", "kata", "gpu-mode=passthrough")

    async def classes() -> set[str]:
        return set((await deployment.kubectl("get runtimeclass -o name")).split())

    await deployment.settle("kata")
    assert "runtimeclass.node.k8s.io/kata-gpu" in await classes()
    for unit in await deployment.units():
        assert "no NVIDIA GPU here" in unit.message or "GPU" in unit.message
    await deployment.juju("config", "kata", "gpu-mode=none")
    await deployment.settle("kata")
    assert "runtimeclass.node.k8s.io/kata-gpu" not in await classes()


async def test_a_bad_option_blocks_and_changes_nothing(deployment: Deployment) -> None:
    await deployment.juju("config", "kata", "shim=java")

    def lacking(status: Any) -> str:
        found = answers.units(status, "kata").values()
        return "" if all("option shim='java'" in each.message for each in found) else "blocked"

    await deployment.until(lacking)
    await deployment.juju("config", "kata", "--reset", "shim")
    await deployment.settle("kata")


async def test_remove(deployment: Deployment) -> None:
    units = [each.principal for each in await deployment.units()]
    await deployment.kubectl("delete pod seen --ignore-not-found")
    await deployment.juju("remove-application", "kata", "--no-prompt")
    await deployment.until(
        lambda status: "kata is still there" if "kata" in status["applications"] else ""
    )
    assert "kata" not in await deployment.kubectl("get runtimeclass -o name")
    assert not (
        await deployment.kubectl("get node -l katacontainers.io/kata-runtime -o name")
    ).strip()
    for unit in units:
        assert not (await deployment.shell(f"{FILES} || true", unit)).strip()
        left = "ls -d /opt/kata-releases /var/lib/kata-charm /usr/local/lib/kata-charm"
        assert not (await deployment.shell(f"{left} 2>/dev/null || true", unit)).strip()
    assert await deployment.kernel_in(answers.pod("still"))


async def _unit_on(deployment: Deployment, node: str) -> str:
    """Return the charm's unit on a node of the cluster."""
    for unit in await deployment.units():
        if (await deployment.shell("hostname", unit.name)).strip() == node:
            return unit.name
    raise AssertionError(f"no unit of kata on {node}")
