"""The actions on sandboxes, and on what they need. They change nothing that they do not undo."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import ops

import answers
from kata import problems, settings
from kata.machine import node as kata_node

if TYPE_CHECKING:
    from kata.cluster import api
    from kata.sandbox import sandboxes, verify


class SandboxActions(ops.Object):
    """Answers what is asked about sandboxes, and about what they need.

    Args:
        charm: the charm that has the actions.
        node: its machine.
        server: gives a conversation with the API server; None without a relation.
    """

    def __init__(
        self,
        charm: ops.CharmBase,
        node: kata_node.Node,
        server: "Callable[[], AbstractContextManager[api.Server | None]]",
    ) -> None:
        super().__init__(charm, "sandbox-actions")
        self._charm = charm
        self._node = node
        self._server = server
        observe = self.framework.observe
        observe(charm.on.list_sandboxes_action, self._list_sandboxes)
        observe(charm.on.inspect_sandbox_action, self._inspect_sandbox)
        observe(charm.on.verify_sandbox_action, self._verify_sandbox)
        observe(charm.on.check_host_action, self._check_host)
        observe(charm.on.diagnose_action, self._diagnose)
        observe(charm.on.show_config_action, self._show_config)
        observe(charm.on.console_command_action, self._console_command)

    # Sandboxes

    def _list_sandboxes(self, event: ops.ActionEvent) -> None:
        from kata.sandbox import report as sandbox_report

        with answers.answering(event):
            options = settings.read(self._charm.config)
            found = self._sandboxes(options, event)
            answers.give(
                self._node,
                event,
                {
                    "count": str(len(found)),
                    "table": sandbox_report.table(found),
                    "sandboxes": [sandbox_report.data(each) for each in found],
                },
            )

    def _inspect_sandbox(self, event: ops.ActionEvent) -> None:
        from kata.sandbox import network, picture
        from kata.sandbox import report as sandbox_report

        with answers.answering(event):
            options = settings.read(self._charm.config)
            sandbox = self._picked(options, event)
            net = network.look(self._node, sandbox.id, sandbox.network)
            more = {"kernel_parameters": sandbox.vm.parameters, "network": dataclasses.asdict(net)}
            answers.give(
                self._node,
                event,
                {
                    "picture": picture.draw(sandbox, net),
                    "mermaid": picture.mermaid(sandbox, net),
                    "sandbox": sandbox_report.data(sandbox) | more,
                },
            )

    def _console_command(self, event: ops.ActionEvent) -> None:
        from kata.sandbox import console

        with answers.answering(event):
            options = settings.read(self._charm.config)
            sandbox = self._picked(options, event)
            found = console.find(self._node, sandbox, wanted=options.debug_console)
            about = {"pod": sandbox.title if sandbox.pod else "", "sandbox": sandbox.id}
            shown = dataclasses.asdict(found)
            answers.give(self._node, event, {**shown, "console": about | shown})

    def _verify_sandbox(self, event: ops.ActionEvent) -> None:
        from kata.containerd import daemon
        from kata.sandbox import throwaway, verify, verify_pod

        # It has limits of its own, and tidies up after them.
        with answers.answering(event, None):
            options = settings.read(self._charm.config)
            found = daemon.find(self._node, options)
            service = throwaway.service(self._node, found)
            handler = str(event.params.get("handler") or options.runtime_class)
            image = str(event.params.get("image") or "")
            timeout = float(event.params.get("timeout") or 120)
            if event.params.get("level") != "pod":
                verdict = verify.sandbox(
                    self._node, service, handler, image=image, timeout=timeout
                )
            else:
                with self._server() as server:
                    if server is None:
                        raise problems.Blocked(
                            "level=pod needs the API: integrate kube-control, or use level=node"
                        )
                    verdict = verify_pod.pod(
                        self._node, service, server, handler, image=image, timeout=timeout
                    )
            told = _told(verdict)
            answers.give(
                self._node, event, {**told, "verdict": told | {"verified": verdict.verified}}
            )
            if verdict.trouble:
                event.fail(verdict.trouble)

    # The machine

    def _check_host(self, event: ops.ActionEvent) -> None:
        from kata.checks import readiness

        with answers.answering(event, answers.LONG):
            options = settings.read(self._charm.config)
            checks = readiness.checks(self._node, options)
            ready = all(each.ok for each in checks if each.required)
            answers.give(
                self._node,
                event,
                {
                    "ready": _flag(ready),
                    "report": readiness.report(checks),
                    "checks": [dataclasses.asdict(each) for each in checks],
                },
            )

    def _diagnose(self, event: ops.ActionEvent) -> None:
        from kata.checks import diagnose

        with answers.answering(event, answers.LONG):
            options = settings.read(self._charm.config)
            pod = str(event.params.get("pod") or "")
            findings = diagnose.look(self._node, options, pod)
            answers.give(
                self._node,
                event,
                {
                    "count": str(len(findings)),
                    "report": diagnose.report(findings, pod),
                    "findings": [dataclasses.asdict(each) for each in findings],
                },
            )

    def _show_config(self, event: ops.ActionEvent) -> None:
        from kata.checks import shown_config
        from kata.containerd import daemon

        with answers.answering(event):
            options = settings.read(self._charm.config)
            shown = shown_config.look(self._node, daemon.find(self._node, options))
            answers.give(
                self._node,
                event,
                {
                    "containerd-config": shown.live,
                    "files": " ".join(shown.files),
                    "handlers": shown.ours or "none",
                    "drift": shown.drift or "none",
                    "kata-config": "\n".join(shown.kata.values()) or "none",
                    "notes": "; ".join(shown.notes) or "none",
                    "config": dataclasses.asdict(shown),
                },
            )

    # What they share

    def _sandboxes(
        self, options: settings.Settings, event: ops.ActionEvent
    ) -> "tuple[sandboxes.Sandbox, ...]":
        """Return all sandboxes; a containerd that does not answer costs no more than a column."""
        from kata.containerd import cri, daemon
        from kata.sandbox import sandboxes

        state, handlers = daemon.STATE, None
        try:
            found = daemon.find(self._node, options)
            state = found.state(self._node)
            handlers = cri.pod_handlers(self._node.path(found.address(self._node)))
        except problems.Problem as problem:
            event.log(f"without handlers: {problem}")
        return sandboxes.find(self._node, state, handlers)

    def _picked(self, options: settings.Settings, event: ops.ActionEvent) -> "sandboxes.Sandbox":
        from kata.sandbox import sandboxes

        return sandboxes.pick(
            self._sandboxes(options, event),
            str(event.params.get("pod") or ""),
            str(event.params.get("sandbox") or ""),
        )


def _flag(value: bool) -> str:
    return str(value).lower()


def _told(verdict: "verify.Verdict") -> dict[str, str]:
    """Return a verdict as results."""
    from kata.checks import causes

    cause = causes.of(verdict.trouble)
    detail = [*verdict.notes, verdict.trouble or "the sandbox is gone again without a trace"]
    if cause:
        detail += [cause.meaning, f"remedy: {cause.remedy}"]
    return {
        "verified": _flag(verdict.verified),
        "handler": verdict.handler,
        "host-kernel": f"{verdict.host.release} {verdict.host.version}",
        "guest-kernel": f"{verdict.guest.release} {verdict.guest.version}"
        if verdict.guest
        else "",
        "boot-seconds": "" if verdict.seconds is None else str(verdict.seconds),
        "detail": "\n".join(detail),
    }
