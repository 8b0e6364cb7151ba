"""By which names a machine may be known in the cluster."""

import itertools

from kata.cluster import kubelet

KUBELET = "/snap/kubelet/2/kubelet"


def cmdline(*arguments):
    return "".join(f"{each}\0" for each in arguments)


def test_the_machine_id_is_the_one_that_kubelet_reads(node):
    assert kubelet.machine_id(node) is None
    node.lay({"/etc/machine-id": "\n"})
    assert kubelet.machine_id(node) is None
    node.lay({"/etc/machine-id": "abc\n"})
    assert kubelet.machine_id(node) == "abc"


def test_names_come_the_likeliest_first(node):
    node.lay(
        {
            "/proc/sys/kernel/hostname": "Node-1\n",
            "/proc/10/cmdline": cmdline(KUBELET, "--v=2", "--hostname-override=Told"),
        }
    )
    node.on("hostname --fqdn", out="node-1.example\n")
    assert list(kubelet.names(node)) == ["node-1", "told", "node-1.example"]


def test_what_costs_something_is_looked_at_only_when_it_is_needed(node):
    node.lay({"/proc/sys/kernel/hostname": "one\n"})
    assert list(itertools.islice(kubelet.names(node), 1)) == ["one"]
    assert node.ran == []


def test_no_name_comes_twice(node):
    node.lay(
        {
            "/proc/sys/kernel/hostname": "one\n",
            "/proc/10/cmdline": cmdline(KUBELET, "--hostname-override=ONE"),
        }
    )
    node.on("hostname --fqdn", out="one\n")
    assert list(kubelet.names(node)) == ["one"]


def test_only_kubelet_is_listened_to(node):
    node.lay(
        {
            "/proc/sys/kernel/hostname": "one\n",
            "/proc/9/cmdline": cmdline("/bin/kube-proxy", "--hostname-override=proxy"),
            "/proc/10/cmdline": "",
            "/proc/11/cmdline": cmdline("kubelet", "--hostname-override"),
            "/proc/self/cmdline": cmdline("kubelet", "--hostname-override=self"),
        }
    )
    assert list(kubelet.names(node)) == ["one"]


def test_kubelet_calls_itself_what_it_was_told_or_after_the_machine(node):
    node.lay({"/proc/sys/kernel/hostname": "One\n"})
    assert kubelet.name(node) == "one"
    node.lay({"/proc/10/cmdline": cmdline(KUBELET, "--hostname-override", "Told")})
    assert kubelet.name(node) == "told"
