"""The charm as Juju sees it: state in, state out, over a node of the test's making."""

import dataclasses
import json
import os

import ops
import ops.testing
import pytest
import tomlkit

import charm
from kata import problems, workload
from kata.gpu import preparation
from kata.machine import host
from kata.observability import telling, told
from kata.release import release
from tests import api_server
from tests.node import standin
from tests.unit import cards, containerd_machine, kata_machine, kata_releases
from tests.unit.gpu import test_guest_kernel

AVAILABLE = "Kata runtime available (3.32.0; kata, untrusted)"
KATA = "/etc/kata-containers/configuration.toml"
CONTAINERD = containerd_machine.MAIN
UNIT = "kata/0"
NOTHING = workload.Report(None, notes=("nothing",))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    return {each: standin.archive(each, folder) for each in ("2.5.2", "3.32.0", "4.1.0")}


class Deployment:
    """A unit on a machine that can run Kata, and what `juju` commands would do to it."""

    def __init__(self, node, archive):
        self.node = node
        self.containerd = containerd_machine.FakeContainerd(node, "1.7.24")
        node.path("/usr/local/bin/containerd-shim-kata-v2").unlink()
        node.lay({CONTAINERD: containerd_machine.CONFIG})
        self.context = ops.testing.Context(charm.KataCharm, app_name="kata", unit_id=0)
        self.placement = ops.testing.SubordinateRelation(
            "containerd", remote_app_name="kubernetes-worker"
        )
        self.state = ops.testing.State(
            leader=True,
            planned_units=1,
            relations=[self.placement],
            resources=self.resources(archive),
        )

    def resources(self, archive):
        """The archive attached; of the others, Juju has the empty file that stands for none."""
        none = self.node.path("/none")
        none.touch()
        files = {"kata-archive": archive, "guest-kernel": none, "vgpu-driver": none}
        return [ops.testing.Resource(name=name, path=path) for name, path in files.items()]

    def attach(self, archive):
        self.change(resources=self.resources(archive))
        return self.run(self.context.on.upgrade_charm())

    def change(self, **more):
        self.state = dataclasses.replace(self.state, **more)
        return self

    def config(self, **options):
        named = {name.replace("_", "-"): value for name, value in options.items()}
        return self.change(config={**self.state.config, **named})

    def relate(self, relation):
        kept = [each for each in self.state.relations if each.id != relation.id]
        return self.change(relations=[*kept, relation])

    def run(self, event=None):
        self.state = self.context.run(event or self.context.on.config_changed(), self.state)
        return self

    @property
    def unit(self):
        return self.state.unit_status.name, self.state.unit_status.message

    @property
    def app(self):
        return self.state.app_status.name, self.state.app_status.message

    @property
    def file(self):
        return self.node.read(CONTAINERD)


@pytest.fixture
def kata(node, archives, monkeypatch):
    """A unit that has not run any hook yet."""
    node.lay(
        {
            "/proc/sys/kernel/arch": "x86_64\n",
            "/proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
            "/proc/sys/kernel/hostname": "one\n",
            "/proc/cpuinfo": "processor : 0\nflags\t\t: fpu vmx sse\n",
            "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
            "/dev/kvm": "",
            "/dev/vhost-vsock": "",
            "/dev/vhost-net": "",
            "/sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            **{
                f"/sys/module/{name}/refcnt": "0"
                for name in ("vhost", "vhost_net", "vhost_vsock", "kvm_intel")
            },
            "/var/lib/juju/agents/unit-kata-0/charm/x": "",
        }
    )
    monkeypatch.setattr(host, "kvm_api", lambda _: 12)
    monkeypatch.setattr(charm.node, "Node", lambda: node)
    return Deployment(node, archives["3.32.0"])


@pytest.fixture
def cluster():
    """A control plane, and the relation with it as it answers the unit's request."""
    with api_server.ApiServer() as server:
        server.add_node("one", "0123456789abcdef0123456789abcdef")
        yield server


def relate_cluster(kata, server):
    secret = ops.testing.Secret({"ca-certificate": server.ca}, owner=None)
    relation = ops.testing.Relation(
        "kube-control",
        remote_app_name="kubernetes-control-plane",
        remote_units_data={
            0: {
                "api-endpoints": json.dumps([server.url]),
                "ca-certificate-secret-id": secret.id,
            }
        },
    )
    kata.change(secrets=[secret]).relate(relation)
    kata.run(kata.context.on.relation_created(relation))
    asked = kata.state.get_relation(relation.id)
    tokens = dict.fromkeys(("client_token", "kubelet_token", "proxy_token"), server.token)
    creds = {asked.local_unit_data["kubelet_user"]: {**tokens, "scope": UNIT}}
    answered = {**asked.remote_units_data[0], "creds": json.dumps(creds)}
    kata.relate(dataclasses.replace(asked, remote_units_data={0: answered}))
    kata.run(kata.context.on.relation_changed(kata.state.get_relation(relation.id), remote_unit=0))
    return kata.state.get_relation(relation.id)


# From nothing


def test_a_node_from_nothing_to_kata(kata):
    kata.run(kata.context.on.install())
    assert kata.unit == ("active", AVAILABLE)
    assert kata.state.workload_version == "3.32.0"
    assert "runtimes.kata]" in kata.file
    assert "runtimes.untrusted]" in kata.file
    assert kata.node.read(KATA)
    assert kata.containerd.restarts == 1
    assert kata.node.exists("/etc/systemd/system/containerd.service.d/kata-charm.conf")


def test_progress_is_shown(kata):
    kata.run(kata.context.on.install())
    shown = [
        each.message for each in kata.context.unit_status_history if each.name == "maintenance"
    ]
    assert shown
    assert all(len(words) < 120 for words in shown)


EVENTS = ("install", "start", "upgrade_charm", "config_changed", "update_status", "leader_elected")


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_ends_in_the_same_reconcile(kata, event):
    kata.run(getattr(kata.context.on, event)())
    assert kata.unit == ("active", AVAILABLE)


@pytest.mark.parametrize("endpoint", ["containerd", "node", "untrusted", "kube-control"])
def test_every_relation_may_be_there_alone(kata, endpoint):
    if endpoint == "kube-control":
        relation = ops.testing.Relation(endpoint)
    else:
        relation = ops.testing.SubordinateRelation(endpoint)
    kata.change(relations=[relation])
    kata.run(kata.context.on.relation_created(relation))
    expected = ("active", AVAILABLE)
    if endpoint == "kube-control":
        expected = (
            "waiting",
            "waiting for remote: it has sent no api-endpoints over kube-control",
        )
    assert kata.unit == expected


def test_without_any_relation_the_node_is_served(kata):
    assert kata.change(relations=[]).run().unit == ("active", AVAILABLE)


@pytest.mark.parametrize("event", EVENTS)
def test_a_second_time_nothing_changes(kata, event):
    kata.run()
    before, restarts = kata.node.tree(), kata.containerd.restarts
    kata.run(getattr(kata.context.on, event)())
    assert kata.node.tree() == before
    assert kata.containerd.restarts == restarts
    assert kata.unit == ("active", AVAILABLE)


def test_the_containerd_charm_is_told_as_the_older_charm_told_it(kata):
    relation = ops.testing.SubordinateRelation("untrusted", remote_app_name="containerd")
    kata.relate(relation).run(kata.context.on.relation_created(relation))
    data = kata.state.get_relation(relation.id).local_unit_data
    assert data["name"] == '"kata"'
    assert json.loads(data["binary_path"]).startswith("/")


def test_a_containerd_charm_that_knows_more_is_told_the_whole_handler(kata):
    relation = ops.testing.SubordinateRelation("untrusted", remote_app_name="containerd")
    kata.relate(relation).run(kata.context.on.relation_created(relation))
    told = json.loads(kata.state.get_relation(relation.id).local_unit_data["handler"])
    written = tomlkit.parse(kata.file)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
    handler = written["runtimes"]["kata"].unwrap()
    assert told == {
        "runtime_type": handler["runtime_type"],
        "runtime_path": handler["runtime_path"],
        "config_path": handler["options"]["ConfigPath"],
        "annotations": handler["pod_annotations"],
    }


# Machines that cannot


def test_a_system_container_is_no_fault(kata):
    kata.node.lay({"/run/systemd/container": "lxc\n"})
    before = kata.node.tree()
    kata.run()
    assert kata.unit == ("active", "Kata not installed here: system container (lxc)")
    after = kata.node.tree()
    assert {path for path in after if path not in before} <= {"/var/lib/kata-charm/units.json"}
    assert kata.containerd.restarts == 0


def test_no_virtualisation_blocks_and_leaves_containerd_alone(kata):
    kata.node.lay({"/proc/cpuinfo": "processor : 0\nflags\t\t: fpu sse\n"})
    kata.run()
    assert kata.unit[0] == "blocked"
    assert "CPU virtualisation" in kata.unit[1]
    assert kata.file == containerd_machine.CONFIG
    assert kata.containerd.restarts == 0


def test_no_containerd_blocks(kata):
    kata.containerd.unit = "none.service"
    assert kata.run().unit[1].startswith("containerd not found")


def test_a_machine_that_refuses_is_no_traceback(kata, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device", "/opt/kata-releases/x")

    monkeypatch.setattr(workload, "ensure", refuse)
    kata.run()
    assert kata.unit == (
        "blocked",
        "the machine refused: /opt/kata-releases/x: No space left on device",
    )


# Options

BAD = [
    ("shim", "perl"),
    ("hypervisor", "xen"),
    ("runtime_class", "Kata Runtime"),
    ("default_memory", 1),
    ("kata_config", "[hypervisor.qemu\n"),
    ("overhead_memory", "lots"),
    ("kata_version", "latest"),
    ("enable_annotations", "["),
    ("gpu_mode", "on"),
]


@pytest.mark.parametrize(("option", "value"), BAD)
def test_a_bad_option_changes_nothing_and_heals_by_itself(kata, option, value):
    kata.run()
    before = kata.node.tree()
    kata.config(**{option: value}).run()
    assert kata.unit[0] == "blocked"
    assert option.replace("_", "-") in kata.unit[1]
    assert kata.node.tree() == before
    default = kata_releases.DEFAULTS[option.replace("_", "-")]
    assert kata.config(**{option: default}).run().unit == ("active", AVAILABLE)


# An option, and what of it must be found where: in Kata's file, or in containerd's.
EFFECTS = [
    ({"hypervisor": "clh"}, KATA, "[hypervisor.clh]"),
    ({"runtime_class": "isolated"}, CONTAINERD, "runtimes.isolated]"),
    ({"extra_runtime_classes": "kata-clh=clh"}, CONTAINERD, "runtimes.kata-clh]"),
    (
        {"extra_runtime_classes": "kata-clh=clh"},
        "/etc/kata-containers/configuration-kata-clh.toml",
        "[hypervisor.clh]",
    ),
    ({"snapshotter": "devmapper"}, CONTAINERD, 'snapshotter = "devmapper"'),
    ({"default_vcpus": 3}, KATA, "default_vcpus = 3"),
    ({"default_memory": 4096}, KATA, "default_memory = 4096"),
    ({"enable_annotations": "default_vcpus"}, KATA, 'enable_annotations = ["default_vcpus"]'),
    ({"debug_console": True}, KATA, "debug_console_enabled = true"),
    ({"kata_config": "[hypervisor.qemu]\nenable_debug = true\n"}, KATA, "enable_debug = true"),
]


@pytest.mark.parametrize(("options", "path", "text"), EFFECTS)
def test_an_option_takes_effect_and_goes_again(kata, options, path, text):
    kata.run()
    before = kata.node.tree()
    kata.config(**options).run()
    assert kata.unit[0] == "active", kata.unit
    live = [line for line in kata.node.read(path).splitlines() if not line.startswith("#")]
    assert any(text in line for line in live)
    kata.change(config={}).run()
    now = kata.node.tree()
    state = "/var/lib/kata-charm/containerd/", "/run/kata-charm/"
    changed = {path for path in before | now if before.get(path) != now.get(path)}
    assert not [path for path in changed if not path.startswith(state)]


def test_the_untrusted_annotation_can_be_left_out(kata):
    kata.config(untrusted_annotation=False).run()
    assert "untrusted" not in kata.file
    assert kata.unit[1] == "Kata runtime available (3.32.0; kata)"


@pytest.mark.parametrize(
    ("options", "restarts"),
    [
        ({}, 0),
        ({"default_memory": 4096}, 0),
        ({"debug_console": True}, 0),
        ({"overhead_memory": "400Mi"}, 0),
        ({"runtime_class": "isolated"}, 1),
        ({"snapshotter": "devmapper"}, 1),
    ],
)
def test_containerd_restarts_only_for_what_it_reads(kata, options, restarts):
    before = kata.run().containerd.restarts
    kata.config(**options).run()
    assert kata.containerd.restarts - before == restarts


def test_what_containerd_does_not_live_with_is_rolled_back(kata):
    kata.run()
    good = kata.file
    kata.containerd.refuses = lambda text: "no second class" if "kata-clh" in text else ""
    kata.config(extra_runtime_classes="kata-clh=clh").run()
    assert kata.unit[0] == "blocked"
    assert "no second class" in kata.unit[1]
    assert kata.file == good
    assert kata.containerd.active == "active"
    restarts = kata.containerd.restarts
    kata.run(kata.context.on.update_status())
    assert kata.unit[0] == "blocked"
    assert kata.containerd.restarts == restarts, "pods are not bothered every five minutes"
    kata.containerd.refuses = lambda _: ""
    assert kata.run().unit[0] == "active"


def test_a_file_that_somebody_broke_is_left_and_heals(kata):
    kata.run()
    good = kata.file
    kata.node.lay({CONTAINERD: good + '[x]\ny = "a"b"\n'})
    kata.config(runtime_class="isolated").run()
    assert kata.unit[0] == "blocked"
    assert CONTAINERD in kata.unit[1]
    assert kata.file == good + '[x]\ny = "a"b"\n'
    kata.node.lay({CONTAINERD: good})
    assert kata.run(kata.context.on.update_status()).unit[0] == "active"


# Releases


@pytest.mark.parametrize("version", ["2.5.2", "3.32.0", "4.1.0"])
def test_every_generation_of_archives(kata, archives, version):
    kata.attach(archives[version])
    assert kata.unit[0] == "active", kata.unit
    assert kata.unit[1].startswith(f"Kata runtime available ({version}; kata, untrusted)")
    assert kata.state.workload_version == version


def test_up_and_down_between_generations_without_a_restart(kata, archives):
    before = kata.run().containerd.restarts
    for version in ("4.1.0", "2.5.2", "3.32.0"):
        kata.attach(archives[version])
        assert kata.unit[1].startswith(f"Kata runtime available ({version}"), kata.unit
    assert kata.containerd.restarts == before
    assert kata.unit == ("active", AVAILABLE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shim": "go"}, "option shim=go"),
        ({"hypervisor": "fc"}, "option hypervisor=fc"),
        ({"kata_config": "[hypervisor.qemu]\npath = '/nonesuch'\n"}, "/nonesuch"),
    ],
)
def test_a_release_that_cannot_do_what_is_asked_never_comes_into_use(
    kata, archives, options, words
):
    kata.run()
    before = kata.node.tree()
    kata.change(config={name.replace("_", "-"): value for name, value in options.items()})
    kata.attach(archives["4.1.0"])
    assert kata.unit[0] == "blocked"
    assert words in kata.unit[1]
    changed = {path for path, text in kata.node.tree().items() if before.get(path) != text}
    kept = (f"{release.RELEASES}/4.1.0-", release.STATE, "/var/lib/juju")
    assert [path for path in changed if not path.startswith(kept)] == []


# The cluster


def test_the_leader_makes_the_runtime_class(kata, cluster):
    relate_cluster(kata, cluster)
    made = cluster.objects.stored["runtimeclasses"]["kata"]
    assert made["handler"] == "kata"
    assert made["overhead"] == {"podFixed": {"memory": "320Mi", "cpu": "250m"}}
    assert made["scheduling"]["nodeSelector"] == {"katacontainers.io/kata-runtime": "true"}
    labels = cluster.objects.stored["nodes"]["one"]["metadata"]["labels"]
    assert labels["katacontainers.io/kata-runtime"] == "true"
    assert kata.unit == ("active", AVAILABLE)
    assert kata.app == ("active", "RuntimeClass kata")


def test_overhead_and_labels_follow_the_options(kata, cluster):
    relate_cluster(kata, cluster)
    kata.config(overhead_memory="1Gi", overhead_cpu="1", label_nodes=False).run()
    made = cluster.objects.stored["runtimeclasses"]["kata"]
    assert made["overhead"] == {"podFixed": {"memory": "1Gi", "cpu": "1"}}
    assert "scheduling" not in made
    labels = cluster.objects.stored["nodes"]["one"]["metadata"]["labels"]
    assert "katacontainers.io/kata-runtime" not in labels


def test_a_unit_that_does_not_lead_makes_none(kata, cluster):
    kata.change(leader=False)
    relation = ops.testing.Relation(
        "kube-control",
        remote_units_data={0: {"api-endpoints": json.dumps([cluster.url])}},
    )
    kata.relate(relation).run(kata.context.on.relation_created(relation))
    assert cluster.objects.stored["runtimeclasses"] == {}
    assert kata.app == ("unknown", "")


def test_a_leader_in_a_system_container_makes_it_too(kata, cluster):
    kata.node.lay({"/run/systemd/container": "lxc\n"})
    relate_cluster(kata, cluster)
    assert "kata" in cluster.objects.stored["runtimeclasses"]
    assert kata.unit[0] == "active"


def test_without_kube_control_the_leader_says_so(kata):
    kata.run()
    assert kata.app == ("active", "RuntimeClass kata is yours: no kube-control relation")


def test_a_control_plane_that_fails_does_not_hold_the_node_up(kata, cluster):
    relate_cluster(kata, cluster)
    cluster.faults.append(api_server.Fault(status=500))
    kata.config(runtime_class="isolated").run()
    assert "runtimes.isolated]" in kata.file
    assert kata.unit[0] == kata.app[0] == "waiting"
    assert "500" in kata.app[1]
    cluster.faults.clear()
    kata.run(kata.context.on.update_status())
    assert kata.app == ("active", "RuntimeClass isolated")
    assert list(cluster.objects.stored["runtimeclasses"]) == ["isolated"]


def test_no_token_is_ever_said(kata, cluster):
    relate_cluster(kata, cluster)
    cluster.faults.append(api_server.Fault(status=401))
    kata.run()
    said = [kata.unit[1], kata.app[1], *(line.message for line in kata.context.juju_log)]
    assert not [line for line in said if cluster.token in line]
    kept = [path for path, text in kata.node.tree().items() if cluster.token in text]
    assert all(kata.node.path(path).stat().st_mode & 0o77 == 0 for path in kept)


# GPUs


def test_a_node_without_a_gpu_is_fine(kata, cluster):
    relate_cluster(kata, cluster)
    kata.config(gpu_mode="passthrough").run()
    assert kata.unit == ("active", f"{AVAILABLE}; no NVIDIA GPU here")
    labels = cluster.objects.stored["nodes"]["one"]["metadata"]["labels"]
    assert "katacontainers.io/kata-gpu" not in labels
    made = cluster.objects.stored["runtimeclasses"]["kata-gpu"]
    # 10240Mi, as an API server writes it
    assert made["overhead"]["podFixed"]["memory"] == "10Gi"
    assert made["scheduling"]["nodeSelector"] == {"katacontainers.io/kata-gpu": "true"}


def test_a_gpu_that_is_not_ready_does_not_hold_ordinary_sandboxes_up(kata, monkeypatch):
    def refuse(*_):
        raise problems.Blocked("reboot needed: the IOMMU is off")

    monkeypatch.setattr(preparation, "ensure_host", refuse)
    kata.config(gpu_mode="passthrough").run()
    assert kata.unit == ("blocked", "reboot needed: the IOMMU is off")
    assert "runtimes.kata]" in kata.file


@pytest.fixture
def with_gpus(tmp_path, archives, monkeypatch):
    """A unit on the deploy record's machine: two Tesla P100, and a guest kernel for them."""
    machine = cards.of_the_record(tmp_path / "root")
    machine.lay({**kata_machine.READY, "/etc/machine-id": "0123456789abcdef0123456789abcdef\n"})
    machine.lay({"/var/lib/juju/agents/unit-kata-0/charm/x": "", "/srv/vmlinuz": ""})
    machine.path("/srv/vmlinuz").write_bytes(test_guest_kernel.vmlinux())
    monkeypatch.setattr(host, "kvm_api", lambda _: 12)
    monkeypatch.setattr(charm.node, "Node", lambda: machine)
    deployment = Deployment(machine, archives["3.32.0"])
    return deployment.config(gpu_mode="passthrough", gpu_guest_kernel="/srv/vmlinuz")


def labels(cluster):
    return cluster.objects.stored["nodes"]["one"]["metadata"]["labels"]


def guest(machine, path):
    """What a configuration file says of the virtual machine."""
    return tomlkit.parse(machine.read(path)).unwrap()["hypervisor"]["qemu"]


GPU_KATA = "/etc/kata-containers/configuration-kata-gpu.toml"
GPUS = "0000:04:00.0, 0000:84:00.0"


def test_gpus_from_mode_to_pods_and_back(with_gpus, cluster):
    with_gpus.config(gpu_mode="none").run()
    before = with_gpus.node.tree("/etc"), with_gpus.node.tree("/sys")
    with_gpus.config(gpu_mode="passthrough")
    relate_cluster(with_gpus, cluster)
    assert with_gpus.unit == (
        "active",
        f"Kata runtime available (3.32.0; kata, kata-gpu, untrusted); GPUs {GPUS} for sandboxes",
    )
    assert "runtimes.kata-gpu]" in with_gpus.file
    assert labels(cluster)["katacontainers.io/kata-gpu"] == "true"
    assert cluster.objects.stored["runtimeclasses"]["kata-gpu"]["handler"] == "kata-gpu"
    made = guest(with_gpus.node, GPU_KATA)
    assert (made["kernel"], made["default_memory"]) == ("/srv/vmlinuz", 8192)
    assert (made["hot_plug_vfio"], made["cold_plug_vfio"]) == ("no-port", "root-port")
    ordinary = guest(with_gpus.node, KATA)
    assert (ordinary["default_memory"], ordinary["cold_plug_vfio"]) == (2048, "no-port")

    with_gpus.config(gpu_mode="none").run()
    assert with_gpus.unit == ("active", AVAILABLE)
    after = with_gpus.node.tree("/etc"), with_gpus.node.tree("/sys")
    del after[1]["/sys/bus/pci/drivers/vfio-pci/unbind"]  # a driver stays loaded
    assert after == before
    assert "katacontainers.io/kata-gpu" not in labels(cluster)
    assert "kata-gpu" not in cluster.objects.stored["runtimeclasses"]


def test_one_class_for_both_as_in_the_deploy_record(with_gpus):
    with_gpus.config(gpu_runtime_class="kata").run()
    assert with_gpus.unit[1].startswith(AVAILABLE)
    assert guest(with_gpus.node, KATA)["default_memory"] == 8192
    assert not with_gpus.node.exists(GPU_KATA)


def test_trouble_with_one_gpu_takes_the_other_from_nobody(with_gpus, cluster):
    relate_cluster(with_gpus, cluster)
    machine = with_gpus.node
    kept = with_gpus.file, machine.read(GPU_KATA)
    # The driver of the host comes, and takes the one that somebody has unbound by hand.
    machine._unbind("0000:84:00.0")
    machine._bind("0000:84:00.0", "nvidia")
    machine.process(812, "nvidia-persiste", "/dev/nvidia0")
    restarts = with_gpus.containerd.restarts
    with_gpus.run()
    assert with_gpus.unit[0] == "blocked"
    assert "0000:84:00.0 belongs to the host's driver nvidia, held by" in with_gpus.unit[1]
    assert (with_gpus.file, machine.read(GPU_KATA)) == kept
    assert with_gpus.containerd.restarts == restarts
    assert labels(cluster)["katacontainers.io/kata-gpu"] == "true"


def test_an_option_that_does_not_fit_leaves_the_handler_as_it_is(with_gpus, cluster):
    relate_cluster(with_gpus, cluster)
    kept = with_gpus.file, with_gpus.node.read(GPU_KATA)
    with_gpus.config(gpu_plug="pci").run()
    assert with_gpus.unit == (
        "blocked",
        "gpu-plug=pci: no bridge of Kata 3.32.0 has room for a large BAR; set gpu-plug=pcie or cold",
    )
    assert (with_gpus.file, with_gpus.node.read(GPU_KATA)) == kept
    assert "katacontainers.io/kata-gpu" not in labels(cluster)  # no new pods until it is mended
    with_gpus.config(gpu_plug="pcie").run()
    made = guest(with_gpus.node, GPU_KATA)
    assert (made["hot_plug_vfio"], made["pcie_root_port"]) == ("root-port", 3)


# Going


def go(kata, relation=None):
    if relation:
        kata.run(kata.context.on.relation_departed(relation, remote_unit=0, departing_unit=0))
    kata.run(kata.context.on.stop())


# Being observed


@pytest.fixture
def collector(kata):
    """The unit, related to a collector, on a machine whose systemd starts services."""
    for verb in ("enable", "disable", "restart", "reset-failed"):
        kata.node.on(f"systemctl {verb} *kata-charm*")
    shown = type(kata.node.run("systemctl daemon-reload"))(0, "active\nactive\n", "")
    kata.node.on("systemctl show --property=ActiveState --value *", effect=lambda _: shown)
    relation = ops.testing.Relation("cos-agent", remote_app_name="opentelemetry-collector")
    kata.relate(relation)
    return relation


def jobs(kata, relation):
    sent = json.loads(kata.state.get_relation(relation.id).local_unit_data["config"])
    return [job["static_configs"][0]["targets"][0] for job in sent["metrics_scrape_jobs"]]


def test_a_collector_is_told_what_is_served(kata, collector):
    kata.run()
    assert kata.unit == ("active", AVAILABLE)
    assert jobs(kata, collector) == ["127.0.0.1:8091", "127.0.0.1:8090"]
    assert told.load(kata.node).release == "3.32.0"
    assert told.load(kata.node).overheads["kata"] == ("qemu", 320 << 20)


def test_a_release_without_kata_monitor_says_so(kata, collector, archives):
    kata.run().attach(archives["4.1.0"])
    assert jobs(kata, collector) == ["127.0.0.1:8091"]
    assert "Kata 4.1.0 ships no kata-monitor" in kata.unit[1]


def test_a_hook_that_finds_nothing_to_do_still_tells_when(kata, collector, monkeypatch):
    for unit in ("containerd", "kata-charm-metrics", "kata-charm-monitor"):
        kata.node.lay({f"/run/systemd/units/invocation:{unit}.service": "x"})
    kata.run().run(kata.context.on.update_status())
    monkeypatch.setattr(workload, "ensure", None)  # it is not called
    monkeypatch.setattr(telling.time, "time", lambda: 1763990000)
    kata.run(kata.context.on.update_status())
    assert kata.unit == ("active", AVAILABLE)
    assert told.load(kata.node).time == 1763990000
    assert told.load(kata.node).release == "3.32.0"
    assert jobs(kata, collector) == ["127.0.0.1:8091", "127.0.0.1:8090"]


def test_without_a_collector_nothing_of_it_is_there(kata):
    kata.run()
    assert not [path for path in kata.node.tree() if "metrics" in path or "monitor.s" in path]


def test_when_the_collector_leaves_everything_of_it_goes(kata, collector):
    before = kata.change(relations=[kata.placement]).run().node.tree()
    kata.relate(collector).run()
    relation = kata.state.get_relation(collector.id)
    kata.run(kata.context.on.relation_broken(relation))
    assert kata.node.tree() == before


def test_the_cluster_is_told_as_it_is(kata, collector, cluster):
    relate_cluster(kata, cluster)
    found = told.load(kata.node)
    assert (dict(found.runtime_classes), found.labelled) == ({"kata": True}, True)
    assert found.problem == ""


def test_a_label_is_still_told_of_when_the_node_is_no_longer_ready(kata, collector, cluster):
    relate_cluster(kata, cluster)
    kata.config(kata_config="x = [").run()
    found = told.load(kata.node)
    assert kata.unit[0] == "blocked"
    assert found.labelled
    assert found.problem == kata.unit[1]
    assert found.release == "3.32.0"


def test_a_control_plane_that_is_silent_leaves_the_last_word(kata, collector, cluster):
    relate_cluster(kata, cluster)
    cluster.faults.append(api_server.Fault(status=500))
    kata.run()
    found = told.load(kata.node)
    assert (dict(found.runtime_classes), found.labelled) == ({"kata": True}, True)
    assert "control plane" in found.problem


def test_removal_leaves_the_machine_as_it_was(kata):
    before = kata.node.tree()
    kata.run().config(extra_runtime_classes="kata-clh=clh", debug_console=True).run()
    go(kata)
    assert kata.node.tree() == before


def test_removal_of_the_application_takes_the_runtime_classes_and_the_label(kata, cluster):
    relate_cluster(kata, cluster)
    kata.change(planned_units=0)
    go(kata)
    assert cluster.objects.stored["runtimeclasses"] == {}
    labels = cluster.objects.stored["nodes"]["one"]["metadata"]["labels"]
    assert "katacontainers.io/kata-runtime" not in labels


def test_removal_of_one_unit_leaves_the_runtime_classes(kata, cluster):
    relate_cluster(kata, cluster)
    kata.change(planned_units=2)
    go(kata)
    assert "kata" in cluster.objects.stored["runtimeclasses"]


def test_a_control_plane_that_is_gone_does_not_keep_a_unit_from_going(kata, cluster):
    before = {path for path in kata.node.tree() if "access" not in path}
    relate_cluster(kata, cluster)
    cluster.faults.append(api_server.Fault(drop=True))
    kata.change(planned_units=0)
    go(kata)
    assert {path for path in kata.node.tree() if "access" not in path} == before


def test_a_second_unit_stands_by_and_takes_over(kata):
    kata.run()
    working = kata.node.tree()
    kata.node.lay({"/var/lib/juju/agents/unit-other-1/charm/x": ""})
    second = Deployment.__new__(Deployment)
    second.__dict__.update(kata.__dict__)
    second.context = ops.testing.Context(charm.KataCharm, app_name="other", unit_id=1)
    second.config(runtime_class="mine").run()
    assert second.unit == ("active", f"standing by: {UNIT} runs Kata here")
    assert kata.file == working[CONTAINERD]
    kata.run(kata.context.on.stop())
    assert kata.file == working[CONTAINERD], "the machine is the other's now"
    second.run()
    assert "runtimes.mine]" in kata.file
    second.run(second.context.on.stop())
    assert "kata charm" not in kata.file


def test_proxies_of_the_model_are_used(kata, monkeypatch):
    seen = []
    monkeypatch.setattr(
        workload, "ensure", lambda *_, **__: seen.append(os.environ.get("https_proxy")) or NOTHING
    )
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv("JUJU_CHARM_HTTPS_PROXY", "http://proxy.example:3128")
    kata.run()
    assert seen == ["http://proxy.example:3128"]
