"""The proof by a pod, as a user would make one: over TLS against a stand-in API server."""

import json
import urllib.parse
import uuid

import kubernetes_validate
import pytest

from kata import problems
from kata.cluster import api, credentials
from kata.sandbox import probe, probe_image, throwaway, verify, verify_pod
from tests import api_server
from tests.unit import kata_machine
from tests.unit import sandbox_tree as tree

ID = "0123456789abcdef0123456789abcdef"
PODS = "/api/v1/namespaces/default/pods"
SERVICE = throwaway.Service("/run/containerd/containerd.sock", "/usr/bin/ctr", (1, 7, 30))
CTR = "/usr/bin/ctr --address /run/containerd/containerd.sock --namespace k8s.io images"


class Cluster(api_server.ApiServer):
    """An API server that also keeps pods; `kubelet` is told of each new one."""

    def __init__(self):
        super().__init__()
        self.pods = {}
        self.events = []
        self.made = []
        self.kubelet = lambda pod: None
        self.stubborn = False

    def answer(self, verb, target, headers, body):
        parts = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(parts.query))
        name = parts.path.removeprefix(PODS).strip("/")
        if parts.path == "/api/v1/namespaces/default/events":
            return self._said({"items": self.events})
        if not parts.path.startswith(PODS):
            return super().answer(verb, target, headers, body)
        if verb == "PATCH":
            pod = api_server.read(body)
            pod["metadata"]["uid"] = str(uuid.uuid4())
            self.pods[name] = pod
            self.made.append(pod)
            self.kubelet(pod)
            return self._said(pod)
        if not name:
            key, _, value = query.get("labelSelector", "=").partition("=")
            fits = [p for p in self.pods.values() if p["metadata"]["labels"].get(key) == value]
            return self._said({"items": fits})
        if name not in self.pods:
            details = {"name": name, "kind": "pods"}
            status = {"kind": "Status", "message": "not found", "code": 404, "details": details}
            return 404, api_server.JSON, json.dumps(status).encode()
        pod = self.pods[name]
        if verb == "DELETE" and not self.stubborn:
            del self.pods[name]
        return self._said(pod)

    @staticmethod
    def _said(value):
        return 200, api_server.JSON, json.dumps(value).encode()


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setattr(verify_pod, "_PAUSE", 0.01)
    with Cluster() as cluster:
        cluster.add_node("one", ID)
        yield cluster


@pytest.fixture
def node(node):
    node.lay({**kata_machine.READY, "/etc/machine-id": ID})
    node.on(f"{CTR} *")
    return node


@pytest.fixture
def prove(node, cluster):
    """Run the proof."""

    def prove(handler="kata", **more):
        server = api.Server(credentials.Access(cluster.url, cluster.token, cluster.ca))
        try:
            return verify_pod.pod(node, SERVICE, server, handler, **{"timeout": 5, **more})
        finally:
            server.close()

    return prove


def answer(kernel):
    fields = ("Linux", "verify", kernel.release, kernel.version, "x86_64", "")
    return b"".join(each.encode().ljust(65, b"\0") for each in fields) + b"\n"


GUEST = probe.Kernel("6.12.1-kata", "#1 SMP")


def runs(node, kernel=GUEST, *, isolated=True):
    """Return a kubelet that runs pods, in a virtual machine or not."""

    def kubelet(pod):
        metadata = pod["metadata"]
        folder = f"/var/log/pods/default_{metadata['name']}_{metadata['uid']}/probe"
        place = node.path(folder)
        place.mkdir(parents=True)
        line = b"2026-11-24T05:00:00.000000000Z stdout F " + answer(kernel)
        (place / "0.log").write_bytes(line)
        if isolated:
            tree.lay_go(node, pod=("default", metadata["name"]))
            for path in node.path("/run/containerd").rglob("config.json"):
                text = path.read_text().replace(f"uid-of-{metadata['name']}", metadata["uid"])
                path.write_text(text)

    return kubelet


def test_a_pod_that_is_isolated(node, cluster, prove):
    cluster.kubelet = runs(node)
    verdict = prove()
    assert verdict.verified
    assert (verdict.guest, verdict.host) == (GUEST, verify.host_kernel())
    assert verdict.seconds is not None
    assert verdict.notes[0].startswith("hypervisor qemu")


def test_the_pod_is_what_a_user_would_make_and_bound_to_this_node(node, cluster, prove):
    cluster.kubelet = runs(node)
    prove(timeout=30)
    (pod,) = cluster.made
    assert pod["spec"]["runtimeClassName"] == "kata"
    assert pod["spec"]["nodeName"] == "one"
    assert pod["spec"]["activeDeadlineSeconds"] > 30, "it ends should nobody delete it"
    assert [each["imagePullPolicy"] for each in pod["spec"]["containers"]] == ["Never"]


@pytest.mark.parametrize("handler", ["kata", "untrusted"])
@pytest.mark.parametrize("image", ["", "docker.io/library/nginx:1"])
def test_kubernetes_takes_it(handler, image):
    kubernetes_validate.validate(
        verify_pod.manifest("one", handler, image, 60.5), "1.34", strict=True
    )


def test_the_untrusted_handler_is_asked_for_by_the_annotation():
    made = verify_pod.manifest("one", "untrusted", "", 60)
    assert made["metadata"]["annotations"] == {"io.kubernetes.cri.untrusted-workload": "true"}
    assert "runtimeClassName" not in made["spec"]


def test_an_image_of_ones_own_runs_beside_the_probe():
    made = verify_pod.manifest("one", "kata", "docker.io/library/nginx:1", 60)
    assert [each["image"] for each in made["spec"]["containers"]] == [
        "localhost/kata-charm-probe:1",
        "docker.io/library/nginx:1",
    ]


def test_nothing_is_left(node, cluster, prove):
    cluster.kubelet = runs(node)
    prove()
    assert cluster.pods == {}
    assert node.ran == [
        f"{CTR} import -",
        f"{CTR} rm --sync {' '.join(probe_image.make('amd64').names)}",
    ]


def test_what_an_earlier_proof_has_left_goes_first(node, cluster, prove):
    old = verify_pod.manifest("one", "kata", "", 60)
    elsewhere = verify_pod.manifest("two", "kata", "", 60)
    cluster.pods = {each["metadata"]["name"]: each for each in (old, elsewhere)}
    cluster.kubelet = runs(node)
    prove()
    assert list(cluster.pods.values()) == [elsewhere]


def test_a_class_without_virtual_machine(node, cluster, prove):
    cluster.kubelet = runs(node, verify.host_kernel(), isolated=False)
    assert prove().trouble == "not isolated: no hypervisor's process belongs to it"


def test_a_known_cause_is_not_waited_out(node, cluster, prove):
    words = 'failed to get sandbox runtime: no runtime for "kata" is configured'
    cluster.events = [{"message": words, "lastTimestamp": "2026-11-24T05:00:00Z"}]
    verdict = prove(timeout=600)
    assert verdict.trouble == f"no sandbox: {words}"
    assert cluster.pods == {}


def test_a_pod_that_fails_is_told_in_kubelets_words(node, cluster, prove):
    def fail(pod):
        pod["status"] = {"phase": "Failed", "message": "Predicate NodeAffinity failed"}

    cluster.kubelet = fail
    assert prove().trouble == "no sandbox: Predicate NodeAffinity failed"


def test_silence_ends_with_the_latest_complaint(node, cluster, prove):
    cluster.events = [
        {"message": "newer", "lastTimestamp": "2026-11-24T06:00:00Z"},
        {"message": "older", "lastTimestamp": "2026-11-24T05:00:00Z"},
    ]
    assert prove(timeout=0.1).trouble == "no sandbox: newer"


def test_a_machine_that_is_no_node(node, prove):
    node.lay({"/etc/machine-id": "f" * 32})
    with pytest.raises(problems.Blocked, match="no node of the cluster"):
        prove()


def test_a_pod_that_does_not_go_is_said(node, cluster, prove, monkeypatch):
    monkeypatch.setattr(verify_pod, "_GONE", 1)
    cluster.kubelet = runs(node)
    cluster.stubborn = True
    with pytest.raises(problems.Waiting, match="is not gone after"):
        prove()


def test_an_api_server_that_refuses(node, cluster, prove):
    cluster.faults.append(api_server.Fault(verb="PATCH", status=403))
    with pytest.raises(problems.Waiting, match="does not let us patch Pod kata-verify-"):
        prove()
    assert node.ran[-1].startswith(f"{CTR} rm")


@pytest.mark.parametrize("text", [b"", b"2026 stdout F half", b"2026 stderr F " + answer(GUEST)])
def test_half_a_log_is_no_answer(text):
    with pytest.raises(ValueError, match="bytes instead of"):
        verify_pod.read_log(text)
