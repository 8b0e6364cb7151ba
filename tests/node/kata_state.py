"""The files that Kata's shims leave of a sandbox, key for key.

Only what tells one sandbox from another is filled in; the rest has the value of a sandbox with
nothing special. The sources: virtcontainers/persist/api (Go, 2.0 to 4.1) and runtime-rs'
sandbox_persist.rs, resource_persist.rs and hypervisor_persist.rs (Rust, 3.0 to 4.1).
"""

from typing import Any

QEMU = "/opt/kata/bin/qemu-system-x86_64"
KERNEL = "/opt/kata/share/kata-containers/vmlinux.container"
IMAGE = "/opt/kata/share/kata-containers/kata-containers.img"
TAP = "tap0_kata"


def go(
    sandbox: str,
    pid: int,
    network: str = "",
    *,
    memory: int = 2048,
    vcpus: float = 1,
    **running: Any,
) -> dict[str, Any]:
    """Return what the Go shim writes to `/run/vc/sbs/<id>/persist.json`.

    Args:
        sandbox: its id.
        pid: the hypervisor's process.
        network: path of its network namespace.
        memory: MiB at boot.
        vcpus: at boot.
        running: keys of HypervisorState, such as HotpluggedMemory.
    """
    card = {"Name": "eth0", "HardAddr": "62:58:5e:c3:1e:1f", "Addrs": None}
    tap = {"Name": TAP, "HardAddr": "42:1e:e1:ac:e7:5e", "Addrs": None}
    pair = {"ID": "", "Name": "br0_kata", "TAPIface": tap, "VirtIface": card}
    return {
        "CgroupPaths": None,
        "Devices": None,
        "State": "running",
        "SandboxContainer": sandbox,
        "SandboxCgroupPath": f"/kubepods/kata_{sandbox}",
        "OverheadCgroupPath": "",
        "HypervisorState": {
            "BlockIndexMap": {},
            "Type": "qemu",
            "UUID": "",
            "APISocket": "",
            "Bridges": [{"DeviceAddr": {}, "Type": "pci", "ID": "pci-bridge-0", "Addr": 2}],
            "HotpluggedVCPUs": None,
            "HotpluggedMemory": 0,
            "VirtiofsDaemonPid": 0,
            "Pid": pid,
            "PCIeRootPort": 0,
            "PCIeSwitchPort": 0,
            **running,
        },
        "AgentState": {"URL": f"vsock://{sandbox}:1024"},
        "Network": {
            "NetworkID": network,
            "NetworkCreated": False,
            "Endpoints": [
                {"Veth": {"NetPair": {**pair, "NetInterworkingModel": 3}}, "Type": "virtual"}
            ],
        },
        "Config": {
            "cgroups": None,
            "HypervisorType": "qemu",
            "HypervisorConfig": {
                "KernelPath": KERNEL,
                "ImagePath": IMAGE,
                "InitrdPath": "",
                "HypervisorPath": QEMU,
                "HypervisorMachineType": "q35",
                "BlockDeviceDriver": "virtio-scsi",
                "SharedFS": "virtio-fs",
                "VirtioFSDaemon": "/opt/kata/libexec/virtiofsd",
                "EntropySource": "/dev/urandom",
                "HypervisorPathList": [QEMU],
                "EnableAnnotations": ["enable_iommu", "virtio_fs_extra_args", "kernel_params"],
                "NumVCPUsF": vcpus,
                "DefaultMaxVCPUs": 8,
                "MemorySize": memory,
                "DefaultBridges": 1,
                "MemSlots": 10,
            },
            "KataAgentConfig": {"LongLiveConn": True},
            "KataShimConfig": None,
            "ContainerConfigs": [
                {
                    "ID": sandbox,
                    "RootFs": "",
                    "Annotations": {"io.katacontainers.pkg.oci.container_type": "pod_sandbox"},
                    "Resources": {"cpu": {"shares": 2}},
                }
            ],
            "NetworkConfig": {
                "NetworkID": network,
                "NetworkCreated": False,
                "DisableNewNetwork": False,
                "InterworkingModel": 3,
            },
            "ShmSize": 67108864,
            "Stateful": True,
            "SandboxCgroupOnly": True,
            "DisableGuestSeccomp": True,
        },
        "PersistVersion": 2,
        "GuestMemoryBlockSizeMB": 128,
        "GuestMemoryHotplugProbe": False,
    }


def rust(sandbox: str, kind: str = "qemu", **config: Any) -> dict[str, Any]:
    """Return what the Rust shim writes to `/run/kata/<id>/state.json`.

    Its QEMU tells neither its pid nor its network there (qemu/inner.rs, save).

    Args:
        sandbox: its id.
        kind: hypervisor_type, such as `qemu`, `cloud-hypervisor`, `dragonball`.
        config: keys of the hypervisor's table in configuration.toml.
    """
    return {
        "sandbox_type": "virt_container",
        "resource": {
            "endpoint": [
                {
                    "physical_endpoint": None,
                    "veth_endpoint": {"if_name": "eth0", "network_qos": False},
                    "ipvlan_endpoint": None,
                    "macvlan_endpoint": None,
                    "vlan_endpoint": None,
                    "tap_endpoint": None,
                    "vhost_user_endpoint": None,
                }
            ],
            "cgroup_state": {
                "path": f"/kubepods/kata_{sandbox}",
                "overhead_path": None,
                "sandbox_cgroup_only": True,
                "enable_vcpus_pinning": False,
            },
        },
        "hypervisor": {
            "hypervisor_type": kind,
            "pid": None,
            "uuid": "",
            "api_socket": "",
            "id": sandbox,
            "vm_path": "",
            "jailed": False,
            "jailer_root": "",
            "netns": None,
            "config": {
                "path": QEMU,
                "valid_hypervisor_paths": [QEMU],
                "disable_nesting_checks": True,
                "block_device_driver": "virtio-blk-pci",
                "kernel": KERNEL,
                "kernel_params": "",
                "initrd": "",
                "image": IMAGE,
                "rootfs_type": "ext4",
                "firmware": "",
                "default_vcpus": 1.0,
                "default_maxvcpus": 8,
                "machine_type": "q35",
                "entropy_source": "/dev/urandom",
                "default_memory": 2048,
                "memory_slots": 10,
                "enable_debug": False,
                "shared_fs": "virtio-fs",
                "virtio_fs_daemon": "/opt/kata/libexec/virtiofsd",
                "enable_annotations": ["enable_iommu", "virtio_fs_extra_args", "kernel_params"],
                **config,
            },
            "run_dir": "",
            "cached_block_devices": [],
            "virtiofs_daemon_pid": 0,
            "passfd_listener_port": None,
            "guest_protection_to_use": "NoProtection",
        },
    }


def qemu(sandbox: str, cid: int, *, memory: int = 2048, vcpus: int = 1) -> list[str]:
    """Return the command line that the shims give QEMU (virtcontainers, qemu.go)."""
    folder = f"/run/vc/vm/{sandbox}"
    return [
        *(QEMU, "-name", f"sandbox-{sandbox},debug-threads=on"),
        *("-uuid", "23908cd2-5310-4c3f-aaf3-0f8ba449a0dc"),
        *("-machine", "q35,accel=kvm,nvdimm=on", "-cpu", "host,pmu=off"),
        *("-qmp", "unix:fd=3,server=on,wait=off"),
        *("-m", f"{memory}M,slots=10,maxmem=49308M"),
        *("-device", "pci-bridge,bus=pcie.0,id=pci-bridge-0,chassis_nr=1,shpc=off,addr=2"),
        *("-device", "virtio-serial-pci,disable-modern=false,id=serial0"),
        *("-device", "virtconsole,chardev=charconsole0,id=console0"),
        *("-chardev", f"socket,id=charconsole0,path={folder}/console.sock,server=on,wait=off"),
        *("-device", "nvdimm,id=nv0,memdev=mem0,unarmed=on"),
        *("-object", f"memory-backend-file,id=mem0,mem-path={IMAGE},size=268435456,readonly=on"),
        *("-device", "virtio-scsi-pci,id=scsi0,disable-modern=false"),
        *("-object", "rng-random,id=rng0,filename=/dev/urandom"),
        *("-device", "virtio-rng-pci,rng=rng0"),
        *("-device", f"vhost-vsock-pci,disable-modern=false,id=vsock-{cid},guest-cid={cid}"),
        *("-chardev", f"socket,id=char-7c1c,path={folder}/vhost-fs.sock"),
        *("-device", "vhost-user-fs-pci,chardev=char-7c1c,tag=kataShared,queue-size=1024"),
        *("-netdev", "tap,id=network-0,vhost=on,vhostfds=4,fds=5"),
        *("-device", "driver=virtio-net-pci,netdev=network-0,mac=f6:45:6e:18:f8:36,mq=on"),
        *(
            "-rtc",
            "base=utc,driftfix=slew,clock=host",
            "-global",
            "kvm-pit.lost_tick_policy=discard",
        ),
        *("-vga", "none", "-no-user-config", "-nodefaults", "-nographic", "--no-reboot"),
        *("-object", f"memory-backend-file,id=dimm1,size={memory}M,mem-path=/dev/shm,share=on"),
        *("-numa", "node,memdev=dimm1", "-kernel", KERNEL),
        *("-append", "tsc=reliable no_timer_check quiet panic=1 nr_cpus=8 agent.log=info"),
        *("-pidfile", f"{folder}/pid", "-smp", f"{vcpus},cores=1,threads=1,sockets=8,maxcpus=8"),
    ]
