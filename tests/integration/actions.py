"""What each action answers where all is well, beside a sandbox of a pod called `seen`."""

from collections.abc import Mapping

# An action: its parameters, the result that tells, and words that must be in that result.
ACTIONS: Mapping[str, tuple[Mapping[str, str], str, str]] = {
    "list-sandboxes": ({}, "table", "default/seen"),
    "inspect-sandbox": ({"pod": "default/seen"}, "picture", "virtual machine qemu, pid "),
    "console-command": ({"pod": "default/seen"}, "detail", "debug-console=true"),
    "verify-sandbox": ({"timeout": "600"}, "verified", "true"),
    "check-host": ({}, "ready", "true"),
    "diagnose": ({}, "count", ""),
    "show-config": ({}, "handlers", "runtimes.kata"),
    "check-gpu": ({}, "report", ""),
    "list-vgpus": ({}, "report", "no vGPU types"),
}
