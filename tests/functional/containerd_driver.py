"""Runs in the node: calls the code under test once, and prints how it ended as JSON.

containerd_driver.py ensure|remove|find [HANDLER…] [--unfit]
"""

import json
import sys
import time
import types

sys.path[:0] = ["/root/work/src", "/root/work/lib"]

from kata import problems  # noqa: E402
from kata.containerd import config as containerd_config  # noqa: E402
from kata.containerd import daemon, guard  # noqa: E402
from kata.containerd import dump as containerd_dump  # noqa: E402
from kata.containerd import handlers as containerd_handlers  # noqa: E402
from kata.containerd import sections as containerd_sections  # noqa: E402
from kata.machine import node  # noqa: E402

OPTIONS = types.SimpleNamespace(containerd_service="auto", containerd_config="auto")
# What `containerd config dump` takes, and the CRI plugin does not.
UNFIT = (
    f'[plugins."{containerd_config.CRI["v2"]}".containerd.untrusted_workload_runtime]\n'
    'runtime_type = "io.containerd.kata.v2"\n'
)


def handler(name):
    return types.SimpleNamespace(name=name, configuration="", config_path=False, snapshotter="")


def main(what, *words):
    machine = node.Node()
    if "--unfit" in words:
        render = containerd_sections.render
        containerd_sections.render = lambda *args: {
            key: text + UNFIT for key, text in render(*args).items()
        }
        containerd_dump.difference = lambda *args: ""
    names = [word for word in words if not word.startswith("--")]
    began = time.monotonic()
    said = {"changed": None, "problem": "", "message": ""}
    try:
        found = daemon.find(machine, OPTIONS)
        if what == "ensure":
            said["changed"] = containerd_handlers.ensure(machine, found, list(map(handler, names)))
            said["changed"] |= guard.ensure(machine, found)
        elif what == "remove":
            said["changed"] = guard.remove(machine)
            said["changed"] |= containerd_handlers.remove(machine, found)
    except problems.Problem as problem:
        said |= {"problem": type(problem).__name__, "message": str(problem)}
    said["seconds"] = round(time.monotonic() - began, 2)
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
