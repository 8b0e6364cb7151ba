"""A containerd that is not there: it answers as systemd, containerd and ctr do.

It reads the node's files as containerd 1.3 and later do, and can be told to misbehave.
"""

import os
import types
from collections.abc import Callable

import tomlkit

from kata.containerd import daemon
from kata.containerd import files as containerd_files
from kata.machine import node as kata_node
from tests.unit.conftest import FakeNode

MAIN = "/etc/containerd/config.toml"
CONFIG = """\
version = 2
# what the administrator wrote
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry/pause:3.9"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""
ROWS = ("io.containerd.grpc.v1", "cri")


def handler(name, *, config_path=False, snapshotter=""):
    return types.SimpleNamespace(
        name=name,
        configuration=f"/etc/kata-containers/configuration-{name}.toml",
        config_path=config_path,
        snapshotter=snapshotter,
    )


class FakeContainerd:
    """A unit of systemd and the process that it runs."""

    def __init__(self, node: FakeNode, release="1.6.20", unit="containerd.service"):
        self.node = node
        self.release = release
        self.unit = unit
        self.active = "active"
        self.run = 1
        self.restarts = 0
        self.refuses: Callable[[str], str] = lambda text: ""
        """Why it does not start with this merged configuration."""
        self.cri: Callable[[str], str] = lambda text: ""
        """Why its CRI plugin does not load with it."""
        self.started_with = ""
        self.before_start: Callable[[], object] = lambda: None
        node.lay(
            {
                "/usr/bin/containerd": f"containerd {release}",
                "/usr/bin/ctr": "ctr",
                "/usr/local/bin/containerd-shim-kata-v2": "shim",
                "/proc/100/cmdline": "/usr/bin/containerd\0",
            }
        )
        node.path("/proc/100/exe").symlink_to("/usr/bin/containerd")
        node.on("systemctl show *", effect=self._show)
        node.on("systemctl restart *", effect=self._restart)
        node.on("systemctl daemon-reload")
        node.on("journalctl *", effect=lambda argv: kata_node.Ran(0, self._words(), ""))
        node.on("/usr/bin/containerd --version", effect=self._version)
        node.on("/usr/bin/containerd --config * config dump", effect=self._dump)
        node.on("/usr/bin/ctr --address * plugins ls*", effect=self._plugins)

    def find(self) -> daemon.Containerd:
        return daemon.find(
            self.node, types.SimpleNamespace(containerd_service="auto", containerd_config="auto")
        )

    @property
    def invocation(self):
        return f"{self.run:032x}"

    def merged(self, main=MAIN) -> str:
        """What containerd makes of the files: the last CRI table wins up to 1.7."""
        files = containerd_files.read(main, self.node)
        tree = {}
        for file in files:
            one = tomlkit.parse(file.text).unwrap()
            plugins = tree.get("plugins", {}) | one.get("plugins", {})
            tree |= one | ({"plugins": plugins} if plugins else {})
        cri = tree.setdefault("plugins", {}).setdefault("io.containerd.grpc.v1.cri", {})
        built_in = {"runc": {"runtime_type": "io.containerd.runc.v2", "options": {"Root": ""}}}
        cri.setdefault("containerd", {}).setdefault("runtimes", built_in)
        tree["version"] = 2
        return tomlkit.dumps(tree)

    def start(self):
        self.before_start()
        self.run += 1
        self.started_with = self.merged()
        self.active = "failed" if self.refuses(self.started_with) else "active"
        return self.active == "active"

    def _restart(self, argv):
        self.restarts += 1
        return kata_node.Ran(
            0 if self.start() else 1, "", "" if self.active == "active" else "Job failed"
        )

    def _show(self, argv):
        asked = [each.partition("=")[2] for each in argv if each.startswith("--property=")]
        known = {
            "LoadState": "loaded",
            "ActiveState": self.active,
            "MainPID": "100" if self.active == "active" else "0",
            "InvocationID": self.invocation,
            "ExecStart": "{ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd ; x }",
            "NeedDaemonReload": "no",
        }
        blocks = []
        for unit in argv[argv.index("--") + 1 :]:
            values = known if unit == self.unit else {"LoadState": "not-found", "MainPID": "0"}
            blocks.append("".join(f"{each}={values.get(each, '')}\n" for each in asked))
        return kata_node.Ran(0, "\n".join(blocks), "")

    def _version(self, argv):
        said = f"containerd github.com/containerd/containerd {self.release} abc\n"
        return kata_node.Ran(0, said, "")

    def _dump(self, argv):
        try:
            return kata_node.Ran(
                0, self.merged("/" + os.path.relpath(argv[2], self.node.root)), ""
            )
        except Exception as error:
            said = f"containerd: failed to load TOML: {argv[2]}: {error}"
            return kata_node.Ran(1, "", said)

    def _words(self):
        return f'level=fatal msg="{self.refuses(self.started_with)}"\n'

    def _plugins(self, argv):
        trouble = self.cri(self.started_with)
        if self.active != "active":
            return kata_node.Ran(1, "", "connection refused")
        if "-d" in argv:
            return kata_node.Ran(
                0, f"Error:\n      Code:   Unknown\n      Message:  {trouble}\n", ""
            )
        row = f"{ROWS[0]}  {ROWS[1]}  linux/amd64  {'error' if trouble else 'ok'}\n"
        return kata_node.Ran(0, "TYPE ID PLATFORMS STATUS\n" + row, "")
