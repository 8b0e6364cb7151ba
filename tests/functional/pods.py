"""Pods on a node, and beside each a virtual machine as Kata would have it.

The pods are containerd's own, made through CRI with the charm's handler and CNI's bridge plugin.
The virtual machines are QEMU's under the node's KVM, with a sandbox's name, socket and vsock CID,
and a tap that iproute2 joins with the pod's card. What the shims leave in files is laid there.
"""

import json
import pathlib
import shutil
import subprocess
import tempfile

from tests.node import containers, kata_state

PAUSE = "registry.k8s.io/pause:3.6"
MEMORY = 96  # MiB of each virtual machine
SCRIPT = pathlib.Path(__file__).with_name("cri_pods.py")
CNI = {
    "cniVersion": "0.4.0",
    "name": "cbr0",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "mtu": 1450,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.39.0/24"}]]},
        }
    ],
}
MODULES = "kvm-amd kvm-intel vhost_vsock vhost_net tun sch_ingress cls_u32 act_mirred"
REDIRECT = """
ip netns exec {ns} tc qdisc add dev {one} ingress
ip netns exec {ns} tc filter add dev {one} parent ffff: protocol all u32 match u32 0 0 \
  action mirred egress redirect dev {other}
"""
FOLDERS = {"go": "/run/vc/vm/{id}", "rust": "/run/kata/{id}/root"}


def prepare(node):
    """Put onto a node what its pods and virtual machines are made of."""
    node.run(f"for module in {MODULES}; do modprobe $module; done", check=False)
    node.run("mkdir -p /etc/cni/net.d /opt/cni && ln -sfn /usr/lib/cni /opt/cni/bin")
    node.copy_in(json.dumps(CNI), "/etc/cni/net.d/10-cbr0.conflist")
    node.copy_in(SCRIPT, "/root/cri_pods.py")
    node.copy_in(node.image.kernel, "/root/vmlinuz")
    node.copy_in(_initrd(node.image.busybox), "/root/initrd")
    for name in (containers.IMAGE, PAUSE):
        containers.load_image(node, name)


def _initrd(busybox):
    """Return what a guest boots to: it does nothing, at no cost."""
    with tempfile.TemporaryDirectory() as folder:
        top = pathlib.Path(folder)
        shutil.copy(busybox, top / "busybox")
        (top / "init").write_text("#!/busybox sh\necho booted\nexec /busybox sleep 2147483647\n")
        (top / "init").chmod(0o755)
        pack = ["cpio", "--create", "--quiet", "--format=newc", "--owner=0:0"]
        names = b"init\nbusybox\n"
        return subprocess.run(pack, cwd=top, input=names, capture_output=True, check=True).stdout


class Pods:
    """The pods of a node.

    Args:
        node: the machine.
        places: folders in it with this project's modules and those that they need.
    """

    def __init__(self, node, places):
        self.node = node
        self._path = ":".join(places)
        self._count = 0

    def _cri(self, *words):
        environment = {"PYTHONPATH": self._path, "PYTHONDONTWRITEBYTECODE": "1"}
        command = ["python3", "/root/cri_pods.py", *words]
        return self.node.run(command, env=environment, timeout=300)

    def run(self, name, handler="kata"):
        self._count += 1
        uid = f"0a1b2c3d-0000-4000-8000-{self._count:012}"
        return Pod(self, name, uid, *self._cri(name, uid, handler, containers.IMAGE).out.split())


class Pod:
    """One of them."""

    def __init__(self, pods, name, uid, sandbox, container):
        self.pods, self.node = pods, pods.node
        self.name, self.uid, self.id, self.container = name, uid, sandbox, container
        self.pid = None
        bundle = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{sandbox}"
        spaces = json.loads(self.node.copy_out(f"{bundle}/config.json"))["linux"]["namespaces"]
        self.network = next(each["path"] for each in spaces if each["type"] == "network")
        self.ns = self.network.rpartition("/")[2]

    def boot(self, shim, cid, append=""):
        """Make its virtual machine, and leave what the shim would leave.

        Args:
            shim: `go` or `rust`.
            cid: the guest's vsock CID.
            append: the guest kernel's command line; without one the machine stays at its first
                instruction.
        """
        folder = FOLDERS[shim].format(id=self.id)
        self.node.run(
            f"set -e; ip netns exec {self.ns} ip tuntap add tap0_kata mode tap;"
            f"ip netns exec {self.ns} ip link set tap0_kata mtu 1450 up; mkdir -p {folder}"
        )
        self.redirect("tap0_kata", "eth0")
        self.redirect("eth0", "tap0_kata")
        words = [
            *("qemu-system-x86_64", "-name", f"sandbox-{self.id}", "-machine", "q35,accel=kvm"),
            *("-m", f"{MEMORY}M,slots=2,maxmem=1G", "-smp", "1,maxcpus=2", "-cpu", "host"),
            *("-nodefaults", "-display", "none", "-serial", f"file:{folder}/console.log"),
            *("-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"),
            *("-device", f"vhost-vsock-pci,id=vsock-{cid},guest-cid={cid}"),
            *("-netdev", "tap,id=network-0,ifname=tap0_kata,script=no,downscript=no"),
            *("-device", "virtio-net-pci,netdev=network-0,mac=f6:45:6e:18:f8:36,romfile="),
            *("-kernel", "/root/vmlinuz", "-initrd", "/root/initrd"),
            *("-append", append or "quiet", "-pidfile", f"{folder}/pid", "-daemonize"),
            *(() if append else ("-S",)),
        ]
        self.node.run(["ip", "netns", "exec", self.ns, *words])
        self.pid = int(self.node.copy_out(f"{folder}/pid"))
        if shim == "go":
            state = kata_state.go(self.id, self.pid, self.network, memory=MEMORY)
            file = f"/run/vc/sbs/{self.id}/persist.json"
        else:
            state = kata_state.rust(self.id, default_memory=MEMORY)
            file = f"/run/kata/{self.id}/state.json"
        self.node.copy_in(json.dumps(state), file, 0o600)
        return self

    def redirect(self, one, other):
        self.node.run(REDIRECT.format(ns=self.ns, one=one, other=other))
