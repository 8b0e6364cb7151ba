"""Sandboxes laid out in a tree as the Go and the Rust shim, containerd and /proc show them."""

import itertools
import json
import os

NETWORK = "/run/netns/cni-{}"
PAGE = os.sysconf("SC_PAGESIZE")
TICKS = os.sysconf("SC_CLK_TCK")
UPTIME = 10_000
GO = "/opt/kata-releases/4.1.0-0123456789ab/bin/containerd-shim-kata-v2"
RUST = "/opt/kata-releases/4.1.0-0123456789ab/runtime-rs/bin/containerd-shim-kata-v2"
RUNC = "/usr/bin/containerd-shim-runc-v2"
FIB = """\
Main:
  +-- 0.0.0.0/1 2 0 2
        |-- {ip}
           /32 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
Local:
  +-- 0.0.0.0/1 2 0 2
        |-- {ip}
           /32 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
"""
IF_INET6 = """\
fe80000000000000401ee1fffeace75e 02 40 20 80     eth0
fd000000000000000000000000000103 02 40 00 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""


def sid(number):
    """Return a containerd id."""
    return f"{number:08x}" * 8


def cid(number):
    """Return the id of the container that a pod with that number has."""
    return f"{number:08x}" * 7 + "cccccccc"


def qemu(name, *, cid=751925852, memory="2048M", vcpus=1, extra=()):
    return [
        *("/opt/kata/bin/qemu-system-x86_64", "-name", f"sandbox-{name},debug-threads=on"),
        *("-machine", "q35,accel=kvm,nvdimm=on", "-m", f"{memory},slots=10,maxmem=49308M"),
        *("-device", "nvdimm,id=nv0,memdev=mem0,unarmed=on"),
        *("-object", "memory-backend-file,id=mem0,mem-path=/opt/kata/share/kata.img,size=1"),
        *("-object", f"memory-backend-file,id=dimm1,size={memory},mem-path=/dev/shm,share=on"),
        *("-device", f"vhost-vsock-pci,vhostfd=3,id=vsock-{cid},guest-cid={cid},romfile="),
        *("-device", "driver=virtio-net-pci,netdev=network-0,mac=f6:45:6e:18:f8:36,mq=on"),
        *("-kernel", "/opt/kata/share/vmlinux.container", "-append", "quiet panic=1"),
        *("-smp", f"{vcpus},cores=1,threads=1,sockets=8,maxcpus=8", *extra),
    ]


def go_state(name, pid, **hypervisor):
    asked = {"KernelPath": "/k", "ImagePath": "/i", "NumVCPUsF": 1, "MemorySize": 2048}
    return {
        "SandboxContainer": name,
        "State": "running",
        "HypervisorState": {"Type": "qemu", "Pid": pid, "HotpluggedMemory": 0, **hypervisor},
        "Config": {"HypervisorType": "qemu", "HypervisorConfig": asked},
    }


def rust_state(name, kind="qemu", **config):
    asked = {
        "path": "/opt/kata/bin/qemu-system-x86_64",
        "kernel": "/opt/kata/share/vmlinux.container",
        "image": "/opt/kata/share/kata.img",
        "machine_type": "q35",
        "default_vcpus": 1.0,
        "default_memory": 2048,
        "kernel_params": "",
        **config,
    }
    state = {"hypervisor_type": kind, "pid": None, "id": name, "config": asked}
    return {"sandbox_type": "virt_container", "resource": None, "hypervisor": state}


def lay_process(node, words, *, exe="", network="", started=9000, rss=50, ip="10.1.39.154"):
    """Lay a process, and return its pid."""
    pid = next(vars(node).setdefault("pids", itertools.count(1000)))
    top = f"/proc/{pid}"
    after = " ".join(["S", "1", *["0"] * 17, str(started * TICKS), "0", str(rss), "0"])
    node.lay(
        {
            "/proc/uptime": f"{UPTIME}.00 1.00\n",
            f"{top}/cmdline": "\0".join(words) + "\0",
            f"{top}/stat": f"{pid} (a) b (c) {after}\n",
            f"{top}/net/fib_trie": FIB.format(ip=ip),
            f"{top}/net/if_inet6": IF_INET6,
        }
    )
    node.path(f"{top}/exe").symlink_to(exe or words[0])
    if network:
        lay_network(node, network)
        node.path(f"{top}/ns").mkdir()
        # One inode under two names, as a namespace that is bound to a file.
        os.link(node.path(network), node.path(f"{top}/ns/net"))
    return pid


def lay_network(node, network):
    if not node.path(network).exists():
        node.lay({network: ""})


def lay_bundle(
    node, name, *, sandbox=None, pod=("default", "nginx"), shim=GO, network="", container="nginx"
):
    """Lay the bundle of a pod's sandbox, or of a container in `sandbox`; `pod` None: of neither."""
    top = f"/run/containerd/io.containerd.runtime.v2.task/{'k8s.io' if pod else 'test'}/{name}"
    about = {}
    if pod:
        about = {
            "io.kubernetes.cri.sandbox-id": sandbox or name,
            "io.kubernetes.cri.sandbox-namespace": pod[0],
            "io.kubernetes.cri.sandbox-name": pod[1],
            "io.kubernetes.cri.sandbox-uid": f"uid-of-{pod[1]}",
            "io.kubernetes.cri.container-type": "container" if sandbox else "sandbox",
        }
        if sandbox:
            about["io.kubernetes.cri.container-name"] = container
            about["io.kubernetes.cri.image-name"] = "docker.io/library/nginx:1.27"
    spaces = [{"type": "pid"}, {"type": "network", **({"path": network} if network else {})}]
    spec = {"ociVersion": "1.1.0", "annotations": about, "linux": {"namespaces": spaces}}
    node.lay({f"{top}/config.json": json.dumps(spec), f"{top}/init.pid": "1"})
    if shim:
        node.lay({f"{top}/shim-binary-path": shim})
    return top


def shim_words(name, program, namespace="k8s.io"):
    return [program, "-namespace", namespace, "-address", "/run/c.sock", "-id", name]


def lay_go(node, number=1, *, pod=("default", "nginx"), command=None, state=None, **more):
    """Lay a whole pod of the Go shim with one container; return the sandbox's id."""
    name = sid(number)
    network = NETWORK.format(number)
    namespace = "k8s.io" if pod else "test"
    lay_bundle(node, name, pod=pod, network=network)
    if pod:
        lay_bundle(node, cid(number), sandbox=name, pod=pod)
    lay_process(
        node, shim_words(name, "/usr/local/bin/containerd-shim-kata-v2", namespace), exe=GO
    )
    pid = lay_process(node, command or qemu(name), network=network, **more)
    document = state if state is not None else go_state(name, pid)
    node.lay({f"/run/vc/sbs/{name}/persist.json": json.dumps(document)})
    node.path(f"/run/vc/vm/{name}").mkdir(parents=True)
    return name


def lay_rust(node, number=1, *, pod=("default", "nginx"), command=None, state=None, **more):
    """Lay a whole pod of the Rust shim with one container; return the sandbox's id."""
    name = sid(number)
    network = NETWORK.format(number)
    lay_bundle(node, name, pod=pod, network=network, shim=RUST)
    lay_bundle(node, cid(number), sandbox=name, pod=pod, shim=RUST)
    lay_process(node, shim_words(name, RUST), exe=RUST)
    lay_process(node, command or qemu(name), network=network, **more)
    node.lay({f"/run/kata/{name}/state.json": json.dumps(state or rust_state(name))})
    return name
