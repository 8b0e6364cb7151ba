"""The integration tests' own reading and writing, which needs no controller."""

import base64
import json
import pathlib
import subprocess

import pytest
import yaml

from tests.integration import actions, answers, clusters

CHARM = yaml.safe_load((pathlib.Path(__file__).parents[3] / "charmcraft.yaml").read_text())


def _unit(status="active", message="", agent="idle", **more):
    words = {"current": status, "message": message}
    return {"workload-status": words, "juju-status": {"current": agent}, **more}


STATUS = {
    "applications": {
        "kata": {"subordinate-to": ["k8s", "k8s-worker"]},
        "k8s": {
            "units": {
                "k8s/0": _unit(machine="0", subordinates={"kata/0": _unit(message="available")})
            }
        },
        "k8s-worker": {
            "units": {
                "k8s-worker/0": _unit(
                    machine="1",
                    subordinates={
                        "kata/1": _unit("maintenance", "downloading", "executing"),
                        "kata-other/0": _unit("blocked"),
                    },
                )
            }
        },
    }
}


def test_units_of_a_subordinate_are_found_beside_their_principals():
    found = answers.units(STATUS, "kata")
    assert list(found) == ["kata/0", "kata/1"]
    assert found["kata/1"].principal == "k8s-worker/0"
    assert found["kata/1"].machine == "1"
    assert found["kata/0"].settled
    assert not found["kata/1"].settled


def test_what_is_waited_for_is_said():
    lines = answers.waited_for(STATUS, ("k8s", "kata", "containerd"))
    assert lines == [
        "kata/1: maintenance (executing) downloading",
        "containerd: no unit yet",
    ]


def test_nothing_is_waited_for_once_all_is_well():
    assert answers.waited_for(STATUS, ("k8s", "k8s-worker")) == []


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_an_action_is_read(status):
    text = json.dumps(
        {
            "kata/1": {
                "id": "6",
                "message": "not isolated" if status == "failed" else "",
                "results": {"count": "2", "return-code": 0},
                "status": status,
                "unit": "kata/1",
            }
        }
    )
    answer = answers.answer(text)
    assert answer.completed == (status == "completed")
    assert answer.results["count"] == "2"
    assert bool(answer.message) == (status == "failed")


def test_more_than_one_units_answer_is_refused():
    with pytest.raises(ValueError, match="unpack"):
        answers.answer('{"kata/0": {}, "kata/1": {}}')


def test_a_pod_asks_for_kata_in_one_way_only():
    by_class = answers.pod("a", runtime_class="kata")
    by_annotation = answers.pod("b", untrusted=True)
    assert by_class["spec"]["runtimeClassName"] == "kata"
    assert "annotations" not in by_class["metadata"]
    assert "runtimeClassName" not in by_annotation["spec"]
    assert by_annotation["metadata"]["annotations"] == {answers.ANNOTATION: "true"}


def test_a_manifest_arrives_whole_through_a_shell():
    manifest = {"metadata": {"name": """it's "quoted" $HOME `x`\n"""}}
    line = answers.apply("cat; true", manifest)
    done = subprocess.run(
        ["sh", "-c", line.replace("apply -f -", "")], capture_output=True, check=True
    )
    assert json.loads(done.stdout) == manifest
    assert base64.b64decode(line.split()[1]).decode() == json.dumps(manifest)


def test_live_handlers_are_told_from_those_commented_out():
    text = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
#[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.gone]
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-clh]
"""
    assert answers.handlers(text) == {"runc", "kata-clh"}


def _bundle(name):
    return yaml.safe_load(
        (clusters.BUNDLES / name).read_text().replace("{{", "'{{").replace("}}", "}}'")
    )


def test_every_endpoint_has_a_real_partner_in_a_bundle():
    found = {
        endpoint
        for cluster in clusters.CLUSTERS.values()
        for endpoint, _ in answers.integrations(_bundle(cluster.bundle.name), "kata")
    }
    assert set(CHARM["requires"]) | set(CHARM["provides"]) == found


@pytest.mark.parametrize("name", ["charmed.yaml", "canonical.yaml", "older.yaml"])
def test_a_bundle_integrates_what_it_deploys(name):
    bundle = _bundle(name)
    base = {"kubernetes-control-plane", "kubernetes-worker", "containerd"}
    known = set(bundle["applications"]) | (base if name != "canonical.yaml" else set())
    for pair in bundle["relations"]:
        assert {end.partition(":")[0] for end in pair} <= known


def test_each_cluster_runs_on_a_platform_of_the_charm():
    for cluster in clusters.CLUSTERS.values():
        assert f"ubuntu@{cluster.base}:amd64" in CHARM["platforms"]


def test_each_action_is_run():
    assert set(actions.ACTIONS) == set(CHARM["actions"])
    for name, (parameters, _, _) in actions.ACTIONS.items():
        assert set(parameters) <= set(CHARM["actions"][name].get("params", {}))
