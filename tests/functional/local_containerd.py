"""A real containerd on this machine, in a folder of its own, with a stand-in for systemd."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import types

from kata.containerd import daemon
from kata.machine import node as kata_node

BINARY = os.environ.get("CONTAINERD") or shutil.which("containerd") or "/usr/bin/containerd"
MAIN = "/etc/containerd/config.toml"


def release() -> tuple[int, ...]:
    said = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", said).groups()))


class LocalContainerd(kata_node.Node):
    """A node that is a folder; its `systemctl` starts and stops a containerd in that folder."""

    def __init__(self, root: pathlib.Path):
        super().__init__(root)
        self.process = None
        self.invocation = 0
        self.restarts = 0
        self.limit = 10
        self.before_start = lambda: None
        shim = self.path("/usr/local/bin/containerd-shim-kata-v2")
        for path in (shim, self.path(BINARY), self.path(MAIN)):
            path.parent.mkdir(parents=True, exist_ok=True)
        shim.write_text("")
        self.path(BINARY).symlink_to(BINARY)

    def head(self) -> str:
        """Return what keeps it out of this machine's way: keys for the top of its main file."""
        return (
            f'root = "{self.root}/lib"\nstate = "{self.root}/run"\n'
            f'grpc.address = "{self.root}/c.sock"\nttrpc.address = "{self.root}/t.sock"\n'
        )

    def find(self) -> daemon.Containerd:
        return daemon.find(
            self, types.SimpleNamespace(containerd_service="auto", containerd_config="auto")
        )

    def start(self) -> bool:
        self.stop()
        self.before_start()
        self.invocation += 1
        self.restarts += 1
        log = self.path("/log").open("wb")
        self.process = subprocess.Popen(
            [BINARY, "--config", str(self.path(MAIN))], stdout=log, stderr=log, cwd=self.root
        )
        log.close()
        until = time.monotonic() + self.limit
        while time.monotonic() < until and self.process.poll() is None:
            if "containerd successfully booted" in self.path("/log").read_text():
                return True
            time.sleep(0.02)
        self.stop()
        return False

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
        for name in ("c.sock", "t.sock"):
            self.path(name).unlink(missing_ok=True)

    def run(self, *argv, **kwargs):
        if argv[:2] == ("systemctl", "show"):
            state = "active" if self.process else "failed"
            shown = (
                f"LoadState=loaded\nActiveState={state}\nMainPID=0\n"
                f"InvocationID={self.invocation:032x}\n"
                f"ExecStart={{ argv[]={BINARY} --config {MAIN} --address {self.root}/c.sock ; }}\n"
            )
            units = argv[argv.index("--") + 1 :]
            blocks = [
                shown if each == "containerd.service" else "LoadState=not-found\n"
                for each in units
            ]
            return kata_node.Ran(0, "\n".join(blocks), "")
        if argv[:2] == ("systemctl", "restart"):
            return kata_node.Ran(0 if self.start() else 1, "", "Job failed")
        if argv[:2] == ("systemctl", "daemon-reload"):
            return kata_node.Ran(0, "", "")
        if argv[0] == "journalctl":
            return kata_node.Ran(0, self.path("/log").read_text(), "")
        return super().run(*argv, **kwargs)
