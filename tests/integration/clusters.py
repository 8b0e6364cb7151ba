"""The two ways to have Kubernetes from Juju, and how to speak to each."""

import dataclasses
import pathlib
from collections.abc import Mapping

BUNDLES = pathlib.Path(__file__).with_name("bundles")
# Kata's virtual machines run in the cluster's, which therefore must be virtual machines, and large.
CONSTRAINTS = ("virt-type=virtual-machine", "cores=2", "mem=8G", "root-disk=24G")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """One of them.

    Attributes:
        base: release of Ubuntu that its machines run, such as 22.04.
        deploy: words of `juju deploy` before the bundle's file.
        control_plane: the application that has the API, and kubectl on its machine.
        worker: the application on whose machines pods run.
        kubectl: how root calls kubectl there.
    """

    name: str
    base: str
    deploy: tuple[str, ...]
    control_plane: str
    worker: str
    kubectl: str

    @property
    def bundle(self) -> pathlib.Path:
        """The bundle, or what is laid over it."""
        return BUNDLES / f"{self.name}.yaml"


_EACH = (
    Cluster(
        name="charmed",
        base="22.04",
        deploy=("kubernetes-core", "--channel", "1.32/stable", "--overlay"),
        control_plane="kubernetes-control-plane",
        worker="kubernetes-worker",
        kubectl="kubectl --kubeconfig /root/.kube/config",
    ),
    Cluster(
        name="canonical",
        base="24.04",
        deploy=(),
        control_plane="k8s",
        worker="k8s-worker",
        kubectl="k8s kubectl",
    ),
)
CLUSTERS: Mapping[str, Cluster] = {each.name: each for each in _EACH}
