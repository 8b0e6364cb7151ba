"""From the older, reactive charm to this one, as an operator of Charmed Kubernetes would go."""

import pathlib

import pytest

from tests.integration import answers, conftest
from tests.integration.clusters import BUNDLES, CLUSTERS, Cluster
from tests.integration.conftest import Deployment, Ops


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """The older charm knows Charmed Kubernetes only."""
    return CLUSTERS["charmed"]


@pytest.mark.abort_on_fail
@pytest.mark.skip_if_deployed
async def test_deploy_the_older_charm(
    request: pytest.FixtureRequest, deployment: Deployment, cluster: Cluster
) -> None:
    channel = str(request.config.getoption("--older-channel"))
    await deployment.deploy(BUNDLES / "older.yaml", channel=channel)
    await deployment.settle(cluster.control_plane, cluster.worker, "containerd", minutes=90)
    if archive := str(request.config.getoption("--older-archive")):
        await deployment.juju("attach-resource", "kata", f"kata-archive={archive}")
        await deployment.settle("kata")
    # Without an archive its units are in error: the apt repository that they ask is gone.
    assert await deployment.units()


@pytest.mark.abort_on_fail
async def test_refresh(
    ops_test: Ops, deployment: Deployment, cluster: Cluster, packed: pathlib.Path | None
) -> None:
    charm = await conftest.pack(ops_test, cluster, packed)
    await deployment.juju("refresh", "kata", "--path", charm, "--force-units")
    await ops_test.juju("resolved", "--all")  # there may be nothing to resolve
    control_plane = f"{cluster.control_plane}:kube-control"
    await deployment.juju("integrate", "kata:kube-control", control_plane)
    await deployment.settle("kata", minutes=30)
    status = await deployment.status()
    kept = status["applications"]["kata"]["relations"]
    assert {"containerd", "untrusted", "kube-control"} <= set(kept)


@pytest.mark.parametrize("unit", ["control_plane", "worker"])
async def test_the_harmful_options_and_the_dead_source_are_gone(
    deployment: Deployment, cluster: Cluster, unit: str
) -> None:
    machine = f"{getattr(cluster, unit)}/leader"
    text = await deployment.shell("cat /etc/containerd/config.toml", machine)
    live = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert "RuntimeRoot" not in live
    assert {"kata", "untrusted"} <= answers.handlers(text)
    sources = await deployment.shell("ls /etc/apt/sources.list.d", machine)
    assert "kata" not in sources


@pytest.mark.parametrize("untrusted", [False, True])
async def test_pods_run_both_ways(deployment: Deployment, untrusted: bool) -> None:
    runtime_class = "" if untrusted else "kata"
    moved = answers.pod("moved", runtime_class=runtime_class, untrusted=untrusted)
    inside = await deployment.kernel_in(moved)
    assert inside != (await deployment.shell("uname -r")).strip()
