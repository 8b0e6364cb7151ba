"""What a handler's configuration.toml says: the shipped file's text, and what the options change.

Pure: the files are the business of `configuration`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from kata import problems, settings
from kata.configuration import keys, toml_changes

_ANNOTATION_PREFIX = "io.katacontainers.config.hypervisor."


@dataclasses.dataclass(frozen=True)
class Extra:
    """What a handler's configuration has beyond the options that all handlers share.

    Attributes:
        keys: values by table, such as `hypervisor.qemu`, and key; None takes the key out.
        kernel_params: added to the guest kernel's parameters.
        shipped: another shipped file to start from; empty for that of the handler's hypervisor.
    """

    keys: Mapping[tuple[str, str], Any] = dataclasses.field(
        default_factory=dict[tuple[str, str], Any]
    )
    kernel_params: tuple[str, ...] = ()
    shipped: str = ""


def render(
    shipped: str,
    known: keys.Known,
    options: settings.Settings,
    laid: Mapping[keys.Path, Any],
    extra: Extra | None = None,
) -> str:
    """Return a shipped configuration file with what the options ask for.

    Args:
        shipped: its text.
        known: what its release and shim know.
        options: the charm's, kata-config aside.
        laid: kata-config, by `overlay.settings_of`.
        extra: the handler's own settings.

    Raises:
        Blocked: an option does not fit the release.
    """
    extra = extra or Extra()
    own = ("hypervisor", known.hypervisor())
    changes, kernel_params = _asked(options, known)
    for (table, key), value in extra.keys.items():
        place = own if table.startswith("hypervisor.") else tuple(table.split("."))
        changes[(*place, key)] = value
    changes |= laid
    _check_guest(known, changes, own)
    added = (*kernel_params, *extra.kernel_params)
    if added:
        path = (*own, "kernel_params")
        changes[path] = _joined(str(_result(known, changes, path) or ""), added)
    try:
        return toml_changes.apply(shipped, changes, known.mentioned)
    except toml_changes.DoesNotFit as error:
        words = " ".join(str(error).split())
        raise problems.Blocked(
            f"Kata's own configuration cannot take what the options ask for: {words}; "
            "check kata-config"
        ) from error


def _asked(
    options: settings.Settings, known: keys.Known
) -> tuple[dict[keys.Path, Any], tuple[str, ...]]:
    """Return the keys that the options ask for, and parameters for the guest's kernel."""
    annotations = [each.removeprefix(_ANNOTATION_PREFIX) for each in options.enable_annotations]
    changes: dict[keys.Path, Any] = {}
    for key, value in (
        ("default_vcpus", options.default_vcpus),
        ("default_memory", options.default_memory),
        ("enable_annotations", annotations),
    ):
        path = ("hypervisor", known.hypervisor(), key)
        if value and path not in known:
            version = ".".join(map(str, known.number))
            raise problems.Blocked(
                f"option {key.replace('_', '-')}: Kata {version} has no such setting; clear it, "
                "or choose a later kata-version"
            )
        if value:
            changes[path] = value
    if not options.debug_console:
        return changes, ()
    console = ("agent", "kata", "debug_console_enabled")
    if console in known:
        return {**changes, console: True}, ()
    # Kata 1.x has no key for it, only the agent's parameter (kata-containers/agent, config.go).
    return changes, ("agent.debug_console",)


def _check_guest(
    known: keys.Known, changes: Mapping[keys.Path, Any], own: tuple[str, str]
) -> None:
    """Refuse two root file systems: every release of Kata does, for each pod."""
    paths = ((*own, "image"), (*own, "initrd"))
    touched = any(path in changes for path in paths)
    if touched and all(_result(known, changes, path) for path in paths):
        raise problems.Blocked(
            "option kata-config: image and initrd are both set, and Kata takes one of them; "
            'set the other to ""'
        )


def _result(known: keys.Known, changes: Mapping[keys.Path, Any], path: keys.Path) -> Any:
    """Return the value that a key will have."""
    if path in changes:
        return changes[path]
    mention = known.mentioned.get(path)
    return known.example(path) if mention and mention.live else None


def _joined(before: str, added: Iterable[str]) -> str:
    words = before.split()
    return " ".join(
        (before, *(word for word in dict.fromkeys(added) if word not in words))
    ).strip()
