#!/usr/bin/env python3
"""The kata charm: Juju's events become one desired state of a node and of the cluster.

Every event ends in the same reconcile, because what has to be done depends on what the machine is
like and not on what happened: a missed or a repeated event then does no harm, and nothing has to
be remembered that the machine itself can tell.
"""

import contextlib
import functools
import json
import logging
import os
import pathlib
from collections.abc import Generator
from typing import TYPE_CHECKING

import ops

from kata import problems, report, unchanged
from kata.machine import node, tenancy
from kata.observability import told

# What a hook that finds nothing to do can do without is imported where it is needed.
if TYPE_CHECKING:
    import control_plane
    from kata import settings
    from kata.cluster import runtime_classes
    from kata.gpu import configuration as gpu_configuration

log = logging.getLogger(__name__)

ENDPOINTS = ("containerd", "node", "untrusted", "kube-control", "cos-agent")
RESOURCES = ("kata-archive",)
GPU_RESOURCES = ("guest-kernel", "vgpu-driver")


class KataCharm(ops.CharmBase):
    """Kata Containers on the machine of one unit."""

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        self.node = node.Node()
        self._unit_statuses: list[ops.StatusBase] = []
        self._app_statuses: list[ops.StatusBase] = []
        self._worked_with: settings.Settings | None = None
        _pass_proxies_on()

        for event in (
            self.on.install,
            self.on.start,
            self.on.upgrade_charm,
            self.on.config_changed,
            self.on.update_status,
            self.on.leader_elected,
        ):
            framework.observe(event, self._reconcile)
        for endpoint in ENDPOINTS:
            events = self.on[endpoint]
            framework.observe(events.relation_created, self._reconcile)
            framework.observe(events.relation_changed, self._reconcile)
            framework.observe(events.relation_broken, self._reconcile)
        framework.observe(self.on["kube-control"].relation_departed, self._on_departed)
        framework.observe(self.on.secret_changed, self._on_secret_changed)
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
        self._ensure(routine=isinstance(event, ops.UpdateStatusEvent))
        if self.node.exists(told.FOLDER) and tenancy.is_first(self.node, self.unit.name):
            with self._collected(self._unit_statuses):
                self._tell_exporter()

    def _ensure(self, *, routine: bool) -> None:
        with self._collected(self._unit_statuses):
            found = self._unchanged() if routine else None
            if found:
                self._unit_statuses.append(ops.ActiveStatus(found.message))
                if not self.model.relations["kube-control"]:
                    return  # and so nothing in the cluster can have changed for us
            else:
                from kata import settings

                options = settings.read(self.config)
                with self._collected(self._unit_statuses):
                    # What containerd did not live with is not tried on pods every five minutes.
                    found = self._ensure_node(options, again=not routine)
                    self._unit_statuses.append(ops.ActiveStatus(found.message))
                    if found.problem:
                        raise found.problem
            with self._collected(self._unit_statuses):
                self.control_plane.request()
                if found:
                    self._ensure_labels(found)
            if self.unit.is_leader():
                with self._collected(self._app_statuses):
                    self._app_statuses.append(self._ensure_runtime_classes())

    def _unchanged(self) -> report.Report | None:
        """Return how the node is, if a look shows that nothing is to be done.

        Resources are not looked at: Juju runs upgrade-charm when one is attached.
        """
        if tenancy.join(self.node, self.unit.name) != self.unit.name:
            return None
        known = unchanged.recall(self.node, self._asked)
        return report.Report(**known) if known else None

    def _ensure_node(self, options: "settings.Settings", *, again: bool) -> report.Report:
        """Do the node's work, if it is this unit's turn."""
        import cos_agent
        from kata import workload

        unchanged.forget(self.node)
        observers = cos_agent.Provider(self)
        turn = tenancy.join(self.node, self.unit.name)
        if turn != self.unit.name:
            observers.publish(())
            return report.Report(None, notes=(f"standing by: {turn} runs Kata here",))
        self._worked_with = options
        witness = unchanged.Witness(self.node)
        done = workload.ensure(
            witness,
            options,
            self._attached(options),
            self._show_progress,
            again=again,
            observed=observers.is_asked,
        )
        observers.publish(done.targets)
        if done.version:
            self.unit.set_workload_version(done.version)
            self._tell_containerds_charm(done.config_path)
            if options.gpu_mode == "none":  # what a GPU is like shows in more than files
                unchanged.keep(
                    witness,
                    self._asked,
                    {"version": done.version, "handlers": done.handlers, "notes": done.notes},
                )
        return done

    def _tell_containerds_charm(self, config_path: str) -> None:
        """Tell no more than stays as it is: the containerd charm may ask once."""
        from charms.kata.v0 import untrusted_container_runtime as untrusted

        from kata.containerd import config, sections
        from kata.release import release

        handler = untrusted.Handler(
            runtime_type=config.RUNTIME_TYPE,
            runtime_path=release.SHIM_LINK,
            config_path=config_path,
            annotations=tuple(sections.ANNOTATIONS),
        )
        # The containerd charm makes the name of the shim of it: no other than kata will do.
        runtime = untrusted.Runtime("kata", release.SHIM_LINK, handler)
        untrusted.RuntimeRequirer(self).publish(runtime)

    def _ensure_labels(self, found: report.Report) -> None:
        """Label this machine's node in the cluster as far as it is ready."""
        from kata.cluster import node_labels

        if not found.version:
            return
        wanted = bool(self.config["label-nodes"])
        labels = {
            node_labels.READY: "true" if wanted else None,
            node_labels.GPU: "true" if wanted and found.gpus else None,
        }
        with self.control_plane.server() as server:
            if server:
                node_labels.ensure(server, self.node, labels)

    def _ensure_runtime_classes(self) -> ops.StatusBase:
        """Make the RuntimeClasses, which are the leader's, and tell of them."""
        from kata import handlers, settings, workload
        from kata.cluster import runtime_classes

        options = settings.read(self.config)
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

    def _tell_exporter(self) -> None:
        """Leave for the exporter what it cannot see itself."""
        from kata.observability import telling

        wrong = [
            each.message
            for each in (*self._unit_statuses, *self._app_statuses)
            if not isinstance(each, ops.ActiveStatus)
        ]
        telling.tell(self.node, self._worked_with, self.control_plane.server, "; ".join(wrong))

    def _on_secret_changed(self, event: ops.SecretChangedEvent) -> None:
        with self._collected(self._unit_statuses):
            self.control_plane.forget()
        self._reconcile(event)

    # Going

    def _on_departed(self, event: ops.RelationDepartedEvent) -> None:
        """Leave the cluster while the credentials still count, if it is this unit that goes."""
        if event.departing_unit == self.unit:
            self._leave_cluster()

    def _on_stop(self, _: ops.StopEvent) -> None:
        """Leave the cluster and then the machine, unless another unit goes on there."""
        from kata import settings, workload

        self._leave_cluster()
        try:
            self.control_plane.forget()  # first: its folder goes with the machine's part
            following = tenancy.leave(self.node, self.unit.name)
        except (problems.Problem, OSError) as problem:
            log.warning("all is left on the machine: %s", problem)
            return
        if following is None:
            options = None
            with contextlib.suppress(problems.Problem):
                options = settings.read(self.config)
            workload.remove(self.node, options)

    def _leave_cluster(self) -> None:
        """Take the label off before Kata goes, and the RuntimeClasses with the application.

        A control plane that does not answer does not keep the unit from going.
        """
        from kata.cluster import node_labels, runtime_classes

        try:
            access = self.control_plane.last_access()
            last = self.unit.is_leader() and self.app.planned_units() == 0
            if not access or not (last or tenancy.is_alone(self.node, self.unit.name)):
                return
            with self.control_plane.server(access) as server:
                if server and tenancy.is_alone(self.node, self.unit.name):
                    gone = {node_labels.READY: None, node_labels.GPU: None}
                    node_labels.ensure(server, self.node, gone)
                if server and last:
                    runtime_classes.remove_runtime_classes(server, self._owner)
        except (problems.Problem, OSError) as problem:
            log.warning("labels or RuntimeClasses may be left in the cluster: %s", problem)

    # Answering

    def _observe_actions(self) -> None:
        """Have the actions answered; no hook pays for importing what answers them."""
        import actions
        import gpu_actions
        from kata import settings, workload
        from kata.release import release

        def installed(options: settings.Settings) -> "gpu_configuration.Installed | None":
            found = release.installed(self.node)
            return workload.for_gpus(self.node, options, found) if found else None

        self.sandbox_actions = actions.SandboxActions(self, self.node, self.control_plane.server)
        self.gpu_actions = gpu_actions.GpuActions(self, self.node, installed, self._fetched)

    # What Juju knows

    @functools.cached_property
    def control_plane(self) -> "control_plane.Requirer":
        """Our end of kube-control."""
        import control_plane

        return control_plane.Requirer(self, self.node)

    @property
    def _asked(self) -> str:
        """All options, in a form that can be compared."""
        return json.dumps(dict(self.config), sort_keys=True)

    @property
    def _owner(self) -> "runtime_classes.Owner":
        from kata.cluster import runtime_classes

        return runtime_classes.Owner(self.app.name, self.model.uuid)

    def _attached(self, options: "settings.Settings") -> dict[str, pathlib.Path]:
        """Return the files of the resources that are attached and not empty, as far as needed."""
        names = RESOURCES if options.gpu_mode == "none" else RESOURCES + GPU_RESOURCES
        found = {name: self._fetched(name) for name in names}
        return {name: path for name, path in found.items() if path}

    def _fetched(self, name: str) -> pathlib.Path | None:
        """Return a resource's file; None where none is attached, or an empty one."""
        # Juju's word for a resource that nobody has attached is an error.
        with contextlib.suppress(ops.ModelError):
            path = self.model.resources.fetch(name)
            if path.stat().st_size:
                return path
        return None

    def _show_progress(self, words: str) -> None:
        self.unit.status = ops.MaintenanceStatus(words)

    @contextlib.contextmanager
    def _collected(self, statuses: list[ops.StatusBase]) -> Generator[None]:
        """Turn what stops a piece of work into a status, so that the others go on."""
        try:
            yield
        except problems.Waiting as problem:
            status = ops.WaitingStatus(str(problem))
        except problems.Problem as problem:
            status = ops.BlockedStatus(str(problem))
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            status = ops.BlockedStatus(f"the machine refused: {what}")
        else:
            return
        # The same may stop several pieces of work, and each line of Juju's log is a process.
        if status not in (*self._unit_statuses, *self._app_statuses):
            level = logging.INFO if isinstance(status, ops.WaitingStatus) else logging.WARNING
            log.log(level, "%s", status.message)
        statuses.append(status)

    def _on_collect_unit_status(self, event: ops.CollectStatusEvent) -> None:
        for status in self._unit_statuses:
            event.add_status(status)

    def _on_collect_app_status(self, event: ops.CollectStatusEvent) -> None:
        for status in self._app_statuses:
            event.add_status(status)


def _pass_proxies_on() -> None:
    """Let downloads use the model's proxies: Juju hands them to charms under names of its own."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        if value := os.environ.get(f"JUJU_CHARM_{name}"):
            os.environ.setdefault(name.lower(), value)


if __name__ == "__main__":
    ops.main(KataCharm)
