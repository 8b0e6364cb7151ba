#!/usr/bin/env python3
"""A charm that does nothing but answer."""

import logging

import ops

log = logging.getLogger(__name__)


class EmptyCharm(ops.CharmBase):
    """Greets its partner and repeats what an action gives it."""

    def __init__(self, framework: ops.Framework):
        super().__init__(framework)
        framework.observe(self.on.collect_unit_status, self._collect_status)
        framework.observe(self.on["partner"].relation_changed, self._greet)
        framework.observe(self.on["echo"].action, self._echo)

    def _collect_status(self, event: ops.CollectStatusEvent) -> None:
        event.add_status(ops.ActiveStatus(str(self.config["greeting"])))

    def _greet(self, event: ops.RelationChangedEvent) -> None:
        log.info("met %s", event.relation.app.name)
        event.relation.data[self.unit]["greeting"] = str(self.config["greeting"])
        self.unit.set_workload_version("1.0")

    def _echo(self, event: ops.ActionEvent) -> None:
        event.log("listening")
        if event.params["fail"]:
            event.fail(event.params["word"])
        else:
            event.set_results({"word": event.params["word"]})


if __name__ == "__main__":
    ops.main(EmptyCharm)
