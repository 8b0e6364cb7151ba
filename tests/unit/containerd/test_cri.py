"""What containerd's CRI plugin tells."""

import contextlib
import json

import pytest

from kata import problems
from kata.containerd import cri, grpc
from kata.containerd.protobuf import message
from tests.unit.grpc_service import Service


@pytest.fixture
def plugin(tmp_path):
    """Start a plugin that answers by method, and return its socket."""
    with contextlib.ExitStack() as stack:

        def start(answers, package="runtime.v1"):
            def answer(method, _):
                service, _, name = method.partition("Service/")
                if not service.startswith(f"{package}."):
                    return grpc.UNIMPLEMENTED, f"unknown service {service}Service"
                return answers[name]

            made = Service(tmp_path / "c.sock", answer)
            stack.callback(made.close)
            return tmp_path / "c.sock"

        yield start


def status(config, *conditions):
    """Return a StatusResponse."""
    each = [
        (1, message((1, name), (2, int(holds)), (3, reason), (4, words)))
        for name, holds, reason, words in conditions
    ]
    return message((1, message(*each)), (2, {"config": json.dumps(config), "golang": '"go1.2"'}))


RUNTIMES = {
    "runc": {"runtimeType": "io.containerd.runc.v2", "options": {"SystemdCgroup": True}},
    "kata": {
        "runtimeType": "io.containerd.kata.v2",
        "runtimePath": "/usr/local/bin/containerd-shim-kata-v2",
        "options": None,
        "snapshotter": "devmapper",
    },
    "junk": {"runtimeType": "io.containerd.kata.v2", "options": {}},
}


@pytest.mark.parametrize("package", ["runtime.v1", "runtime.v1alpha2"])
def test_handlers_as_loaded(plugin, package):
    config = {
        "containerd": {"snapshotter": "overlayfs", "runtimes": RUNTIMES},
        "sandboxImage": "p",
    }
    said = cri.status(plugin({"Status": status(config)}, package))
    assert said.pause == "p"
    assert said.handlers["kata"] == cri.Handler(
        *("kata", "io.containerd.kata.v2", "/usr/local/bin/containerd-shim-kata-v2"),
        options=None,
        snapshotter="devmapper",
    )
    assert said.handlers["runc"].options == {"SystemdCgroup": True}
    assert said.handlers["runc"].snapshotter == "overlayfs"


def test_no_options_table_is_not_an_empty_one(plugin):
    said = cri.status(plugin({"Status": status({"containerd": {"runtimes": RUNTIMES}})}))
    assert (said.handlers["kata"].options, said.handlers["junk"].options) == (None, {})


def test_conditions_with_their_reasons(plugin):
    conditions = (
        ("RuntimeReady", True, "", ""),
        ("NetworkReady", False, "NetworkPluginNotReady", "cni plugin not initialized"),
        ("Other", False, "Why", ""),
    )
    said = cri.status(plugin({"Status": status({}, *conditions)}))
    assert said.conditions == {
        "RuntimeReady": "",
        "NetworkReady": "cni plugin not initialized",
        "Other": "Why",
    }


@pytest.mark.parametrize("config", [None, [], {"containerd": 3}, {"containerd": {"runtimes": []}}])
def test_a_configuration_of_another_form_tells_of_no_handlers(plugin, config):
    assert cri.status(plugin({"Status": status(config)})).handlers == {}


def test_the_handlers_of_all_pods_in_one_question(plugin):
    items = [(1, message((1, f"id{n}"), (2, message((1, "p"))), (7, "kata"))) for n in range(1000)]
    handlers = cri.pod_handlers(plugin({"ListPodSandbox": message(*items)}))
    assert len(handlers) == 1000
    assert set(handlers.values()) == {"kata"}


def test_the_default_snapshotter_from_the_folder_of_images(plugin):
    place = message((1, "/var/lib/containerd/io.containerd.snapshotter.v1.zfs"))
    answer = message((1, message((2, place))))
    assert cri.default_snapshotter(plugin({"ImageFsInfo": answer})) == "zfs"


def test_and_where_it_does_not_tell(plugin):
    assert cri.default_snapshotter(plugin({"ImageFsInfo": b""})) == "overlayfs"


def test_a_containerd_without_cri(plugin):
    path = plugin({}, package="some.other")
    with pytest.raises(problems.Blocked, match="CRI plugin is not loaded"):
        cri.status(path)


def test_an_answer_that_is_no_message(plugin):
    with pytest.raises(problems.Waiting, match="cannot be read"):
        cri.status(plugin({"Status": b"\x0b"}))
