"""kube-control, with the data that Charmed and Canonical Kubernetes put on it.

The data is written by the provider's side of the same library, called as the two control planes
call it (charm-kubernetes-control-plane, configure_kube_control; k8s-operator, kube_control.py).
"""

import json
import logging
import subprocess
import sys

import ops
import ops.testing
import pytest
from ops.interface_kube_control import KubeControlProvides

import control_plane
from kata import problems
from kata.cluster import credentials

MODEL = "5f2c1f0e-6d7a-4c58-8d1b-6a9b0d0a7b11"
UNIT_USER = f"kata/0@{MODEL}"
NODE_USER = "system:node:one"
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
MACHINE_CA = CA.replace("MIIB", "MIIC")
FILE = "/var/lib/kata-charm/access-kata-0.json"


class ControlPlane(ops.CharmBase):
    """What both control planes do on kube-control."""

    canonical = False
    schemas = None

    def __init__(self, framework):
        super().__init__(framework)
        self.kube_control = KubeControlProvides(self, "kube-control")
        framework.observe(self.on.update_status, self._configure)

    def _configure(self, _):
        provided = self.kube_control
        provided.set_api_endpoints(["https://10.0.0.1:6443"])
        provided.set_cluster_name("kubernetes-abc")
        provided.set_default_cni("")
        provided.set_dns_address("10.152.183.10")
        provided.set_dns_domain("cluster.local")
        provided.set_dns_enabled(True)
        provided.set_dns_port(53)
        provided.set_has_external_cloud_provider(False)
        provided.set_image_registry("registry.example/cdk")
        provided.set_labels([])
        provided.set_taints([])
        if self.canonical:
            provided.set_ca_certificate(CA)
        for request in provided.auth_requests:
            if self.canonical:
                tokens = (f"token::{request.user}", "", "")
            else:
                tokens = ("admin::a", f"{request.unit}::{request.user}", "proxy::p")
            provided.sign_auth_request(request, *tokens)


class Canonical(ControlPlane):
    canonical = True


def answer(provider, request, old=False):
    """Return what a control plane puts on the relation, and its secrets.

    With `old` it is a release that knows of no schemas.
    """
    context = ops.testing.Context(
        provider,
        meta={"name": "control", "provides": {"kube-control": {"interface": "kube-control"}}},
    )
    if old:
        request = {key: value for key, value in request.items() if key != "schema_vers"}
    asked = ops.testing.Relation(
        "kube-control", remote_app_name="kata", remote_units_data={0: request}
    )
    state = ops.testing.State(relations={asked}, leader=True)
    done = context.run(context.on.update_status(), state)
    data = dict(done.get_relation(asked.id).local_unit_data)
    secrets = {each.id: each.latest_content for each in done.secrets}
    return data, secrets


class Kata(ops.CharmBase):
    """The requirer in a charm; `did` is what a test has it do in a hook."""

    machine = None
    did = None

    def __init__(self, framework):
        super().__init__(framework)
        self.plane = control_plane.Requirer(self, self.machine)
        framework.observe(self.on.update_status, self._do)
        framework.observe(self.on.secret_changed, self._renew)

    def _renew(self, event):
        self.plane.forget()
        self._do(event)

    def _do(self, _):
        self.result = type(self).did(self.plane)


class Juju:
    """One unit of the charm: what is on its relation, its secrets, and its machine."""

    def __init__(self, machine):
        self.machine = machine
        machine.lay({"/proc/sys/kernel/hostname": "one\n"})
        self.sent = {}
        self.secrets = {}
        self.ours = {}
        self.leader = True
        self.related = True
        self.logged = []

    def hook(self, did, event=None):
        """Run a hook in which the charm does `did` with its `Requirer`; return what comes of it."""
        charm = type("Kata", (Kata,), {"machine": self.machine, "did": staticmethod(did)})
        meta = {"name": "kata", "requires": {"kube-control": {"interface": "kube-control"}}}
        context = ops.testing.Context(charm, meta=meta)
        relation = ops.testing.Relation(
            "kube-control",
            remote_app_name="k8s",
            remote_units_data=self.sent or {0: {}},
            local_unit_data=self.ours,
        )
        secrets = {
            name: ops.testing.Secret(content, id=name) for name, content in self.secrets.items()
        }
        state = ops.testing.State(
            relations={relation} if self.related else (),
            secrets=set(secrets.values()),
            leader=self.leader,
            model=ops.testing.Model(uuid=MODEL),
        )
        on = context.on.secret_changed(secrets[event]) if event else context.on.update_status()
        with context(on, state) as manager:
            done = manager.run()
            result = manager.charm.result
        self.logged += [(each.level, each.message) for each in context.juju_log]
        if self.related:
            self.ours = dict(done.get_relation(relation.id).local_unit_data)
        return result

    def request(self):
        return self.hook(lambda plane: plane.request())

    def access(self):
        return self.hook(lambda plane: plane.access())

    def waiting(self):
        """Return why there is no access."""

        def did(plane):
            with pytest.raises(problems.Waiting) as caught:
                plane.access()
            return str(caught.value)

        said = self.hook(did)
        assert len(said) <= 160
        assert "\n" not in said
        return said

    def answered(self, provider, old=False):
        """Let the control plane answer what has been asked."""
        data, self.secrets = answer(provider, self.ours, old)
        self.sent = {0: data}


@pytest.fixture
def juju(node):
    node.lay({"/root/cdk/ca.crt": MACHINE_CA})
    return Juju(node)


@pytest.fixture
def canonical(node):
    node.path("/var/snap/k8s/common").mkdir(parents=True)
    return Juju(node)


# The request


def test_without_the_relation_nothing_is_asked_and_nothing_is_given(juju):
    juju.related = False
    assert juju.request() is False
    assert juju.access() is None


def test_the_leader_asks_for_the_right_to_write_runtime_classes(juju):
    assert juju.request() is True
    assert juju.ours == {
        "kubelet_user": UNIT_USER,
        "auth_group": "system:masters",
        "schema_vers": "[0, 1]",
        **{key: juju.ours[key] for key in juju.ours if "address" in key or "subnets" in key},
    }


def test_it_asks_once(juju):
    juju.request()
    assert juju.request() is False


def test_another_unit_waits_to_see_which_control_plane_it_is(juju):
    juju.leader = False
    assert juju.request() is False
    assert "kubelet_user" not in juju.ours


def test_on_charmed_kubernetes_every_unit_asks_as_itself(juju):
    juju.leader = False
    juju.answered(ControlPlane)
    assert juju.request() is True
    assert (juju.ours["kubelet_user"], juju.ours["auth_group"]) == (UNIT_USER, "system:masters")


def test_on_canonical_kubernetes_a_unit_that_does_not_lead_asks_to_be_its_node(canonical):
    canonical.leader = False
    canonical.answered(Canonical)
    assert canonical.request() is True
    assert (canonical.ours["kubelet_user"], canonical.ours["auth_group"]) == (
        NODE_USER,
        "system:nodes",
    )


def test_the_node_is_the_one_that_kubelet_says_it_is(canonical):
    canonical.machine.lay(
        {"/proc/7/cmdline": "/snap/k8s/1/bin/kubelet\0--v=1\0--hostname-override=Other\0"}
    )
    canonical.leader = False
    canonical.answered(Canonical)
    canonical.request()
    assert canonical.ours["kubelet_user"] == "system:node:other"


def test_a_node_keeps_its_name_whatever_becomes_of_the_machines(canonical):
    """And no hook after the first looks for kubelet among all processes."""
    canonical.leader = False
    canonical.answered(Canonical)
    canonical.request()
    canonical.machine.lay({"/proc/sys/kernel/hostname": "renamed\n"})
    assert canonical.request() is False
    assert canonical.ours["kubelet_user"] == NODE_USER


def test_a_user_that_another_unit_has_asked_for_is_not_asked_for(canonical):
    """Its token would be withdrawn from the other when this unit goes."""
    canonical.leader = False
    canonical.answered(Canonical)
    canonical.sent[0]["creds"] = json.dumps({NODE_USER: {"scope": "kubernetes-worker/0"}})
    canonical.request()
    assert canonical.ours["kubelet_user"] == UNIT_USER


def test_a_control_plane_that_sends_a_ca_is_not_yet_canonical_kubernetes(juju):
    juju.leader = False
    juju.answered(Canonical)
    juju.request()
    assert juju.ours["kubelet_user"] == UNIT_USER


def test_on_canonical_kubernetes_it_waits_for_the_sign_of_it(canonical):
    """Without the CA nothing could be done with credentials anyway."""
    canonical.leader = False
    canonical.answered(ControlPlane)
    assert canonical.request() is False
    assert "kubelet_user" not in canonical.ours


def test_one_control_plane_unit_that_gives_the_sign_is_enough(canonical):
    canonical.leader = False
    canonical.answered(Canonical)
    canonical.sent[1] = {"api-endpoints": '["https://10.0.0.2:6443"]'}
    canonical.request()
    assert canonical.ours["kubelet_user"] == NODE_USER


def test_the_request_follows_the_leader(canonical):
    canonical.leader = False
    canonical.answered(Canonical)
    canonical.request()
    canonical.leader = True
    assert canonical.request() is True
    assert canonical.ours["kubelet_user"] == UNIT_USER
    canonical.leader = False
    assert canonical.request() is True
    assert canonical.ours["kubelet_user"] == NODE_USER
    assert canonical.request() is False


# The access


@pytest.mark.parametrize("old", [False, True], ids=["schema 1", "schema 0"])
def test_charmed_kubernetes_gives_our_own_token_and_the_machine_has_the_ca(juju, old):
    juju.request()
    juju.answered(ControlPlane, old)
    assert bool(juju.secrets) is not old
    assert juju.access() == credentials.Access(
        "https://10.0.0.1:6443", f"kata/0::{UNIT_USER}", MACHINE_CA
    )


@pytest.mark.parametrize("old", [False, True], ids=["schema 1", "schema 0"])
def test_canonical_kubernetes_gives_a_client_token_and_its_ca(canonical, old):
    canonical.request()
    canonical.answered(Canonical, old)
    assert canonical.access() == credentials.Access(
        "https://10.0.0.1:6443", f"token::{UNIT_USER}", CA
    )


def test_the_ca_that_is_sent_comes_before_the_one_of_the_machine(juju):
    juju.request()
    juju.answered(Canonical)
    assert juju.access().ca == CA


def test_every_control_plane_unit_can_be_tried(juju):
    juju.request()
    juju.answered(ControlPlane)
    second = {**juju.sent[0], "api-endpoints": '["https://10.0.0.2:6443/"]'}
    second.pop("creds")  # only the leader of the control plane answers
    juju.sent[1] = second
    access = juju.access()
    assert access.server == "https://10.0.0.1:6443"
    assert access.others == ("https://10.0.0.2:6443",)


def test_fields_that_are_of_no_use_here_may_be_missing(juju):
    juju.request()
    juju.answered(ControlPlane)
    juju.sent = {0: {key: juju.sent[0][key] for key in ("api-endpoints", "creds")}}
    assert juju.access() is not None


# What is kept


def test_the_access_is_kept_where_only_root_can_read_it(juju):
    juju.request()
    juju.answered(ControlPlane)
    access = juju.access()
    assert juju.machine.path(FILE).stat().st_mode & 0o777 == 0o600
    juju.secrets = {}
    assert juju.access() == access  # without a look at the secrets
    assert juju.hook(lambda plane: plane.last_access()) == access


def test_what_is_sent_to_other_units_makes_no_difference(juju):
    juju.request()
    juju.answered(ControlPlane)
    access = juju.access()
    creds = json.loads(juju.sent[0]["creds"])
    juju.sent[0]["creds"] = json.dumps({"another": {"scope": "kata/9"}, **creds})
    juju.secrets = {}
    assert juju.access() == access


def test_the_last_access_outlives_the_relation_until_it_is_forgotten(juju):
    juju.request()
    juju.answered(ControlPlane)
    access = juju.access()
    juju.related = False
    assert juju.access() is None
    assert juju.hook(lambda plane: plane.last_access()) == access
    assert juju.hook(lambda plane: plane.forget()) is True
    assert juju.hook(lambda plane: plane.last_access()) is None
    assert juju.hook(lambda plane: plane.forget()) is False


def test_a_token_that_was_rotated_is_read_anew(juju):
    juju.request()
    juju.answered(ControlPlane)
    juju.access()
    [name] = juju.secrets
    juju.secrets[name] = {**juju.secrets[name], "kubelet-token": "new"}
    assert juju.hook(lambda plane: plane.access(), event=name).token == "new"


def test_another_ca_on_the_machine_is_read_anew(juju):
    juju.request()
    juju.answered(ControlPlane)
    juju.access()
    juju.machine.lay({"/root/cdk/ca.crt": CA})
    assert juju.access().ca == CA


def test_an_access_that_the_server_refuses_is_forgotten(juju):
    juju.request()
    juju.answered(ControlPlane)

    def did(plane):
        with plane.server() as server:
            server.refused = True

    juju.hook(did)
    assert juju.hook(lambda plane: plane.last_access()) is None


@pytest.mark.parametrize(
    "kept",
    [
        *("", "{", "[]", "null", '{"source": 1}', "\udcff"),
        '{"source": "x", "server": 1, "token": [], "ca": null, "others": [2]}',
    ],
)
def test_a_kept_access_that_cannot_be_read_is_none(juju, kept):
    juju.request()
    juju.answered(ControlPlane)
    juju.machine.lay({FILE: kept})
    assert juju.hook(lambda plane: plane.last_access()) is None
    assert juju.access() is not None


# What is missing or malformed


def test_it_waits_for_the_control_plane_to_answer(juju):
    assert juju.waiting() == "waiting for k8s: it has sent no api-endpoints over kube-control"
    juju.answered(ControlPlane)
    assert "no credentials for this unit" in juju.waiting()
    juju.request()
    assert "no credentials for this unit" in juju.waiting()


def test_a_ca_certificate_is_needed(juju):
    juju.request()
    juju.answered(ControlPlane)
    juju.machine.path("/root/cdk/ca.crt").unlink()
    assert juju.waiting() == (
        "waiting for k8s: it has sent no CA certificate, and there is no /root/cdk/ca.crt"
    )


@pytest.mark.parametrize(
    "urls",
    [
        *("", "null", "{}", "[]", "https://10.0.0.1:6443", '"https://10.0.0.1"', "[1]", "[null]"),
        *('["http://10.0.0.1:6443"]', '["https://"]', '["https://a:b"]', '["https://[1"]', "[["),
        '["https://a:99999"]',
    ],
)
def test_endpoints_that_are_malformed(juju, urls):
    juju.request()
    juju.answered(ControlPlane)
    juju.sent[0]["api-endpoints"] = urls
    assert "no api-endpoints" in juju.waiting()


@pytest.mark.parametrize(
    ("creds", "said"),
    [
        ("", "no credentials"),
        ("{", "no credentials"),
        ("[]", "no credentials"),
        ("7", "no credentials"),
        ("[" * 200000, "no credentials"),
        (json.dumps({UNIT_USER: None}), "no credentials"),
        (json.dumps({UNIT_USER: "hush-hush"}), "no credentials"),
        (json.dumps({UNIT_USER: {}}), "no credentials"),
        (json.dumps({UNIT_USER: {"client_token": "hush-hush"}}), "kubelet_token, proxy_token"),
        (json.dumps({UNIT_USER: {"client_token": ["hush-hush"], "scope": 1}}), "client_token"),
    ],
)
def test_credentials_that_are_malformed(juju, creds, said):
    juju.request()
    juju.answered(ControlPlane)
    juju.sent[0]["creds"] = creds
    assert said in juju.waiting()
    assert "hush-hush" not in str(juju.logged)


@pytest.mark.parametrize("token", ["", "two words", "a\nX-Header: b", "tökén", "a\0b"])
def test_a_token_that_cannot_be_one(juju, token):
    juju.request()
    entry = {"client_token": token, "kubelet_token": token, "proxy_token": "", "scope": "kata/0"}
    juju.answered(ControlPlane)
    juju.sent[0]["creds"] = json.dumps({UNIT_USER: entry})
    assert juju.waiting().endswith("credentials over kube-control are empty or malformed")


@pytest.mark.parametrize("provider", [ControlPlane, Canonical])
def test_a_secret_that_was_revoked(juju, provider):
    juju.request()
    juju.answered(provider)
    juju.secrets = {}
    assert "is gone or not granted" in juju.waiting()


def test_a_secret_without_the_token(juju):
    juju.request()
    juju.answered(ControlPlane)
    [name] = juju.secrets
    juju.secrets[name] = {"other": "x"}
    assert juju.waiting() == "waiting for k8s: its secret over kube-control lacks 'kubelet-token'"


def test_no_token_is_ever_logged(juju):
    juju.request()
    juju.answered(ControlPlane)
    access = juju.access()
    [secret] = juju.secrets.values()
    for token in (access.token, secret["client-token"], secret["proxy-token"]):
        assert token not in str(juju.logged)
        assert token not in repr(access)
    assert all(logging.getLevelName(level) < logging.WARNING for level, _ in juju.logged)


# What it costs


def test_the_library_and_pydantic_are_imported_only_when_something_has_changed():
    code = (
        "import sys, control_plane;"
        "sys.exit(sum(name in sys.modules for name in ('pydantic', 'lightkube', 'httpx2')))"
    )
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, check=False)
    assert run.returncode == 0
