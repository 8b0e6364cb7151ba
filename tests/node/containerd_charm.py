"""What the containerd charm of Charmed Kubernetes makes of containerd's file when it is told of Kata.

It writes the whole file anew, and with the options table that made every pod of the deploy record
fail (charmed-kubernetes/charm-containerd, templates/config_v2.toml). Debian's way to /opt stays: else
containerd makes folders there, which no test is about.
"""

WRITTEN = """\
version = 2
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "rocks.canonical.com:443/cdk/pause:3.9"
    [plugins."io.containerd.grpc.v1.cri".containerd]
      [plugins."io.containerd.grpc.v1.cri".containerd.untrusted_workload_runtime]
        runtime_type = "io.containerd.kata.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes]
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
          runtime_type = "io.containerd.runc.v2"
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
          runtime_type = "io.containerd.kata.v2"
          [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata.options]
            Runtime = "kata-runtime"
            RuntimeRoot = "/usr/bin/kata-runtime"
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""
