"""The charm's options, checked: what the operator asked for, before anything looks at the node.

Each option has one row in `OPTIONS`: how its value is read and what is expected of it. A value
that does not fit never gets further than here.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from kata import problems

Shim = Literal["auto", "go", "rust"]
GpuMode = Literal["none", "passthrough", "vgpu"]

HYPERVISORS = ("qemu", "clh", "dragonball", "fc")
# The handler that containerd uses for pods annotated io.kubernetes.cri.untrusted-workload
# (containerd, internal/cri/server/sandbox_run.go, every release to date).
UNTRUSTED = "untrusted"

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[0-9A-Za-z.+:~-]+)?")
_QUANTITY = re.compile(r"([0-9]+(\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"https?://[^\s\"'<>\\^`|]+")
# A name and a password in an address: what would be shown in a status is read by many.
_IN_CONFIDENCE = re.compile(r"//[^/\s]*@")
_PLACEHOLDER = re.compile(r"\{(version|arch|name)\}")
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.@-]+")
_ABSOLUTE = re.compile(r"(/[A-Za-z0-9_.@+:-]+)+")
_ANNOTATION = re.compile(r"[A-Za-z0-9_.*+?()|\[\]^$-]+")
_SHORT_BDF = re.compile(r"[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]")
_BDF = re.compile(rf"[0-9a-f]{{4,8}}:{_SHORT_BDF.pattern}")
_PCI_IDS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
_VGPU_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")


class BadOption(problems.Blocked):
    """An option's value does not fit; the message names both and what would do."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        shown = _IN_CONFIDENCE.sub("//…@", repr(value))
        shown = shown if len(shown) <= 48 else f"{shown[:44]}…"
        super().__init__(f"option {option}={shown}: expected {expected}; set it with juju config")
        self.option = option


def _one_of(*words: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in words:
            raise ValueError
        return value

    return read


def _matching(pattern: re.Pattern[str], *, also: tuple[str, ...] = ()) -> Callable[[str], str]:
    def read(value: str) -> str:
        value = value.strip()
        if value not in also and not pattern.fullmatch(value):
            raise ValueError
        return value

    return read


def _words(pattern: re.Pattern[str]) -> Callable[[str], tuple[str, ...]]:
    def read(value: str) -> tuple[str, ...]:
        words = tuple(re.split(r"[\s,]+", value.strip(" \t\n,"))) if value.strip(" \t\n,") else ()
        if not all(pattern.fullmatch(word) for word in words):
            raise ValueError
        return words

    return read


def _annotations(value: str) -> tuple[str, ...]:
    words = _words(_ANNOTATION)(value)
    try:
        for word in words:
            re.compile(word)  # Kata takes each as a regular expression
    except re.error:
        raise ValueError from None
    return words


def _between(low: int, high: int) -> Callable[[int], int]:
    def read(value: int) -> int:
        if not low <= value <= high:
            raise ValueError
        return value

    return read


def _url(value: str) -> str:
    value = value.strip()
    plain = _PLACEHOLDER.sub("x", value)
    if value and (not _URL.fullmatch(plain) or set(plain) & set("{}")):
        raise ValueError
    if _IN_CONFIDENCE.search(plain):  # which no request of ours would use
        raise ValueError
    return value


def _classes(value: str) -> tuple[tuple[str, str], ...]:
    classes: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in value.split(","))):
        name, equals, hypervisor = (part.strip() for part in item.partition("="))
        fits = _DNS_LABEL.fullmatch(name) and equals and hypervisor in HYPERVISORS
        if not fits or name in classes or name in (UNTRUSTED, "runc"):
            raise ValueError
        classes[name] = hypervisor
    return tuple(classes.items())


def _class_name(value: str) -> str:
    if not _DNS_LABEL.fullmatch(value) or value in (UNTRUSTED, "runc"):
        raise ValueError
    return value


def _gpu_devices(value: str) -> tuple[str, ...]:
    words = _words(re.compile(r"\S+"))(value.lower())
    if words == ("all",):
        return words
    # lspci leaves the domain out where there is only one.
    named = [f"0000:{word}" if _SHORT_BDF.fullmatch(word) else word for word in words]
    if not named or not all(_BDF.fullmatch(w) or _PCI_IDS.fullmatch(w) for w in named):
        raise ValueError
    return tuple(dict.fromkeys(named))


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError
    return value


def _flag(value: bool) -> bool:
    return value


@dataclasses.dataclass(frozen=True)
class _Option:
    type: type
    read: Callable[[Any], Any]
    expected: str


_NAME = (
    "a lowercase name of letters, digits and dashes, at most 63, and neither untrusted nor runc"
)
_SIZE = "auto or a Kubernetes quantity such as {}"
_PATH = "auto or an absolute path"

# One row an option: its type in charmcraft.yaml, how it is read, and what to say if it does not fit.
OPTIONS: Mapping[str, _Option] = {
    "kata-version": _Option(str, _matching(_VERSION), "a release such as 4.1.0"),
    "shim": _Option(str, _one_of("auto", "go", "rust"), "auto, go or rust"),
    "hypervisor": _Option(str, _one_of(*HYPERVISORS), "one of " + ", ".join(HYPERVISORS)),
    "archive-url": _Option(
        str,
        _url,
        "an http or https address without a password; {version}, {arch} and {name} are filled in",
    ),
    "archive-sha256": _Option(
        str, _matching(_SHA256, also=("",)), "64 lowercase hexadecimal digits, or nothing"
    ),
    "package-source": _Option(
        str,
        _matching(re.compile(r"[^\n\r\0]*")),
        "one line as add-apt-repository takes it, or nothing",
    ),
    "package-key": _Option(str, _text, "a key in ASCII armour or its id, or nothing"),
    "packages": _Option(str, _words(_PACKAGE), "package names, separated by spaces or commas"),
    "runtime-class": _Option(str, _class_name, _NAME),
    "extra-runtime-classes": _Option(
        str, _classes, "name=hypervisor pairs such as kata-clh=clh, each name once"
    ),
    "snapshotter": _Option(
        str, _matching(_DNS_LABEL, also=("",)), "a containerd snapshotter such as devmapper"
    ),
    "untrusted-annotation": _Option(bool, _flag, "true or false"),
    "overhead-memory": _Option(str, _matching(_QUANTITY, also=("auto",)), _SIZE.format("320Mi")),
    "overhead-cpu": _Option(str, _matching(_QUANTITY, also=("auto",)), _SIZE.format("250m")),
    "label-nodes": _Option(bool, _flag, "true or false"),
    "default-vcpus": _Option(int, _between(0, 1024), "a number from 0 to 1024"),
    "default-memory": _Option(
        int,
        lambda value: value if value == 0 else _between(128, 1 << 24)(value),
        "0, or from 128 to 16777216 (MiB)",
    ),
    "enable-annotations": _Option(
        str, _annotations, "annotation names after io.katacontainers.config.hypervisor."
    ),
    "debug-console": _Option(bool, _flag, "true or false"),
    "kata-config": _Option(str, _text, "TOML to lay over Kata's configuration"),
    "containerd-config": _Option(str, _matching(_ABSOLUTE, also=("auto",)), _PATH),
    "containerd-service": _Option(
        str, _matching(_UNIT_NAME), "auto or a systemd unit such as containerd"
    ),
    "gpu-mode": _Option(str, _one_of("none", "passthrough", "vgpu"), "none, passthrough or vgpu"),
    "gpu-plug": _Option(str, _one_of("auto", "pci", "pcie", "cold"), "auto, pci, pcie or cold"),
    "gpu-devices": _Option(
        str, _gpu_devices, "all, or BDFs such as 0000:04:00.0, or ids such as 10de:15f8"
    ),
    "gpu-runtime-class": _Option(str, _class_name, _NAME),
    "gpu-guest-kernel": _Option(str, _matching(_ABSOLUTE, also=("auto",)), _PATH),
    "gpu-guest-image": _Option(str, _matching(_ABSOLUTE, also=("auto",)), _PATH),
    "gpu-prepare-host": _Option(bool, _flag, "true or false"),
    "vgpu-type": _Option(
        str, _matching(_VGPU_TYPE, also=("",)), "a type id such as nvidia-105, or its name"
    ),
    "vgpu-count": _Option(int, _between(0, 256), "a number from 0 to 256"),
    "metrics-port": _Option(int, _between(1024, 65534), "a port from 1024 to 65534"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the operator asked for. Each field is the option of that name, dashes as underscores."""

    kata_version: str
    shim: Shim
    hypervisor: str
    archive_url: str
    archive_sha256: str
    package_source: str
    package_key: str
    packages: tuple[str, ...]
    runtime_class: str
    extra_runtime_classes: tuple[tuple[str, str], ...]
    """Pairs of a class name and its hypervisor."""
    snapshotter: str
    untrusted_annotation: bool
    overhead_memory: str
    overhead_cpu: str
    label_nodes: bool
    default_vcpus: int
    default_memory: int
    """In MiB; 0 stands for the release's own."""
    enable_annotations: tuple[str, ...]
    debug_console: bool
    kata_config: str
    containerd_config: str
    containerd_service: str
    gpu_mode: GpuMode
    gpu_plug: str
    gpu_devices: tuple[str, ...]
    gpu_runtime_class: str
    gpu_guest_kernel: str
    gpu_guest_image: str
    gpu_prepare_host: bool
    vgpu_type: str
    vgpu_count: int
    metrics_port: int


def read(config: Mapping[str, object]) -> Settings:
    """Check the charm's configuration as Juju hands it over.

    Args:
        config: every option by its name in charmcraft.yaml.

    Raises:
        BadOption: the first option, in the order of `OPTIONS`, whose value does not fit.
    """
    values: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        value = config.get(name)
        # bool is an int for Python, but true is no number of vCPUs.
        if type(value) is not option.type:
            raise BadOption(name, value, option.expected)
        try:
            values[name.replace("-", "_")] = option.read(value)
        except ValueError:
            raise BadOption(name, value, option.expected) from None
    settings = Settings(**values)
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    """Refuse values that fit one by one and not together."""
    for name, _ in settings.extra_runtime_classes:
        if name == settings.runtime_class:
            raise BadOption(
                "extra-runtime-classes", name, f"names other than runtime-class ({name})"
            )
        if settings.gpu_mode != "none" and name == settings.gpu_runtime_class:
            raise BadOption("gpu-runtime-class", name, "a name that extra-runtime-classes lacks")
    if settings.archive_url.startswith("http:") and not settings.archive_sha256:
        raise BadOption(
            "archive-url", settings.archive_url, "https, or archive-sha256 set beside it"
        )
    if (settings.package_source or settings.package_key) and not settings.packages:
        raise BadOption("packages", "", "the packages to install from package-source")
    if settings.gpu_mode == "vgpu" and not settings.vgpu_type:
        raise BadOption("vgpu-type", "", "the vGPU type to create, such as nvidia-105")
