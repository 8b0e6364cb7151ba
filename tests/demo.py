"""The charm's life on a throwaway node, shown step by step: `make demo`.

A Debian machine boots under QEMU, with systemd, containerd and /dev/kvm of its own. The charm lies
there as Juju would have put it, and each hook runs through its real entry point. After each step
it is shown what changed on the node, what `juju status` would say, and how long it took.

    KATA_ARCHIVE=file    install this release (a kata-static archive, or a tar of Debian packages)
                         instead of the small stand-in, and boot sandboxes with it
    KUBECONFIG=file      make the RuntimeClass in this cluster too, and take it away again
"""

import contextlib
import difflib
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable

import rich.console
import rich.markup
import rich.rule
import rich.syntax
import rich.table
import yaml

from tests import api_server
from tests.node import (
    accelerator,
    containerd_charm,
    containers,
    image,
    juju,
    machine,
    snapshot,
    standin,
    view,
)

STANDIN = "3.32.0"
HOST = "10.0.2.2"  # this machine, for QEMU's guests
KATA_CONFIG = "/etc/kata-containers/configuration.toml"
MOST = 14  # lines of a list that are shown

# Kata's own limits, where the processor of the node and that of its guests are emulated: whichever of
# these a release knows, with what to set it to.
PATIENCE = {
    "agent.kata.dial_timeout": 240,
    "agent.kata.reconnect_timeout_ms": 240_000,
    "runtime.create_container_timeout": 240,
}
# A site's own check that will not do without a certain handler: containerd does not start then.
VETO = """\
[Service]
ExecStartPre=/bin/sh -c 'if ! grep -q runtimes.untrusted /etc/containerd/config.toml; \
then echo "site policy: untrusted pods need a handler" >&2; exit 1; fi'
"""


class Demo:
    """The show: a console, a unit on a node, and the last look at it."""

    def __init__(self, console: rich.console.Console, node: machine.Machine, unit: juju.Unit):
        self.console = console
        self.node = node
        self.unit = unit
        self.seen = view.look(node)
        self.began = time.monotonic()
        self.steps = 0
        self.failed: list[str] = []

    @contextlib.contextmanager
    def step(self, title: str, words: str) -> Generator[None]:
        """Announce a step, let it happen, and show what has come of it."""
        self.steps += 1
        self.console.print()
        self.console.print(rich.rule.Rule(f"[bold]{self.steps}. {title}", align="left"))
        self.console.print(words, style="dim", highlight=False)
        before, began = self.seen, time.monotonic()
        with self.console.status("working on the node"):
            yield
            seconds = time.monotonic() - began
            self.seen = view.look(self.node)
        self._show(before, seconds)

    def hook(self, event: str, relation: juju.Relation | None = None, **more: str) -> None:
        """Run a hook."""
        self._ran(event, self.unit.dispatch(event, relation, **more))

    def _ran(self, name: str, result: juju.HookResult) -> None:
        self.console.print(f"   hook {name}: {result.seconds:.1f} s", highlight=False)
        for status in result.statuses:
            if status.name == "maintenance":
                self.console.print(f"      {status.message}", style="dim", highlight=False)
        if not result.ok:
            self.failed.append(name)
            self.console.print(result.output or result.failure or "", style="red", markup=False)

    def _show(self, before: view.View, seconds: float) -> None:
        now = self.seen
        table = rich.table.Table.grid(padding=(0, 1))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        status, app = self.unit.status, self.unit.app_status
        colour = {"active": "green", "blocked": "red", "error": "red"}.get(status.name, "yellow")
        if not self.unit.state["planned_units"]:
            table.add_row("unit", "gone, and the application with it")
        else:
            table.add_row("unit", f"[{colour}]{status.name}[/] {_plain(status.message)}")
            if app.message:
                table.add_row("app", f"{app.name} {_plain(app.message)}")
        if now.run == before.run:
            restarts = "not restarted"
        else:
            restarts = "restarted" if now.run else "stopped"
        table.add_row("containerd", f"{now.active}, CRI plugin {now.cri}, {restarts}")
        if fresh := sorted(now.modules - before.modules):
            table.add_row("modules", f"loaded {', '.join(fresh)}")
        changed = view.change(before, now)
        for sign, paths in (
            ("+", changed.added), ("-", changed.removed), ("~", changed.altered)
        ):  # fmt: skip
            for line in _gathered(paths):
                table.add_row(f"  {sign}", _plain(line))
        if not changed:
            table.add_row("files", "no file has changed")
        table.add_row("time", f"{seconds:.1f} s")
        self.console.print(table)
        lines = list(difflib.unified_diff(
            before.config.splitlines(), now.config.splitlines(), view.CONFIG, view.CONFIG, "", "",
            n=1, lineterm="",
        ))  # fmt: skip
        if lines:
            more = len(lines) - 2 * MOST
            shown = lines if more <= 0 else [*lines[: 2 * MOST], f"… and {more} more lines"]
            self.console.print(
                rich.syntax.Syntax("\n".join(shown), "diff", background_color="default")
            )

    def expect(self, true: bool, what: str) -> None:
        """Say whether something that the charm promises is so."""
        if not true:
            self.failed.append(what)
        mark = "[green]yes[/]" if true else "[bold red]NO[/]"
        self.console.print(f"   {mark}  {what}", highlight=False)


def _plain(text: str) -> str:
    return rich.markup.escape(text)


def _gathered(paths: Iterable[str]) -> list[str]:
    """Return paths as lines; those of a release are told together."""
    lines: list[str] = []
    releases: dict[str, int] = {}
    for path in paths:
        parts = path.split("/")
        if path.startswith("/opt/kata-releases/"):
            top = "/".join(parts[:4])
            releases[top] = releases.get(top, 0) + 1
        elif "__pycache__" not in parts:
            lines.append(path)
    if len(lines) > MOST:
        lines = [*lines[:MOST], f"… and {len(lines) - MOST} more"]
    return [*lines, *(f"{top}/ ({count} files)" for top, count in releases.items())]


def play(demo: Demo, archive: pathlib.Path, api: api_server.ApiServer, real: bool) -> None:
    """Play the charm's life."""
    unit, node, console = demo.unit, demo.node, demo.console
    clean = demo.seen
    secret = unit.grant_secret({"ca-certificate": api.ca})
    unit.relate("containerd", "kubernetes-worker")
    control = unit.relate(
        "kube-control",
        "kubernetes-control-plane",
        unit_data={
            "api-endpoints": json.dumps([api.url.replace("127.0.0.1", HOST)]),
            "ca-certificate-secret-id": secret,
        },
    )

    with demo.step(
        "Install",
        "juju deploy kata; juju integrate kata:containerd kubernetes-worker; "
        "juju integrate kata:kube-control kubernetes-control-plane",
    ):
        unit.attach("kata-archive", archive)
        demo.hook("install")
    demo.expect("runtimes.kata" in demo.seen.config, "containerd has Kata's handlers")

    with demo.step(
        "Relate", "the control plane answers what the unit asked for over kube-control"
    ):
        user = control.data().get("kubelet_user", "")
        tokens = dict.fromkeys(("client_token", "kubelet_token", "proxy_token"), api.token)
        creds = {user: {**tokens, "scope": unit.name}}
        control.data("kubernetes-control-plane/0")["creds"] = json.dumps(creds)
        demo.hook(
            "kube-control-relation-changed", control, remote_unit="kubernetes-control-plane/0"
        )
    classes = api.objects.stored["runtimeclasses"]
    for each in classes.values():
        _show_manifest(console, demo, each)
    labels = api.objects.stored["nodes"]["node"]["metadata"]["labels"]
    demo.expect(unit.status.name == "active", "Kata is available")
    demo.expect("kata" in classes, "the leader made the RuntimeClass, through the relation")
    demo.expect(
        labels.get("katacontainers.io/kata-runtime") == "true", "the node is labelled as ready"
    )

    with demo.step("Reconcile again", "an update-status, as every five minutes"):
        before = demo.seen
        demo.hook("update-status")
    demo.expect(demo.seen == before, "nothing has changed, and nothing was restarted")

    if real:
        _boot(demo)

    with demo.step("Change a setting of Kata", "juju config kata default-memory=1024"):
        before = demo.seen
        unit.config["default-memory"] = 1024
        demo.hook("config-changed")
    demo.expect(demo.seen.run == before.run, "containerd was not restarted: it does not read it")

    with demo.step(
        "Another program rewrites containerd's file, and restarts containerd",
        "no hook of the charm runs: its guard does, before containerd starts",
    ):
        node.copy_in(containerd_charm.WRITTEN, view.CONFIG)
        node.run(["systemctl", "restart", "containerd"], timeout=120)
        _settle(node)
    demo.expect("runtimes.untrusted" in demo.seen.config, "Kata's handlers are there again")
    harmful = [
        line for line in demo.seen.config.splitlines() if line.strip().startswith("Runtime")
    ]
    demo.expect(not harmful, "the options table that fails is out")
    with demo.step(
        "A configuration that containerd does not start with",
        "juju config kata untrusted-annotation=false; a check of the site's own wants it, and says no",
    ):
        whole = demo.seen.config
        veto = "/etc/systemd/system/containerd.service.d/site.conf"
        node.copy_in(VETO, veto)
        node.run(["systemctl", "daemon-reload"])
        unit.config["untrusted-annotation"] = False
        demo.hook("config-changed")
    demo.expect(
        demo.seen.config == whole and demo.seen.cri == "ok",
        "the last good file is back, and containerd runs",
    )
    demo.expect(unit.status.name == "blocked", "the unit says why")
    node.run(["rm", veto])

    with demo.step("Remove", "juju remove-application kata"):
        unit.state["planned_units"] = []
        demo.hook("stop")
    left = view.change(clean, demo.seen)
    for path in (*left.added, *left.removed, *sorted({*left.altered} - {view.CONFIG})):
        demo.console.print(f"   not as it was: {path}", style="red", markup=False)
    demo.expect(
        not left.added and not left.removed and set(left.altered) <= {view.CONFIG},
        f"nothing of the charm is left ({len(demo.seen.files)} paths compared)",
    )
    demo.expect(
        demo.seen.config == containerd_charm.WRITTEN,
        "containerd's file has the other program's bytes again",
    )
    demo.expect(not api.objects.stored["runtimeclasses"], "the RuntimeClass is gone")
    labels = api.objects.stored["nodes"]["node"]["metadata"]["labels"]
    demo.expect("katacontainers.io/kata-runtime" not in labels, "the label is off the node")


def _settle(node: machine.Machine) -> None:
    """Wait until containerd's CRI plugin is there."""
    node.run(
        r"until ctr plugins ls | grep -q 'grpc.v1 *cri .* ok'; do sleep 0.3; done", timeout=60
    )


def _boot(demo: Demo) -> None:
    """Boot a sandbox by each handler, and show both kernels."""
    known = demo.node.copy_out(KATA_CONFIG).decode()
    patience = [
        f"{key} = {value}"
        for key, value in PATIENCE.items()
        if f"\n{key.rpartition('.')[2]} = " in known
    ]
    if patience and accelerator.chosen(demo.node.image.kernel) != "kvm":
        with demo.step(
            "Give guests time", f"juju config kata kata-config='{'; '.join(patience)}'"
        ):
            demo.unit.config["kata-config"] = "\n".join(patience)
            demo.hook("config-changed")
    for handler, how in (
        ("kata", "as a pod with runtimeClassName: kata"),
        ("untrusted", "as a pod with io.kubernetes.cri.untrusted-workload"),
    ):
        with demo.step(f"Boot a sandbox: handler {handler}", how):
            result = demo.unit.run_action("verify-sandbox", handler=handler, timeout=240)
        table = rich.table.Table.grid(padding=(0, 1))
        for key, value in result.results.items():
            if key == "verdict":
                continue  # the same for programs
            table.add_row(f"   {key}", _plain(str(value)))
        demo.console.print(table)
        host, guest = (result.results.get(f"{each}-kernel") for each in ("host", "guest"))
        if result.failure:
            demo.console.print(f"   {result.failure}", style="red", markup=False)
        demo.expect(
            result.ok and bool(guest) and guest != host, "the sandbox has a kernel of its own"
        )


def _show_manifest(console: rich.console.Console, demo: Demo, live: dict) -> None:
    """Show a RuntimeClass as it is in the cluster, and check it against Kubernetes' schema."""
    import kubernetes_validate

    metadata = live["metadata"]
    kept = ("name", "labels", "annotations")
    shown = {**live, "metadata": {key: metadata[key] for key in kept if key in metadata}}
    text = yaml.safe_dump(shown, sort_keys=False)
    console.print(rich.syntax.Syntax(text, "yaml", background_color="default"))
    try:
        version = kubernetes_validate.validate(shown, "1.34", strict=True)
        demo.expect(
            True, f"RuntimeClass {metadata['name']} fits the schema of Kubernetes {version}"
        )
    except kubernetes_validate.ValidationError as error:
        demo.expect(False, f"RuntimeClass {metadata['name']}: {error.message}")


def real_cluster(console: rich.console.Console, live: list[dict]) -> bool:
    """Make the RuntimeClasses in the cluster of KUBECONFIG, show them, take them away again."""
    import lightkube
    from lightkube.core.exceptions import ApiError
    from lightkube.resources.node_v1 import RuntimeClass

    client = lightkube.Client()
    for each in live:
        name = each["metadata"]["name"]
        try:
            client.get(RuntimeClass, name)
        except ApiError as error:
            if error.status.code != 404:
                console.print(f"   the cluster refused: {error.status.message}", style="red")
                return False
        else:
            console.print(f"   the cluster has a RuntimeClass {name}: it is left alone")
            continue
        metadata = {key: each["metadata"][key] for key in ("name", "labels", "annotations")}
        made = RuntimeClass.from_dict({**each, "metadata": metadata})
        client.apply(made, field_manager="kata-charm")
        found = client.get(RuntimeClass, name)
        console.print(
            f"   RuntimeClass {name}, handler {found.handler}: made, and taken away again"
        )
        client.delete(RuntimeClass, name)
    return True


def main() -> int:
    """Run the demo; return 1 if anything that the charm promises was not so."""
    began = time.monotonic()
    console = rich.console.Console(
        width=None if sys.stdout.isatty() else 100,
        force_terminal=bool(os.environ.get("CI")) or None,
    )
    given = os.environ.get("KATA_ARCHIVE", "")
    real = bool(given)
    if real and not pathlib.Path(given).is_file():
        console.print(f"KATA_ARCHIVE={given}: no such file", style="red")
        return 2
    console.print("[bold]The kata charm on a throwaway node[/]")
    # A real Kata boots virtual machines of 2 GiB in the node.
    spec = machine.Spec(
        variant="vmm" if real and tar_of_debs(given) else "node", memory=6144 if real else 2048
    )

    def timed(what: str, work: Callable[[], machine.Snapshot]) -> machine.Snapshot:
        start = time.monotonic()
        with console.status(what):
            done = work()
        console.print(f"   {what}: {time.monotonic() - start:.1f} s", highlight=False)
        return done

    image.ensure_commands()
    with console.status("building the node's disk: Debian, about a minute, only the first time"):
        start = time.monotonic()
        image.ready(spec.variant)
    console.print(f"   the node's disk: {time.monotonic() - start:.1f} s", highlight=False)
    booted = timed("a booted node", lambda: snapshot.booted(spec))
    laid = timed("the charm on it, as Juju lays it out", lambda: juju.with_charm(booted, "kata/0"))
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
        api = stack.enter_context(api_server.ApiServer())
        node = stack.enter_context(machine.Machine.restored(laid, network=True))
        unit = juju.Unit(node, "kata/0")
        api.add_node("node", node.run(["cat", "/etc/machine-id"]).out.strip())
        if real:
            archive = pathlib.Path(given)
            console.print(f"   Kata: {archive.name}")
            containers.load_image(node)
        else:
            archive = standin.archive(STANDIN, scratch)
            console.print(
                f"   Kata: [yellow]a stand-in[/] of {archive.stat().st_size >> 10} kB, in the shape of "
                f"{STANDIN}. It boots no virtual machine.\n"
                "   Set KATA_ARCHIVE to a kata-static archive to boot real sandboxes.",
                highlight=False,
            )
        demo = Demo(console, node, unit)
        made: list[dict] = []
        api.changed = lambda: made.extend(
            each
            for each in api.objects.stored["runtimeclasses"].values()
            if each["metadata"]["name"] not in {one["metadata"]["name"] for one in made}
        )
        play(demo, archive, api, real)
        if os.environ.get("KUBECONFIG"):
            console.print()
            console.print(rich.rule.Rule("[bold]The cluster of KUBECONFIG", align="left"))
            demo.expect(real_cluster(console, made), "the cluster takes the RuntimeClass")
    console.print()
    console.print(
        f"{demo.steps} steps in {time.monotonic() - began:.0f} s, "
        + ("[green]all as promised[/]" if not demo.failed else f"[red]{len(demo.failed)} not[/]")
    )
    return 1 if demo.failed else 0


def tar_of_debs(name: str) -> bool:
    """Return whether a file is a plain tar, as one of Debian packages is."""
    with open(name, "rb") as file:
        file.seek(257)
        return file.read(5) == b"ustar"


if __name__ == "__main__":
    sys.exit(main())
