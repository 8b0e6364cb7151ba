#!/usr/bin/env python3
"""The kata charm: Juju's events become one desired state of a node and of the cluster.

Every event ends in the same reconcile, because what has to be done depends on what the machine is
like and not on what happened: a missed or a repeated event then does no harm, and nothing has to
be remembered that the machine itself can tell.
"""

import contextlib
import logging
import os
import pathlib
from collections.abc import Generator
from typing import TYPE_CHECKING

import ops
from charms.kata.v0 import untrusted_container_runtime as untrusted

import control_plane
from kata import handlers, problems, settings, workload
from kata.cluster import node_labels, runtime_classes
from kata.containerd import config as containerd_config
from kata.containerd import sections as containerd_sections
from kata.machine import node, tenancy
from kata.release import release

if TYPE_CHECKING:
    from kata.gpu import configuration as gpu_configuration

log = logging.getLogger(__name__)

ENDPOINTS = ("containerd", "node", "untrusted", "kube-control")
RESOURCES = ("kata-archive", "guest-kernel", "vgpu-driver")


class KataCharm(ops.CharmBase):
    """Kata Containers on the machine of one unit."""

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        self.node = node.Node()
        self.control_plane = control_plane.Requirer(self, self.node)
        self.untrusted = untrusted.RuntimeRequirer(self)
        self._unit_statuses: list[ops.StatusBase] = []
        self._app_statuses: list[ops.StatusBase] = []
        _pass_proxies_on()

        for event in (
            self.on.install,
            self.on.start,
            self.on.upgrade_charm,
            self.on.config_changed,
            self.on.update_status,
            self.on.leader_elected,
            self.on.secret_changed,
        ):
            framework.observe(event, self._reconcile)
        for endpoint in ENDPOINTS:
            events = self.on[endpoint]
            framework.observe(events.relation_created, self._reconcile)
            framework.observe(events.relation_changed, self._reconcile)
            framework.observe(events.relation_broken, self._reconcile)
        framework.observe(self.on["kube-control"].relation_departed, self._on_departed)
        framework.observe(self.on.stop, self._on_stop)
        framework.observe(self.on.collect_unit_status, self._on_collect_unit_status)
        framework.observe(self.on.collect_app_status, self._on_collect_app_status)
        if "JUJU_ACTION_NAME" in os.environ:
            self._observe_actions()

    # Coming and staying

    def _reconcile(self, event: ops.EventBase) -> None:
        """Bring the node and the cluster to what the options ask for.

        The node's work and the cluster's do not hold each other up.
        """
        with self._collected(self._unit_statuses):
            options = settings.read(self.config)
            report = None
            with self._collected(self._unit_statuses):
                # What containerd did not live with is not tried on pods every five minutes.
                again = not isinstance(event, ops.UpdateStatusEvent)
                report = self._ensure_node(options, again=again)
                self._unit_statuses.append(ops.ActiveStatus(report.message))
                if report.problem:
                    raise report.problem
            with self._collected(self._unit_statuses):
                self.control_plane.request()
                if report:
                    self._ensure_labels(options, report)
            if self.unit.is_leader():
                with self._collected(self._app_statuses):
                    self._app_statuses.append(self._ensure_runtime_classes(options))

    def _ensure_node(self, options: settings.Settings, *, again: bool) -> workload.Report:
        """Do the node's work, if it is this unit's turn."""
        turn = tenancy.join(self.node, self.unit.name)
        if turn != self.unit.name:
            return workload.Report(None, notes=(f"standing by: {turn} runs Kata here",))
        report = workload.ensure(
            self.node, options, self._attached(), self._show_progress, again=again
        )
        if report.release:
            self.unit.set_workload_version(report.release.version)
            self.untrusted.publish(_runtime(report.loaded[0]))
        return report

    def _ensure_labels(self, options: settings.Settings, report: workload.Report) -> None:
        """Label this machine's node in the cluster as far as it is ready."""
        if not report.release:
            return
        labels = {
            node_labels.READY: "true" if options.label_nodes else None,
            node_labels.GPU: "true" if options.label_nodes and report.gpus else None,
        }
        with self.control_plane.server() as server:
            if server:
                node_labels.ensure(server, self.node, labels)

    def _ensure_runtime_classes(self, options: settings.Settings) -> ops.StatusBase:
        """Make the RuntimeClasses, which are the leader's, and tell of them."""
        classes = [
            runtime_classes.RuntimeClass(
                name=each.name,
                handler=each.name,
                memory=each.overhead_memory,
                cpu=each.overhead_cpu,
                node_selector={each.node_selector: "true"} if each.node_selector else {},
            )
            for each in handlers.classes(options, workload.gpu_overhead(options))
        ]
        names = ", ".join(each.name for each in classes)
        with self.control_plane.server() as server:
            if not server:
                return ops.ActiveStatus(f"RuntimeClass {names} is yours: no kube-control relation")
            runtime_classes.ensure_runtime_classes(server, self._owner, classes)
        return ops.ActiveStatus(f"RuntimeClass {names}")

    # Going

    def _on_departed(self, event: ops.RelationDepartedEvent) -> None:
        """Leave the cluster while the credentials still count, if it is this unit that goes."""
        if event.departing_unit == self.unit:
            self._leave_cluster()

    def _on_stop(self, _: ops.StopEvent) -> None:
        """Leave the cluster and then the machine, unless another unit goes on there."""
        self._leave_cluster()
        self.control_plane.forget()  # first: its folder goes with the machine's part
        if tenancy.leave(self.node, self.unit.name) is None:
            options = None
            with contextlib.suppress(problems.Problem):
                options = settings.read(self.config)
            workload.remove(self.node, options)

    def _leave_cluster(self) -> None:
        """Take the label off before Kata goes, and the RuntimeClasses with the application.

        A control plane that does not answer does not keep the unit from going.
        """
        access = self.control_plane.last_access()
        last = self.unit.is_leader() and self.app.planned_units() == 0
        if not access or not (last or tenancy.is_alone(self.node, self.unit.name)):
            return
        try:
            with self.control_plane.server(access) as server:
                if server and tenancy.is_alone(self.node, self.unit.name):
                    gone = {node_labels.READY: None, node_labels.GPU: None}
                    node_labels.ensure(server, self.node, gone)
                if server and last:
                    runtime_classes.remove_runtime_classes(server, self._owner)
        except problems.Problem as problem:
            log.warning("labels or RuntimeClasses may be left in the cluster: %s", problem)

    # Answering

    def _observe_actions(self) -> None:
        """Have the actions answered; no hook pays for importing what answers them."""
        import actions
        import gpu_actions

        def installed(options: settings.Settings) -> "gpu_configuration.Installed | None":
            found = release.installed(self.node)
            return workload.for_gpus(self.node, options, found) if found else None

        self.sandbox_actions = actions.SandboxActions(self, self.node, self.control_plane.server)
        self.gpu_actions = gpu_actions.GpuActions(
            self, self.node, installed, lambda name: self._attached().get(name)
        )

    # What Juju knows

    @property
    def _owner(self) -> runtime_classes.Owner:
        return runtime_classes.Owner(self.app.name, self.model.uuid)

    def _attached(self) -> dict[str, pathlib.Path]:
        """Return the files of the resources that are attached and not empty."""
        found: dict[str, pathlib.Path] = {}
        for name in RESOURCES:
            # Juju's word for a resource that nobody has attached is an error.
            with contextlib.suppress(ops.ModelError):
                path = self.model.resources.fetch(name)
                if path.stat().st_size:
                    found[name] = path
        return found

    def _show_progress(self, words: str) -> None:
        self.unit.status = ops.MaintenanceStatus(words)

    @contextlib.contextmanager
    def _collected(self, statuses: list[ops.StatusBase]) -> Generator[None]:
        """Turn what stops a piece of work into a status, so that the others go on."""
        try:
            yield
        except problems.Waiting as problem:
            log.info("%s", problem)
            statuses.append(ops.WaitingStatus(str(problem)))
        except problems.Problem as problem:
            log.warning("%s", problem)
            statuses.append(ops.BlockedStatus(str(problem)))
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            log.warning("the machine refused: %s", what)
            statuses.append(ops.BlockedStatus(f"the machine refused: {what}"))

    def _on_collect_unit_status(self, event: ops.CollectStatusEvent) -> None:
        for status in self._unit_statuses:
            event.add_status(status)

    def _on_collect_app_status(self, event: ops.CollectStatusEvent) -> None:
        for status in self._app_statuses:
            event.add_status(status)


def _runtime(main: handlers.Handler) -> untrusted.Runtime:
    """Return what a containerd charm is told: no more than stays as it is, for it may ask once."""
    handler = untrusted.Handler(
        runtime_type=containerd_config.RUNTIME_TYPE,
        runtime_path=release.SHIM_LINK,
        config_path=main.configuration if main.config_path else "",
        annotations=tuple(containerd_sections.ANNOTATIONS),
    )
    # The containerd charm makes the name of the shim of it: no other than kata will do.
    return untrusted.Runtime("kata", release.SHIM_LINK, handler)


def _pass_proxies_on() -> None:
    """Let downloads use the model's proxies: Juju hands them to charms under names of its own."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        if value := os.environ.get(f"JUJU_CHARM_{name}"):
            os.environ.setdefault(name.lower(), value)


if __name__ == "__main__":
    ops.main(KataCharm)
