"""Throwaway nodes for tests: each starts fresh, from a state that was saved once."""

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.node import machine, snapshot

# They make processes and networks on this machine, and count what they find there.
ON_THIS_MACHINE = (
    "test_alerts_real",
    "test_network_real",
    "test_sandboxes_at_scale",
    "test_verify_real",
)


# They take longest, and begin first: then none is left for the end, when the others have nothing to do.
LONG = (
    *(
        "test_interruptions_on_node",
        "test_running_sandboxes_on_node",
        "test_machine_faults_on_node",
    ),
    *("test_containerd_on_node", "test_charm_on_node", "test_gpu_on_node", "test_metrics_on_node"),
)


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


class ByFile(LoadFileScheduling):
    """Has files run side by side, each as a whole; those that would meet on this machine in turn."""

    def _split_scope(self, nodeid):
        name = nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")
        return "this machine" if name in ON_THIS_MACHINE else name


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


@pytest.fixture(scope="session")
def booted():
    """A node that has booted and done nothing yet, saved."""
    return snapshot.booted()


@pytest.fixture
def node(booted):
    """A fresh node of the test's own."""
    with machine.Machine.restored(booted) as restored:
        yield restored


@pytest.fixture
def with_functions(booted):
    """A fresh node of the test's own, into which functions can be plugged."""
    with machine.Machine.restored(booted, functions=True) as restored:
        yield restored
