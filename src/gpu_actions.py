"""The actions on GPUs: check-gpu and list-vgpus. They look and change nothing."""

import dataclasses
import pathlib
from collections.abc import Callable

import ops

import answers
from kata import problems, settings
from kata.gpu import configuration as gpu_configuration
from kata.machine import node as kata_node


class GpuActions(ops.Object):
    """Answers what is asked about the GPUs of the machine.

    Args:
        charm: the charm that has the actions.
        node: its machine.
        installed: tells the installed release for these options; None where there is none.
        attached: tells the file of a resource by its name; None where none is attached.
    """

    def __init__(
        self,
        charm: ops.CharmBase,
        node: kata_node.Node,
        installed: Callable[[settings.Settings], gpu_configuration.Installed | None],
        attached: Callable[[str], pathlib.Path | None],
    ) -> None:
        super().__init__(charm, "gpu-actions")
        self._charm = charm
        self._node = node
        self._installed = installed
        self._attached = attached
        self.framework.observe(charm.on.check_gpu_action, self._check_gpu)
        self.framework.observe(charm.on.list_vgpus_action, self._list_vgpus)

    def _check_gpu(self, event: ops.ActionEvent) -> None:
        from kata.gpu import check as gpu_check
        from kata.gpu import report as gpu_report

        with answers.answering(event):
            wanted = settings.read(self._charm.config)
            try:
                installed = self._installed(wanted)
            except problems.Problem as problem:
                event.log(str(problem))
                installed = None
            report = gpu_check.look(self._node, wanted, installed, self._attached("guest-kernel"))
            answers.give(
                self._node,
                event,
                {
                    "ready": str(report.ready).lower(),
                    "report": gpu_report.words(report),
                    "gpus": [gpu.data() for gpu in report.gpus],
                    "checks": [dataclasses.asdict(each) for each in report.findings],
                },
            )

    def _list_vgpus(self, event: ops.ActionEvent) -> None:
        from kata.gpu import mdev

        with answers.answering(event):
            types, instances = mdev.types(self._node), mdev.instances(self._node)
            lines = [
                f"{each.parent} {each.id} ({each.name}): {each.available} free; {each.description}"
                for each in types
            ]
            lines += [
                f"{each.uuid}: {each.type} of {each.parent}, /dev/vfio/{each.group}"
                for each in instances
            ]
            answers.give(
                self._node,
                event,
                {
                    "report": "\n".join(lines)
                    or "no vGPU types: NVIDIA's vGPU host driver is not loaded, or SR-IOV is off",
                    "types": [dataclasses.asdict(each) for each in types],
                    "instances": [dataclasses.asdict(each) for each in instances],
                },
            )
