"""A root file system of one's own over this machine's: what is written is gone with the command.

    python3 -m tests.bench.private MODULE WORD…

runs a module as a program in it. Everything there is this machine's, Python and containerd
included, but for three things: `systemctl` is a script that starts and stops a containerd, the
kernel's list of modules has those that Kata asks for, and so has the CPU its flag. Needs root, and
/dev/kvm.
"""

import json
import os
import pathlib
import platform
import re
import runpy
import subprocess
import sys
import tempfile
from typing import Any

UNIT = "containerd.service"
APART = "/run/systemd.seconds"
"""The stand-in for systemd adds the seconds that a restart took, and those of CPU."""
CONFIG = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.example/pause:3.9"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""
MODULES = ("vhost", "vhost_net", "vhost_vsock", "kvm_intel", "kvm_amd")
SYSTEMCTL = f"""\
#!/bin/bash
exec 2>>/run/systemctl.log
command=$1; shift
run=$(readlink /run/systemd/units/invocation:{UNIT})
case $command in
show)
    for word; do case $word in
    {UNIT})
        pid=$(</run/containerd.pid); state=active; kill -0 $pid || state=failed
        printf 'LoadState=loaded\\nActiveState=%s\\nMainPID=%s\\nInvocationID=%s\\n' $state $pid $run
        printf 'ExecStart={{ argv[]=/usr/bin/containerd ; }}\\nNeedDaemonReload=no\\n\\n' ;;
    *.service) printf 'LoadState=not-found\\nActiveState=inactive\\n\\n' ;;
    esac; done ;;
restart)
    began=$EPOCHREALTIME
    [[ ! -e /run/containerd.pid ]] || {{ kill -9 $(</run/containerd.pid); sleep 0.05; }}
    export INVOCATION_ID=$(tr -d - </proc/sys/kernel/random/uuid)
    guard=/usr/local/lib/kata-charm/guard.pyz
    [[ ! -e $guard ]] || python3 -I -S $guard
    : >/run/containerd.log
    setsid containerd </dev/null >/run/containerd.log 2>&1 &
    echo $! >/run/containerd.pid
    until grep -q 'successfully booted' /run/containerd.log; do
        kill -0 $! || exit 1; sleep 0.02
    done
    ln -sfn $INVOCATION_ID /run/systemd/units/invocation:{UNIT}
    took=$(awk "BEGIN {{ print $EPOCHREALTIME - $began }}")
    times >/run/systemd.times
    awk -F '[ms ]+' -v took=$took '
        {{ cpu += 60 * ($1 + $3) + $2 + $4 }} END {{ print took, cpu }}' /run/systemd.times >>{APART} ;;
esac
"""


def run(module: str, *words: str, timeout: float = 1800) -> Any:
    """Run a module as a program in a root of its own; return the JSON that it prints.

    Raises:
        RuntimeError: it failed.
    """
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    if os.geteuid():
        own = ["sudo", "-n", "--preserve-env=PYTHONPATH,PATH,HOME", *own]
    command = [*own, sys.executable, "-m", "tests.bench.private", module, *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, timeout=timeout, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module}: exit status {done.returncode}")
    return json.loads(done.stdout)


def obstacle() -> str:
    """Return why this machine cannot lend such a root; nothing if it can."""
    if not os.path.exists("/dev/kvm"):
        return "no /dev/kvm"
    if os.geteuid() and subprocess.run(["sudo", "-n", "true"], check=False).returncode:
        return "neither root nor sudo without a password"
    return ""


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _enter() -> None:
    here = os.getcwd()
    top = tempfile.mkdtemp(prefix="bench-root-")
    _mount("-t", "tmpfs", "tmpfs", top)
    for name in ("upper", "work", "root"):
        os.mkdir(f"{top}/{name}")
    layers = f"lowerdir=/,upperdir={top}/upper,workdir={top}/work"
    _mount("-t", "overlay", "-o", layers, "overlay", f"{top}/root")
    root = pathlib.Path(top, "root")
    _mount("-t", "proc", "proc", f"{root}/proc")
    _mount("--rbind", "/sys", f"{root}/sys")
    # The checkout and the caches may lie on other file systems than the root.
    for place in {here, os.path.expanduser("~/.cache/kata-charm"), sys.prefix}:
        if os.path.isdir(place):
            os.makedirs(f"{root}{place}", exist_ok=True)
            _mount("--bind", place, f"{root}{place}")
    cpus = pathlib.Path("/proc/cpuinfo").read_text()
    if not re.search(r"^flags.*\b(vmx|svm)\b", cpus, re.MULTILINE):
        (pathlib.Path(top) / "cpuinfo").write_text(
            re.sub(r"^(flags\s*:.*)$", r"\1 svm", cpus, flags=re.MULTILINE)
        )
        _mount("--bind", f"{top}/cpuinfo", f"{root}/proc/cpuinfo")
    _mount("-t", "tmpfs", "tmpfs", f"{root}/dev")
    for name in ("null", "zero", "full", "urandom", "random", "tty", "kvm"):
        subprocess.run(["cp", "-a", f"/dev/{name}", f"{root}/dev/"], check=True)
    (root / "dev/fd").symlink_to("/proc/self/fd")
    (root / "dev/shm").mkdir()
    for name in ("vhost-vsock", "vhost-net"):
        (root / "dev" / name).touch()
    for folder in ("/run", "/tmp", "/var/lib"):
        _mount("-t", "tmpfs", "tmpfs", f"{root}{folder}")
    os.chroot(root)
    os.chdir(here)
    _lay_out()


def _lay_out() -> None:
    """Lay out what differs from this machine."""
    modules = pathlib.Path("/lib/modules", platform.release())
    modules.mkdir(parents=True, exist_ok=True)
    builtin = "".join(f"kernel/{name}.ko\n" for name in MODULES)
    for path, text in {
        modules / "modules.builtin": builtin,
        "/etc/containerd/config.toml": CONFIG,
        "/usr/bin/systemctl": SYSTEMCTL,
    }.items():
        place = pathlib.Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_text(text)
        place.chmod(0o755)
    pathlib.Path("/run/systemd/units").mkdir(parents=True)
    # What an earlier life of this machine may have left there.
    left = "rm -rf /opt/kata* /etc/kata-containers /usr/local/bin/*kata*"
    subprocess.run(left, shell=True, check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    subprocess.run(["systemctl", "restart", UNIT], check=True)


if __name__ == "__main__":
    module, *words = sys.argv[1:]
    _enter()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__")
