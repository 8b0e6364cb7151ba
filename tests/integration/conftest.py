"""A controller's model, a cluster in it, and the charm: what the tests of this folder share.

They need a Juju controller whose machines can run virtual machines: see the README.
"""

import asyncio
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pytest

from tests.integration import answers
from tests.integration.clusters import CLUSTERS, CONSTRAINTS, Cluster

TOP = pathlib.Path(__file__).parents[2]
POLL = 10.0  # seconds
SET_UP = "sudo snap install --classic concierge && sudo concierge prepare -p machine"


class Ops(Protocol):
    """What is used of pytest-operator's `OpsTest`."""

    tmp_path: pathlib.Path

    async def juju(
        self, *words: str, check: bool = False, fail_msg: str | None = None
    ) -> tuple[int | None, str, str]:
        """Run Juju in the model."""
        ...

    async def run(
        self, *words: str, check: bool = False, cwd: pathlib.Path | None = None
    ) -> tuple[int | None, str, str]:
        """Run a program."""
        ...

    def render_bundle(self, bundle: pathlib.Path, **context: str) -> pathlib.Path:
        """Fill in a bundle."""
        ...


class Deployment:
    """A cluster in a model, spoken to as an operator does."""

    def __init__(self, ops_test: Ops, cluster: Cluster):
        self.ops = ops_test
        self.cluster = cluster

    async def juju(self, *words: str) -> str:
        """Run Juju, and return what it prints."""
        _, out, _ = await self.ops.juju(*words, check=True)
        return out

    async def deploy(self, bundle: pathlib.Path, **context: str) -> None:
        """Deploy the cluster, with a bundle of ours as it or over it."""
        await self.juju("set-model-constraints", *CONSTRAINTS)
        rendered = self.ops.render_bundle(bundle, **context)
        await self.juju("deploy", *self.cluster.deploy, str(rendered), "--trust")

    async def status(self) -> dict[str, Any]:
        """Return the status of the model."""
        return json.loads(await self.juju("status", "--format", "json"))

    async def units(self) -> list[answers.Unit]:
        """Return the units of the charm."""
        return list(answers.units(await self.status(), "kata").values())

    async def unit(self, application: str = "") -> str:
        """Return the charm's unit beside an application; by default beside the worker."""
        beside = application or self.cluster.worker
        return next(
            each.name for each in await self.units() if each.principal.startswith(f"{beside}/")
        )

    async def settle(self, *applications: str, minutes: float = 20) -> None:
        """Wait until all units of applications are active and idle."""

        def lacking(status: Mapping[str, Any]) -> str:
            return "\n".join(answers.waited_for(status, applications))

        await self.until(lacking, minutes)

    async def until(
        self, lacking: Callable[[Mapping[str, Any]], str], minutes: float = 10
    ) -> Mapping[str, Any]:
        """Wait until the model's status lacks nothing; return it.

        Args:
            lacking: returns what is missing, in words; nothing where all is well.
            minutes: the most that it may take.
        """
        end = time.monotonic() + minutes * 60
        while words := lacking(status := await self.status()):
            assert time.monotonic() < end, f"after {minutes:g} minutes still:\n{words}"
            await asyncio.sleep(POLL)
        return status

    async def shell(self, line: str, unit: str = "") -> str:
        """Run a line as root on a unit's machine; by default on the control plane's."""
        unit = unit or f"{self.cluster.control_plane}/leader"
        return await self.juju("exec", "--unit", unit, "--", line)

    async def kubectl(self, words: str) -> str:
        """Run kubectl."""
        return await self.shell(f"{self.cluster.kubectl} {words}")

    async def kernel_in(self, manifest: Mapping[str, Any]) -> str:
        """Make a pod, wait for it, and return the kernel that it sees; it is gone again then."""
        name = manifest["metadata"]["name"]
        await self.shell(answers.apply(self.cluster.kubectl, manifest))
        try:
            await self.kubectl(f"wait --for=condition=Ready pod/{name} --timeout=300s")
            return (await self.kubectl(f"logs {name}")).strip()
        finally:
            await self.kubectl(f"delete pod {name} --wait=true")

    async def action(self, name: str, unit: str = "", **parameters: str) -> answers.Answer:
        """Run an action, by default on the worker's machine."""
        given = [f"{key}={value}" for key, value in parameters.items()]
        unit = unit or await self.unit()
        _, out, error = await self.ops.juju(
            "run", unit, name, *given, "--format", "json", "--wait", "15m"
        )
        assert out, error
        return answers.answer(out)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what is ours to pytest-operator's options."""
    parser.addoption(
        "--cluster", choices=sorted(CLUSTERS), default="charmed", help="the kind of Kubernetes"
    )
    parser.addoption(
        "--charm-file",
        default=os.environ.get("CHARM_PATH", ""),
        help="a packed charm; by default it is packed",
    )
    parser.addoption(
        "--older-channel", default="1.29/stable", help="channel of the older charm, to move from"
    )
    parser.addoption(
        "--older-archive",
        default="",
        help="a tar of Kata 1.x debs, for the older charm to install",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Say in one line what is missing, instead of once a test."""
    missing = [name for name in ("juju", "charmcraft") if not shutil.which(name)]
    if missing and not session.config.getoption("collectonly"):
        pytest.exit(f"no {' and no '.join(missing)} here: {SET_UP}", returncode=2)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The kind of cluster that was asked for."""
    return CLUSTERS[str(request.config.getoption("--cluster"))]


@pytest.fixture(scope="module")
def deployment(ops_test: Ops, cluster: Cluster) -> Deployment:
    """The cluster, which the first test of a module deploys."""
    return Deployment(ops_test, cluster)


@pytest.fixture(scope="module")
def packed(request: pytest.FixtureRequest) -> pathlib.Path | None:
    """The packed charm that was given."""
    given = str(request.config.getoption("--charm-file"))
    return pathlib.Path(given).resolve() if given else None


async def pack(ops_test: Ops, cluster: Cluster, packed: pathlib.Path | None) -> str:
    """Return the path of the charm for the cluster's machines; it is packed unless it was given."""
    if packed:
        return str(packed)
    platform = f"ubuntu@{cluster.base}:amd64"
    folder = ops_test.tmp_path / "packed"
    await ops_test.run(
        "charmcraft", "pack", "--platform", platform, "--output", str(folder), check=True, cwd=TOP
    )
    return str(next(folder.glob("*.charm")))
